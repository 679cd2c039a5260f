"""How views are sampled from native pixels, in numpy: the resampling that the tools do, for proofs about it.

Weights for "linear" are those of `jax.image.scale_and_translate(method="linear", antialias=True)`, for "bicubic" those of
Pillow's `resize` (see `mvg_jax.tools.render`, which rounds images of 8 bits once more, between its two passes).
"""

import dataclasses
import functools

import numpy as np

from mvg_jax.data.phantom.scene import SIDE

VIEW = 64
DEFAULT_WINDOW = (-160.0, 240.0)
BONE_WINDOW = (-500.0, 1300.0)
RESAMPLE = ("linear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Overview:
    """What a model is shown first: native images of `side` px a side in a view of `view` px a side."""

    side: int = SIDE
    view: int = VIEW
    resample: str = "linear"

    @property
    def step(self) -> float:
        """Native pixels an overview pixel."""
        return self.side / self.view

    def weights(self, low: float, high: float) -> np.ndarray:
        """[view, side]: rows sample [low, high) native px of an axis, at the size of every view."""
        return weights(self.side, low, high, self.view, self.resample)

    def whole(self) -> np.ndarray:
        """D [view, side]: what samples an axis of the overview."""
        return _whole(self)


@functools.lru_cache(maxsize=8)
def _whole(overview: Overview) -> np.ndarray:
    return overview.weights(0.0, float(overview.side))


def weights(size_in: int, low: float, high: float, size_out: int, resample: str = "linear") -> np.ndarray:
    """[size_out, size_in] float64: rows sample [low, high) px of an axis of `size_in` px at `size_out` points."""
    step = (high - low) / size_out
    at = low + (np.arange(size_out) + 0.5) * step - 0.5
    index = np.arange(size_in)
    x = np.abs(at[:, None] - index) / max(step, 1.0)
    match resample:
        case "linear":
            w = np.maximum(0.0, 1.0 - x)
        case "bicubic":  # reads only pixels that the box touches
            near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
            inside = (index >= np.floor(low)) & (index < np.ceil(high))
            w = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0)) * inside
        case _:
            raise ValueError(f"resample {resample!r} is none of {RESAMPLE}")
    return w / w.sum(axis=1, keepdims=True)


def sample(image: np.ndarray, wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    """wy @ image @ wxᵀ, reading only the pixels that have weight. image [..., H, W] -> [..., len(wy), len(wx)]."""
    rows, cols = _band(wy), _band(wx)
    return wy[:, rows] @ image[..., rows, cols] @ wx[:, cols].T


def grey(physical: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Physical values to grey levels 0..255, before rounding."""
    low, high = window
    return np.clip((physical - low) * (255.0 / (high - low)), 0.0, 255.0)


def _band(w: np.ndarray) -> slice:
    used = np.flatnonzero(w.any(axis=0))
    return slice(used[0], used[-1] + 1)
