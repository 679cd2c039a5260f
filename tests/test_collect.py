"""Trajectory sampling from end to end: what is written, resume, determinism, and what the statistics say."""

import base64
import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import tiny
from mvg_jax import config as configs
from mvg_jax.collection import chat_client
from mvg_jax.collection import run as program
from mvg_jax.collection.run import collect
from mvg_jax.collection.samplers import RolloutSampler
from mvg_jax.collection.select import table
from mvg_jax.collection.store import read
from mvg_jax.data.task import Turn
from mvg_jax.errors import RunError
from mvg_jax.experiment import outline
from mvg_jax.rollout.policies import ScriptedPolicy
from tests.chat_server import Server, completion, hang, no_server
from tests.processes import LIMIT, running, wait_until
from tests.tiny_world import zoom

ROOT = pathlib.Path(__file__).parent.parent


def config(seed=0, data=None, sft=None, **changes):
    """Six tasks of the phantom, two tries each, two tasks a shard."""
    values = tiny.get_config().to_dict()
    values["seed"] = seed
    values["rollout"] |= {"encode_batches": (16,), "observation_lengths": (48,)}
    values["data"] |= data or {}
    values["sft"] |= sft or {}
    filters = changes.pop("filters", {})
    values["collect"] |= {"tasks": 6, "samples": 2, "shard": 2, "prompts": 2} | changes
    values["collect"]["filters"] |= filters
    return configs.from_dict(values)


def files(folder):
    """Name -> content of all that a folder holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def expert(tmp_path_factory):
    out = tmp_path_factory.mktemp("collect") / "expert"
    return out, collect(config(), "expert", out)


def test_the_experts_trajectories_are_stored_and_counted(expert):
    out, statistics = expert
    assert set(files(out)) == {
        "00000.parquet", "collect.json", "statistics.json", *(f"sampled/0000{i}.parquet" for i in range(3)),
    }  # fmt: skip
    store = read(out)
    store.check()
    assert statistics["kept"] == len(store)
    assert statistics["sampled"] == statistics["correct"] == 12
    assert json.loads((out / "statistics.json").read_text()) == statistics
    assert sum(sum(row.values()) for row in statistics["counts"].values()) == 12
    assert sum(row.get("kept", 0) for row in statistics["counts"].values()) == len(store)
    for i in range(len(store)):
        episode = store.played(i)
        assert episode.terms["accuracy"] == 1.0
        assert (episode.source, episode.task.dataset) == ("expert", "phantom")
        assert episode.task.images[0].pixels.shape == (512, 512)
        assert bool(episode.task.chain) == (len(episode.records) == 2)
    text = (out / "collect.json").read_text() + json.dumps(statistics)
    assert str(out) not in text


def test_a_second_start_samples_nothing_and_writes_the_same(expert, monkeypatch):
    out, statistics = expert
    before = files(out)
    monkeypatch.setattr(RolloutSampler, "sample", None)
    assert collect(config(), "expert", out) == statistics
    assert files(out) == before


def test_the_same_seed_gives_the_same_bytes_after_an_interruption_between_and_within_shards(
    expert, tmp_path, monkeypatch
):
    out = tmp_path / "again"
    write, calls = program.write, []

    def interrupted(path, *arguments, **options):
        calls.append(path.name)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        write(path, *arguments, **options)

    monkeypatch.setattr(program, "write", interrupted)
    for names in (["00000.parquet"], ["00000.parquet", "00001.parquet"]):
        with pytest.raises(KeyboardInterrupt):
            collect(config(), "expert", out)
        assert sorted(p.name for p in (out / "sampled").iterdir()) == names
    collect(config(), "expert", out)
    assert calls == ["00000.parquet", *["00001.parquet"] * 2, *["00002.parquet"] * 2, "00000.parquet"]
    assert files(out) == files(expert[0])


def test_another_seed_gives_other_trajectories(expert, tmp_path):
    collect(config(seed=1), "expert", tmp_path / "w")
    assert (tmp_path / "w" / "00000.parquet").read_bytes() != (expert[0] / "00000.parquet").read_bytes()


def test_a_folder_belongs_to_one_config_but_for_the_balance(tmp_path):
    out = tmp_path / "w"
    everything = {"chains_per_task": -1}
    collect(config(filters=everything), "expert", out)
    sampled = {name: content for name, content in files(out).items() if name.startswith("sampled")}
    for other in (config(seed=1), config(samples=3), config(temperature=0.5), config(filters={"turns": 1})):
        with pytest.raises(RunError, match="another config"):
            collect(other, "expert", out)
    few = collect(config(filters=everything, keep=0.5), "expert", out)
    assert few["kept"] == len(read(out)) == 6
    assert sum(row.get("balance", 0) for row in few["counts"].values()) == 6
    label = max(few["tools"], key=few["tools"].get)
    one = collect(config(filters=everything, tools=(f"{label}=1",)), "expert", out)
    assert list(one["tools"]) == [label]
    capped = collect(config(filters=everything | {"chains_per_kind": 1}), "expert", out)
    assert sum(row.get("chains_per_kind", 0) for row in capped["counts"].values()) == 12 - capped["kept"] > 0
    assert {name: content for name, content in files(out).items() if name.startswith("sampled")} == sampled


def test_shards_of_an_earlier_choice_do_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "SHARD_ROWS", 4)
    everything = {"chains_per_task": -1}
    collect(config(filters=everything), "expert", tmp_path)
    assert len(read(tmp_path)) == 12
    assert (tmp_path / "00002.parquet").exists()
    collect(config(filters=everything, keep=0.25), "expert", tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.parquet")) == ["00000.parquet"]


def test_a_kill_at_any_moment_costs_one_shard(expert, tmp_path):
    out = tmp_path / "w"
    arguments = ["--expert", f"--out={out}", "--config.collect.tasks=6", "--config.collect.samples=2"]
    arguments += ["--config.collect.shard=2", "--config.collect.prompts=2", "--config.rollout.encode_batches=(16,)"]
    arguments += ["--config.rollout.observation_lengths=(48,)"]
    command = [sys.executable, "-m", "mvg_jax.collect", f"--config={ROOT}/configs/tiny.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with running(command, tmp_path / "log", env=environment) as first:
        wait_until((out / "sampled" / "00000.parquet").exists, first)
        first.kill()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "shard 1/3" not in done.stdout
    _, statistics = expert
    assert table(statistics["counts"]) in done.stdout
    assert f"{out}: {statistics['kept']} trajectories" in done.stdout
    assert files(out) == files(expert[0])


def test_ctrl_c_does_not_wait_for_an_endpoint_that_says_nothing(tmp_path):
    server = Server()
    server.script = [hang]
    arguments = [f"--out={tmp_path / 'w'}", f"--config.collect.endpoint.url={server.url}"]
    arguments += [f"--config.collect.endpoint.timeout={10 * LIMIT}"]
    command = [sys.executable, "-m", "mvg_jax.collect", f"--config={ROOT}/configs/tiny.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    try:
        with running(command, tmp_path / "log", env=environment) as process:
            wait_until(lambda: server.requests, process)
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT / 10) == 130
    finally:
        server.close()
    assert "stopped; the same command goes on" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "who speaks?"),
        (("--config.collect.endpoint.url={url}", "--config.collect.endpoint.retries=0"), "endpoint {url}: "),
    ],
    ids=["nobody", "an endpoint that is not there"],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, words):
    command = [sys.executable, "-m", "mvg_jax.collect", f"--config={ROOT}/configs/tiny.py", f"--out={tmp_path / 'w'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    with no_server() as url:
        command += [argument.format(url=url) for argument in arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)
        words = words.format(url=url)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert any(line.startswith("error: ") and words in line for line in done.stderr.splitlines())


def test_settings_that_make_no_sense_are_named(tmp_path):
    for changes, words in (
        ({"filters": {"redundant": 2.0}}, r"config\.collect\.filters\.redundant"),
        ({"keep": 0.0}, r"config\.collect: .*keep"),
        ({"samples": 0}, r"config\.collect: .*samples"),
        ({"endpoint": {"concurrency": 0}}, r"config\.collect\.endpoint"),
        ({"kinds": ("a",)}, r"config\.collect\.kinds 'a'"),
    ):
        with pytest.raises(RunError, match=words):
            collect(config(**changes), "expert", tmp_path / "w")
    assert not (tmp_path / "w").exists()


def small_sft(workdir, *arguments):
    """Two steps of stage sft on two trajectories each."""
    command = [sys.executable, "-m", "mvg_jax.train", f"--config={ROOT}/configs/tiny.py", f"--workdir={workdir}"]
    command += ["--config.stages=('sft',)", "--config.sft.steps=2", "--config.sft.prompts=2", "--config.sft.group=1"]
    command += ["--config.sft.learner.microbatches=1", "--config.sft.learner.suffix_lengths=(128,)"]
    command += ["--config.sft.learner.view_batches=(8,)", "--config.rollout.encode_batches=(16,)", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment)


def test_our_model_collects_and_sft_reads_it(tmp_path):
    """The embedded model on twelve tries; what is kept is replayed by stage sft through the environment."""
    out = tmp_path / "w"
    given = config(filters={"chains_per_task": -1, "needed": -1})
    statistics = collect(given, "model", out)
    assert statistics["sampled"] == 12
    assert 0 < statistics["kept"] <= statistics["correct"]
    again = collect(given, "model", tmp_path / "again")
    assert again == statistics
    assert files(tmp_path / "again") == files(out)
    taught = config(sft={"prompts": 2, "group": 1, "trajectories": f"{out}, {out}"})
    experiment = outline(taught)
    store, _ = experiment.tasks.demonstrations()
    assert len(store) == 2 * statistics["kept"]
    fitted = experiment.tasks.bucket.fit_demonstration(store[0])
    assert fitted.task.images[0].pixels.dtype == np.uint16
    assert small_sft(tmp_path / "run", f"--config.sft.trajectories={out}, {out}").returncode == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2]
    assert all(0 < record["loss"] < 1 for record in metrics), "its own answers cannot surprise the model"
    with pytest.raises(RunError, match=r"config\.sft\.group 2"):
        dataclasses.replace(
            experiment, config=dataclasses.replace(taught, sft=dataclasses.replace(taught.sft, group=2))
        ).sft_stage()
    small = outline(
        dataclasses.replace(experiment.config, rollout=dataclasses.replace(experiment.config.rollout, turn_tokens=3))
    )
    with pytest.raises(RunError, match=r"turn_tokens 3"):
        small.tasks.demonstrations()


def teacher(handler):
    """Zooms first, into an illegal box or not, and answers then, well-formed or not, as the seed of the request has it."""
    body = json.loads(handler.body)
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    if turn == 0:
        box = "[300, 300, 420, 420]" if body["seed"] % 2 else "[5, 5, 1, 1]"
        call = f'{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": {box}, "img_idx": 0}}}}'
        text = f"<think>closer</think><tool_call>{call}</tool_call>"
    else:
        text = "<think>seen</think><answer>left</answer>" if body["seed"] % 3 else "It is on the left."
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(completion(text))


def test_a_chat_endpoint_teaches_and_its_replies_are_not_asked_for_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    server = Server()
    server.script = [(500, {}, b""), teacher]
    endpoint = {"url": server.url, "model": "teacher", "key_variable": "TEACHER_KEY", "retries": 2, "concurrency": 2}
    loose = {"correct": -1, "needed": -1, "chains_per_task": -1}
    given = config(tasks=4, samples=4, endpoint=endpoint | {"view_size": 96}, filters=loose)
    try:
        monkeypatch.setattr(chat_client, "FIRST_WAIT", 0.01)
        statistics = collect(given, "endpoint", tmp_path)
        asked = len(server.requests)
        before = files(tmp_path)
        assert 32 < asked <= 4 * 4 * 3 + 1
        views = json.loads(server.requests[-1][2])["messages"][1]["content"]
        assert decoded(views[0]).shape == (96, 96, 3)
        # all that was sampled is lost, but for the replies
        for path in [*tmp_path.glob("sampled/*"), tmp_path / "00000.parquet", tmp_path / "statistics.json"]:
            path.unlink()
        assert collect(given, "endpoint", tmp_path) == statistics
        assert len(server.requests) == asked
        assert files(tmp_path) == before
    finally:
        server.close()
    assert statistics["sampled"] == 16
    reasons = {why for row in statistics["counts"].values() for why in row}
    assert {"kept", "errors"} <= reasons
    assert not any(b"s3cret" in content for content in before.values())
    store = read(tmp_path)
    for episode in map(store.played, range(len(store))):
        assert episode.source == "teacher"
        assert [record.turn.think for record in episode.records] == ["closer", "seen"]
        assert episode.texts == ("Zoomed view.", "")


def decoded(part):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1]))))


def test_what_nobody_knows_is_tried_without_tools(tmp_path, monkeypatch):
    """Tasks that say nothing: the expert guesses without tools, so a task needs them where most of its guesses are wrong."""
    open_sources = program.open_sources

    class Silent:
        def __init__(self, source):
            self.source = source

        def __getitem__(self, index):
            return dataclasses.replace(self.source[index], chain=None)

    def knowing(protocol, turn_tokens, decisions, seed):
        def script(task, sample, tools_on):
            told.add((task.id, sample, tools_on))
            answer = Turn("", task.answer if tools_on or task.id.endswith("0") else "no idea")
            return [zoom((100, 100, 300, 300)), answer] if tools_on else [answer]

        def speak(tasks, sample_B, tools_on):
            of = np.repeat(np.arange(len(tasks)), 2)
            scripts = [script(tasks[p], sample, tools_on) for p, sample in zip(of, sample_B, strict=True)]
            return ScriptedPolicy(protocol, scripts, turn_tokens)

        return speak

    told = set()
    monkeypatch.setattr(program, "open_sources", lambda e: [(Silent(s), i) for s, i in open_sources(e)])
    monkeypatch.setattr(program, "expert_speaks", knowing)
    statistics = collect(config(tasks=2, filters={"chains_per_task": -1}), "expert", tmp_path)
    assert sum(not tools_on for *_, tools_on in told) == 2 * 2
    assert statistics["measured_without_tools"] == 2
    assert statistics["measured_needed"] == 1
    store = read(tmp_path)
    assert {store.outline(i).task.id[-1] for i in range(len(store))} == {"1"}
    assert sum(row.get("needed", 0) for row in statistics["counts"].values()) == 2
    assert np.isfinite(statistics["tokens"])


def test_images_that_cannot_be_used_are_named_and_passed_over(tmp_path, monkeypatch):
    from mvg_jax.data.images import BadImage

    open_sources = program.open_sources

    class Broken:
        def __init__(self, source):
            self.source = source

        def __getitem__(self, index):
            if index == 1:
                raise BadImage("b.png: torn")
            return self.source[index]

    monkeypatch.setattr(program, "open_sources", lambda e: [(Broken(s), i) for s, i in open_sources(e)])
    statistics = collect(config(tasks=3), "expert", tmp_path)
    assert statistics["tasks"] == 2
    assert statistics["bad_images"] == ["b.png: torn"]


def test_images_that_the_evaluation_shows_are_no_source_of_trajectories(tmp_path):
    """Stage sft cannot see any more where a trajectory came from, so what training refuses is refused here."""
    rng = np.random.default_rng(0)
    (tmp_path / "folder").mkdir()
    for name in ("shared", "own"):
        Image.fromarray(rng.integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "folder" / f"{name}.png")
    line = lambda name: json.dumps(
        {"id": name, "images": [f"{name}.png"], "question": "left or right?", "answer": "left"}
    )
    (tmp_path / "folder" / "train.jsonl").write_text(f"{line('shared')}\n{line('own')}\n")
    (tmp_path / "folder" / "test.jsonl").write_text(f"{line('shared')}\n")

    def given(overlap):
        made = config(data={"sets": ("folder",), "root": str(tmp_path), "overlap": overlap, "first": 0})
        evaluation = dataclasses.replace(made.eval, sets=("folder:test",))
        return dataclasses.replace(made, eval=evaluation, rollout=dataclasses.replace(made.rollout, prompt_length=200))

    with pytest.raises(RunError, match=r"1 of 1 images of folder test are in folder train .*overlap=drop"):
        collect(given("refuse"), "expert", tmp_path / "w")
    places = lambda overlap: [
        [source[i].id for i in indices] for source, indices in program.open_sources(outline(given(overlap)))
    ]
    assert places("allow") == [["folder/shared", "folder/own"]]
    assert places("drop") == [["folder/own"]]
