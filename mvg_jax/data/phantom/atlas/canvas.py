"""Drawing on planes [C, side, side] float32, in units that do not depend on their size: an image is UNITS units a side."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from mvg_jax.data.phantom import render
from mvg_jax.data.phantom.scene import Blob

UNITS = 512.0
SHARPEST = 1.5  # native px: no edge is harder than this

Region = tuple[slice, slice]


def blob(x, y, rx, ry=None, angle=0.0, bends=(), edge=2.0) -> Blob:
    """A soft-edged shape in units. bends: (order 2-4, amplitude, phase) harmonics of its outline."""
    return Blob(x, y, rx, rx if ry is None else ry, (), angle, tuple(bends), edge=edge)


def bends(rng: np.random.Generator, amplitude: float) -> tuple[tuple[int, float, float], ...]:
    """A random outline."""
    return tuple((k, float(rng.uniform(0.3, 1) * amplitude), float(rng.uniform(0, 6.28))) for k in (2, 3, 4))


def box(shape: Blob) -> tuple[float, float, float, float]:
    """xyxy of a shape in 0..1000, its bends left out."""
    c, s = np.cos(shape.angle), np.sin(shape.angle)
    hx, hy = np.hypot(shape.rx * c, shape.ry * s), np.hypot(shape.rx * s, shape.ry * c)
    edges = (shape.x - hx, shape.y - hy, shape.x + hx, shape.y + hy)
    return tuple(round(min(max(float(v) * 1000 / UNITS, 0.0), 1000.0), 2) for v in edges)


def depth(shape: Blob, side: int) -> tuple[Region, np.ndarray]:
    """The shape's bounding box and about how deep each pixel there lies inside it, in units; an empty region off the image."""
    k = side / UNITS
    scaled = dataclasses.replace(
        shape, x=shape.x * k, y=shape.y * k, rx=shape.rx * k, ry=shape.ry * k, edge=max(shape.edge * k, SHARPEST)
    )
    found = render.depth(scaled, side)
    if found is None:
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), np.float32)
    region, d = found
    d *= np.float32(1 / k)
    return region, d


def cover(shape: Blob, side: int, inset: float = 0.0) -> tuple[Region, np.ndarray]:
    """How much of each pixel of a region lies deeper than `inset` units inside the shape, 0..1."""
    region, d = depth(shape, side)
    return region, render.cover(d, inset, max(shape.edge, SHARPEST * UNITS / side))


def mask(shapes: Sequence[Blob], side: int, inset: float = 0.0) -> np.ndarray:
    """[side, side]: the union of shapes, 0..1."""
    out = np.zeros((side, side), np.float32)
    for shape in shapes:
        region, a = cover(shape, side, inset)
        np.maximum(out[region], a, out=out[region])
    return out


def blend(planes: np.ndarray, alpha: np.ndarray, colour, region: Region = (slice(None), slice(None))) -> None:
    """planes += alpha (colour - planes) within a region, in place. colour: a number, or one a plane."""
    for plane, value in zip(planes, np.broadcast_to(np.asarray(colour, np.float32), len(planes)), strict=True):
        target = plane[region]
        target += alpha * (value - target)


def paint(planes: np.ndarray, shape: Blob, colour, alpha: float = 1.0, inset: float = 0.0) -> None:
    """Blends a shape in."""
    region, a = cover(shape, planes.shape[1], inset)
    blend(planes, a * np.float32(alpha), colour, region)


@functools.lru_cache(maxsize=4)
def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x [1, side] and y [side, 1] of the pixels' centres, in units, float32."""
    at = ((np.arange(side) + 0.5) * (UNITS / side)).astype(np.float32)
    at.flags.writeable = False
    return at[None, :], at[:, None]


@functools.lru_cache(maxsize=24)
def power(side: int, scale: float, blur: float, slope: float) -> np.ndarray:
    """Power f^-slope, flat below one cycle in `scale` units, without details finer than `blur` units."""
    f2 = render.frequency_squared(side) * (side / UNITS) ** 2
    return (f2 + scale**-2.0) ** (-slope / 2) * np.exp(-((2 * np.pi * blur) ** 2) * f2)


@functools.lru_cache(maxsize=24)
def bank(side: int, scale: float, blur: float, slope: float, seed: int) -> np.ndarray:
    """A periodic random field [side, side] of that power, sd 1."""
    field = render.random_field(power(side, scale, blur, slope), seed)
    field.flags.writeable = False
    return field


@functools.lru_cache(maxsize=8)
def lines(side: int, scale: float, blur: float, slope: float, seed: int, width: float) -> np.ndarray:
    """A periodic net of lines [side, side], 0..1: where such a field is within about `width` sd of zero."""
    net = np.exp(-((bank(side, scale, blur, slope, seed) / np.float32(width)) ** 2))
    net.flags.writeable = False
    return net


def take(rng: np.random.Generator, field: np.ndarray) -> np.ndarray:
    """A periodic field shifted, mirrored and transposed at random."""
    shift = rng.integers(0, field.shape[0], 2)
    fy, fx, turn = rng.integers(0, 2, 3)
    field = np.roll(field, shift, (0, 1))[:: 1 - 2 * fy, :: 1 - 2 * fx]
    return np.ascontiguousarray(field.T if turn else field)  # or whatever is done with it takes twice as long


def stamp(out: np.ndarray, x: np.ndarray, y: np.ndarray, r: np.ndarray, value: float = 1.0) -> None:
    """Discs of radius r at (x, y), all in units, into out [side, side] by maximum, in place."""
    side = out.shape[0]
    k = side / UNITS
    x, y, r = x * k, y * k, np.maximum(r * k, 0.5)
    reach = np.ceil(r).astype(int) + 1
    for n in np.unique(reach):
        at = reach == n
        near = np.arange(-n, n + 1)
        row, col = np.floor(y[at]).astype(int)[:, None] + near, np.floor(x[at]).astype(int)[:, None] + near
        dy, dx = row + 0.5 - y[at][:, None], col + 0.5 - x[at][:, None]
        d = np.sqrt(dy[:, :, None] ** 2 + dx[:, None, :] ** 2)
        a = np.clip(r[at][:, None, None] - d + 0.5, 0, 1) * value
        inside = ((row >= 0) & (row < side))[:, :, None] & ((col >= 0) & (col < side))[:, None, :]
        index = row[:, :, None] * side + col[:, None, :]
        np.maximum.at(out.reshape(-1), index[inside], a[inside].astype(np.float32))


def closer(points: np.ndarray, side: int) -> np.ndarray:
    """A path's points [n, 3] with others between them, as many as images larger than UNITS px need to show one line."""
    n, most = len(points), math.ceil(side / UNITS)
    if most == 1:
        return points
    at = np.linspace(0, n - 1, (n - 1) * most + 1)
    return np.stack([np.interp(at, np.arange(n), column) for column in points.T], axis=1)


def branches(
    rng: np.random.Generator, side: int, x: float, y: float, angle: float, radius: float, *, length: float, turn: float,
    split: float = 0.05, wander: float = 0.06, taper: float = 0.997, least: float = 0.7, step: float = 1.5, most: int = 60,
) -> np.ndarray:  # fmt: skip
    """A branching tree as points [n, 3] (x, y, r), close enough for an image of `side` px; the tree does not depend on that.

    turn: steady bend, radians a unit. split: chance of a branch a unit.
    """
    points, ends = [], [(x, y, angle, radius, length, turn)]
    while ends and most:
        most -= 1
        x, y, angle, r, length, turn = ends.pop(0)
        n = max(2, int(length / step))
        angles = angle + np.cumsum(rng.normal(0, wander, n) + turn * step)
        xs, ys = x + np.cumsum(np.cos(angles)) * step, y + np.cumsum(np.sin(angles)) * step
        rs = r * taper ** (step * np.arange(n))
        points.append(closer(np.stack([xs, ys, rs], 1), side))
        for i in np.flatnonzero(rng.random(n) < split * step):
            if rs[i] * 0.7 > least:
                aside = rng.choice((-1, 1)) * rng.uniform(0.45, 0.9)
                rest = length * (1 - i / n) * rng.uniform(0.45, 0.8)
                ends.append((xs[i], ys[i], angles[i] + aside, rs[i] * rng.uniform(0.55, 0.75), rest, turn * 0.3))
    return np.concatenate(points)
