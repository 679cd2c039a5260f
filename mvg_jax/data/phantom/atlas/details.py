"""Small things whose reading needs a close look, hidden from one overview by construction.

The overview is linear in the pixels: O = D I Dᵀ, D [view, side] being its resampling matrix. Of the patterns T_k that a detail
may show, M is the mean; what is drawn is T_k - P (T_k - M) Pᵀ with P = D⁺D, so that the overview of every one is that of M.
P is taken over a window that holds the detail; its rows are those of D that touch the window, which makes the projection
exact there and leaves everything outside alone.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from mvg_jax.data.phantom.atlas.canvas import UNITS
from mvg_jax.data.phantom.views import Overview

FINE = 8.0  # fine pixels an overview pixel: patterns are drawn for this many, and scaled to other overviews
SMALLEST = 0.65  # native pixels: a fine pixel is not smaller, so that there are enough to draw a pattern with
WINDOW = 9  # overview pixels


@dataclasses.dataclass(frozen=True)
class Detail:
    """A disc at (x, y) units with a pattern.

    group: the patterns it is drawn from. radius: in fine pixels (see `fine`). wobble [6]: small offsets of its parts, in -1..1.
    place: where in the patient it lies.
    """

    group: str
    pattern: str
    x: float
    y: float
    radius: float
    angle: float
    wobble: tuple[float, ...]
    place: str = ""

    def reach(self, overview: Overview) -> float:
        """Its radius in units."""
        return self.radius * fine(overview) * UNITS / overview.side


Ink = Callable[[Detail, np.ndarray, np.ndarray], np.ndarray]


def fine(overview: Overview) -> float:
    """Native pixels a fine pixel."""
    return max(overview.step / FINE, SMALLEST)


@functools.lru_cache(maxsize=1024)
def projector(overview: Overview, start: int) -> np.ndarray:
    """P [n, n]: projection on what the overview sees of the n native pixels from `start`."""
    d = overview.whole()[:, start : start + size(overview)]
    d = d[np.any(d != 0, axis=1)]
    return np.linalg.pinv(d) @ d


def size(overview: Overview) -> int:
    """Side of a detail's window, native px."""
    return round(WINDOW * overview.step)


def window(detail: Detail, overview: Overview) -> tuple[int, int]:
    """(y, x) of the first native pixel of a detail's window, which lies inside the image."""
    k, n = overview.side / UNITS, size(overview)
    first = (overview.step * round((c * k - n / 2) / overview.step) for c in (detail.y, detail.x))
    return tuple(min(max(round(v), 0), overview.side - n) for v in first)


def offsets(detail: Detail, overview: Overview) -> tuple[np.ndarray, np.ndarray]:
    """y [n, 1] and x [1, n] of the window's pixels from the detail's centre, in fine pixels."""
    k, at = overview.side / UNITS, np.arange(size(overview)) + 0.5
    y0, x0 = window(detail, overview)
    y, x = (at + y0 - detail.y * k) / fine(overview), (at + x0 - detail.x * k) / fine(overview)
    return y[:, None], x[None, :]


def hidden(detail: Detail, patterns: tuple[str, ...], ink: Ink, overview: Overview) -> np.ndarray:
    """[C, n, n] to add to the window: the detail's pattern, with an overview that is the same for all `patterns`."""
    y, x = offsets(detail, overview)
    drawn = {name: ink(dataclasses.replace(detail, pattern=name), y, x) for name in patterns}
    own = drawn[detail.pattern]
    y0, x0 = window(detail, overview)
    apart = own - sum(drawn.values()) / len(drawn)
    return own - projector(overview, y0) @ apart @ projector(overview, x0).T


# Templates: amplitudes 0..1 over offsets y, x in fine pixels. No detail is finer than about 3 fine pixels.


def spot(y, x, cy, cx, sigma):
    """A Gaussian spot at (cy, cx)."""
    return np.exp(-((y - cy) ** 2) / (2 * sigma**2)) * np.exp(-((x - cx) ** 2) / (2 * sigma**2))


def disc(y, x, r, edge=2.0, cy=0.0, cx=0.0):
    """A soft-edged disc."""
    return np.clip((r - np.hypot(y - cy, x - cx)) / edge + 0.5, 0, 1)


def oval(y, x, ry, rx, angle, cy=0.0, cx=0.0, edge=1.5):
    """A soft-edged ellipse, rx along `angle`."""
    c, s = math.cos(angle), math.sin(angle)
    u, v = (c * (x - cx) + s * (y - cy)) / rx, (c * (y - cy) - s * (x - cx)) / ry
    return np.clip((1 - np.hypot(u, v)) * min(rx, ry) / edge + 0.5, 0, 1)


def ring(y, x, r, sigma=1.6):
    """A ring of radius r."""
    return np.exp(-((np.hypot(y, x) - r) ** 2) / (2 * sigma**2))


def stripes(y, x, angle, period, sigma, shift=0.0, lines=(-1, 0, 1)):
    """Parallel lines across `angle`, numbered by `lines`."""
    across = math.cos(angle) * x + math.sin(angle) * y + shift
    return sum(np.exp(-((across - k * period) ** 2) / (2 * sigma**2)) for k in lines)


def spikes(y, x, angle, count, low, high, sigma=1.2):
    """Thin rays from radius `low` to `high`."""
    out = np.zeros(np.broadcast(y, x).shape)
    for k in range(count):
        t = angle + 2 * math.pi * k / count
        along, across = math.cos(t) * x + math.sin(t) * y, math.cos(t) * y - math.sin(t) * x
        fade = np.clip((along - low) / 2 + 0.5, 0, 1) * np.clip((high - along) / 6, 0, 1)
        out = np.maximum(out, fade * np.exp(-(across**2) / (2 * sigma**2)))
    return out


def places(detail: Detail, count: int, share: float = 0.6):
    """(y, x) of `count` parts around the centre, at `share` of the radius; a single one lies near the centre."""
    if count == 1:
        return [(2.0 * detail.wobble[0], 2.0 * detail.wobble[1])]
    # Each count begins elsewhere, so that the mean of all counts has no spot of its own.
    turns = [detail.angle + 1.1 * count + 2 * math.pi * k / count + 0.15 * detail.wobble[k] for k in range(count)]
    return [(share * detail.radius * math.sin(t), share * detail.radius * math.cos(t)) for t in turns]


def spots(detail: Detail, y, x, count: int, sigma=2.0, share=0.6):
    """`count` spots at `places`."""
    return np.max([spot(y, x, cy, cx, sigma) for cy, cx in places(detail, count, share)], axis=0)


_STROKES = {
    "R": ((-6, -10, -6, 10), (-6, -9, 3, -9), (3, -9, 6, -5), (6, -5, 3, 0), (-6, 0, 3, 0), (0, 0, 7, 10)),
    "L": ((-5, -10, -5, 10), (-5, 9, 7, 9)),
}


def letter(y, x, name: str, width: float = 1.6):
    """A capital letter 20 fine pixels high."""
    out = np.zeros(np.broadcast(y, x).shape)
    for x1, y1, x2, y2 in _STROKES[name]:
        length2 = (x2 - x1) ** 2 + (y2 - y1) ** 2
        t = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length2, 0, 1)
        d = np.hypot(x - x1 - t * (x2 - x1), y - y1 - t * (y2 - y1))
        out = np.maximum(out, np.clip(width - d + 0.5, 0, 1))
    return out
