"""Proof, item by item, that the overview cannot answer a question and that the right view can.

An ideal observer who must tell two known images apart in Gaussian noise of covariance K reaches the detectability
d' = sqrt(sᵀ K⁻¹ s), s being their difference (Barrett & Myers). K⁻¹ is bounded by the noise's extreme powers: the
smallest gives an upper bound of what the overview can tell, the largest a lower bound of what the right view tells.
Views are sampled from the noise-free images by the tools' own operators, window clipping included; rounding to grey
levels counts as noise of power 1/12.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from mvg_jax.data.phantom.render import WHITE_SD, largest_noise_power
from mvg_jax.data.phantom.scene import SIDE
from mvg_jax.data.phantom.views import DEFAULT_WINDOW, VIEW, grey, sample, weights

LIMIT_OVERVIEW = 0.5
LIMIT_TOOL = 4.0
ROUNDING = 1.0 / 12.0

Window = tuple[float, float]
Rect = tuple[float, float, float, float]  # x1, y1, x2, y2 in native px


@functools.cache
def overview_weights() -> np.ndarray:
    """D [VIEW, SIDE]."""
    return weights(SIDE, 0.0, float(SIDE), VIEW)


@functools.cache
def _overview_smallest_power() -> float:
    """Smallest power of white noise in the overview, HU² (texture left out, which only lowers it)."""
    d = overview_weights()
    return WHITE_SD**2 * float(np.linalg.eigvalsh(d @ d.T)[0]) ** 2


def overview_dprime(images: Sequence[np.ndarray], rects: Sequence[Rect]) -> float:
    """Largest d' between any two of `images` (noise-free HU) in the overview.

    rects: disjoint, in whole overview pixels apart, together they hold everything that differs.
    """
    d = overview_weights()
    views = [np.concatenate([_overview_part(image, d, rect).ravel() for rect in rects]) for image in images]
    gain = 255.0 / (DEFAULT_WINDOW[1] - DEFAULT_WINDOW[0])
    return max(_distances(views)) / math.sqrt(_overview_smallest_power() * gain**2 + ROUNDING)


def tool_dprime(images: Sequence[np.ndarray], rects: Sequence[Rect], window: Window) -> float:
    """Smallest d' between any two of `images` in the views of `rects` through `window`, received together."""
    axes = [(weights(SIDE, y1, y2, VIEW), weights(SIDE, x1, x2, VIEW)) for x1, y1, x2, y2 in rects]
    views = [np.concatenate([grey(sample(image, *axis), window).ravel() for axis in axes]) for image in images]
    # Singular values of the weights are at most sqrt(largest column sum), their rows being stochastic.
    passed = max(float(wy.sum(axis=0).max() * wx.sum(axis=0).max()) for wy, wx in axes)
    gain = 255.0 / (window[1] - window[0])
    return min(_distances(views)) / math.sqrt(largest_noise_power() * passed * gain**2 + ROUNDING)


def _overview_part(image: np.ndarray, d: np.ndarray, rect: Rect) -> np.ndarray:
    x1, y1, x2, y2 = (int(v) for v in rect)
    rows = d[:, max(y1, 0) : y2 + 1].any(axis=1)
    cols = d[:, max(x1, 0) : x2 + 1].any(axis=1)
    return grey(sample(image, d[rows], d[cols]), DEFAULT_WINDOW)


def _distances(views: Sequence[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(views, 2)]
