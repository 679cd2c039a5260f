"""Patterns inside a lesion that the overview cannot show, whatever looks at it.

The overview is linear in the pixels: O = D I Dᵀ with D the antialiased-triangle resampling matrix. A pattern p is
projected on the null space of that map, p - P p Pᵀ with P = D⁺D, so that adding it changes no overview pixel.
P is taken over a window of whole overview pixels around the lesion; its rows are those of D that touch the window,
which makes the projection exact there and leaves everything outside alone.
"""

import functools
import math

import numpy as np

from mvg_jax.data.phantom.scene import SIDE, Lesion
from mvg_jax.data.phantom.views import VIEW, weights

STEP = SIDE // VIEW
WINDOW = 9 * STEP

ATTRIBUTES = ("homogeneous", "rim-enhancing", "calcified", "septated")
COUNTS = ("1", "2", "3")
PATTERN_LABEL = {
    "homogeneous": "lesion_homogeneous",
    "rim-enhancing": "lesion_rim",
    "calcified": "lesion_calcified",
    "septated": "lesion_septated",
    "1": "specks_1",
    "2": "specks_2",
    "3": "specks_3",
}
# Brightest point of each pattern's parts over the lesion's ground, HU, after the projection.
PEAK = {"rim-enhancing": 150.0, "calcified": 270.0, "septated": 150.0, "1": 220.0, "2": 220.0, "3": 220.0}


@functools.cache
def overview_projector() -> np.ndarray:
    """P [WINDOW, WINDOW]: projection on what the overview sees of a window that starts on an overview pixel.

    Away from the border D is the same for every start, so one matrix serves all windows.
    """
    start = SIDE // 2
    d = weights(SIDE, 0.0, float(SIDE), VIEW)[:, start : start + WINDOW]
    d = d[np.any(d > 0, axis=1)]
    return np.linalg.pinv(d) @ d


def window_start(lesion: Lesion) -> tuple[int, int]:
    """(y, x) of the first pixel of the window around a lesion, on the overview's grid."""
    return tuple(STEP * round((c - WINDOW / 2) / STEP) for c in (lesion.y, lesion.x))


def pattern(lesion: Lesion) -> np.ndarray:
    """The pattern [WINDOW, WINDOW] in HU to add at `window_start`; the overview of the sum is that of the ground."""
    y0, x0 = window_start(lesion)
    y = (np.arange(WINDOW) + 0.5 + y0 - lesion.y)[:, None]
    x = (np.arange(WINDOW) + 0.5 + x0 - lesion.x)[None, :]
    if lesion.pattern == "homogeneous":
        return np.zeros((WINDOW, WINDOW))
    p = overview_projector()
    # Each part is scaled by itself: what the projection leaves of it depends on where it lies on the overview's grid.
    nulls = [part - p @ part @ p.T for part in _parts(lesion, y, x)]
    return PEAK[lesion.pattern] * sum(null / null.max() for null in nulls)


def _spot(y, x, cy, cx, sigma):
    return np.exp(-((y - cy) ** 2) / (2 * sigma**2)) * np.exp(-((x - cx) ** 2) / (2 * sigma**2))


def _parts(lesion: Lesion, y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    """The pattern's parts as they would be if the overview could show them; no detail is finer than about 4 px."""
    r, a, w = lesion.radius, lesion.angle, lesion.wobble
    if lesion.pattern == "rim-enhancing":
        return [np.exp(-((np.sqrt(y * y + x * x) - (r - 2.0)) ** 2) / (2 * 1.8**2))]
    if lesion.pattern == "septated":
        across = math.cos(a) * x + math.sin(a) * y + w[0]
        inside = np.clip((r - np.sqrt(y * y + x * x)) / 3.0 + 0.5, 0, 1)
        period = 9.0 + 0.6 * w[1]
        septa = sum(np.exp(-((across - k * period) ** 2) / (2 * 1.7**2)) for k in (-1, 0, 1))
        return [inside * septa]
    if lesion.pattern == "calcified":
        near = _spot(y, x, 3.5 * math.sin(a), 3.5 * math.cos(a), 2.2 + 0.2 * w[2])
        return [np.maximum(_spot(y, x, 0.0, 0.0, 2.7), 0.8 * near)]
    count = int(lesion.pattern)
    turns = [a + 2 * math.pi * k / count + 0.15 * w[k] for k in range(count)]
    return [_spot(y, x, 0.6 * r * math.sin(t), 0.6 * r * math.cos(t), 2.2) for t in turns]
