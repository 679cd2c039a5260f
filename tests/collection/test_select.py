"""Filters one by one, caps, and the balance."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from mvg_jax.collection import select
from mvg_jax.collection.select import (
    KEPT,
    Candidate,
    balanced,
    cell_weights,
    choose,
    judge,
    keyed,
    read_weights,
    verdict,
)
from mvg_jax.collection.store import Played
from mvg_jax.config import OFF, Filters
from mvg_jax.data.task import NativeImage, Task, Turn
from mvg_jax.env.episode import Stop, TurnRecord
from mvg_jax.env.protocol import Malformed
from mvg_jax.errors import RunError
from mvg_jax.frames import Frame, flip, full_frame, rotate, with_window, zoom
from mvg_jax.tools import ToolCall

ALL_OFF = Filters(**{field.name: OFF for field in dataclasses.fields(Filters)})
WHOLE = full_frame(100, 200, (0.0, 255.0), 0)
ANSWER = TurnRecord(Turn("", "yes"), None, 1, 0)


def only(**settings):
    return dataclasses.replace(ALL_OFF, **settings)


def call(name="image_zoom_in_tool", *, views=1, error=None, **arguments):
    arguments = {"bbox_2d": [0, 0, 500, 500], "img_idx": 0} | arguments if name == "image_zoom_in_tool" else arguments
    return TurnRecord(Turn("look", ToolCall(name, arguments)), error, 1, 0 if error else views)


def candidate(*records, frames=(), task="t/0", kind="k", chain=None, sample=0, accuracy=1.0, tokens=10, **fields):
    frames = [WHOLE, *frames] if frames else [WHOLE] * 6
    frames += [frames[0]] * (6 - len(frames))
    images = (NativeImage(np.zeros((100, 200), np.uint8)),)
    task = Task(task, "d", kind, images, "?", "yes", chain=chain)
    stop = fields.pop("stop", Stop.ANSWER)
    texts = ("",) * len(records)
    played = Played(task, records, texts, stop, tokens, "me", sample, terms={"accuracy": accuracy})
    return Candidate(played, Frame(*(np.stack(x) for x in zip(*frames, strict=True))), **fields)


def test_what_cannot_be_imitated_never_passes():
    assert verdict(candidate(ANSWER), ALL_OFF) == KEPT
    malformed = TurnRecord(Malformed("E1", "?"), "E1", 1, 0)
    assert verdict(candidate(malformed, ANSWER), ALL_OFF) == "well_formed"
    assert verdict(candidate(call(), stop=Stop.MAX_TURNS), ALL_OFF) == "well_formed"
    assert verdict(candidate(TurnRecord(None, None, 1, 0), stop=Stop.MAX_TOKENS), ALL_OFF) == "well_formed"
    assert verdict(candidate(ANSWER, fits=False), ALL_OFF) == "fits"


@pytest.mark.parametrize(
    ("name", "limit", "good", "bad"),
    [
        ("correct", 1.0, candidate(ANSWER), candidate(ANSWER, accuracy=0.0)),
        ("correct", 0.5, candidate(ANSWER, accuracy=0.5), candidate(ANSWER, accuracy=0.4)),
        ("errors", 0, candidate(call(), ANSWER), candidate(call(error="E4"), ANSWER)),
        ("errors", 1, candidate(call(error="E4"), ANSWER), candidate(call(error="E4"), call(error="E3"), ANSWER)),
        ("turns", 2, candidate(call(), ANSWER), candidate(call(), call(img_idx=1), ANSWER)),
        ("tokens", 10, candidate(ANSWER, tokens=10), candidate(ANSWER, tokens=11)),
    ],
)
def test_each_filter_lets_the_good_pass_and_names_itself_on_the_bad(name, limit, good, bad):
    assert verdict(good, only(**{name: limit})) == KEPT
    assert verdict(bad, only(**{name: limit})) == name
    assert verdict(bad, ALL_OFF) == KEPT


BOX = [100, 100, 500, 500]
ZOOMED = zoom(WHOLE, np.float32(BOX))


@pytest.mark.parametrize(
    ("frames", "again"),
    [
        ((ZOOMED,), False),
        ((ZOOMED, zoom(WHOLE, np.float32([110, 100, 500, 500]))), True),  # IoU 0.975
        ((ZOOMED, zoom(WHOLE, np.float32([200, 100, 500, 500]))), False),  # IoU 0.75
        ((zoom(WHOLE, np.float32([0, 0, 1000, 990])),), True),  # nearly the whole image, which is there already
        ((flip(WHOLE, 0), flip(flip(WHOLE, 0), 0)), True),
        ((flip(WHOLE, 0), flip(WHOLE, 1)), False),
        ((rotate(WHOLE, 1), rotate(WHOLE, 3)), False),
        ((rotate(WHOLE, 2), flip(flip(WHOLE, 0), 1)), True),  # turned about is mirrored twice
        ((with_window(WHOLE, 0.0, 100.0), with_window(ZOOMED, 0.0, 100.0), ZOOMED), False),
        ((with_window(WHOLE, 0.0, 255.0),), True),
        ((WHOLE._replace(source=np.int32(1)),), False),
        ((zoom(ZOOMED, np.float32([0, 0, 1000, 1000])), ZOOMED), True),
    ],
)
def test_a_view_that_shows_what_is_there_already_is_redundant(frames, again):
    records = [call(bbox_2d=[i, 0, 500, 500]) for i in range(len(frames))]
    assert verdict(candidate(*records, ANSWER, frames=frames), only(redundant=0.9)) == ("redundant" if again else KEPT)


def test_the_same_call_twice_is_redundant_whatever_it_showed():
    far = zoom(WHOLE, np.float32([600, 600, 900, 900]))
    twice = candidate(call(error="E4"), call(error="E4"), ANSWER)
    assert verdict(twice, only(redundant=0.9)) == "redundant"
    other = candidate(call(), call(bbox_2d=[600, 600, 900, 900]), ANSWER, frames=(ZOOMED, far))
    assert verdict(other, only(redundant=0.9)) == KEPT


def test_tools_are_called_exactly_where_they_are_needed():
    zoomed, direct = (call(), ANSWER), (ANSWER,)
    chain = (call().turn.action,)
    cases = [
        # what the task says counts before anything that was measured
        (zoomed, chain, 0.0, KEPT),
        (direct, chain, 0.0, "needed"),
        (zoomed, (), 1.0, "needed"),
        (direct, (), 1.0, KEPT),
        # at least 3 of 4 tries without tools must be wrong
        (zoomed, None, 0.75, KEPT),
        (zoomed, None, 0.5, "needed"),
        (direct, None, 0.5, KEPT),
        (direct, None, 0.75, "needed"),
    ]
    for records, known, wrong, expected in cases:
        given = candidate(*records, chain=known, wrong_without=wrong)
        assert judge([given], only(needed=0.75)) == [expected]
    with pytest.raises(ValueError, match="not been measured"):
        judge([candidate(ANSWER)], only(needed=0.75))
    assert judge([candidate(ANSWER)], ALL_OFF) == [KEPT]


def test_only_what_could_be_kept_and_is_not_known_is_measured():
    settings = only(needed=0.5, correct=1.0)
    cases = ((None, 1.0, True), (None, 0.0, False), ((), 1.0, False))
    for chain, accuracy, expected in cases:
        group = [candidate(ANSWER, chain=chain, accuracy=accuracy)]
        verdicts = [verdict(x, settings) for x in group]
        assert select.must_measure(group, verdicts, settings) == expected
    assert not select.must_measure([candidate(ANSWER)], [KEPT], ALL_OFF)


def test_a_task_keeps_so_many_of_each_chain():
    near, far = [100, 100, 500, 500], [600, 600, 900, 900]
    boxes = [near, far, [110, 95, 510, 490], near, far]
    group = [candidate(call(bbox_2d=box, label=str(i)), ANSWER, sample=i) for i, box in enumerate(boxes)]
    group.append(candidate(call("image_flip_tool", axis="horizontal"), ANSWER))
    group.append(candidate(call("image_flip_tool", axis="vertical"), ANSWER))
    too_many = "chains_per_task"
    expected = [KEPT, KEPT, too_many, too_many, too_many, KEPT, KEPT]
    assert judge(group, only(chains_per_task=1)) == expected
    # what another filter drops does not count
    group[0] = dataclasses.replace(group[0], fits=False)
    assert judge(group, only(chains_per_task=1))[:4] == ["fits", KEPT, KEPT, too_many]


def test_out_of_range_settings_are_refused_by_name():
    for bad in ({"redundant": 1.5}, {"needed": -0.5}, {"turns": -2}, {"correct": math.nan}):
        with pytest.raises(RunError, match=rf"filters\.{next(iter(bad))}"):
            Filters(**bad)


# ---- balance ---------------------------------------------------------------------------------------------------------


def played(i, kind, tool):
    records = (ANSWER,) if tool == "none" else (call(), ANSWER)
    return candidate(*records, task=f"t/{i}", kind=kind).played


def cells_of(outlines, verdicts, why=KEPT):
    label = lambda o: "zoom" if o.records[0].call else "none"
    return Counter((o.task.kind, label(o)) for o, v in zip(outlines, verdicts, strict=True) if v == why)


MANY = [played(i, "a" if i % 4 else "b", "none" if i % 3 else "zoom") for i in range(240)]
PLAIN = {"tools": {}, "kinds": {}, "keep": 1.0, "chains_per_kind": OFF, "seed": 0}


def test_without_weights_the_shares_stay_as_they_are():
    assert choose(MANY, **PLAIN) == [KEPT] * 240
    half = cells_of(MANY, choose(MANY, **PLAIN | {"keep": 0.5}))
    assert half == {cell: n // 2 for cell, n in cells_of(MANY, [KEPT] * 240).items()}


def test_the_smaller_keep_the_nearer_to_the_weights():
    weights = {"tools": {"none": 1.0, "*": 3.0}, "kinds": {"a": 1.0, "b": 1.0}}
    near = cells_of(MANY, choose(MANY, **PLAIN | weights | {"keep": 40 / 240}))
    assert near == {("a", "none"): 5, ("a", "zoom"): 15, ("b", "none"): 5, ("b", "zoom"): 15}
    # with more to keep, full groups stay full and the others fill up
    more = cells_of(MANY, choose(MANY, **PLAIN | weights | {"keep": 0.5}))
    assert more == {("a", "none"): 20, ("a", "zoom"): 60, ("b", "none"): 20, ("b", "zoom"): 20}


def test_one_weighted_side_leaves_the_other_as_it_was():
    kept = cells_of(MANY, choose(MANY, **PLAIN | {"kinds": {"*": 1.0}, "keep": 0.25}))
    assert kept == {("a", "none"): 20, ("a", "zoom"): 10, ("b", "none"): 20, ("b", "zoom"): 10}


def test_what_is_not_named_is_left_out():
    kept = cells_of(MANY, choose(MANY, **PLAIN | {"kinds": {"a": 1.0}}))
    assert {kind for kind, _ in kept} == {"a"}
    assert sum(kept.values()) == 180


def test_the_choice_depends_on_seed_and_names_only():
    settings = PLAIN | {"keep": 0.3}
    chosen = lambda outlines, **more: {
        o.task.id for o, v in zip(outlines, choose(outlines, **settings | more), strict=True) if v == KEPT
    }
    assert chosen(MANY) == chosen(MANY[::-1])
    assert chosen(MANY) != chosen(MANY, seed=1)


def test_a_kind_keeps_so_many_of_each_chain_before_the_balance():
    verdicts = choose(MANY, **PLAIN | {"chains_per_kind": 12})
    assert set(cells_of(MANY, verdicts).values()) == {12}
    assert cells_of(MANY, verdicts, "chains_per_kind").total() == 240 - 48


@pytest.mark.parametrize("keep", [0.0, 0.07, 0.31, 0.5, 0.99, 1.0])
def test_the_balance_keeps_exactly_its_share_and_never_more_than_there_is(keep):
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.choice(list("abcde"), 97, p=rng.dirichlet(np.ones(5))).tolist()
        weights = {label: float(rng.random() + 0.01) for label in labels}
        kept = balanced(labels, weights, keep, list(rng.permutation(97)))
        assert len(kept) == len(set(kept)) == math.floor(97 * keep + 1e-9)
        got, supply = Counter(labels[i] for i in kept), Counter(labels)
        # no group is behind another in its weight unless it is used up (to a rounding of one item)
        level = max(((got[g] - 1) / weights[g] for g in supply), default=0)
        assert all(got[g] == supply[g] or (got[g] + 1) / weights[g] >= level for g in supply)


def test_weights_are_read_or_refused():
    assert read_weights(("image_zoom_in_tool=2", "a=b=0.5", "*=1"), "w") == {
        "image_zoom_in_tool": 2,
        "a=b": 0.5,
        "*": 1,
    }
    for bad in (("x",), ("=1",), ("x=-1",), ("x=inf",), ("x=nan",), ("x=1", "x=2")):
        with pytest.raises(RunError, match=r"config\.collect\.kinds"):
            read_weights(bad, "config.collect.kinds")
    assert cell_weights([("a", "none")], {}, {"zoom": 1.0}) == {("a", "none"): 0.0}


def test_a_key_depends_on_all_its_parts():
    keys = {keyed(*parts) for parts in ((0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1"), ("0a1",))}
    assert len(keys) == 6
    assert keyed(0, "a", 1) == keyed("0", "a", "1") < 2**64


def test_the_table_shows_every_reason():
    counts = select.count(["x", "x", "longer name"], [KEPT, "correct", "needed"])
    assert counts == {"longer name": {"needed": 1}, "x": {"correct": 1, KEPT: 1}}
    lines = select.table(counts).splitlines()
    assert lines[0].split() == ["kind", "sampled", "kept", "needed", "correct"]
    assert lines[-1].split()[:3] == ["all", "3", "1"]
    assert len({len(line) for line in lines}) == 1
