"""From logits to a token: the one policy that sampler and learner share, and noise that depends on the token's name only."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

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


class Sampling(NamedTuple):
    """How each row is sampled. Arrays, so that other values compile nothing.

    temperature_B: float32, 0 = greedy, which no filter touches. top_k_B: int32, 0 = off. top_p_B: float32 in (0, 1], 1 = off.
    The filters are for evaluation and collection: training forbids them (its learner knows of none).
    """

    temperature_B: jax.Array
    top_k_B: jax.Array
    top_p_B: jax.Array

    @classmethod
    def of(cls, temperature_B: np.ndarray, top_k: int = 0, top_p: float = 1.0) -> "Sampling":
        """Host arrays: rows of these temperatures that share their filters."""
        temperature_B = np.asarray(temperature_B, np.float32)
        return cls(
            temperature_B, np.full_like(temperature_B, top_k, np.int32), np.full_like(temperature_B, top_p, np.float32)
        )


def draw(
    logits_BxV: jax.Array, name_Bx4: jax.Array, position_B: jax.Array, sampling: Sampling, banned_V: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token a row, by inverting the distribution at a single keyed uniform: (token [B] int32, log-prob [B] float32).

    The distribution is that of `policy_logits`, where a row filters renormalised over `kept`; the log-prob is of what was drawn
    from. A draw needs one random number a row instead of one for every entry of the vocabulary (Gumbel-max), which on CPU is
    the larger part of sampling. Rows that filter nothing draw the same beside rows that do.
    """
    uniform_B = jax.vmap(token_uniform)(name_Bx4, position_B)
    temperature_B, top_k_B, top_p_B = sampling
    policy = lambda: policy_logits(logits_BxV, temperature_B, banned_V)

    def filtered() -> tuple[jax.Array, jax.Array]:
        own_B = temperature_B != 0
        kept_BxV = kept(policy(), jnp.where(own_B, top_k_B, 0), jnp.where(own_B, top_p_B, 1.0))
        return _draw(jnp.where(kept_BxV, policy(), MASKED), uniform_B, temperature_B == 0)

    filters_B = (temperature_B != 0) & ((top_k_B > 0) | (top_p_B < 1))
    return jax.lax.cond(filters_B.any(), filtered, lambda: _draw(policy(), uniform_B, temperature_B == 0))


_BLOCK = 128


def _draw(policy_BxV: jax.Array, uniform_B: jax.Array, greedy_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first token at which the cumulative sum of the weights exp(logit - largest) exceeds uniform x their sum; log-prob.

    Summed in two levels, blocks of tokens and tokens of one block a row, because a cumulative sum over the whole vocabulary costs
    several times what all the rest does. XLA sums as a tree, so that a cumulative sum may move by an ulp, up or down, where the
    weight is 0: only entries of positive weight are looked at, or a banned token would be drawn now and then.
    """
    B, V = policy_BxV.shape
    largest_Bx1 = policy_BxV.max(axis=1, keepdims=True)
    blocks = V // _BLOCK
    whole = blocks * _BLOCK  # the rest is summed apart: padding it to a block would copy the logits
    weights_BxN = [
        jnp.exp(policy_BxV[:, :whole] - largest_Bx1).reshape(B, blocks, _BLOCK).sum(axis=2),
        jnp.exp(policy_BxV[:, whole:] - largest_Bx1).sum(axis=1, keepdims=True),
    ]
    weight_BxN = jnp.concatenate(weights_BxN, axis=1)
    up_to_BxN = _up_to(weight_BxN)
    target_Bx1 = uniform_B[:, None] * up_to_BxN.max(axis=1, keepdims=True)
    block_Bx1 = _first(up_to_BxN > target_Bx1)

    before_BxN = jnp.arange(up_to_BxN.shape[1])[None] < block_Bx1
    rest_Bx1 = target_Bx1 - jnp.where(before_BxN, up_to_BxN, 0.0).max(axis=1, keepdims=True)
    index_BxS = block_Bx1 * _BLOCK + jnp.arange(_BLOCK)[None]
    inside_BxS = jnp.take_along_axis(policy_BxV, jnp.minimum(index_BxS, V - 1), axis=1)
    up_to_BxS = _up_to(jnp.where(index_BxS < V, jnp.exp(inside_BxS - largest_Bx1), 0.0))
    # A block's own sum may end an ulp below the rest: then its last token of positive weight is meant.
    place_Bx1 = _first((up_to_BxS > rest_Bx1) | (up_to_BxS == up_to_BxS.max(axis=1, keepdims=True)))

    likeliest_Bx1 = _first(policy_BxV == largest_Bx1)
    token_Bx1 = jnp.where(greedy_B[:, None], likeliest_Bx1, block_Bx1 * _BLOCK + place_Bx1)
    token_Bx1 = jnp.minimum(token_Bx1, V - 1)  # of a row that is not a number, no block is the first
    chosen_Bx1 = jnp.take_along_axis(policy_BxV, token_Bx1, axis=1)
    logprob_Bx1 = chosen_Bx1 - largest_Bx1 - jnp.log(weight_BxN.sum(axis=1, keepdims=True))
    return token_Bx1[:, 0], logprob_Bx1[:, 0]


def _up_to(weight_BxN: jax.Array) -> jax.Array:
    """The cumulative sum, 0 where the weight is."""
    return jnp.where(weight_BxN > 0, jnp.cumsum(weight_BxN, axis=1), 0.0)


def _first(holds_BxN: jax.Array) -> jax.Array:
    """The first place of each row where it holds, int32 [B, 1], the last if nowhere. (XLA's argmax is not vectorised on CPU.)"""
    N = holds_BxN.shape[1]
    places_N = jnp.arange(N, dtype=jnp.int32)
    return jnp.where(holds_BxN, places_N[None], N - 1).min(axis=1, keepdims=True)


def kept(policy_BxV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """The tokens that the filters leave, bool [B, V], found without sorting.

    top-k: those than which fewer than k tokens are likelier. top-p, among them: those such that the likelier ones hold less than
    top_p of the mass. So equally likely tokens stay or go together, and the likeliest always stay. Ties are of float32 logits
    below the row's largest, which is what probabilities are made of. The same sets, but for ties in top-p, come from sorting, and
    the same order of the two filters is that of the transformers library.

    A token stays if its distance below the largest logit is at most a threshold, which is bisected over the bit patterns of
    non-negative floats: they are ordered like the floats, so that 31 passes over the row find it exactly.
    """
    below_BxV = policy_BxV.max(axis=1, keepdims=True) - policy_BxV
    weight_BxV = jnp.exp(-below_BxV)

    def farthest(applies_B: jax.Array, few_likelier: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """The largest distance [B, 1] at which it still holds (it does at 0); infinite where the filter does not apply."""

        def halve(bounds):
            low_B, high_B = bounds
            middle_B = low_B + (high_B - low_B) // 2
            holds_B = few_likelier(below_BxV < _float_of(middle_B))
            return jnp.where(holds_B, middle_B, low_B), jnp.where(holds_B, high_B, middle_B)

        low_B = jnp.where(applies_B, 0, _INFINITY)
        high_B = jnp.full_like(low_B, _INFINITY + 1)
        low_B, _ = jax.lax.while_loop(lambda bounds: (bounds[1] - bounds[0] > 1).any(), halve, (low_B, high_B))
        return _float_of(low_B)

    by_k_Bx1 = farthest(top_k_B > 0, lambda likelier_BxV: likelier_BxV.sum(axis=1) < top_k_B)
    mass = lambda tokens_BxV: jnp.where(tokens_BxV, weight_BxV, 0.0).sum(axis=1)
    enough_B = top_p_B * mass(below_BxV <= by_k_Bx1)
    by_p_Bx1 = farthest(top_p_B < 1, lambda likelier_BxV: mass(likelier_BxV) < enough_B)
    # Compared so that a logit that is not a number stays, and shows.
    return ~(below_BxV > jnp.minimum(by_k_Bx1, by_p_Bx1))


_INFINITY = 0x7F800000  # the bits of float32 infinity


def _float_of(bits_B: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits_B, jnp.float32)[:, None]
