"""Proof, item by item, that the overview cannot answer a question and that the right view can.

An ideal observer who must tell two known images apart in Gaussian noise of covariance K reaches the detectability
d' = sqrt(sᵀ K⁻¹ s), s being their difference (Barrett & Myers). K⁻¹ is bounded by the noise's extreme powers: the
smallest gives an upper bound of what the overview can tell, the largest a lower bound of what the right view tells.
Views are sampled from the noise-free images by the tools' own operators, window clipping included; rounding to grey
levels counts as noise of power 1/12.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from mvg_jax.data.phantom.views import Overview, grey, sample

LIMIT_OVERVIEW = 0.5
LIMIT_TOOL = 4.0
ROUNDING = 1.0 / 12.0

Window = tuple[float, float]
Rect = tuple[float, float, float, float]  # x1, y1, x2, y2 in native px


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """What stands between a view and its clean image. white: power a native pixel. texture: covariance of the texture over lags
    [side, side] (wrapped around), which all planes share. eight_bit: bicubic views are rounded between their two passes."""

    white: float
    texture: np.ndarray
    eight_bit: bool = False


CT_OVERVIEW = Overview()


@functools.cache
def _smallest_passed(overview: Overview) -> float:
    """Share of white noise's power that the overview keeps where it keeps least."""
    d = overview.whole()
    return float(np.linalg.eigvalsh(d @ d.T)[0]) ** 2


def overview_dprime(
    images: Sequence[np.ndarray], rects: Sequence[Rect], overview: Overview, window: Window, smallest: float
) -> float:
    """Largest d' between any two of `images` (noise-free, [..., side, side] in physical units) in the overview.

    rects: disjoint, in whole overview pixels apart, together they hold everything that differs. smallest: the noise's power
    where it has least, in squared units a native pixel.
    """
    d = overview.whole()
    views = [np.concatenate([_part(image, d, rect, window).ravel() for rect in rects]) for image in images]
    power = smallest * _smallest_passed(overview) * gain(window) ** 2
    return max(_distances(views)) / math.sqrt(power + ROUNDING)


def tool_dprime(
    images: Sequence[np.ndarray], rects: Sequence[Rect], overview: Overview, window: Window, largest: float
) -> float:
    """Smallest d' between any two of `images` in views of `rects` as large as the overview, received together.

    largest: the noise's power where it has most, in squared units a native pixel.
    """
    axes = [(overview.weights(y1, y2), overview.weights(x1, x2)) for x1, y1, x2, y2 in rects]
    views = [np.concatenate([grey(sample(image, *axis), window).ravel() for axis in axes]) for image in images]
    # Singular values of the weights are at most sqrt(largest column sum), their rows being stochastic.
    passed = max(float(wy.sum(axis=0).max() * wx.sum(axis=0).max()) for wy, wx in axes)
    return min(_distances(views)) / math.sqrt(largest * passed * gain(window) ** 2 + ROUNDING)


def matched_dprime(
    images: Sequence[np.ndarray], rects: Sequence[Rect], overview: Overview, window: Window, noise: Noise
) -> float:
    """What `tool_dprime` bounds by the noise's largest power, bounded by one observer instead: who correlates with the difference.

    Its d' is |s|² / sqrt(sᵀ K s), which is at most the ideal one's. A difference without low frequencies is hardly disturbed
    by texture, which has little else. images: [C, side, side].
    """
    axes = [(overview.weights(y1, y2), overview.weights(x1, x2)) for x1, y1, x2, y2 in rects]
    views = [[grey(sample(image, *axis), window) for axis in axes] for image in images]
    found = []
    for one, other in itertools.combinations(views, 2):
        signals = [a - b for a, b in zip(one, other, strict=True)]
        strength = sum(float(np.vdot(s, s)) for s in signals)
        parts = [_disturbed(s, *axis, overview, window, noise) for s, axis in zip(signals, axes, strict=True)]
        texture = sum(math.sqrt(part[1]) for part in parts) ** 2  # views may share it: at worst it adds up
        spread = math.sqrt(sum(part[0] for part in parts) + texture)
        found.append(strength / spread if spread else 0.0)
    return min(found)


def gain(window: Window) -> float:
    """Grey levels a physical unit."""
    return 255.0 / (window[1] - window[0])


def _disturbed(s, wy, wx, overview: Overview, window: Window, noise: Noise) -> tuple[float, float]:
    """Variance of the correlation with s [C, view, view], from white noise and rounding, and from texture."""
    wy, wx = (w[:, w.any(axis=0)] for w in (wy, wx))
    once = wy.T @ s
    native = once @ wx  # the template, in native pixels
    total = ROUNDING * float(np.vdot(s, s))
    if noise.eight_bit and overview.resample == "bicubic":
        across = s @ wx
        total += ROUNDING * gain(window) ** 2 * max(float(np.vdot(once, once)), float(np.vdot(across, across)))
    total += noise.white * gain(window) ** 2 * float(np.vdot(native, native))
    # The quadratic form of the texture's covariance: circular correlation with room for all lags.
    shared = native.sum(axis=0)
    n = 2 * max(shared.shape)
    lags = np.minimum(np.arange(n), n - np.arange(n))
    spectrum = np.fft.rfft2(noise.texture[np.ix_(lags, lags)]).real
    power = np.abs(np.fft.rfft2(shared, s=(n, n))) ** 2 * spectrum
    twice = power.sum() * 2 - power[:, 0].sum() - power[:, -1].sum()  # rfft2 keeps half of the frequencies; n is even
    return total, gain(window) ** 2 * max(float(twice), 0.0) / n**2


def _part(image: np.ndarray, d: np.ndarray, rect: Rect, window: Window) -> np.ndarray:
    x1, y1, x2, y2 = (int(v) for v in rect)
    rows = d[:, max(y1, 0) : y2 + 1].any(axis=1)
    cols = d[:, max(x1, 0) : x2 + 1].any(axis=1)
    return grey(sample(image, d[rows], d[cols]), window)


def _distances(views: Sequence[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(views, 2)]
