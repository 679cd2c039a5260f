import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvg_jax import frames as fr
from mvg_jax.tools import Sources, ViewFormat, render_views, stack_sources
from mvg_jax.tools.render import CHUNK

SIZE = 16
VIEW = ViewFormat(SIZE, SIZE, "linear")
HU = (1.0, -1024.0)
WINDOW = (-160.0, 240.0)


def render(sources: Sources, *frames: fr.Frame) -> np.ndarray:
    """Views [n, S, S, 3] of up to 4 frames of the first row (always 4, so that few programs are compiled)."""
    stacked = jax.tree.map(lambda *x: np.stack(x), *frames, *[frames[0]] * (4 - len(frames)))
    row = np.where(np.arange(4) < len(frames), 0, -1).astype(np.int32)
    return np.asarray(render_views(sources, row, stacked, VIEW))[: len(frames)]


def one_source(pixels: np.ndarray, rescale=HU, bucket: tuple[int, int] = (64, 64)) -> Sources:
    return stack_sources([[pixels]], [[rescale]], *bucket)


def reference(pixels: np.ndarray, rescale, frame: fr.Frame, size: int) -> np.ndarray:
    """[S, S, C] float64 grey levels before rounding: each output pixel by its own loop, from the affine alone."""
    (a, b, tx), (c, d, ty) = frame.affine.astype(np.float64)
    low, high = frame.window.astype(np.float64)

    def triangle(count, centre, pitch):
        weights = np.array([max(0.0, 1 - abs(k + 0.5 - centre) / max(pitch, 1.0)) for k in range(count)])
        return weights / weights.sum()

    physical = pixels.reshape(*pixels.shape[:2], -1).astype(np.float64) * rescale[0] + rescale[1]
    out = np.zeros((size, size, physical.shape[2]))
    for i in range(size):
        for j in range(size):
            u, v = (j + 0.5) / size, (i + 0.5) / size
            rows = triangle(physical.shape[0], c * u + d * v + ty, (abs(c) + abs(d)) / size)
            columns = triangle(physical.shape[1], a * u + b * v + tx, (abs(a) + abs(b)) / size)
            out[i, j] = np.einsum("hwc,h,w->c", physical, rows, columns)
    return np.clip((out - low) / (high - low) * 255, 0, 255)


def smooth_ct(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return (rng.integers(0, 400, (height, width)) + 864).astype(np.uint16)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["uint16", "rgb", "padded"])
def test_any_composition_matches_a_plain_float64_reference(kind, seed):
    rng = np.random.default_rng(seed)
    height, width = (64, 64) if kind == "uint16" else (40, 56)
    pixels, rescale, window = smooth_ct(rng, height, width), HU, WINDOW
    if kind == "rgb":
        pixels, rescale, window = rng.integers(0, 256, (height, width, 3), np.uint8), (1.0, 0.0), (0.0, 255.0)
    frames = [fr.full_frame(height, width, window, 0)]
    for box in [(0, 300, 500, 1000), (37, 11, 981, 622), (433, 401, 561, 630)]:  # reduced, then enlarged
        frames.append(fr.flip(fr.rotate(fr.zoom(frames[-1], np.array(box)), rng.integers(4)), rng.integers(2)))
    for frame, view in zip(frames, render(one_source(pixels, rescale), *frames), strict=True):
        expected = reference(pixels, rescale, frame, SIZE)
        np.testing.assert_allclose(view, np.broadcast_to(expected, view.shape), atol=0.5 + 2e-2)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [None, fr.HORIZONTAL, fr.VERTICAL])
def test_turns_and_mirrors_are_those_of_the_rendered_pixels(turns, mirror):
    pixels = smooth_ct(np.random.default_rng(0), 64, 64)
    frame = fr.zoom(fr.full_frame(64, 64, WINDOW, 0), np.array([125, 250, 625, 875]))
    turned = fr.rotate(frame, turns)
    turned = turned if mirror is None else fr.flip(turned, mirror)
    plain, view = render(one_source(pixels), frame, turned)
    expected = np.rot90(plain, -turns)
    expected = {None: expected, fr.HORIZONTAL: expected[:, ::-1], fr.VERTICAL: expected[::-1]}[mirror]
    np.testing.assert_array_equal(view, expected)
    assert plain.std() > 10


def test_a_zoom_into_a_rotated_zoom_lands_on_the_native_pixels():
    pixels = np.full((64, 64), 1024, np.uint16)
    pixels[20:24, 46:48] = 2000  # 4 rows, 2 columns
    frame = fr.zoom(fr.full_frame(64, 64, WINDOW, 0), np.array([500, 250, 1000, 750]))  # x 32..64, y 16..48
    frame = fr.rotate(frame, 1)  # of 32: the block's rows 4..8 from the top are now at u 28..24, columns 14..16 at v
    frame = fr.zoom(frame, np.array([500, 250, 1000, 750]))  # u 16..32, v 8..24: native pixels one to one
    view = render(one_source(pixels), frame)[0]
    expected = np.zeros((16, 16), bool)
    expected[6:8, 8:12] = True
    np.testing.assert_array_equal(view[..., 0] == 255, expected)
    np.testing.assert_allclose(fr.box_from_source(frame, np.array([46, 20, 48, 24])), [500, 375, 750, 500], atol=1e-2)


def test_a_window_on_a_zoom_reads_native_values_again():
    pixels = np.tile(np.arange(64) * 20 + 1324, (64, 1)).astype(np.uint16)  # from 300 HU upwards, all clipped
    clipped = fr.zoom(fr.full_frame(64, 64, WINDOW, 0), np.array([250, 250, 500, 500]))
    bone = fr.zoom(fr.with_window(clipped, -500.0, 1300.0), np.array([0, 0, 1000, 1000]))
    first, second = render(one_source(pixels), clipped, bone)
    assert (first == 255).all()
    np.testing.assert_array_equal(second[0, :, 0], np.round((300 + 20 * np.arange(16, 32) + 500) / 1800 * 255))


def test_resampling_comes_before_the_window():
    checker = np.indices((64, 64)).sum(0) % 2
    pixels = (checker * 2000 + 24).astype(np.uint16)  # -1000 and 1000 HU
    view = render(one_source(pixels), fr.full_frame(64, 64, WINDOW, 0))
    inner = view[0, 1:-1, 1:-1].astype(int)
    assert abs(inner - 160 / 400 * 255).max() <= 1  # the mean, 0 HU; windowed first it would be 128


def test_sixteen_bit_steps_survive_at_the_top_of_the_range():
    pixels = np.full((64, 64), 65000, np.uint16)
    pixels[:, 8:] = 65001
    frame = fr.zoom(fr.full_frame(64, 64, (65000.0, 65001.0), 0), np.array([0, 0, 250, 250]))
    view = render(one_source(pixels, (1.0, 0.0)), frame)[0]
    np.testing.assert_array_equal(view[..., 0], np.tile(np.where(np.arange(16) >= 8, 255, 0), (16, 1)))


@pytest.mark.parametrize("box", [(0, 0, 1000, 1000), (0, 0, 90, 90), (700, 900, 1000, 1000), (0, 480, 1000, 510)])
@pytest.mark.parametrize("bucket", [(50, 40), (64, 64)])
def test_edges_are_not_darkened(box, bucket):
    pixels = np.full((50, 40), 1100, np.uint16)
    frame = fr.zoom(fr.full_frame(50, 40, WINDOW, 0), np.array(box))
    view = render(one_source(pixels, HU, bucket), frame, fr.rotate(frame, 1))
    np.testing.assert_array_equal(view, round((76 + 160) / 400 * 255))


def test_a_view_does_not_depend_on_its_bucket_or_on_what_lies_in_the_padding():
    pixels = smooth_ct(np.random.default_rng(3), 50, 40)
    whole = fr.full_frame(50, 40, WINDOW, 0)
    frames = whole, fr.zoom(whole, np.array([900, 900, 1000, 1000]))
    padded = one_source(pixels)
    padded.pixels[:, :, 50:] = 65535
    padded.pixels[:, :, :, 40:] = 65535
    difference = render(padded, *frames).astype(int) - render(one_source(pixels, HU, (50, 40)), *frames)
    assert abs(difference).max() <= 1


def test_a_crop_reads_its_real_neighbours():
    pixels = np.full((64, 64), 864, np.uint16)
    pixels[:, :32] = 1264
    frame = fr.zoom(fr.full_frame(64, 64, WINDOW, 0), np.array([500, 0, 1000, 1000]))  # just right of the step
    view = render(one_source(pixels), frame)[0]
    assert (view[:, 0] > 0).all()
    assert (view[:, 1:] == 0).all()


def test_unasked_views_are_black_and_leave_the_others_alone():
    rng = np.random.default_rng(4)
    n = 2 * CHUNK["bicubic"] + 3
    images = [[smooth_ct(rng, 64, 64)] for _ in range(3)]
    sources = stack_sources(images, [[HU]] * 3, 64, 64)
    row = rng.integers(-1, 3, n).astype(np.int32)
    assert CHUNK["bicubic"] < (row >= 0).sum() < n
    boxes = np.concatenate([rng.uniform(0, 400, (n, 2)), rng.uniform(600, 1000, (n, 2))], 1).astype(np.float32)
    whole = fr.full_frame(64, 64, WINDOW, 0)
    frames = fr.zoom(jax.tree.map(lambda x: np.stack([x] * n), whole), boxes)
    views = np.asarray(render_views(sources, row, frames, VIEW))
    for i in range(n):
        alone = render(one_source(images[row[i]][0]), fr.zoom(whole, boxes[i]))[0]
        np.testing.assert_array_equal(views[i], alone if row[i] >= 0 else 0)
        assert alone.std() > 0
    assert not np.asarray(render_views(sources, np.full(n, -1, np.int32), frames, VIEW)).any()


def test_a_frame_reads_the_image_that_it_names():
    images = [np.full((16, 24), 10, np.uint8), np.full((20, 12), 90, np.uint8)]
    sources = stack_sources([images, images[1:]], [[(1.0, 0.0), (2.0, 5.0)], [(1.0, 0.0)]], 24, 24)
    first, second = render(sources, fr.full_frame(16, 24, (0.0, 255.0), 0), fr.full_frame(20, 12, (0.0, 255.0), 1))
    assert (first == 10).all()
    assert (second == 185).all()
    np.testing.assert_array_equal(sources.size, [[[16, 24], [20, 12]], [[20, 12], [20, 12]]])
    np.testing.assert_array_equal(sources.pixels[0, 1], 90)


@functools.partial(jax.jit, static_argnames="view")
def from_whole_images(sources: Sources, row, frames: fr.Frame, view: ViewFormat):
    """The views as `scale_and_translate` makes them from all pixels of the image, whatever the box."""

    def upright(pixels, true_size, box, size):
        x1, y1, x2, y2 = box
        scale = jnp.stack([size[0] / (y2 - y1), size[1] / (x2 - x1)])
        shift = -jnp.stack([y1, x1]) * scale

        def resample(image, dims):
            shape = tuple(64 if d in dims else n for d, n in enumerate(image.shape))
            take = jnp.array(dims)
            return jax.image.scale_and_translate(image, shape, dims, scale[take], shift[take], "linear", antialias=True)

        inside_y = (jnp.arange(pixels.shape[0]) < true_size[0]).astype(jnp.float32)[:, None]
        inside_x = (jnp.arange(pixels.shape[1]) < true_size[1]).astype(jnp.float32)[None, :]
        weight = resample(inside_y, (0,)) * resample(inside_x, (1,))
        return resample(pixels.astype(jnp.float32) * (inside_y * inside_x)[..., None], (0, 1)) / weight[..., None]

    def one(row_and_frame):
        r, frame = row_and_frame
        pixels, (slope, intercept), true_size = jax.tree.map(lambda x: x[r, frame.source], sources)
        (a, b, _), (c, d, _) = frame.affine
        turned = abs(b) > abs(a)
        size = jnp.where(turned, jnp.array([view.width, view.height]), jnp.array(view[:2])).astype(jnp.float32)
        physical = upright(pixels, true_size, fr.bounds(frame), size) * slope + intercept
        low, high = frame.window
        grey = jnp.clip(jnp.round((physical - low) / (high - low) * 255.0), 0, 255).astype(jnp.uint8)
        image = jnp.where(turned, grey.swapaxes(0, 1), grey)[: view.height, : view.width]
        image = jnp.where(a + c < 0, image[:, ::-1], image)
        return jnp.broadcast_to(jnp.where(b + d < 0, image[::-1], image), view.shape)

    return jax.lax.map(one, (row, frames))


def sums_in_blocks() -> bool:
    """Whether this machine's matmul sums 512 values in two blocks, as BLOCK says."""
    a, b = jax.random.uniform(jax.random.key(0), (2, 512, 64))
    product = jax.jit(functools.partial(jnp.einsum, "ki,kj->ij", precision="highest"))
    return bool((product(a, b) == product(a[:256], b[:256]) + product(a[256:], b[256:])).all())


@pytest.mark.parametrize(
    ("dtype", "channels", "view"),
    [("uint16", 1, (64, 64)), ("uint16", 1, (48, 64)), ("uint8", 1, (64, 64)), ("uint8", 3, (64, 64))],
)
def test_whatever_part_of_an_image_is_read_the_view_is_that_from_all_of_it(dtype, channels, view):
    rng = np.random.default_rng(5)
    n, view = 16, ViewFormat(*view, "linear")
    rescale, window, low, high = (HU, WINDOW, 800, 1350) if dtype == "uint16" else ((1.0, 0.0), (0.0, 255.0), 0, 256)
    sides = [(512, 512), (511, 509), (300, 512), (450, 333)]
    images = [[rng.integers(low, high, (*side, channels)).astype(dtype)] for side in sides]
    sources = jax.device_put(stack_sources(images, [[rescale]] * len(sides), 512, 512))
    row = np.arange(n, dtype=np.int32) % len(sides)
    whole = jax.tree.map(lambda *x: np.stack(x), *[fr.full_frame(*sides[r], window, 0) for r in row])
    differing = 0
    for smallest, largest in ((28, 100), (100, 240), (28, 1000), (1000, 1000)):
        for grid in (1e-3, 20):  # boxes off and on the grid, and at the edges
            side = rng.uniform(smallest, largest, (n, 2))
            corner = rng.uniform(-0.2, 1.2, (n, 2)).clip(0, 1) * (1000 - side)
            box = np.concatenate([corner // grid * grid, (corner + side) // grid * grid + grid], axis=1).clip(0, 1000)
            frames = fr.flip(fr.rotate(fr.zoom(whole, box), rng.integers(4, size=n)), rng.integers(2, size=n))
            views = np.asarray(render_views(sources, row, frames, view))
            expected = np.asarray(from_whole_images(sources, row, frames, view))
            assert views.reshape(n, -1).std(axis=1).min() > 5
            assert abs(views.astype(int) - expected).max() <= 1
            differing += (views != expected).sum()
    assert differing == 0 or not sums_in_blocks()


def test_images_that_do_not_fit_a_bucket_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        one_source(np.zeros((8, 65), np.uint8))
    with pytest.raises(ValueError, match="dtype"):
        stack_sources([[np.zeros((8, 8), np.uint8)], [np.zeros((8, 8), np.uint16)]], [[HU], [HU]], 8, 8)
    with pytest.raises(ValueError, match="channels"):
        stack_sources([[np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)]], [[HU, HU]], 8, 8)


def test_sources_begin_where_the_cpu_takes_them_without_a_copy():
    for side in (3, 40, 64):
        pixels = np.arange(side * side, dtype=np.uint16).reshape(side, side)
        stacked = stack_sources([[pixels]] * 3, [[(1.0, 0.0)]] * 3, 64, 64).pixels
        assert stacked.ctypes.data % 64 == 0
        np.testing.assert_array_equal(stacked[2, 0, :side, :side, 0], pixels)
