import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax import frames as fr
from mvg_jax.data.task import Box
from mvg_jax.rl.vision import CELLS, MAX_BOXES, PLACES, VisionStage, box_centres, draw_view, place_terms, sample_labels
from tests import tiny_world

HEIGHT, WIDTH = 32, 40
TASKS = (tiny_world.task(0), tiny_world.task(1))


def bright(task) -> np.ndarray:
    """Class 1 on the brighter half of the pixels, class 2 on the brightest, 0 elsewhere."""
    return np.digitize(task.images[0].pixels, [1050, 1350]).astype(np.uint8)


def test_labels_are_those_of_the_pixels_that_the_view_shows():
    maps = np.random.default_rng(0).integers(0, 9, (2, HEIGHT, WIDTH)).astype(np.uint8)
    whole = fr.full_frame(HEIGHT, WIDTH, (0.0, 1.0), 0)
    part = fr.zoom(whole, np.array([100, 200, 600, 900], np.float32))
    views = [whole, part, fr.rotate(part, 1), fr.flip(fr.rotate(part, 3), 0)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *views)
    row, grid = np.array([0, 1, 1, 0]), 2
    got = np.asarray(sample_labels(maps, row, stacked, grid))
    assert got.shape == (4, grid**2, CELLS**2)
    side = grid * CELLS
    for n, view in enumerate(views):
        for i in range(side):
            for j in range(side):
                x, y = view.affine @ np.array([(j + 0.5) / side, (i + 0.5) / side, 1])
                token, cell = (i // CELLS) * grid + j // CELLS, (i % CELLS) * CELLS + j % CELLS
                assert got[n, token, cell] == maps[row[n], int(y), int(x)]


def test_views_to_learn_from():
    task = dataclasses.replace(TASKS[0], boxes=(Box("lesion", (700.0, 100.0, 800.0, 200.0)),))
    whole = fr.full_frame(HEIGHT, WIDTH, task.images[0].window, 0)
    drawn = [[draw_view(task, np.random.default_rng(seed), i) for seed in range(60)] for i in range(3)]
    assert all(np.array_equal(view.affine, whole.affine) for view in drawn[0] + drawn[1])
    assert {tuple(view.window.tolist()) for view in drawn[0]} == {(-160.0, 240.0)}
    assert {tuple(view.window.tolist()) for view in drawn[1]} == {(-500.0, 1300.0)}
    zooms = np.array([fr.box_from_source(whole, fr.bounds(view)) for view in drawn[2]])
    assert (zooms >= -1e-3).all()
    assert (zooms <= 1000.001).all()
    sides = zooms[:, 2:] - zooms[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1], atol=0.01)
    assert sides.min() > 119
    assert sides.max() < 301
    held = ((zooms[:, :2] < [750, 150]) & (zooms[:, 2:] > [750, 150])).all(axis=1)
    assert 0.8 < held.mean() < 1
    # A photograph has no Hounsfield window to show it through.
    grey = dataclasses.replace(task, images=(dataclasses.replace(task.images[0], unit="grey"),))
    assert tuple(draw_view(grey, np.random.default_rng(0), 1).window.tolist()) == (-160.0, 240.0)


def test_centres_are_where_the_view_shows_them():
    task = dataclasses.replace(TASKS[0], boxes=(Box("lesion", (700.0, 100.0, 800.0, 200.0)),))
    whole = fr.full_frame(HEIGHT, WIDTH, (0.0, 1.0), 0)
    np.testing.assert_allclose(box_centres(task, whole), [[0.75, 0.15], [-1, -1]], atol=1e-6)
    part = fr.zoom(whole, np.array([700, 100, 900, 200], np.float32))
    np.testing.assert_allclose(box_centres(task, part)[0], [0.25, 0.5], atol=1e-5)


def test_places_are_read_at_the_token_that_holds_the_centre():
    """A head that knows the answer at the right token only: right there, at a loss elsewhere; absent centres do not count."""
    grid, D = 2, 2 * PLACES
    centre = np.full((1, MAX_BOXES, 2), -1.0, np.float32)
    centre[0, 0] = 0.71, 0.31
    features = np.zeros((1, grid * grid, D), np.float32)
    features[0, 1, int(0.71 * PLACES)] = features[0, 1, PLACES + int(0.31 * PLACES)] = 20.0  # column 1, row 0
    head = {"kernel": np.eye(D, dtype=np.float32), "bias": np.zeros(D, np.float32)}
    loss, near = place_terms(head, features, centre)
    assert loss < 1e-4
    assert near == 1
    loss, near = place_terms(head, np.roll(features, 1, axis=1), centre)
    np.testing.assert_allclose(loss, 2 * np.log(PLACES), rtol=1e-4)
    assert near == 0
    loss, near = place_terms(head, features, np.full_like(centre, -1.0))
    assert loss == 0
    assert near == 0


@pytest.fixture(scope="module")
def stage() -> VisionStage:
    return VisionStage(tiny_world.model()[0], optax.adam(3e-3), bright, 3, (2,), 4, tiny_world.SIZE, (HEIGHT, WIDTH), 0)


def test_vision_learns_and_the_decoder_stays(stage):
    before = jax.tree.map(np.array, nnx.to_pure_dict(tiny_world.model()[1]))
    state, losses = stage.start(tiny_world.own_params()), []
    for number in range(30):
        state, metrics = stage.step(state, number, TASKS)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    after = nnx.to_pure_dict(jax.device_get(stage.params(state)))
    assert set(after) == set(before)
    for name in before:
        pairs = zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True)
        same = [np.array_equal(a, b) for a, b in pairs]
        assert not any(same) if name in ("vision_tower", "multi_modal_projector") else all(same), name


def test_a_step_follows_from_seed_and_number(stage):
    def loss(number):
        return float(stage.step(stage.start(tiny_world.own_params()), number, TASKS)[1]["loss"])

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
