import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvg_jax import frames as fr

WINDOW = (-160.0, 240.0)
UNIT_TURN = np.array([[0, 1, 0], [-1, 0, 1], [0, 0, 1]], np.float64)  # new (u, v, 1) to old, one turn clockwise


def random_step(rng: np.random.Generator):
    """One random frame function and the [3, 3] float64 map from new to old view coordinates that it stands for."""
    kind = rng.integers(3)
    if kind == 0:
        x1, y1 = rng.uniform(0, 500, 2)
        x2, y2 = rng.uniform(600, 1000, 2)
        unit = np.array([[x2 - x1, 0, x1], [0, y2 - y1, y1], [0, 0, 1000]]) / 1000
        return (lambda frame: fr.zoom(frame, np.array([x1, y1, x2, y2], np.float32))), unit
    if kind == 1:
        axis = int(rng.integers(2))
        mirror = np.array([[-1, 0, 1], [0, 1, 0], [0, 0, 1]], np.float64)
        swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]], np.float64)
        return (lambda frame: fr.flip(frame, axis)), mirror if axis == fr.HORIZONTAL else swap @ mirror @ swap
    turns = int(rng.integers(-3, 6))
    return (lambda frame: fr.rotate(frame, turns)), np.linalg.matrix_power(UNIT_TURN, turns % 4)


def random_frame(rng: np.random.Generator, height: int = 300, width: int = 500):
    """A random composition of up to 6 steps, and its affine by float64 matrix products."""
    frame = fr.full_frame(height, width, WINDOW, 0)
    affine = np.diag([width, height, 1]).astype(np.float64)
    for _ in range(rng.integers(7)):
        step, unit = random_step(rng)
        frame, affine = step(frame), affine @ unit
    return frame, affine[:2]


def test_full_frame_shows_the_whole_image():
    frame = fr.full_frame(300, 500, WINDOW, 2)
    np.testing.assert_array_equal(fr.bounds(frame), [0, 0, 500, 300])
    assert fr.extent(frame) == (300, 500)
    assert (frame.source, frame.source.dtype, frame.affine.dtype) == (2, np.int32, np.float32)


def test_a_zoom_is_relative_to_what_the_view_shows():
    once = fr.zoom(fr.full_frame(512, 512, WINDOW, 0), np.array([250, 500, 750, 1000]))
    np.testing.assert_array_equal(fr.bounds(once), [128, 256, 384, 512])
    np.testing.assert_array_equal(fr.bounds(fr.zoom(once, np.array([0, 500, 500, 1000]))), [128, 384, 256, 512])


@pytest.mark.parametrize(
    ("turned", "expected"),
    [
        (lambda f: fr.rotate(f, 1), [0, 500, 100, 600]),  # what is now top left was bottom left
        (lambda f: fr.rotate(f, 2), [900, 500, 1000, 600]),
        (lambda f: fr.rotate(f, 3), [900, 0, 1000, 100]),
        (lambda f: fr.flip(f, fr.HORIZONTAL), [900, 0, 1000, 100]),
        (lambda f: fr.flip(f, fr.VERTICAL), [0, 500, 100, 600]),
    ],
)
def test_where_the_top_left_corner_of_a_turned_view_lies(turned, expected):
    frame = turned(fr.full_frame(600, 1000, WINDOW, 0))
    height, width = fr.extent(frame)
    corner = np.array([0, 0, 100 * 1000 / width, 100 * 1000 / height])  # 100 x 100 native pixels
    np.testing.assert_allclose(fr.box_to_source(frame, corner), expected, atol=1e-3)


def test_compositions_are_the_products_of_their_maps():
    rng = np.random.default_rng(0)
    for _ in range(100):
        frame, affine = random_frame(rng)
        np.testing.assert_allclose(frame.affine, affine, atol=1e-3)


def test_boxes_survive_the_way_to_the_source_and_back():
    rng = np.random.default_rng(1)
    for _ in range(200):
        frame, _ = random_frame(rng)
        box = np.concatenate([rng.uniform(0, 400, 2), rng.uniform(500, 1000, 2)]).astype(np.float32)
        source = fr.box_to_source(frame, box)
        x1, y1, x2, y2 = source
        assert 0 <= x1 + 1e-3 < x2 <= 500 + 1e-3
        assert 0 <= y1 + 1e-3 < y2 <= 300 + 1e-3
        units_per_pixel = 1000 / min(fr.extent(frame))
        np.testing.assert_allclose(fr.box_from_source(frame, source), box, atol=3e-4 * units_per_pixel)


def test_turns_and_mirrors_form_the_dihedral_group():
    frame = fr.zoom(fr.full_frame(512, 1024, WINDOW, 0), np.array([125, 250, 500, 750]))
    flips = fr.flip(fr.flip(frame, fr.HORIZONTAL), fr.VERTICAL)
    np.testing.assert_array_equal(fr.rotate(frame, 2).affine, flips.affine)
    np.testing.assert_array_equal(fr.rotate(fr.rotate(frame, 1), 3).affine, frame.affine)
    np.testing.assert_array_equal(fr.flip(fr.flip(frame, fr.VERTICAL), fr.VERTICAL).affine, frame.affine)
    one_way = fr.flip(fr.rotate(frame, 1), fr.HORIZONTAL)
    np.testing.assert_array_equal(one_way.affine, fr.rotate(fr.flip(frame, fr.HORIZONTAL), 3).affine)
    assert fr.extent(fr.rotate(frame, 1)) == fr.extent(frame)[::-1]


def test_a_window_changes_nothing_else():
    frame = fr.rotate(fr.full_frame(10, 20, WINDOW, 3), 1)
    bone = fr.with_window(frame, -500.0, 1300.0)
    np.testing.assert_array_equal(bone.window, [-500, 1300])
    np.testing.assert_array_equal(bone.affine, frame.affine)
    assert bone.source == 3


def test_numpy_jax_and_vmap_agree():
    rng = np.random.default_rng(2)
    singles = [random_frame(rng)[0] for _ in range(5)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *singles)
    boxes = np.tile(np.array([100, 200, 400, 900], np.float32), (5, 1))
    axes, turns, lows = np.arange(5) % 2, np.arange(5), np.linspace(-100, 0, 5, dtype=np.float32)

    def chain(frame, box, axis, turn, low):
        frame = fr.with_window(fr.rotate(fr.flip(fr.zoom(frame, box), axis), turn), low, low + 50)
        return frame, fr.box_from_source(frame, fr.box_to_source(frame, box)), fr.bounds(frame)

    on_host = chain(stacked, boxes, axes, turns, lows)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(on_host))
    with jax.numpy_rank_promotion("raise"):
        on_device = jax.jit(chain)(*jax.tree.map(jnp.asarray, (stacked, boxes, axes, turns, lows)))
        mapped = jax.jit(jax.vmap(chain))(stacked, boxes, axes, turns, lows)
    for other in (on_device, mapped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-3), on_host, other)
        assert [x.dtype for x in jax.tree.leaves(other)] == [x.dtype for x in jax.tree.leaves(on_host)]
