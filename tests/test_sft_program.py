"""Stage sft as a user runs it: trajectories of the expert, held-out loss, early stop, the best weights, kill and resume."""

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
CONFIG = f"--config={ROOT}/configs/tiny_ablation.py:sft"
# A learning rate that makes things worse: the first look is the best one.
SMALL = (
    "--config.sft.steps=9", "--config.sft.prompts=2", "--config.sft.validation=4", "--config.sft.validate_every=1",
    "--config.sft.patience=3", "--config.sft.pack_length=192", "--config.sft.optimizer.warmup_steps=0",
    "--config.sft.optimizer.learning_rate=0.01", "--config.sft.optimizer.schedule=constant", "--config.checkpoint.every=1",
    "--config.rollout.encode_batches=(16,)", "--config.rollout.observation_lengths=(48,)",
    "--config.sft.learner.suffix_lengths=(128,)", "--config.sft.learner.view_batches=(8,)",
)  # fmt: skip


def command(program, *arguments):
    given = (CONFIG, "--config.model.checkpoint=asset:tiny_internvl", *arguments)
    return [sys.executable, "-m", f"mvg_jax.{program}", *map(str, given)]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def run(program, *arguments):
    return subprocess.run(
        command(program, *arguments), capture_output=True, text=True, timeout=LIMIT, cwd=ROOT, env=ENVIRONMENT
    )


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """What the expert does with 12 tasks."""
    out = tmp_path_factory.mktemp("demonstrations") / "w"
    batches = "--config.rollout.encode_batches=(64,)"  # as many as sampling with these shapes may need
    done = run("collect", "--expert", f"--out={out}", "--config.collect.tasks=12", *SMALL, batches)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def finished(demonstrations, tmp_path_factory):
    """One uninterrupted run, and what it printed."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    done = run("train", f"--workdir={workdir}", f"--config.sft.trajectories={demonstrations}", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir, done.stdout


def records(workdir):
    lines = (workdir / "sft" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def summary(workdir):
    """Without the clock, and without what the stage, which compiles nothing beforehand, compiled on the way."""
    values = json.loads((workdir / "summary.json").read_text())
    return {name: value for name, value in values.items() if name != "seconds" and not name.startswith("compile")}


def test_it_stops_early_and_says_so(finished):
    workdir, said = finished
    losses = [record["validation/loss"] for record in records(workdir)]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 3 < 9
    assert summary(workdir) == {"stage": "sft", "steps": best + 3}
    assert "trajectories to imitate, 4 held out" in said
    assert f"held-out loss has not fallen since step {best}" in said
    assert Checkpoints(workdir / "sft" / "best", keep=None).steps() == (best,)
    assert Checkpoints(workdir / "sft" / "checkpoints", keep=None).latest() == best + 3


def test_the_weights_of_the_lowest_loss_come_out(finished, demonstrations, tmp_path):
    """They are those of a run that ends there, and looks at nothing."""
    workdir, _ = finished
    (best,) = Checkpoints(workdir / "sft" / "best", keep=None).steps()
    short = (f"--config.sft.steps={best}", f"--config.sft.validate_every={best}")
    done = run("train", f"--workdir={tmp_path}", f"--config.sft.trajectories={demonstrations}", *SMALL, *short)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (workdir, tmp_path)]
    assert weights[0] == weights[1]
    assert summary(tmp_path)["steps"] == best


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_stopped_and_resumed_it_equals_the_uninterrupted_run(finished, demonstrations, tmp_path, how):
    expected, _ = finished
    workdir, log = tmp_path / "w", tmp_path / "log"
    arguments = (f"--workdir={workdir}", f"--config.sft.trajectories={demonstrations}", *SMALL)
    with running(command("train", *arguments), log, cwd=ROOT, env=ENVIRONMENT) as process:
        if how == signal.SIGINT:  # before the first step, which it then ends at: after that, early stop is near
            wait_until(lambda: "trajectories to imitate" in log.read_text(), process)
        else:
            wait_until((workdir / "sft" / "checkpoints" / "1").exists, process)
        process.send_signal(how)
        assert process.wait(LIMIT) == (130 if how == signal.SIGINT else -how)
    resumed = run("train", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "going on after step" in resumed.stdout
    assert records(workdir) == records(expected)
    assert summary(workdir) == summary(expected)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (expected, workdir)]
    assert weights[0] == weights[1]


def test_a_finished_run_comes_to_the_same_once_more(finished):
    """It looks at nothing again: the stage is over, and its best weights are written."""
    workdir, _ = finished
    arguments = json.loads((workdir / "config.json").read_text())["sft"]["trajectories"]
    before = records(workdir), summary(workdir), (workdir / "model" / "model.safetensors").read_bytes()
    again = run("train", f"--workdir={workdir}", f"--config.sft.trajectories={arguments}", *SMALL, "--resume")
    assert again.returncode == 0, again.stderr[-2000:]
    assert (records(workdir), summary(workdir), (workdir / "model" / "model.safetensors").read_bytes()) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--config.sft.validation=12",), ("trajectories", "config.sft.validation 12", "leaves 0 to imitate")),
        (
            ("--config.sft.optimizer.learning_rate=1e38",),
            ("the run has diverged", "config.sft.optimizer.learning_rate"),
        ),
        (("--config.sft.validation=1",), ("at least one batch of config.sft.prompts 2",)),
    ],
    ids=["nothing is left to imitate", "diverged", "less than a batch is held out"],
)
def test_what_cannot_be_learnt_is_one_clear_line(demonstrations, tmp_path, changes, words):
    done = run("train", f"--workdir={tmp_path}", f"--config.sft.trajectories={demonstrations}", *SMALL, *changes)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert any(all(word in line for word in words) for line in done.stderr.splitlines()), done.stderr
