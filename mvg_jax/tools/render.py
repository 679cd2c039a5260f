"""From frames to pixels: resample the native image, window it, turn it upright to the view.

The order is fixed: antialiased resampling of native values, then rescale to physical units (linear, so it commutes with
resampling), then the window to 0..255, rounding and clipping, then mirroring and transposition. Resampling is separable
and dense, two matmuls a view: L*L*S + L*S*S multiply-adds a channel (longer sides of bucket and view), or, of a small
`linear` zoom, L its window's side (and of a `linear` overview about a third of the first product).

Two ways to resample, by the model's family:

linear      triangle kernel in float32. A zoom reads its real neighbours outside of the box.
bicubic     what Pillow 13's `image.crop(box).resize((W, H), BICUBIC)` gives, and so the Hugging Face image processors: Keys'
            kernel with a = -0.5, its support widened where pixels get fewer. Of 8-bit sources the first pass is clipped and
            rounded to 8 bits before the second, as is the result; other sources stay in float32. The horizontal pass comes
            first, unless the height loses more than twice as many pixels as the width (before Pillow 13: always).
            A zoom reads nothing outside of its box. A box with fractional edges reads the pixels it touches, at its exact
            place: `image.crop(outer).resize((W, H), BICUBIC, box=box - outer.origin)`, outer being the box rounded outwards
            (Pillow's own crop would move the edges to whole pixels, and the frame would no longer say where the view is).
            Turned views are resampled upright, then turned.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvg_jax.frames import Frame, bounds

# Views rendered at a time. A `linear` one chooses its own way (see WINDOW), which a batch of them could not.
CHUNK = {"linear": 1, "bicubic": 8}
WINDOW = 2  # a zoom that reads no more than this many times the view's side is made from such a window of the image
# The CPU's matmul sums an axis of 256, 512, 768 or 1,024 pixels in blocks of 256. Float32 sums depend on it, so windows are
# summed in the same blocks, and their views equal those from the whole image bit for bit. Other buckets are read whole.
BLOCK, LONGEST = 256, 1024
BAND = 16  # rows of an overview made at a time
RESAMPLE = ("linear", "bicubic")
SNAP = 1e-3  # native pixels: a box edge this close to a whole pixel is on it (frames are composed in float32)


class ViewFormat(NamedTuple):
    """How views are drawn: their height and width in pixels, and one of RESAMPLE. A static argument of compiled programs."""

    height: int
    width: int
    resample: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, 3


class Sources(NamedTuple):
    """Native images on the device: M for each of P prompts, in one (H, W, dtype, channels) bucket.

    pixels: [P, M, H, W, C] uint8 or uint16, C in {1, 3}.
    rescale: [P, M, 2] float32 (slope, intercept), physical value = raw * slope + intercept.
    size: [P, M, 2] int32, true (height, width); pixels beyond it are never shown.
    """

    pixels: jax.Array | np.ndarray
    rescale: jax.Array | np.ndarray
    size: jax.Array | np.ndarray


def stack_sources(
    pixels: Sequence[Sequence[np.ndarray]],
    rescale: Sequence[Sequence[tuple[float, float]]],
    height: int,
    width: int,
    many: int | None = None,
) -> Sources:
    """Native images as a Sources of numpy arrays in the bucket (height, width), edges replicated.

    pixels: per prompt its images, [h, w] or [h, w, 3], all of one dtype and channel count.
    rescale: (slope, intercept) of each. many: M (by default the most that a prompt has); where there are fewer the first is repeated.
    Raises ValueError for mixed dtypes or channels, for an image larger than the bucket, and for more than M images.
    """
    most = max(len(images) for images in pixels)
    many = most if many is None else many
    if most > many:
        raise ValueError(f"{most} images do not fit a bucket of {many}")
    order = [[i if i < len(images) else 0 for i in range(many)] for images in pixels]
    size = [[images[i].shape[:2] for i in row] for images, row in zip(pixels, order, strict=True)]
    kinds = {(image.dtype, image.shape[2:]) for images in pixels for image in images}
    if len(kinds) > 1:
        raise ValueError(f"images of one bucket share dtype and channels, not {sorted(map(str, kinds))}")
    first = pixels[0][0]
    shape = (len(pixels), many, height, width, first.size // math.prod(first.shape[:2]))
    stacked = _aligned(shape, first.dtype)
    for images, row, places in zip(pixels, order, stacked, strict=True):
        for i, place in zip(row, places, strict=True):
            _lay(images[i], place)
    pairs = [[given[i] for i in row] for given, row in zip(rescale, order, strict=True)]
    return Sources(stacked, np.array(pairs, np.float32), np.array(size, np.int32))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: the CPU's device takes it as its own, without a copy, so that nobody may
    write to it from then on."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    first = -room.ctypes.data % 64
    return room[first : first + size].view(dtype).reshape(shape)


def _lay(image: np.ndarray, place_HxWxC: np.ndarray) -> None:
    """Copies an image [h, w] or [h, w, C] to the top left corner and its last row and column into what is left."""
    (h, w), (height, width) = image.shape[:2], place_HxWxC.shape[:2]
    if h > height or w > width:
        raise ValueError(f"an image of {h}x{w} pixels does not fit the bucket {height}x{width}")
    place_HxWxC[:h, :w] = image.reshape(h, w, -1)
    place_HxWxC[:h, w:] = place_HxWxC[:h, w - 1 : w]
    place_HxWxC[h:] = place_HxWxC[h - 1 : h]


@functools.partial(jax.jit, static_argnames="view")
def render_views(sources: Sources, row: jax.Array, frames: Frame, view: ViewFormat) -> jax.Array:
    """[n, H, W, 3] uint8 views of frames [n], read from the native images of sources row [n] int32.

    Views with row < 0 are black and cost nothing: the others are packed to the front and rendered in chunks, no more of
    them than needed (a loop of dynamic length, so shapes stay static). ValueError for an unknown way to resample.
    """
    if view.resample not in RESAMPLE:
        raise ValueError(f"resample {view.resample!r}: one of {RESAMPLE}")
    n = row.shape[0]
    chunk = CHUNK[view.resample]
    asked = row >= 0
    order = jnp.argsort(~asked, stable=True)
    order = jnp.where(asked[order], order, n)  # n names no view
    order = jnp.concatenate([order, jnp.full(-n % chunk, n, order.dtype)])

    def render_chunk(i, views):
        index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        chosen = jax.tree.map(lambda x: x[index], (row, frames))
        render = lambda r, f: _render(sources, r, f, view)
        # vmap, even over one, would run both sides of a condition.
        rendered = jax.vmap(render)(*chosen) if chunk > 1 else render(*jax.tree.map(lambda x: x[0], chosen))[None]
        return views.at[index].set(rendered, mode="drop")

    chunks = (asked.sum() + chunk - 1) // chunk
    return jax.lax.fori_loop(0, chunks, render_chunk, jnp.zeros((n, *view.shape), jnp.uint8))


def _render(sources: Sources, row: jax.Array, frame: Frame, view: ViewFormat) -> jax.Array:
    """One view [H, W, 3] uint8."""
    rescale, true_size = (x[row, frame.source] for x in (sources.rescale, sources.size))
    resample = {"linear": _linear, "bicubic": _bicubic}[view.resample]
    # A view turned by a quarter is W x H before it is turned: both have room on a square canvas.
    upright_size = jnp.where(_is_turned(frame.affine), jnp.array([view.width, view.height]), jnp.array(view[:2]))
    place, size = (row, frame.source), upright_size.astype(jnp.float32)
    upright = resample(sources.pixels, place, true_size, bounds(frame), size, max(view[:2]))
    physical = upright * rescale[0] + rescale[1]
    low, high = frame.window[0], frame.window[1]
    grey = jnp.clip(jnp.round((physical - low) / (high - low) * 255.0), 0, 255).astype(jnp.uint8)
    grey = jax.lax.optimization_barrier(grey)  # or it is computed anew for each channel and each way to turn it
    return jnp.broadcast_to(_orient(grey, frame.affine, view), view.shape)


def _linear(
    pixels: jax.Array, place: tuple[jax.Array, ...], true_size: jax.Array, box: jax.Array, size: jax.Array, canvas: int
) -> jax.Array:
    """[canvas, canvas, C] float32 raw values of the image pixels[place], upright: the source box xyxy (pixel edges) in the
    first size [2] rows and columns, anything beyond.

    The antialiasing kernel reads real neighbours outside of the box. Padding of the bucket has weight zero, and what
    remains is renormalised, as scale_and_translate itself does at the edges of an array: the bucket leaves no trace.
    """
    shape = pixels.shape[2:4]
    low, high = box[1::-1], box[:1:-1]  # (y, x), as size is
    weights = [_triangle_weights(low[i], high[i], shape[i], size[i], canvas) for i in (0, 1)]
    inside = [(jnp.arange(shape[i]) < true_size[i]).astype(jnp.float32)[:, None] for i in (0, 1)]
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    total = product("hi,ho->io", weights[0], inside[0]) * product("wj,wo->oj", weights[1], inside[1])

    def cut(first: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The image from pixel `first` (y, x) on, black in the padding, and the weights of its rows and columns."""
        sides = [(first[0], height), (first[1], width)]
        image = jax.lax.dynamic_slice(pixels, (*place, *first, 0), (1, 1, height, width, pixels.shape[4]))[0, 0]
        row, column = (jax.lax.dynamic_slice_in_dim(x, *side) for x, side in zip(inside, sides, strict=True))
        down, across = (jax.lax.dynamic_slice_in_dim(x, *side) for x, side in zip(weights, sides, strict=True))
        return image.astype(jnp.float32) * (row * column[:, 0][None])[..., None], down, across

    def whole(_):
        image, down, across = cut(jnp.zeros(2, jnp.int32), *shape)
        return product("hwc,hi,wj->ijc", image, down, across)

    def overview(_):
        image, down, across = cut(jnp.zeros(2, jnp.int32), *shape)
        return product("iwc,wj->ijc", _overview_rows(image, down, product), across)

    def window(first):
        image, down, across = cut(first, side, side)
        return product("iwc,wj->ijc", product("hi,hwc->iwc", down, image), across)

    def window_in_two_blocks(first):
        image, down, across = cut(first, side, side)
        above = jnp.arange(side)[:, None] < -first[0] % BLOCK
        halves = jnp.where(above, down, 0.0), jnp.where(above, 0.0, down)
        return product("iwc,wj->ijc", sum(product("hi,hwc->iwc", half, image) for half in halves), across)

    side = WINDOW * canvas
    if side > BLOCK or any(length % BLOCK or length > LONGEST for length in shape):
        return whole(None) / total[..., None]
    margin = jnp.maximum((high - low) / size, 1.0) + 1.0  # how far the kernel reaches, and a pixel for roundings
    begin, end = jnp.maximum(jnp.floor(low - margin), 0.0), jnp.minimum(high + margin, jnp.array(shape, jnp.float32))
    first = jnp.minimum(begin.astype(jnp.int32), jnp.array(shape) - side)
    fits = (end <= first + side).all()
    one_block = begin[0] // BLOCK == end[0] // BLOCK
    is_overview = (low[0] == 0) & (high[0] == shape[0]) & (size[0] == canvas)
    way = jnp.where(fits, jnp.where(one_block, 1, 2), jnp.where(is_overview, 3, 0))
    return jax.lax.switch(way, (whole, window, window_in_two_blocks, overview), first) / total[..., None]


def _overview_rows(image: jax.Array, down: jax.Array, product) -> jax.Array:
    """[canvas, W, C]: the rows of a view of the whole image [H, W, C], a band of them at a time from the pixels that it reads."""
    height, canvas = down.shape
    pitch = height / canvas
    bands = []
    for at in range(0, canvas, BAND):
        first, last = max(math.floor((at - 1) * pitch) - 1, 0), min(math.ceil((at + BAND + 1) * pitch) + 1, height)
        cuts = [first, *(cut for cut in range(BLOCK, height, BLOCK) if first < cut < last), last]
        parts = [product("hi,hwc->iwc", down[i:j, at : at + BAND], image[i:j]) for i, j in itertools.pairwise(cuts)]
        bands.append(sum(parts[1:], parts[0]))
    return jnp.concatenate(bands)


def _triangle_weights(low: jax.Array, high: jax.Array, length: int, count: jax.Array, canvas: int) -> jax.Array:
    """[length, canvas] float32: columns sample [low, high) px of an axis at `count` points, further ones beyond.

    The arithmetic of `jax.image.scale_and_translate` (triangle kernel, antialiased), operation by operation.
    """
    # The barrier keeps 1 / (count / (high - low)) from being simplified, which would change its last bit.
    scale = count / (high - low)
    scale, shift = jax.lax.optimization_barrier((scale, -low * scale))
    pitch = 1.0 / scale
    point = (jnp.arange(canvas, dtype=jnp.float32) + 0.5) * pitch - shift * pitch - 0.5
    apart = abs(point[None] - jnp.arange(length, dtype=jnp.float32)[:, None]) / jnp.maximum(pitch, 1.0)
    weight = jnp.maximum(
        0.0, 1.0 - abs(apart)
    )  # this abs keeps the difference from being fused with the quotient: as above
    total = weight.sum(axis=0, keepdims=True)
    # Points outside of the image see nothing.
    seen = (total > 1000.0 * jnp.finfo(jnp.float32).eps) & (point >= -0.5)[None] & (point <= length - 0.5)[None]
    return jnp.where(seen, weight / jnp.where(total == 0, 1.0, total), 0.0)


def _bicubic(
    pixels: jax.Array, place: tuple[jax.Array, ...], true_size: jax.Array, box: jax.Array, size: jax.Array, canvas: int
) -> jax.Array:
    """Like `_linear`, as Pillow does it; see the module's docstring."""
    pixels = pixels[place]
    box = jnp.where(abs(box - jnp.round(box)) < SNAP, jnp.round(box), box)
    low, high = box[1::-1], box[:1:-1]  # (y, x), as size is
    first, last = jnp.floor(low), jnp.minimum(jnp.ceil(high), true_size)
    # Both axes get the longer one's length, so that either can come first.
    length = max(pixels.shape[:2])
    image = jnp.pad(pixels, [(0, length - side) for side in pixels.shape[:2]] + [(0, 0)]).transpose(2, 0, 1)
    down, across = (_bicubic_weights(low[i], high[i], first[i], last[i], length, size[i], canvas) for i in (0, 1))
    eight_bit = pixels.dtype == jnp.uint8
    settle = lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255) if eight_bit else x
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    # Where nothing is rounded in between, the order makes no difference.
    fewer = last - first - size
    down_first = (fewer[0] > 0) & (fewer[0] > 2 * fewer[1]) if eight_bit else False
    swapped = lambda array: jnp.where(down_first, array.swapaxes(1, 2), array)
    one, two = jnp.where(down_first, down, across), jnp.where(down_first, across, down)
    once = settle(product("chw,jw->chj", swapped(image).astype(jnp.float32), one))
    return swapped(settle(product("chj,ih->cij", once, two))).transpose(1, 2, 0)


def _bicubic_weights(
    low: jax.Array, high: jax.Array, first: jax.Array, last: jax.Array, length: int, count: jax.Array, canvas: int
) -> jax.Array:
    """[canvas, length] float32: rows sample [low, high) px of an axis at `count` points, from the pixels first to last - 1.

    Rows beyond `count` repeat the last. Distances are quotients of numbers that are whole, and so exact, where the edges
    are: with weights that are off by 1e-5, sums fall on the other side of a rounding.
    """
    index = jnp.arange(length)
    inside = (index >= first) & (index < last)
    place = 2 * (index - low) + 1  # twice the pixel's centre, from the box's edge
    point = 2 * jnp.minimum(jnp.arange(canvas), count - 1) + 1
    apart = place[None] * count - point[:, None] * (high - low)
    x = jnp.abs(apart) / (2 * jnp.maximum(high - low, count))
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weight = jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0)) * inside[None]
    return weight / weight.sum(axis=1, keepdims=True)


def _is_turned(affine: jax.Array) -> jax.Array:
    """Whether u runs along y."""
    return abs(affine[0, 1]) > abs(affine[0, 0])


def _orient(upright: jax.Array, affine: jax.Array, view: ViewFormat) -> jax.Array:
    """The upright image as the affine turns it: transposed when u runs along y, mirrored where u or v run backwards."""
    (a, b, _), (c, d, _) = affine
    turned = _is_turned(affine)
    v, u = jnp.arange(view.height)[:, None], jnp.arange(view.width)[None]
    v = jnp.where(b + d < 0, view.height - 1 - v, v)  # one of the two is zero
    u = jnp.where(a + c < 0, view.width - 1 - u, u)
    return upright[jnp.where(turned, u, v), jnp.where(turned, v, u)]
