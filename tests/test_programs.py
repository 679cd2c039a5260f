"""The programs as a user runs them: subprocesses on the shipped config, shrunk."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from mvg_jax.checkpoint import Checkpoints
from tests.processes import LIMIT, running, wait_until

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
    "--config.grpo.steps=4", "--config.rollout.prompts=2", "--config.rollout.group=4", "--config.eval.tasks=12",
    "--config.eval.prompts=4", "--config.checkpoint.every=1", "--config.rollout.encode_batches=(16,)",
    "--config.grpo.learner.view_batches=(24,)", "--config.grpo.learner.suffix_lengths=(128,)",
    "--config.rollout.observation_lengths=(48,)",
)  # fmt: skip


def command(program, *arguments, config="tiny.py", small=SMALL):
    return [
        sys.executable,
        "-m",
        f"mvg_jax.{program}",
        f"--config={ROOT}/configs/{config}",
        *small,
        *map(str, arguments),
    ]


def run(*arguments, **options):
    return subprocess.run(
        command("train", *arguments), capture_output=True, text=True, timeout=LIMIT, cwd=ROOT, **options
    )


def records(workdir):
    """The metrics of a run but for wall-clock times."""
    lines = (pathlib.Path(workdir) / "grpo" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    done = run(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir


def test_a_run_leaves_what_it_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    for key in (
        "accuracy/before",
        "accuracy/after",
        "accuracy/after_no_tools",
        "accuracy/after_all",
        "tool_rate/needed",
        "tool_rate/not_needed",
        "seconds",
        "compiles",
        "compiles_from_cache",
        "compile_seconds",
        "compiles_after_warmup",
        "logprob_gap_max",
    ):
        assert key in summary
    assert summary["compiles_after_warmup"] == 0
    assert summary["logprob_gap_max"] <= 1e-4
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (finished / "model").iterdir()}
    assert [record["step"] for record in records(finished)] == [1, 2, 3, 4]
    assert any(record["gradient_norm"] > 0 for record in records(finished)), "nothing was learnt from"


def test_the_same_seed_gives_the_same_run_after_sigkill_and_resume(finished, tmp_path):
    """Killed at no step in particular, then resumed: metrics and weights equal those of the uninterrupted run."""
    workdir = tmp_path / "w"
    metrics = workdir / "grpo" / "metrics.jsonl"
    with running(command("train", f"--workdir={workdir}"), tmp_path / "log", cwd=ROOT) as process:
        wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, process)
        process.kill()
    resumed = run(f"--workdir={workdir}", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "going on after step" in resumed.stdout
    assert records(workdir) == records(finished)
    for name in ("model.safetensors", "config.json"):
        assert (workdir / "model" / name).read_bytes() == (finished / "model" / name).read_bytes()
    was, now = (json.loads((w / "summary.json").read_text()) for w in (finished, workdir))
    # Of the clock, and of what the process itself had to compile, nothing is said.
    same = lambda summary: {
        k: v for k, v in summary.items() if k not in ("seconds", "compiles", "compiles_from_cache", "compile_seconds")
    }
    assert same(now) == same(was)


def interrupt(log, *arguments, after="\nstep "):
    """Ctrl-C when a training run has said this; what it said."""
    with running(command("train", *arguments), log, cwd=ROOT) as process:
        wait_until(lambda: after in log.read_text(), process)
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
    assert process.returncode == 130, log.read_text()[-2000:]
    return log.read_text()


def test_ctrl_c_saves_and_says_how_to_go_on_also_on_another_mesh(tmp_path):
    workdir = tmp_path / "w"
    said = interrupt(tmp_path / "first", f"--workdir={workdir}", "--config.grpo.steps=500")
    assert "--resume" in said
    assert any((workdir / "grpo" / "checkpoints").iterdir())
    again = run(
        f"--workdir={workdir}", "--config.grpo.steps=500", "--config.mesh.data=2", "--resume", "--config.seed=3"
    )
    assert "another config" in again.stderr
    said = interrupt(
        tmp_path / "again", f"--workdir={workdir}", "--config.grpo.steps=500", "--config.mesh.data=2", "--resume"
    )
    assert "going on after step" in said
    assert json.loads((workdir / "config.json").read_text())["mesh"]["data"] == 2


def test_ctrl_c_during_an_evaluation_keeps_it(tmp_path):
    workdir = tmp_path / "w"
    said = interrupt(tmp_path / "log", f"--workdir={workdir}", after="evaluate before: 12 tasks")
    assert "saved: evaluation before" in said
    assert "--resume" in said
    assert "compiling" not in said
    assert [path.name for path in (workdir / "grpo").rglob("*") if path.is_file()] == ["evaluation_before.json"]


def evaluate(*arguments, **options):
    command_ = [sys.executable, "-m", "mvg_jax.evaluate", *map(str, arguments)]
    return subprocess.run(command_, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT, **options)


def test_evaluate_reads_a_workdir_and_writes_json(finished, tmp_path):
    sampled = ("--tools=off,image_flip_tool", "--samples=2", "--config.eval.temperature=1.0", "--config.eval.top_p=0.9")
    for tools, more in ((("on",), ()), (("off", "image_flip_tool"), sampled), (("on",), ("--guided",))):
        out = tmp_path / "_".join(tools + more)
        done = subprocess.run(
            command("evaluate", f"--checkpoint={finished}", f"--out={out}", *more),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        written = json.loads((out / "evaluation.json").read_text())
        assert (written["run"]["top k"], written["run"]["top p"]) == (0, 0.9 if more == sampled else 1.0)
        found = written["benchmarks"]["phantom"]
        assert tuple(found["tools"]) == tools
        for figures in found["tools"].values():
            assert 0 <= figures["accuracy"] <= 1
        assert "tool choice" in done.stdout
        assert (out / "evaluation.md").read_text() in done.stdout
    again = evaluate(f"--rescore={out / 'predictions.jsonl'}", f"--out={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr[-2000:]
    kept = [json.loads((folder / "evaluation.json").read_text())["benchmarks"] for folder in (out, tmp_path / "again")]
    assert kept[0] == kept[1]
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "again" / "predictions.jsonl").read_bytes()


TINY = (f"--config={ROOT}/configs/tiny.py", "--checkpoint=asset:tiny_internvl")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--config and --checkpoint are needed",)),
        ((*TINY, "--samples=2"), ("--samples=2", "config.eval.temperature")),
        ((*TINY, "--config.compile_cache=/dev/null/x"), ("config.compile_cache /dev/null/x", "cannot be written")),
        ((*TINY, "--guided", "--tools=off"), ("--guided", "--tools")),
        ((*TINY, "--tools=scalpel"), ("--tools=scalpel", "image_zoom_in_tool")),
        ((*TINY, "--benchmarks=bird"), ("bird", "phantom", "vqa_rad")),
        (
            (*TINY, "--benchmarks=slake", "--data=/nonexistent"),
            ("slake is not at /nonexistent/slake", "config.data.root"),
        ),
        ((*TINY, "--benchmarks=phantom", "--protocol=bleurt"), ("bleurt", "strict")),
        ((*TINY, "--protocol=medxpertqa"), ("published for medxpertqa, not for phantom",)),
        (("--rescore=/nonexistent/p.jsonl",), ("cannot read /nonexistent/p.jsonl",)),
    ],
)
def test_what_evaluate_cannot_do_is_one_clear_line(arguments, words):
    done = evaluate(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert any(all(word in line for word in words) for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--config.grpo.stepz=1",), ("stepz",)),
        (("--config.model.checkpoint=/nonexistent/model",), ("/nonexistent/model",)),
        (("--config.data.size=0",), ("empty",)),
        (("--config.data.size=1",), ("1 tasks",)),
        (("--config.grpo.steps=0",), ("config.grpo.steps 0",)),
        (("--config.rollout.temperature=0.0",), ("config.rollout.temperature 0",)),
        (("--config.data.sets=('nothing',)",), ("nothing", "phantom")),
        (("--config.env.rewards.acuracy=1.0",), ("acuracy",)),
        (("--config.stages=('rl',)",), ("rl", "grpo")),
        (("--resume",), ("nothing to resume",)),
        (("--config.rollout.observation_lengths=(8,)",), ("observation_lengths",)),
        (("--config.rollout.decode_kernel=flash",), ("decode_kernel 'flash'", "pallas")),
        (
            ("--config.rollout.decode_kernel=pallas", "--config.rollout.decode_lengths=(8,)"),
            ("prompt_length", "less than 16"),
        ),
        (("--config.mesh.tensor=3",), ("config.mesh.tensor is 3", "4 query heads")),
        (("--config.mesh.data=3",), ("16", "multiples of", "3")),
        (("--config.mesh.fsdp=64",), ("needs 64 devices",)),
        (("--processes=2",), ("--coordinator",)),
        (("--coordinator=here", "--processes=2", "--process=0"), ("HOST:PORT",)),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, words):
    done = subprocess.run(
        command("train", f"--workdir={tmp_path / 'w'}", *arguments, small=()),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=ROOT,
    )
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    assert any(all(word in line for word in words) for line in message), done.stderr
    assert not (tmp_path / "w" / "config.json").exists()  # put right, the same command works


def test_a_workdir_belongs_to_one_config(finished):
    before = records(finished)
    again = run(f"--workdir={finished}")
    other = run(f"--workdir={finished}", "--config.seed=7", "--resume")
    assert again.returncode == other.returncode == 1
    assert "--resume" in again.stderr
    assert "another config" in other.stderr
    assert records(finished) == before


def test_no_space_left_keeps_earlier_checkpoints(tmp_path):
    """A limit on file size stands in for a full disk: the run ends with one line, and there is nothing torn to resume from."""
    workdir = tmp_path / "w"
    limited = ["bash", "-c", 'ulimit -f 1024; exec "$@"', "limited", *command("train", f"--workdir={workdir}")]
    done = subprocess.run(
        limited,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert last.startswith("error: cannot save step 1")
    assert last.endswith("(earlier checkpoints are untouched)")
    assert all(line.startswith("compiled ") for line in before), before[:20]
    assert Checkpoints(workdir / "grpo" / "checkpoints", keep=None).latest() is None
    Checkpoints(workdir / "grpo" / "checkpoints", keep=1)  # as --resume opens them: what was written late is gone
    assert not list((workdir / "grpo" / "checkpoints").glob("1*"))
