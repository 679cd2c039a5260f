"""Attention over parts of the keys (a shared prefix, an own suffix), and the ways to compute it.

Which way is fastest depends on the device and the shapes: `scripts/bench_kernels.py` measures them. A sampler's config names its
choice (`config.rollout.vision_kernel`, `decode_kernel`), so that a run does not depend on a clock; the learner is always plain.

    vision   all patches attend to all                                        plain (XLA), cudnn
    decode   the queries of a row attend to the first `length` of its keys    plain (XLA), pallas (Triton), cudnn
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mvg_jax.models.layers import MASKED

VISION, DECODE = ("plain", "cudnn"), ("plain", "pallas", "cudnn")
BLOCK = 64  # keys that the Pallas kernel takes at a time
LEAST = 16  # the smallest side of a Triton product


class Kernels(NamedTuple):
    """A sampler's choice of VISION and DECODE, which `model.set_attributes(**kernels._asdict())` hands to its modules."""

    vision_kernel: str = "plain"
    decode_kernel: str = "plain"


PLAIN = Kernels()


def whole_attention(
    q_NxSxHxC: jax.Array, k_NxSxHxC: jax.Array, v_NxSxHxC: jax.Array, kernel: str, real_NxS: np.ndarray | None = None
) -> jax.Array:
    """Every query attends to all keys, or to the real ones; scores and sums in float32. [N, S, H, C]."""
    if kernel == "cudnn":
        N, S = q_NxSxHxC.shape[:2]
        mask = None if real_NxS is None else jnp.broadcast_to(jnp.asarray(real_NxS)[:, None, None], (N, 1, S, S))
        return jax.nn.dot_product_attention(q_NxSxHxC, k_NxSxHxC, v_NxSxHxC, mask=mask, implementation="cudnn")
    scale = q_NxSxHxC.shape[-1] ** -0.5
    scores = jnp.einsum("nqhc,nkhc->nhqk", q_NxSxHxC, k_NxSxHxC, preferred_element_type=jnp.float32) * scale
    if real_NxS is not None:
        scores = jnp.where(real_NxS[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_NxSxHxC.dtype)
    return jnp.einsum("nhqk,nkhc->nqhc", weights, v_NxSxHxC)


def partial_attention(
    q_BxTxHxC: jax.Array, k_BxKxCxS: jax.Array, v_BxKxSxC: jax.Array, mask_BxTxS: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention over one part of the keys, not yet normalised: (weighted sum [B,T,H,C], sum [B,T,H,1], max [B,T,H,1]).

    All float32. Parts over disjoint keys are joined by `merge_attention`. Keys and values come as both products want them, so that
    nothing of a cache is transposed for a token: on CPU that is most of the cost.
    """
    B, T, _, C = q_BxTxHxC.shape
    K, S = k_BxKxCxS.shape[1], k_BxKxCxS.shape[3]
    # One plain product each, in this order of operands.
    scores = jnp.matmul(_by_keys(q_BxTxHxC, K), k_BxKxCxS, preferred_element_type=jnp.float32) * C**-0.5
    scores = jnp.where(mask_BxTxS[:, None, None], scores.reshape(B, K, -1, T, S), MASKED).reshape(B, K, -1, S)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.matmul(weights.astype(v_BxKxSxC.dtype), v_BxKxSxC, preferred_element_type=jnp.float32)
    return tuple(_by_rows(x, T) for x in (out, total, top))


def _by_keys(q_BxTxHxC: jax.Array, K: int) -> jax.Array:
    """[B, K, Q, C]: the queries of the heads that share keys, side by side."""
    B, T, H, C = q_BxTxHxC.shape
    return q_BxTxHxC.reshape(B, T, K, H // K, C).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, C)


def _by_rows(x_BxKxQx: jax.Array, T: int) -> jax.Array:
    """[B, T, H, ...]: the way back."""
    B, K, Q, _ = x_BxKxQx.shape
    return x_BxKxQx.reshape(B, K, Q // T, T, -1).transpose(0, 3, 1, 2, 4).reshape(B, T, K * Q // T, -1)


def live_attention(
    q_BxTxHxC: jax.Array, k_BxKxCxS: jax.Array, v_BxKxSxC: jax.Array, length_B: jax.Array, kernel: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`partial_attention` to the first length_B keys of each row; where there are none, max is MASKED and the rest means nothing."""
    T, K, S = q_BxTxHxC.shape[1], k_BxKxCxS.shape[1], k_BxKxCxS.shape[-1]
    if kernel == "plain":
        seen_BxS = jnp.arange(S)[None] < length_B[:, None]
        mask_BxTxS = jnp.broadcast_to(seen_BxS[:, None], (len(seen_BxS), T, S))
        return partial_attention(q_BxTxHxC, k_BxKxCxS, v_BxKxSxC, mask_BxTxS)
    attend = {"pallas": _pallas, "cudnn": _cudnn}[kernel]
    length_B = jnp.minimum(length_B, S).astype(jnp.int32)
    parts = attend(_by_keys(q_BxTxHxC, K), k_BxKxCxS, v_BxKxSxC, length_B)
    return tuple(_by_rows(x, T) for x in parts)


def merge_attention(parts: list[tuple[jax.Array, jax.Array, jax.Array]]) -> jax.Array:
    """Joins parts by log-sum-exp: exactly the attention over the union of their keys. [B, T, H, C] float32."""
    top = parts[0][2]
    for _, _, other in parts[1:]:
        top = jnp.maximum(top, other)
    out = sum(out * jnp.exp(part_top - top) for out, _, part_top in parts)
    total = sum(total * jnp.exp(part_top - top) for _, total, part_top in parts)
    return out / total


def prefix_attention(
    q_BxTxHxC: jax.Array,
    k_PxKxCxL: jax.Array,
    v_PxKxLxC: jax.Array,
    length_P: jax.Array,
    seat_B: jax.Array | None = None,
    row_PxG: jax.Array | None = None,
    kernel: str = "plain",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Part of attention over the prompt that the rows of a group share: its keys are read once per group.

    The rows of a group stand side by side, G = B/P each; or they stand anywhere: row_PxG names those of each prompt (B: none),
    seat_B the place of each row in it, flattened (P*G: none; such a row attends to nothing).
    """
    T, H, C = q_BxTxHxC.shape[1:]
    P = len(k_PxKxCxL)
    if row_PxG is not None:
        q_BxTxHxC = q_BxTxHxC.at[row_PxG.reshape(-1)].get(mode="fill", fill_value=0)
    queries = len(q_BxTxHxC) // P * T
    parts = live_attention(q_BxTxHxC.reshape(P, queries, H, C), k_PxKxCxL, v_PxKxLxC, length_P, kernel)
    parts = [x.reshape(-1, T, H, x.shape[-1]) for x in parts]
    if seat_B is None:
        return tuple(parts)
    return tuple(
        x.at[seat_B].get(mode="fill", fill_value=empty) for x, empty in zip(parts, (0, 0, MASKED), strict=True)
    )


def _cudnn(q_BxKxQxC, k_BxKxCxS, v_BxKxSxC, length_B):
    """cuDNN wants keys [B, K, S, C], for which the cache is transposed: worth it only where that is cheap.

    `jax.nn.dot_product_attention` would round the logarithm of the sum to the queries' type, too coarse to join parts by: this is
    what it calls.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # only who chooses it depends on a private module

    B, _, Q, C = q_BxKxQxC.shape
    out, top_BxKxQ = cudnn.dot_product_attention(
        q_BxKxQxC,
        k_BxKxCxS.swapaxes(2, 3),
        v_BxKxSxC,
        q_seqlen=jnp.full(B, Q, jnp.int32),
        kv_seqlen=jnp.maximum(length_B, 1),
        scale=C**-0.5,
        mask_type=cudnn.MaskType.PADDING,
        qkv_layout="BNTH",
        return_residual=True,
    )
    top = jnp.where(length_B[:, None, None] > 0, top_BxKxQ, MASKED)[..., None]  # log of the sum
    return out.astype(jnp.float32), jnp.ones_like(top), top


def _pallas(q_BxKxQxC, k_BxKxCxS, v_BxKxSxC, length_B):
    """One program a row and head, over the live keys only, a block at a time, with a running maximum (as in FlashAttention)."""
    B, K, Q, C = q_BxKxQxC.shape
    S = k_BxKxCxS.shape[-1]
    if S < LEAST:
        raise ValueError(f"kernel pallas: {S} keys, fewer than {LEAST}")
    block = max(size for size in (LEAST, 2 * LEAST, BLOCK) if size <= S)
    room = max(pl.next_power_of_2(Q), LEAST)
    q_BxKxRxC = jnp.pad(q_BxKxQxC, ((0, 0), (0, 0), (0, room - Q), (0, 0)))
    of = lambda *shape: pl.BlockSpec((None, None, *shape), lambda b, h: (b, h, *(0 for _ in shape)))
    out, total, top = pl.pallas_call(
        functools.partial(_attend, block, C**-0.5),
        grid=(B, K),
        in_specs=[pl.BlockSpec((None,), lambda b, h: (b,)), of(room, C), of(C, S), of(S, C)],
        out_specs=[of(room, C), of(room), of(room)],
        out_shape=[jax.ShapeDtypeStruct((B, K, room, *rest), jnp.float32) for rest in ((C,), (), ())],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpreted(),
        name="decode_attention",
    )(length_B, q_BxKxRxC, k_BxKxCxS, v_BxKxSxC)
    return out[:, :, :Q], total[:, :, :Q, None], top[:, :, :Q, None]


def interpreted() -> bool:
    """Without a GPU the kernel is interpreted: slow, for tests."""
    return jax.default_backend() == "cpu"


def _attend(block: int, scale: float, length_ref, q_ref, k_ref, v_ref, out_ref, total_ref, top_ref):
    q_RxC, length, keys_held = q_ref[...], length_ref[...], k_ref.shape[-1]

    def take(i, carry):
        out_RxC, total_R, top_R = carry
        begin = jnp.minimum(i * block, keys_held - block)  # the last block may begin among keys that were taken before
        keys, key = pl.ds(begin, block), begin + jnp.arange(block)
        scores = jnp.dot(q_RxC, k_ref[:, keys], preferred_element_type=jnp.float32) * scale
        seen = (key >= i * block) & (key < length)
        scores = jnp.where(seen[None], scores, MASKED)
        new_R = jnp.maximum(top_R, scores.max(axis=1))
        weights = jnp.where(seen[None], jnp.exp(scores - new_R[:, None]), 0.0)
        shrink_R = jnp.exp(top_R - new_R)
        added = jnp.dot(weights.astype(v_ref.dtype), v_ref[keys, :], preferred_element_type=jnp.float32)
        return out_RxC * shrink_R[:, None] + added, total_R * shrink_R + weights.sum(axis=1), new_R

    R, C = q_RxC.shape
    start = jnp.zeros((R, C), jnp.float32), jnp.zeros(R, jnp.float32), jnp.full(R, MASKED, jnp.float32)
    out_ref[...], total_ref[...], top_ref[...] = jax.lax.fori_loop(0, pl.cdiv(length, block), take, start)
