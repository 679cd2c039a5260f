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

from mvg_jax.data.phantom.render import WHITE_SD, largest_noise_power
from mvg_jax.data.phantom.views import BONE_WINDOW, DEFAULT_WINDOW, Overview, grey, sample

LIMIT_OVERVIEW = 0.5
LIMIT_TOOL = 4.0
ROUNDING = 1.0 / 12.0

Window = tuple[float, float]
Rect = tuple[float, float, float, float]  # x1, y1, x2, y2 in native px


@dataclasses.dataclass(frozen=True)
class Reading:
    """How pixels are shown and how noisy they are.

    window: what is shown as black and white. smallest, largest: bounds of the noise's power at any spatial frequency, in
    squared physical units a native pixel. eight_bit: the pixels are 8-bit, which bicubic views round once more on the way.
    """

    window: Window
    smallest: float
    largest: float
    eight_bit: bool = False

    @property
    def gain(self) -> float:
        """Grey levels a physical unit."""
        return 255.0 / (self.window[1] - self.window[0])


def ct_reading(window: Window) -> Reading:
    """A CT-like abdomen through a window. Its texture is left out of the smallest power, which only lowers that."""
    return Reading(window, WHITE_SD**2, largest_noise_power())


CT_OVERVIEW = Overview()
CT = ct_reading(DEFAULT_WINDOW)
CT_BONE = ct_reading(BONE_WINDOW)


def overview_weights() -> np.ndarray:
    """D [VIEW, SIDE] of the CT-like images."""
    return CT_OVERVIEW.whole()


@functools.cache
def _smallest_passed(overview: Overview) -> float:
    """Share of white noise's power that the overview keeps where it keeps least."""
    d = overview.whole()
    return float(np.linalg.eigvalsh(d @ d.T)[0]) ** 2


def overview_dprime(images: Sequence[np.ndarray], rects: Sequence[Rect], overview: Overview, reading: Reading) -> float:
    """Largest d' between any two of `images` (noise-free, [..., side, side] in physical units) in the overview.

    rects: disjoint, in whole overview pixels apart, together they hold everything that differs.
    """
    d = overview.whole()
    views = [np.concatenate([_part(image, d, rect, reading).ravel() for rect in rects]) for image in images]
    power = reading.smallest * _smallest_passed(overview)
    return max(_distances(views)) / math.sqrt(power * reading.gain**2 + ROUNDING)


def tool_dprime(images: Sequence[np.ndarray], rects: Sequence[Rect], overview: Overview, reading: Reading) -> float:
    """Smallest d' between any two of `images` in views of `rects` as large as the overview, received together."""
    axes = [(overview.weights(y1, y2), overview.weights(x1, x2)) for x1, y1, x2, y2 in rects]
    views = [np.concatenate([grey(sample(image, *axis), reading.window).ravel() for axis in axes]) for image in images]
    passed = max(_most_passed(wy) * _most_passed(wx) for wy, wx in axes)
    rounding = ROUNDING
    if reading.eight_bit and overview.resample == "bicubic":  # the first pass's rounding goes through the second
        rounding += ROUNDING * reading.gain**2 * max(_most_passed(w) for axis in axes for w in axis)
    return min(_distances(views)) / math.sqrt(reading.largest * passed * reading.gain**2 + rounding)


def _most_passed(w: np.ndarray) -> float:
    """Upper bound of the squared singular values of w: |w|₁ |w|∞."""
    w = np.abs(w)
    return float(w.sum(axis=0).max() * w.sum(axis=1).max())


def _part(image: np.ndarray, d: np.ndarray, rect: Rect, reading: Reading) -> np.ndarray:
    x1, y1, x2, y2 = (int(v) for v in rect)
    rows = d[:, max(y1, 0) : y2 + 1].any(axis=1)
    cols = d[:, max(x1, 0) : x2 + 1].any(axis=1)
    return grey(sample(image, d[rows], d[cols]), reading.window)


def _distances(views: Sequence[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(views, 2)]
