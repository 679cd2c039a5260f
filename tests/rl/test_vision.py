import collections
import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax import frames as fr
from mvg_jax.data.task import Box, LabelledImage
from mvg_jax.rl.vision import (
    CELLS,
    MAX_BOXES,
    PLACES,
    POINT_WEIGHT,
    VisionStage,
    box_centres,
    class_terms,
    draw_part,
    draw_view,
    place_terms,
    read_terms,
    sample_labels,
)
from tests import tiny_world

HEIGHT, WIDTH = 32, 40
BOX = Box("lesion", (700.0, 100.0, 800.0, 200.0))


def labelled(index: int, boxes=(BOX,), unit="HU") -> LabelledImage:
    """Class 1 on the brighter half of the pixels, class 2 on the brightest, 0 elsewhere."""
    image = dataclasses.replace(tiny_world.task(index).images[0], unit=unit)
    return LabelledImage(str(index), image, np.digitize(image.pixels, [1050, 1350]).astype(np.uint8), boxes)


BATCH = (labelled(0), labelled(1))


def test_labels_are_those_of_the_pixels_that_the_view_shows():
    maps = np.random.default_rng(0).integers(0, 9, (2, HEIGHT, WIDTH)).astype(np.uint8)
    whole = fr.full_frame(HEIGHT, WIDTH, (0.0, 1.0), 0)
    part = fr.zoom(whole, np.array([100, 200, 600, 900], np.float32))
    views = [whole, part, fr.rotate(part, 1), fr.flip(fr.rotate(part, 3), 0)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *views)
    row, (rows, columns) = np.array([0, 1, 1, 0]), (2, 4)
    got = np.asarray(sample_labels(maps, row, stacked, (rows, columns)))
    assert got.shape == (4, rows * columns, CELLS**2)
    high, wide = rows * CELLS, columns * CELLS
    for n, view in enumerate(views):
        for i in range(high):
            for j in range(wide):
                x, y = view.affine @ np.array([(j + 0.5) / wide, (i + 0.5) / high, 1])
                token, cell = (i // CELLS) * columns + j // CELLS, (i % CELLS) * CELLS + j % CELLS
                assert got[n, token, cell] == maps[row[n], int(y), int(x)]


def test_views_to_learn_from():
    image, whole = labelled(0), fr.full_frame(HEIGHT, WIDTH, (-160.0, 240.0), 0)
    drawn = [[draw_view(image, np.random.default_rng(seed), i, 300.0) for seed in range(60)] for i in range(3)]
    assert all(np.array_equal(view.affine, whole.affine) for view in drawn[0])
    assert {tuple(view.window.tolist()) for view in drawn[0]} == {(-160.0, 240.0)}
    bone = [view for view in drawn[1] if view.window[0] == -500]
    assert 5 < len(bone) < 35
    assert all(np.array_equal(view.affine, whole.affine) for view in bone)

    def sides(views):
        boxes = np.array([fr.box_from_source(whole, fr.bounds(view)) for view in views])
        assert (boxes >= -1e-2).all()
        assert (boxes <= 1000.01).all()
        wide, high = (boxes[:, 2:] - boxes[:, :2]).T
        np.testing.assert_allclose(wide, high, atol=0.02)
        return boxes, wide

    _, parts = sides([view for view in drawn[1] if view.window[0] == -160])
    assert parts.min() > 299
    zooms, wide = sides(drawn[2])
    assert wide.min() > 59
    assert wide.max() < 301
    assert wide.max() > 200
    held = ((zooms[:, :2] < [750, 150]) & (zooms[:, 2:] > [750, 150])).all(axis=1)
    assert 0.8 < held.mean() < 1
    turned = {tuple(np.sign(view.affine[:, :2]).ravel().tolist()) for view in drawn[2]}
    assert len(turned) == 8
    # A photograph has no Hounsfield window to show it through.
    grey = [draw_view(labelled(0, unit="grey"), np.random.default_rng(seed), 1, 300.0) for seed in range(20)]
    assert {tuple(view.window.tolist()) for view in grey} == {(-160.0, 240.0)}


def test_views_of_a_volume_are_upright_and_hold_the_part_they_show():
    image, whole = labelled(0), fr.full_frame(HEIGHT, WIDTH, (-160.0, 240.0), 0)
    drawn = [[draw_part(image, np.random.default_rng(seed), i, 300.0) for seed in range(40)] for i in range(3)]
    assert all(np.array_equal(view.affine, whole.affine) for view in drawn[0])
    for view in drawn[1] + drawn[2]:
        assert np.array_equal(np.sign(view.affine[:, :2]), np.eye(2))
    boxes = np.array([fr.box_from_source(whole, fr.bounds(view)) for view in drawn[2]])
    assert (boxes[:, :2] <= 701.0).all()
    assert (boxes[:, 0] >= 659.0).all()
    assert (boxes[:, 2:] >= [799.0, 199.0]).all()
    assert (boxes[:, 2] <= 841.0).all()
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)


def test_where_an_overview_tells_all_classes_apart_none_are_merged():
    labels = np.random.default_rng(0).integers(0, 3, (2, 4, 5))
    swapped = certain(np.where(labels == 1, 2, np.where(labels == 2, 1, 0)), 3)
    overview = np.array([True, True])
    merged, _ = class_terms(swapped, labels, overview, (1, 2), (1, 2))
    apart, metrics = class_terms(swapped, labels, overview, (1, 2), ())
    assert merged < 1 < apart
    assert metrics["found"] == 1


def test_centres_are_where_the_view_shows_them():
    image, whole = labelled(0), fr.full_frame(HEIGHT, WIDTH, (0.0, 1.0), 0)
    np.testing.assert_allclose(box_centres(image, whole), [[0.75, 0.15]] + [[-1, -1]] * (MAX_BOXES - 1), atol=1e-6)
    part = fr.zoom(whole, np.array([700, 100, 900, 200], np.float32))
    np.testing.assert_allclose(box_centres(image, part)[0], [0.25, 0.5], atol=1e-5)


def certain(labels: np.ndarray, classes: int) -> np.ndarray:
    """Logits that are sure of these classes."""
    return 30.0 * np.eye(classes, dtype=np.float32)[labels]


def test_classes_are_counted_against_a_plain_reference():
    rng = np.random.default_rng(0)
    n, E, C, K, findings, alike = 3, 4, 5, 6, (3, 4, 5), (3, 4)
    logits, labels = rng.normal(size=(n, E, C, K)).astype(np.float32), rng.integers(0, K, (n, E, C))
    labels[2] %= 3  # a view without findings
    overview = np.array([True, False, True])
    loss, _ = class_terms(logits, labels, overview, findings, alike)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = 0.0
    for i in range(n):
        right_of, point_of = collections.defaultdict(list), collections.defaultdict(list)
        any_finding = np.log(np.exp(logp[i][..., findings]).sum(-1))
        for e in range(E):
            for c in range(C):
                k = labels[i, e, c]
                right = np.log(np.exp(logp[i, e, c, alike]).sum()) if overview[i] and k in alike else logp[i, e, c, k]
                right_of[k].append(right)
                if k in findings:
                    point_of[k].append(any_finding[e, c] - np.log(np.exp(any_finding).sum()))
        for group in (findings, set(range(K)) - set(findings)):
            means = [np.mean(values) for k, values in right_of.items() if k in group]
            total -= 0.5 * np.mean(means) if means else 0.0
        total -= POINT_WEIGHT * np.mean([np.mean(values) for values in point_of.values()]) if point_of else 0.0
    np.testing.assert_allclose(loss, total / n, rtol=1e-5)


def test_found_asks_for_the_one_cell_that_looks_most_like_a_finding():
    labels = np.zeros((2, 4, 5), int)
    labels[:, 1, 2] = 1
    overview = np.array([True, True])
    logits = certain(labels, 3)
    _, metrics = class_terms(logits, labels, overview, (1, 2), (1,))
    assert metrics["found"] == 1
    assert metrics["accuracy"] == 1
    logits *= 0.1
    logits[0, 3, 0] = [0, 9, 0]  # a stronger false alarm
    _, metrics = class_terms(logits, labels, overview, (1, 2), (1,))
    assert metrics["found"] == 0.5
    _, metrics = class_terms(logits, labels, np.array([False, True]), (1, 2), (1,))
    assert metrics["found"] == 1


def test_read_is_about_the_largest_finding_of_a_zoom():
    labels = np.zeros((4, 4, 5), int)
    labels[0, 0] = 1
    labels[0, 1, :2] = 2
    labels[1, 2] = 2
    labels[2, 2] = 2  # an overview
    zoomed = np.array([True, True, False, True])  # the last shows nothing
    logits = certain(np.array([1, 2, 0, 0]), 3)
    loss, right = read_terms(logits, labels, zoomed, (1, 2))
    assert loss < 1e-6
    assert right == 1
    loss, right = read_terms(certain(np.array([2, 2, 2, 2]), 3), labels, zoomed, (1, 2))
    np.testing.assert_allclose(loss, 15.0, rtol=1e-5)
    assert right == 0.5


def test_places_are_read_at_the_token_that_holds_the_centre():
    """A head that knows the answer at the right token only: right there, at a loss elsewhere; absent centres do not count."""
    grid, D = (2, 3), 2 * PLACES
    centre = np.full((1, MAX_BOXES, 2), -1.0, np.float32)
    centre[0, 0] = 0.71, 0.31
    features = np.zeros((1, 6, D), np.float32)
    features[0, 2, int(0.71 * PLACES)] = features[0, 2, PLACES + int(0.31 * PLACES)] = 20.0  # column 2, row 0
    head = {"kernel": np.eye(D, dtype=np.float32), "bias": np.zeros(D, np.float32)}
    loss, near = place_terms(head, features, centre, grid)
    assert loss < 1e-4
    assert near == 1
    loss, near = place_terms(head, np.roll(features, 1, axis=1), centre, grid)
    np.testing.assert_allclose(loss, 2 * np.log(PLACES), rtol=1e-4)
    assert near == 0
    loss, near = place_terms(head, features, np.full_like(centre, -1.0), grid)
    assert loss == 0
    assert near == 0


@pytest.fixture(scope="module")
def stage() -> VisionStage:
    graph = tiny_world.model()[0]
    return VisionStage(graph, optax.adam(3e-3), 3, (1, 2), (1,), 4, tiny_world.VIEW, (HEIGHT, WIDTH), 60, 0, draw_view)


def test_vision_learns_and_the_decoder_stays(stage):
    before = jax.tree.map(np.array, nnx.to_pure_dict(tiny_world.model()[1]))
    state, losses = stage.start(tiny_world.own_params()), []
    for number in range(30):
        state, metrics = stage.step(state, number, BATCH)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    after = nnx.to_pure_dict(jax.device_get(state.params))
    assert set(after) == set(before)
    for name in before:
        pairs = zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True)
        same = [np.array_equal(a, b) for a, b in pairs]
        assert not any(same) if name in ("vision_tower", "multi_modal_projector") else all(same), name


def test_a_step_follows_from_seed_and_number(stage):
    def loss(number):
        return float(stage.step(stage.start(tiny_world.own_params()), number, BATCH)[1]["loss"])

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
