"""Reward terms and tool statistics, row by row."""

import math

import numpy as np
import pytest

from mvg_jax.data.task import AnswerType, Box, Turn
from mvg_jax.env.episode import Limits, Stop, reset, step
from mvg_jax.env.protocol import render_turn
from mvg_jax.env.rewards import TERMS, check_weights, compute_rewards, row_facts, tool_statistics
from mvg_jax.tools.spec import ToolCall

LIMITS = Limits(max_turns=3, max_images=4, max_errors=3)
ALL = {"accuracy": 1.0, "format": 0.1, "needless_call": -0.2, "error": -0.05}
RIGHT, WRONG = (render_turn(Turn("so", text)) for text in ("calcified", "septated"))


def call_text(name, **arguments):
    return render_turn(Turn("look", ToolCall(name, {**arguments, "img_idx": arguments.get("img_idx", 0)})))


def zoom_text(*boxes, image=0):
    boxes = [list(box) for box in boxes]
    return call_text("image_zoom_in_tool", bbox_2d=boxes[0] if len(boxes) == 1 else boxes, img_idx=image)


GOOD = zoom_text((380, 380, 520, 520))
FLIP = call_text("image_flip_tool", axis="horizontal")
BAD = zoom_text((9, 9, 1, 1))


@pytest.fixture
def play(protocol, tiny):
    def run(script, **fields):
        task = tiny.task(**fields)
        act, episodes = tiny.act([task]), reset([task], LIMITS)
        for text in script:
            episodes, _ = step(protocol, act, episodes, [text], tiny.width)
        return episodes

    return run


@pytest.mark.parametrize(
    ("script", "fields", "expected"),
    [
        ([RIGHT], {}, (1, 1, 0, 0)),
        ([WRONG], {}, (0, 1, 0, 0)),
        ([GOOD, RIGHT], {}, (1, 1, 0, 0)),
        ([GOOD, RIGHT], {"chain": ()}, (1, 1, 1, 0)),
        ([GOOD, FLIP, RIGHT], {"chain": ()}, (1, 1, 1, 0)),
        ([BAD, RIGHT], {"chain": ()}, (1, 1, 1, 1)),
        ([GOOD, RIGHT], {"chain": None}, (1, 1, 0, 0)),
        (["junk", RIGHT], {"chain": ()}, (1, 0, 0, 1)),
        ([BAD, BAD, RIGHT], {}, (1, 1, 0, 2)),
        ([GOOD, GOOD, GOOD], {}, (0, 0, 0, 0)),
        (["junk", "junk", "junk"], {}, (0, 0, 0, 3)),
        (["<answer>calcified</answer>"], {}, (0, 0, 0, 1)),
        ([render_turn(Turn("", "calcified or septated"))], {}, (0, 1, 0, 0)),
        ([render_turn(Turn("", "B"))], {}, (1, 1, 0, 0)),
    ],
)
def test_terms(play, script, fields, expected):
    total, terms = compute_rewards(ALL, play(script, **fields))
    assert {name: float(values[0]) for name, values in terms.items()} == dict(zip(ALL, expected, strict=True))
    assert total.dtype == np.float32
    assert total[0] == pytest.approx(sum(w * v for w, v in zip(ALL.values(), expected, strict=True)))


def test_only_weighted_terms_count(play):
    total, terms = compute_rewards({"format": 0.5}, play([GOOD, WRONG], chain=()))
    assert list(terms) == ["format"]
    assert total.tolist() == [0.5]
    assert compute_rewards({}, play([RIGHT]))[0].tolist() == [0.0]


@pytest.mark.parametrize(
    "weights", [{"tool": 1.0}, {"needless_call": 0.1}, {"error": 1.0}, {"accuracy": math.nan}, {"format": math.inf}]
)
def test_bad_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"reward terms|weight"):
        check_weights(weights)


def test_unknown_terms_are_answered_with_the_legal_ones(play):
    with pytest.raises(ValueError, match=r"accuracy.*error.*format.*needless_call"):
        compute_rewards({"accuraccy": 1.0}, play([RIGHT]))


def test_facts(play):
    (facts,) = row_facts(play([GOOD, RIGHT]))
    assert facts.stop is Stop.ANSWER
    assert facts.answer == "calcified"
    assert facts.records[0].call.name == "image_zoom_in_tool"
    assert facts.records[1].call is None
    assert set(TERMS) == set(ALL)


ZOOM, WINDOW = (ToolCall(name, {}) for name in ("image_zoom_in_tool", "window_level_tool"))


@pytest.mark.parametrize(
    ("script", "fields", "expected"),
    [
        # call, calls, error, tool_choice
        ([RIGHT], {}, (0, 0, 0, 0)),
        ([RIGHT], {"chain": ()}, (0, 0, 0, 1)),
        ([RIGHT], {"chain": None}, (0, 0, 0, math.nan)),
        ([GOOD, RIGHT], {}, (1, 1, 0, 1)),
        ([GOOD, RIGHT], {"chain": ()}, (1, 1, 0, 0)),
        ([FLIP, RIGHT], {}, (1, 1, 0, 0)),
        ([GOOD, FLIP, RIGHT], {}, (1, 2, 0, 1)),
        ([FLIP, GOOD, RIGHT], {}, (1, 2, 0, 0)),
        ([GOOD, RIGHT], {"chain": (ZOOM, WINDOW)}, (1, 1, 0, 0)),
        ([BAD, "junk", RIGHT], {}, (1, 1, 2 / 3, 1)),
    ],
)
def test_tool_statistics(play, script, fields, expected):
    statistics = tool_statistics(play(script, **fields))
    got = [float(statistics[name][0]) for name in ("call", "calls", "error", "tool_choice")]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("script", "hit"),
    [
        ([RIGHT], math.nan),
        ([FLIP, RIGHT], math.nan),
        ([BAD, RIGHT], math.nan),
        ([GOOD, RIGHT], 1),  # 140 units around the box of 100
        ([zoom_text((300, 300, 620, 620)), RIGHT], 1),  # shows the centre, three times magnified
        ([zoom_text((300, 300, 700, 700)), RIGHT], 0),  # too large
        ([zoom_text((0, 0, 1000, 1000)), RIGHT], 0),
        ([zoom_text((460, 460, 700, 700)), RIGHT], 0),  # beside the centre
        ([zoom_text((0, 0, 300, 300), (400, 400, 500, 500)), RIGHT], 1),
        # Through frames: the box is at 0..200 of the zoomed view; after a mirror it is at 500..600.
        ([zoom_text((400, 400, 900, 900)), zoom_text((0, 0, 200, 200), image=1), RIGHT], 1),
        ([zoom_text((400, 400, 900, 900)), zoom_text((400, 400, 600, 600), image=1), RIGHT], 0),
        ([FLIP, zoom_text((500, 400, 600, 500), image=1), RIGHT], 1),
        ([FLIP, zoom_text((300, 400, 400, 500), image=1), RIGHT], 0),
    ],
)
def test_box_hit(play, script, hit):
    np.testing.assert_equal(float(tool_statistics(play(script))["box_hit"][0]), hit)


def test_box_hit_is_the_share_of_boxes_on_the_right_image(play, tiny):
    boxes = (Box("one", (400, 400, 500, 500)), Box("two", (700, 700, 800, 800)))
    assert tool_statistics(play([GOOD, RIGHT], boxes=boxes))["box_hit"].tolist() == [0.5]
    both = zoom_text((380, 380, 520, 520), (690, 690, 810, 810))
    assert tool_statistics(play([both, RIGHT], boxes=boxes))["box_hit"].tolist() == [1.0]
    image = tiny.task().images[0]
    second = {"images": (image, image), "boxes": (Box("one", (400, 400, 500, 500), image=1),)}
    assert tool_statistics(play([GOOD, RIGHT], **second))["box_hit"].tolist() == [0.0]
    other = zoom_text((380, 380, 520, 520), image=1)
    assert tool_statistics(play([other, RIGHT], **second))["box_hit"].tolist() == [1.0]
    assert math.isnan(tool_statistics(play([GOOD, RIGHT], boxes=()))["box_hit"][0])


def test_statistics_before_any_turn(tiny):
    statistics = tool_statistics(reset([tiny.task()], LIMITS))
    assert math.isnan(statistics["error"][0])
    assert statistics["calls"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("said", "fields"),
    [
        ("B", {"answer": "B", "options": ("B", "A"), "answer_type": AnswerType.CHOICE}),
        ("x ray", {"answer": "radiograph", "options": (), "accepted": ("X-ray",), "answer_type": AnswerType.OPEN}),
        ("21 mm", {"answer": "20 mm", "options": (), "tolerance": 0.1, "answer_type": AnswerType.NUMBER}),
        ("有", {"answer": "包含", "options": (), "language": "zh"}),
    ],
)
def test_accuracy_goes_by_the_type_of_answer_that_the_task_declares(play, said, fields):
    (facts,) = row_facts(play([render_turn(Turn("so", said))], **fields))
    assert TERMS["accuracy"](facts) == 1.0
    assert TERMS["accuracy"](facts._replace(answer="calcified")) == 0.0
