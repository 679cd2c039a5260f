"""Frames: what part of which native image a view shows, how it is turned, and through which intensity window.

A view's unit coordinates (u to the right, v down, both in [0, 1], measured at pixel edges) map to pixel-edge
coordinates of the native image, (x, y) = affine @ (u, v, 1) with x in [0, W] and y in [0, H]. Every tool composes on
this map, and pixels are read from the native image again, so that a zoom into a rotated, windowed zoom loses nothing.

All affines made here are dihedral: an axis-aligned box of the source, possibly mirrored and turned by quarters. The
functions are pure and take numpy and jax arrays alike; arguments have a frame's leading dimensions or broadcast to it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BOX_UNITS = 1000.0  # boxes are xyxy in 0..1000 relative to the view they name

HORIZONTAL, VERTICAL = 0, 1

# Maps from the new view's (u, v, 1) to the old view's (u, v, 1).
_ROW = [0, 0, 1]
_FLIPS = np.array([[[-1, 0, 1], [0, 1, 0], _ROW], [[1, 0, 0], [0, -1, 1], _ROW]], np.float32)  # [axis, 3, 3]
_TURNS = np.array(  # [clockwise quarter turns, 3, 3]
    [
        [[1, 0, 0], [0, 1, 0], _ROW],
        [[0, 1, 0], [-1, 0, 1], _ROW],
        [[-1, 0, 1], [0, -1, 1], _ROW],
        [[0, -1, 1], [1, 0, 0], _ROW],
    ],
    np.float32,
)


class Frame(NamedTuple):
    """A view of a native image, or many with the same leading dimensions.

    affine: [..., 2, 3] float32, view (u, v, 1) to source pixel edges (x, y).
    window: [..., 2] float32, (low, high) physical values shown as black and white (HU, or grey levels for photographs).
    source: [...] int32, index into the row's native images.
    """

    affine: jax.Array | np.ndarray
    window: jax.Array | np.ndarray
    source: jax.Array | np.ndarray


def full_frame(height: int, width: int, window: tuple[float, float], source: int) -> Frame:
    """The frame (numpy, no leading dimensions) that shows the whole native image of height x width pixels upright."""
    affine = np.array([[width, 0, 0], [0, height, 0]], np.float32)
    return Frame(affine, np.array(window, np.float32), np.array(source, np.int32))


def zoom(frame: Frame, box) -> Frame:
    """The part of the view inside box [..., 4], xyxy in 0..1000 with x1 < x2 and y1 < y2."""
    xp = _namespace(frame.affine, box)
    x1, y1, x2, y2 = (c / BOX_UNITS for c in _columns(xp.asarray(box, xp.float32)))
    zero, one = xp.zeros_like(x1), xp.ones_like(x1)
    step = xp.stack([x2 - x1, zero, x1, zero, y2 - y1, y1, zero, zero, one], -1).reshape(*x1.shape, 3, 3)
    return frame._replace(affine=_compose(frame.affine, step))


def flip(frame: Frame, axis) -> Frame:
    """The view mirrored: axis [...] int is HORIZONTAL (left and right swap) or VERTICAL (top and bottom swap)."""
    xp = _namespace(frame.affine, axis)
    return frame._replace(affine=_compose(frame.affine, xp.asarray(_FLIPS)[axis]))


def rotate(frame: Frame, quarter_turns) -> Frame:
    """The view turned clockwise, as seen, by quarter_turns [...] int (any integer)."""
    xp = _namespace(frame.affine, quarter_turns)
    return frame._replace(affine=_compose(frame.affine, xp.asarray(_TURNS)[quarter_turns % 4]))


def with_window(frame: Frame, low, high) -> Frame:
    """The view shown through the window low [...] < high [...], in physical units."""
    xp = _namespace(frame.window, low, high)
    return frame._replace(window=xp.stack([xp.asarray(low, xp.float32), xp.asarray(high, xp.float32)], -1))


def extent(frame: Frame):
    """(height, width) [...] in native pixels of what the view shows, along the view's own axes v and u."""
    sides = abs(frame.affine[..., 0, :2]) + abs(frame.affine[..., 1, :2])  # one of the two terms is zero
    return sides[..., 1], sides[..., 0]


def bounds(frame: Frame):
    """[..., 4] float32 xyxy of the source pixel edges that the view shows."""
    return box_to_source(frame, np.array([0, 0, BOX_UNITS, BOX_UNITS], np.float32))


def box_to_source(frame: Frame, box):
    """[..., 4] xyxy in source pixel edges of box [..., 4], xyxy in 0..1000 of the view."""
    xp = _namespace(frame.affine, box)
    u1, v1, u2, v2 = (c / BOX_UNITS for c in _columns(xp.asarray(box, xp.float32)))
    a, b, tx, c, d, ty = _entries(frame.affine)
    return _ordered(xp, a * u1 + b * v1 + tx, c * u1 + d * v1 + ty, a * u2 + b * v2 + tx, c * u2 + d * v2 + ty)


def box_from_source(frame: Frame, xyxy):
    """[..., 4] xyxy in 0..1000 of the view (beyond that range outside of it) of xyxy [..., 4] in source pixel edges."""
    xp = _namespace(frame.affine, xyxy)
    x1, y1, x2, y2 = _columns(xp.asarray(xyxy, xp.float32))
    a, b, tx, c, d, ty = _entries(frame.affine)
    scale = BOX_UNITS / (a * d - b * c)

    def u(x, y):
        return (d * (x - tx) - b * (y - ty)) * scale

    def v(x, y):
        return (a * (y - ty) - c * (x - tx)) * scale

    return _ordered(xp, u(x1, y1), v(x1, y1), u(x2, y2), v(x2, y2))


def _compose(outer, inner):
    """outer [..., 2, 3] @ inner [..., 3, 3], written out: a matmul on an accelerator may drop to 10-bit mantissas."""
    inner = _namespace(outer, inner).broadcast_to(inner, (*outer.shape[:-2], 3, 3))
    return sum(outer[..., :, k : k + 1] * inner[..., k : k + 1, :] for k in range(3))


def _ordered(xp, x1, y1, x2, y2):
    return xp.stack([xp.minimum(x1, x2), xp.minimum(y1, y2), xp.maximum(x1, x2), xp.maximum(y1, y2)], -1)


def _columns(box):
    return box[..., 0], box[..., 1], box[..., 2], box[..., 3]


def _entries(affine):
    return tuple(affine[..., i, j] for i in range(2) for j in range(3))


def _namespace(*arrays):
    """jax.numpy when any argument is a jax array or tracer, else numpy."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
