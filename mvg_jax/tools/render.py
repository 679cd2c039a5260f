"""From frames to pixels: resample the native image, window it, turn it upright to the view.

The order is fixed: antialiased linear resampling of native values in float32, then rescale to physical units (linear,
so it commutes with resampling), then the window to 0..255, rounding and clipping, then mirroring and transposition.
Resampling is separable and dense, two matmuls a view whatever the zoom: H*W*S + S*W*S multiply-adds a channel.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvg_jax.frames import Frame, bounds

CHUNK = 8  # views rendered at a time


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
    pixels: Sequence[Sequence[np.ndarray]], rescale: Sequence[Sequence[tuple[float, float]]], height: int, width: int
) -> Sources:
    """Native images as a Sources of numpy arrays in the bucket (height, width), edges replicated.

    pixels: per prompt its images, [h, w] or [h, w, 3], all of one dtype and channel count.
    rescale: (slope, intercept) of each. Prompts with fewer images than others repeat their first.
    Raises ValueError for mixed dtypes or channels and for an image larger than the bucket.
    """
    many = max(len(images) for images in pixels)
    order = [[i if i < len(images) else 0 for i in range(many)] for images in pixels]
    size = [[images[i].shape[:2] for i in row] for images, row in zip(pixels, order, strict=True)]
    kinds = {(image.dtype, image.shape[2:]) for images in pixels for image in images}
    if len(kinds) > 1:
        raise ValueError(f"images of one bucket share dtype and channels, not {sorted(map(str, kinds))}")
    padded = [[_padded(images[i], height, width) for i in row] for images, row in zip(pixels, order, strict=True)]
    pairs = [[given[i] for i in row] for given, row in zip(rescale, order, strict=True)]
    return Sources(np.array(padded), np.array(pairs, np.float32), np.array(size, np.int32))


def _padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w] or [h, w, C] -> [height, width, C]."""
    h, w = image.shape[:2]
    if h > height or w > width:
        raise ValueError(f"an image of {h}x{w} pixels does not fit the bucket {height}x{width}")
    return np.pad(image.reshape(h, w, -1), ((0, height - h), (0, width - w), (0, 0)), mode="edge")


@functools.partial(jax.jit, static_argnames="size")
def render_views(sources: Sources, row: jax.Array, frames: Frame, size: int) -> jax.Array:
    """[n, S, S, 3] uint8 views of frames [n], read from the native images of sources row [n] int32.

    Views with row < 0 are black and cost nothing: the others are packed to the front and rendered in chunks, no more of
    them than needed (a loop of dynamic length, so shapes stay static).
    """
    n = row.shape[0]
    asked = row >= 0
    order = jnp.argsort(~asked, stable=True)
    order = jnp.concatenate([order, jnp.full(-n % CHUNK, n, order.dtype)])

    def render_chunk(i, views):
        index = jax.lax.dynamic_slice_in_dim(order, i * CHUNK, CHUNK)
        chosen = jax.tree.map(lambda x: x[index], (row, frames))
        rendered = jax.vmap(lambda r, f: _render(sources, r, f, size))(*chosen)
        return views.at[index].set(rendered, mode="drop")

    chunks = (asked.sum() + CHUNK - 1) // CHUNK
    views = jax.lax.fori_loop(0, chunks, render_chunk, jnp.zeros((n, size, size, 3), jnp.uint8))
    return jnp.where(asked[:, None, None, None], views, jnp.uint8(0))


def _render(sources: Sources, row: jax.Array, frame: Frame, size: int) -> jax.Array:
    """One view [S, S, 3] uint8."""
    pixels, rescale, true_size = jax.tree.map(lambda x: x[row, frame.source], sources)
    upright = _resample(pixels, true_size, bounds(frame), size)
    physical = upright * rescale[0] + rescale[1]
    low, high = frame.window[0], frame.window[1]
    grey = jnp.clip(jnp.round((physical - low) / (high - low) * 255.0), 0, 255).astype(jnp.uint8)
    return jnp.broadcast_to(_orient(grey, frame.affine), (size, size, 3))


def _resample(pixels: jax.Array, true_size: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """[S, S, C] float32 raw values of the source box xyxy (pixel edges), upright.

    The antialiasing kernel reads real neighbours outside of the box. Padding of the bucket has weight zero, and what
    remains is renormalised, as scale_and_translate itself does at the edges of an array: the bucket leaves no trace.
    """
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = box
    scale = jnp.stack([size / (y2 - y1), size / (x2 - x1)])
    shift = -jnp.stack([y1, x1]) * scale

    def resample(image, dims):
        shape = tuple(size if d in dims else n for d, n in enumerate(image.shape))
        take = jnp.array(dims)
        return jax.image.scale_and_translate(image, shape, dims, scale[take], shift[take], "linear", antialias=True)

    inside_y = (jnp.arange(height) < true_size[0]).astype(jnp.float32)[:, None]
    inside_x = (jnp.arange(width) < true_size[1]).astype(jnp.float32)[None, :]
    inside = (inside_y * inside_x)[..., None]
    weight = resample(inside_y, (0,)) * resample(inside_x, (1,))
    return resample(pixels.astype(jnp.float32) * inside, (0, 1)) / weight[..., None]


def _orient(upright: jax.Array, affine: jax.Array) -> jax.Array:
    """The upright image as the affine turns it: transposed when u runs along y, mirrored where u or v run backwards."""
    (a, b, _), (c, d, _) = affine
    image = jnp.where(abs(b) > abs(a), upright.swapaxes(0, 1), upright)
    image = jnp.where(a + c < 0, image[:, ::-1], image)  # one of the two is zero
    return jnp.where(b + d < 0, image[::-1], image)
