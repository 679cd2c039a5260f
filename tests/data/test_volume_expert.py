import collections

import numpy as np
import pytest

from mvg_jax.data.labelled_volume import zoom_call
from mvg_jax.data.task import Box, NativeImage, Task
from mvg_jax.data.volume_expert import DECISIONS, GUESS, SEEN_NOW, expert, mixture
from mvg_jax.tools import default_registry
from mvg_jax.tools.spec import ImageInfo

ASKED = [200, 300, 320, 500]
IMAGE = NativeImage(np.zeros((64, 64), np.uint8))


def task(chain) -> Task:
    boxes = (Box("left caudate", (220.0, 340.0, 300.0, 460.0)),)
    return Task("t", "volume", "structure", (IMAGE,), "?", "caudate", ("insula", "caudate"), boxes, chain)


NEEDED, FREE = task((zoom_call(ASKED),)), task(())


@pytest.mark.parametrize("one", [NEEDED, FREE], ids=["needed", "free"])
@pytest.mark.parametrize("decision", DECISIONS)
def test_every_call_is_legal_and_every_trajectory_ends_with_an_answer(one, decision):
    if decision == "needless" and one.chain:
        with pytest.raises(ValueError, match="needless"):
            expert(one, np.random.default_rng(0), decision=decision)
        return
    registry, info = default_registry(None), ImageInfo(64.0, 64.0, "grey", (0.0, 255.0))
    for seed in range(30):
        *calls, last = expert(one, np.random.default_rng(seed), decision=decision)
        assert last.action in one.options
        for turn in calls:
            registry.parse(turn.action, [info])


def test_who_looked_right_knows_and_who_did_not_guesses():
    rng = np.random.default_rng(0)
    zoom, answer = expert(NEEDED, rng, decision="right")
    assert zoom.action.arguments["bbox_2d"] == ASKED
    assert (answer.think, answer.action) == (SEEN_NOW, "caudate")
    for decision in ("direct", "wrong_tool", "off_target"):
        ends = [expert(NEEDED, rng, decision=decision)[-1] for _ in range(200)]
        share = np.mean([end.action == "caudate" for end in ends])
        assert {end.think for end in ends} == {GUESS}
        assert 0.35 < share < 0.65, decision
    assert all(expert(FREE, rng, decision=d)[-1].action == "caudate" for d in DECISIONS)


def test_off_target_shows_another_place():
    for seed in range(50):
        x1, y1, x2, y2 = expert(NEEDED, np.random.default_rng(seed), decision="off_target")[0].action.arguments[
            "bbox_2d"
        ]
        assert (x2 - x1, y2 - y1) == (120, 200)
        assert not (200 <= (x1 + x2) / 2 <= 320 and 300 <= (y1 + y2) / 2 <= 500)


def test_a_mixture_keeps_its_weights_and_leaves_needless_calls_to_those_that_need_none():
    rng, weights = np.random.default_rng(0), {"direct": 3.0, "right": 1.0, "needless": 4.0}
    turns = collections.Counter(len(mixture(NEEDED, rng, weights)) for _ in range(800))
    assert turns[1] / 800 == pytest.approx(0.75, abs=0.06)
    turns = collections.Counter(len(mixture(FREE, rng, weights)) for _ in range(800))
    assert turns[1] / 800 == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    "bad",
    [task(None), Task("t", "volume", "box", (IMAGE,), "?", "[0, 0, 1, 1]", chain=())],
    ids=["unknown chain", "open"],
)
def test_what_the_expert_cannot_play_is_refused(bad):
    with pytest.raises(ValueError, match="known chain"):
        expert(bad, np.random.default_rng(0), decision="right")
