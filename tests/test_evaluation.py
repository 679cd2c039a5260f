"""Evaluation plays the same whatever the batches and devices; benchmarks are read, checked and left out by name."""

import contextlib
import dataclasses
import functools
import json
import sys
import types

import jax
import numpy as np
import pytest

from configs import tiny
from mvg_jax import config as configs
from mvg_jax import evaluation
from mvg_jax.data.images import BadImage
from mvg_jax.data.records import DataSet, ReadReport, Record
from mvg_jax.data.task import AnswerType, NativeImage
from mvg_jax.env.rewards import accuracy, row_facts
from mvg_jax.errors import RunError
from mvg_jax.evaluation import Results, evaluate, evaluation_parts, open_benchmark, with_tools
from mvg_jax.experiment import Experiment, build
from mvg_jax.mesh import make_mesh
from mvg_jax.report import markdown, predictions
from mvg_jax.report.figures import figures
from tests import tiny_world

# ---- the same for any batch and any number of devices ------------------------------------------------------------------

TASKS, SAMPLES = 10, 2


def experiment(rows: int, **changes) -> tuple[Experiment, object]:
    """The shipped model; batches of so many rows."""
    config = tiny.get_config()
    config.eval.tasks, config.eval.prompts = TASKS, rows
    config.update(changes)
    return build(configs.from_dict(config.to_dict()))


@functools.cache
def written(rows: int, mesh: tuple[int, int, int] = (1, 1, 1)) -> dict[str, str]:
    """What is written of a sampled evaluation with batches of so many rows on a (data, fsdp, tensor) mesh."""
    shape = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    on = contextlib.nullcontext() if mesh == (1, 1, 1) else jax.set_mesh(make_mesh(shape))
    with on:
        made, params = experiment(rows)
        world, engine = evaluation_parts(made, SAMPLES)
        assert world.shapes.rows == rows
        benchmark = open_benchmark(made, "phantom")
        played = evaluate(world, engine, params, benchmark, temperature=1.0, seed=3, tools_on=True, benchmark="phantom")
    found = figures(played)
    return {
        "lines": "\n".join(map(predictions.to_json, played)),
        "json": json.dumps(found, allow_nan=False),
        "markdown": markdown.evaluation({}, found),
    }


def test_the_tasks_played_tell_layouts_apart():
    """Rows call and do not call, are right and wrong, and the two samples of a task differ: nothing is equal by being empty."""
    rows = [json.loads(line) for line in written(8)["lines"].splitlines()]
    assert [(row["id"][-2:], row["sample"]) for row in rows] == [
        (f"{t:02}", s) for t in range(TASKS) for s in range(SAMPLES)
    ]
    assert {len(row["calls"]) > 0 for row in rows} == {True, False}
    assert {row["scores"]["strict"]["accuracy"] for row in rows} == {0.0, 1.0}
    assert any(a["response"] != b["response"] for a, b in zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.parametrize(
    ("rows", "mesh"),
    [
        (16, (1, 1, 1)),  # the last batch holds 2 tasks and 6 repeats, instead of 2 and 2
        (16, (2, 4, 1)),
        (8, (2, 1, 2)),
    ],
)
def test_any_batch_and_any_devices_write_the_same_bytes(rows, mesh):
    assert written(rows, mesh) == written(8)


# ---- what a prediction says ----------------------------------------------------------------------------------------------


def test_predictions_agree_with_the_reward_and_with_what_was_played(monkeypatch):
    """The strict score is the accuracy that training is rewarded with; the counts are those of the trajectories."""
    seen, real = [], evaluation.rollout
    monkeypatch.setattr(evaluation, "rollout", lambda *args: seen.append(real(*args)) or seen[-1])
    made, params = experiment(8)
    world, engine = evaluation_parts(made, 1)
    benchmark = open_benchmark(made, "phantom", 8)
    played = evaluate(world, engine, params, benchmark, temperature=1.0, seed=3, tools_on=True, tools="on")
    ((trajectories, episodes),) = seen
    assert [p.correct for p in played] == [accuracy(facts) for facts in row_facts(episodes)]
    assert [p.tokens for p in played] == trajectories.loss_mask_BxL.sum(axis=1).tolist()
    assert [p.views for p in played] == trajectories.view_count_B.tolist()
    assert [p.answer for p in played] == list(episodes.answers)
    assert [p.turns for p in played] == [len(records) for records in episodes.records]
    assert all(p.response.endswith(f"<answer>{p.answer}</answer>") for p in played if p.answer is not None)
    results = Results.of(played)
    np.testing.assert_array_equal(results.stop, episodes.stop_B)
    np.testing.assert_array_equal(results.correct, [p.correct > 0 for p in played])
    assert results.summary()["accuracy"] == figures(played)[""]["tools"]["on"]["accuracy"]


def play_noise(count: int, prompts: int = 4, **options) -> tuple[predictions.Prediction, ...]:
    """Episodes of the untrained model, which never answers."""
    engine = tiny_world.engine(prompts, tiny_world.LETTERS)
    tasks = options.pop("tasks", [tiny_world.task(i) for i in range(count)])
    defaults = {"temperature": 1.0, "seed": 0, "tools_on": True}
    return evaluate(tiny_world.world(prompts), engine, tiny_world.model()[1], tasks, **(defaults | options))


def test_rows_that_never_answer_keep_their_last_words():
    played = play_noise(3)
    assert [(p.id, p.sample) for p in played] == [(f"noise/{i}", s) for i in range(3) for s in range(2)]
    assert all(p.answer is None and p.correct == 0 for p in played)
    assert {p.stop for p in played} <= {"MAX_TOKENS", "MAX_TURNS", "VOID"}
    assert len({p.response for p in played}) > 1
    assert not any("<|im_end|>" in p.response for p in played)
    assert any(p.malformed for p in played)


def test_of_one_token_or_the_tiniest_mass_the_likeliest_is_left():
    greedy = [p.response for p in play_noise(3, temperature=0.0)]
    assert [p.response for p in play_noise(3, top_k=1)] == [p.response for p in play_noise(3, top_p=1e-6)] == greedy
    assert [p.response for p in play_noise(3)] != greedy


def test_samples_stay_the_same_when_there_are_more_of_them_or_other_tasks():
    """Noise is named by task and sample: the first task's answers do not depend on what else is played."""
    few, many = play_noise(1), play_noise(5)
    assert few == many[:2]
    assert play_noise(5, seed=1) != many


class Torn(list):
    """Tasks, some of whose images cannot be used."""

    def __getitem__(self, index):
        if index in (1, 2, 4):
            raise BadImage(f"{index}.png: truncated")
        return super().__getitem__(index)


def test_tasks_with_unusable_images_are_left_out_and_named():
    tasks, lost = Torn(tiny_world.task(i) for i in range(6)), []
    played = play_noise(6, prompts=2, tasks=tasks, unreadable=lost)
    assert lost == ["1.png: truncated", "2.png: truncated", "4.png: truncated"]
    assert [p.id for p in played[::2]] == ["noise/0", "noise/3", "noise/5"]
    assert played == play_noise(3, prompts=2, tasks=[tiny_world.task(i) for i in (0, 3, 5)])
    with pytest.raises(BadImage, match=r"1\.png"):
        play_noise(6, prompts=2, tasks=tasks)
    assert play_noise(1, tasks=Torn([])) == ()


def test_a_world_can_offer_one_tool_alone():
    world = tiny_world.world(2)
    alone = with_tools(world, ("image_flip_tool",))
    assert alone.protocol.registry.names == ("image_flip_tool",)
    task = tiny_world.task(0)
    texts = [w.protocol.decode(w.protocol.prompt_ids(task, True)) for w in (world, alone)]
    assert ["zoom" in text for text in texts] == [True, False]
    assert all("flip" in text for text in texts)


def test_a_batch_has_as_many_rows_whatever_the_samples():
    made, _ = experiment(16)
    shapes = [evaluation_parts(made, k)[0].shapes for k in (1, 4, 5, 16)]
    assert [(s.prompts, s.group) for s in shapes] == [(16, 1), (4, 4), (3, 5), (1, 16)]
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2, "tensor": 1})):
        shapes = [evaluation_parts(made, k)[0].shapes for k in (2, 3, 8)]
    assert [s.prompts for s in shapes] == [8, 4, 4]


# ---- benchmarks ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Grey:
    """An image of one shade."""

    name: str

    def load(self) -> NativeImage:
        return NativeImage(np.full((20, 30), 7, np.uint8))


def record(i: int, **fields) -> Record:
    values = {
        "id": f"fake/{i}", "dataset": "vqa_rad", "split": "test", "kind": "POS", "images": (Grey(f"{i}.png"),), "question": "Side?",
        "answer": "left", "answer_type": AnswerType.CLOSED,
    }  # fmt: skip
    return Record(**(values | fields))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """An experiment whose data folder holds vqa_rad with splits test and dev, of 9 and 3 questions; and its records, to change."""
    held = {"test": [record(i) for i in range(9)], "dev": [record(i, split="dev") for i in range(20, 23)]}

    def read(files, split):
        report = ReadReport(f"vqa_rad {split}")
        report.rows = len(held[split])
        return DataSet("vqa_rad", split, tuple(held[split]), report)

    module = types.SimpleNamespace(SPLITS=("dev", "test"), read=read)
    monkeypatch.setitem(sys.modules, "mvg_jax.data.readers.vqa_rad", module)
    (tmp_path / "vqa_rad").mkdir()
    made, _ = experiment(8)
    config = dataclasses.replace(made.config, data=dataclasses.replace(made.config.data, root=str(tmp_path)))
    return dataclasses.replace(made, config=config), held


def test_a_benchmark_is_a_split_or_an_even_part_of_it(fake):
    made, held = fake
    ids = lambda benchmark: [int(task.id.removeprefix("fake/")) for task in benchmark]
    whole = open_benchmark(made, "vqa_rad")
    assert (whole.name, whole.split, ids(whole), whole.left_out) == ("vqa_rad", "test", list(range(9)), ())
    assert ids(open_benchmark(made, "vqa_rad", 3)) == [0, 3, 6]
    assert ids(open_benchmark(made, "vqa_rad:dev", 100)) == [20, 21, 22]
    assert whole[0].images[0].pixels.dtype == np.uint16, "fitted to the bucket"
    held["test"][0] = record(0, images=(Grey("a"), Grey("b")))
    assert open_benchmark(made, "vqa_rad").left_out == ("1 more than config.data.images",)


@pytest.mark.parametrize("name", ["phantom", "phantom_radiograph"])
def test_embedded_data_sets_never_end_so_the_config_says_how_many_tasks(name):
    made = experiment(8)[0]
    tasks = made.config.eval.tasks
    found = open_benchmark(made, f"{name}:test")
    assert (len(found), found.split) == (tasks, "test")
    assert open_benchmark(made, name).split == made.config.eval.split


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slake", "data set slake is not at .*slake"),
        ("vqa_rad:val", "vqa_rad has the splits dev, test, not 'val'"),
        ("bird", "data set 'bird': use one of"),
    ],
)
def test_a_benchmark_that_is_not_there_is_refused_by_name(fake, text, words):
    with pytest.raises(RunError, match=words):
        open_benchmark(fake[0], text)


def test_questions_that_cannot_be_scored_or_told_apart_are_refused_before_anything_is_played(fake):
    made, held = fake
    open_benchmark(made, "vqa_rad").check(("strict", "medevalkit"))
    held["test"][4] = record(4, options=("up", "down"))
    with pytest.raises(RunError, match="vqa_rad: question fake/4: strict: gold answer 'left' is none of the options"):
        open_benchmark(made, "vqa_rad").check(("strict",))
    held["test"][4] = record(3)
    with pytest.raises(RunError, match="vqa_rad: two questions have the id 'fake/3'"):
        open_benchmark(made, "vqa_rad").check(("strict",))


def test_an_empty_benchmark_is_refused(fake):
    made, held = fake
    held["test"].clear()
    with pytest.raises(RunError, match="vqa_rad holds nothing usable"):
        open_benchmark(made, "vqa_rad")
