import collections
import json

import numpy as np
import pytest

from mvg_jax.data.phantom import CONTROLS, THINKS, PhantomSource, expert, mixture
from mvg_jax.data.phantom.patterns import ATTRIBUTES
from mvg_jax.env.protocol import parse_turn, render_turn
from mvg_jax.tools import ImageInfo, ToolCall, default_registry


@pytest.fixture(scope="module")
def tasks():
    source = PhantomSource("train", 60)
    return [source[i] for i in range(60)]


def holds(call, boxes):
    """Whether each box lies in one of the call's zoom boxes, with half a pixel to spare."""
    at = call.arguments["bbox_2d"]
    at = at if isinstance(at[0], list) else [at]
    spare = 0.5 * 1000 / 512
    inner = [(z[0] + spare, z[1] + spare, z[2] - spare, z[3] - spare) for z in at]
    boxes = [box.xyxy for box in boxes]
    return [any(z[0] <= b[0] and z[1] <= b[1] and b[2] <= z[2] and b[3] <= z[3] for z in inner) for b in boxes]


def test_right_follows_the_minimal_chain_and_answers_truly(tasks):
    rng = np.random.default_rng(0)
    for task in tasks:
        turns = expert(task, rng, decision="right")
        assert turns[-1].action == task.answer
        assert len(turns) == len(task.chain) + 1
        for turn, call in zip(turns, task.chain, strict=False):
            assert turn.action.name == call.name
            if call.name == "image_zoom_in_tool":
                assert all(holds(call, task.boxes))
                assert all(holds(turn.action, task.boxes))
            else:
                assert turn.action == call


def test_who_compares_first_names_what_each_view_shows(tasks):
    rng = np.random.default_rng(0)
    compared = [task for task in tasks if task.kind == "compare"]
    assert len(compared) > 3
    for task in compared:
        first, second = expert(task, rng, decision="right")[-1].think.split(", ")
        assert (first in task.question, second in task.question) == (task.answer == "left", task.answer == "right")


def test_guesses_know_nothing(tasks):
    rng = np.random.default_rng(1)
    task = next(task for task in tasks if task.kind == "attribute")
    for decision in ("direct", "wrong_tool", "off_target"):
        said = collections.Counter(expert(task, rng, decision=decision)[-1].action for _ in range(400))
        assert set(said) == set(task.options)
        assert max(said.values()) < 140
    control = next(task for task in tasks if task.kind in CONTROLS)
    for decision in ("direct", "wrong_tool", "off_target", "needless"):
        turns = expert(control, rng, decision=decision)
        assert turns[-1].action == control.answer
        assert len(turns) == (1 if decision == "direct" else 2)


def test_wrong_calls_show_nothing_new(tasks):
    rng = np.random.default_rng(2)
    for task in tasks:
        off = expert(task, rng, decision="off_target")[0].action
        x1, y1, x2, y2 = off.arguments["bbox_2d"]
        assert all(x2 <= b.xyxy[0] or b.xyxy[2] <= x1 or y2 <= b.xyxy[1] or b.xyxy[3] <= y1 for b in task.boxes)
        if task.needs_tool:
            assert expert(task, rng, decision="wrong_tool")[0].action.name != task.chain[0].name


def test_every_turn_is_legal_wire_format(tasks):
    rng = np.random.default_rng(3)
    registry = default_registry(None)
    image = ImageInfo(height=512, width=512, unit="HU", window=(-160.0, 240.0))
    weights = {"direct": 1, "right": 1, "wrong_tool": 1, "off_target": 1, "needless": 1}
    seen = set()
    for task in tasks:
        for turn in mixture(task, rng, weights):
            assert parse_turn(render_turn(turn)) == turn
            if turn.think not in THINKS:
                assert task.kind == "compare"
                assert set(turn.think.split(", ")) <= set(ATTRIBUTES)
            seen.add(turn.think)
            if isinstance(turn.action, ToolCall):
                registry.parse(turn.action, [image])
                numbers = json.dumps(turn.action.arguments)
                assert "." not in numbers  # whole units: one token a number
    assert seen > set(THINKS)


def test_needless_is_for_controls_only(tasks):
    needing = next(task for task in tasks if task.needs_tool)
    with pytest.raises(ValueError, match="needless"):
        expert(needing, np.random.default_rng(0), decision="needless")
    with pytest.raises(ValueError, match="nonsense"):
        expert(needing, np.random.default_rng(0), decision="nonsense")
