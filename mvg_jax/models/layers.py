"""Blocks every family is built from: activations, pixels, rotary positions, and passes over a part of the positions at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def run_layer(remat: bool, layer: nnx.Module, x: jax.Array, *rest: Any) -> Any:
    """layer(x, *rest). remat: its activations are computed again in the backward pass instead of being kept."""
    return jax.checkpoint(lambda layer, x: layer(x, *rest))(layer, x) if remat else layer(x, *rest)


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}

MASKED = -1e30
QUERIES = 128  # whose attention scores exist at a time


def normalise(views_NxHxWx3: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 views -> float32 pixels as the vision tower takes them: scaled to 0..1, then by each channel's mean and std."""
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (mean, std))
    return (views_NxHxWx3.astype(jnp.float32) / 255.0 - mean) / std


def rope_tables(
    positions: jax.Array, head_dim: int, theta: float, axis_C: np.ndarray | None = None
) -> tuple[jax.Array, jax.Array]:
    """(sin, cos) [B, T, C/2] in float32, whatever the compute type: angles grow with the position.

    positions: [B, T], or [B, T, 3] (time, height, width), of which angle c turns with axis_C[c].
    """
    inverse_C = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    positions = positions[..., None] if positions.ndim == 2 else positions[..., axis_C]
    angle_BxTxC = positions.astype(jnp.float32) * inverse_C[None, None, :]
    return jnp.sin(angle_BxTxC), jnp.cos(angle_BxTxC)


def mrope_axes(section: tuple[int, int, int], interleaved: bool, angles: int | None = None) -> np.ndarray:
    """Which of (time, height, width) each of the C/2 angles turns with: in three runs (Qwen2-VL), or interleaved
    t h w t h w ... until the shorter sections are used up, then time (Qwen3-VL). angles: by default all of the sections."""
    if not interleaved:
        return np.repeat([0, 1, 2], section)
    c = np.arange(sum(section) if angles is None else angles)
    return np.where(c < 3 * np.array(section)[c % 3], c % 3, 0)


def apply_rope(x_BxTxHxC: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotates the two halves of each head (the layout of Hugging Face checkpoints)."""
    first, second = jnp.split(x_BxTxHxC.astype(jnp.float32), 2, axis=-1)
    sin, cos = sin[:, :, None, :], cos[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxTxHxC.dtype)


def by_positions(f: Callable, size: int, *rows_BxTx: jax.Array) -> Any:
    """f(*rows), a pytree of [B, T, ...], for `size` of the T positions at a time (0: all), with the backward pass likewise:
    what f makes on its way never exists for all of them."""
    T = rows_BxTx[0].shape[1]
    if not 0 < size < T:
        return f(*rows_BxTx)

    def cut(x_BxTx: jax.Array) -> jax.Array:
        padded = jnp.pad(x_BxTx, [(0, 0), (0, -T % size)] + [(0, 0)] * (x_BxTx.ndim - 2))
        return jnp.moveaxis(padded.reshape(len(padded), -1, size, *padded.shape[2:]), 1, 0)

    parts = jax.lax.map(lambda part: jax.checkpoint(f)(*part), tuple(map(cut, rows_BxTx)))
    joined = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :T]
    return jax.tree.map(joined, parts)
