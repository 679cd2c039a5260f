"""From logits to a token: the one policy that sampler and learner share, and noise that depends on the token's name only."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from mvg_jax.models.layers import MASKED


def policy_logits(logits_BxV: jax.Array, temperature_B: jax.Array, banned_V: jax.Array) -> jax.Array:
    """Logits of the distribution that is sampled from, float32. Temperature 0 (greedy) leaves them unscaled."""
    scale_B = jnp.where(temperature_B == 0, 1.0, temperature_B)
    scale = scale_B.reshape(scale_B.shape + (1,) * (logits_BxV.ndim - scale_B.ndim))
    return jnp.where(banned_V, MASKED, logits_BxV.astype(jnp.float32) / scale)


def task_name(task_id: str) -> int:
    """A task's part in the names of its noise: 32 bits."""
    return zlib.crc32(task_id.encode())


def row_keys(seed: int, step: int, task_ids: list[str], sample_B: np.ndarray) -> np.ndarray:
    """Names of the rows' noise, uint32 [B, 4]: (seed, step, task, sample). `token_uniform` adds the position."""
    task_B = np.array([task_name(task) for task in task_ids], np.uint32)
    B = len(task_B)
    return np.stack(
        [np.full(B, seed, np.uint32), np.full(B, step, np.uint32), task_B, sample_B.astype(np.uint32)], axis=1
    )


def token_uniform(name_4: jax.Array, position: jax.Array) -> jax.Array:
    """The uniform draw in [0, 1) of one token of one row."""
    key = jax.random.key(name_4[0])
    for part in (name_4[1], name_4[2], name_4[3], position):
        key = jax.random.fold_in(key, part)
    return jax.random.uniform(key)


def draw(
    logits_BxV: jax.Array, name_Bx4: jax.Array, position_B: jax.Array, temperature_B: jax.Array, banned_V: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row, by inverting the distribution at a single keyed uniform: (token [B] int32, log-prob [B] float32).

    A draw needs one random number a row instead of one for every entry of the vocabulary (Gumbel-max), which on CPU is
    the larger part of sampling. XLA sums as a tree, so that the cumulative sum may move by an ulp, up or down, where the
    probability is 0: only entries of positive probability are looked at, or a banned token would be drawn now and then.
    """
    logprob_BxV = jax.nn.log_softmax(policy_logits(logits_BxV, temperature_B, banned_V))
    probability_BxV = jnp.exp(logprob_BxV)
    cumulative_BxV = jnp.where(probability_BxV > 0, jnp.cumsum(probability_BxV, axis=1), 0.0)
    uniform_B = jax.vmap(token_uniform)(name_Bx4, position_B)
    threshold_Bx1 = uniform_B[:, None] * cumulative_BxV.max(axis=1, keepdims=True)
    V = logits_BxV.shape[1]
    drawn_B = jnp.min(jnp.where(cumulative_BxV > threshold_Bx1, jnp.arange(V)[None], V - 1), axis=1)
    token_B = jnp.where(temperature_B == 0, jnp.argmax(logprob_BxV, axis=1), drawn_B).astype(jnp.int32)
    return token_B, jnp.take_along_axis(logprob_BxV, token_B[:, None], axis=1)[:, 0]
