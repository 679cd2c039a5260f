"""How views are sampled from native pixels, in numpy: the resampling that the tools do, for proofs about it.

The weights are those of `jax.image.scale_and_translate(method="linear", antialias=True)`.
"""

import numpy as np

VIEW = 64
DEFAULT_WINDOW = (-160.0, 240.0)
BONE_WINDOW = (-500.0, 1300.0)


def weights(size_in: int, low: float, high: float, size_out: int) -> np.ndarray:
    """[size_out, size_in] float64: rows sample [low, high) px of an axis of `size_in` px at `size_out` points."""
    step = (high - low) / size_out
    at = low + (np.arange(size_out) + 0.5) * step - 0.5
    w = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(size_in)) / max(step, 1.0))
    return w / w.sum(axis=1, keepdims=True)


def sample(image: np.ndarray, wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    """wy @ image @ wxᵀ, reading only the pixels that have weight. image [H, W] -> [len(wy), len(wx)]."""
    rows, cols = _band(wy), _band(wx)
    return wy[:, rows] @ image[rows, cols] @ wx[:, cols].T


def grey(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """HU to grey levels 0..255, before rounding."""
    low, high = window
    return np.clip((hu - low) * (255.0 / (high - low)), 0.0, 255.0)


def _band(w: np.ndarray) -> slice:
    used = np.flatnonzero(w.any(axis=0))
    return slice(used[0], used[-1] + 1)
