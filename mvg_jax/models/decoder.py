"""The decoder, with one forward pass for every use.

A row's context is [prompt shared by its group | its own suffix]. The four uses differ only in which part is given:

    prefill   prefix=None    cache=None     the prompt alone; its keys and values become the Prefix
    extend    prefix=pool    cache=suffix   new tokens are written at each row's own length, then attended to
    decode    the same with one token
    learner   prefix=pool    cache=None     the whole suffix at once, causal, with gradients
    packed    prefix=None    cache=None     several conversations in a row, each from its own first token on
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mvg_jax.mesh import axis_size, by_shard, constrain
from mvg_jax.models.attention import live_attention, merge_attention, partial_attention, prefix_attention
from mvg_jax.models.config import TextConfig
from mvg_jax.models.layers import (
    ACTIVATIONS,
    QUERIES,
    apply_rope,
    by_positions,
    mrope_axes,
    rope_tables,
    run_layer,
)


class Prefix(NamedTuple):
    """Keys [P, K, C, L] (rotated) and values [P, K, L, C] of P prompts, a pair a layer, and their true lengths [P] int32.

    seat [B], rows [P, G] int32: which rows are whose, see `prefix_attention`; None: those of a group stand side by side.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array
    seat: jax.Array | None = None
    rows: jax.Array | None = None


class Suffix(NamedTuple):
    """The KV cache of B rows after their prompt: keys [B, K, C, L] and values [B, K, L, C], a pair a layer, and the tokens held so
    far [B] int32."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    length: jax.Array

    @classmethod
    def empty(cls, config: TextConfig, rows: int, length: int, dtype: jnp.dtype) -> "Suffix":
        K, C, layers = cache_heads(config), config.head_dim, range(config.num_hidden_layers)
        return cls(
            tuple(jnp.zeros((rows, K, C, length), dtype) for _ in layers),
            tuple(jnp.zeros((rows, K, length, C), dtype) for _ in layers),
            jnp.zeros(rows, jnp.int32),
        )


def cache_heads(config: TextConfig) -> int:
    """Heads of keys and values as they are cached and attended to: fewer than tensor devices are repeated, one for each."""
    K, devices = config.num_key_value_heads, axis_size("tensor")
    return K if K % devices == 0 else devices


def suffix_bytes(config: TextConfig, rows: int, length: int, itemsize: int) -> int:
    """Bytes of a Suffix (keys and values of all layers)."""
    return 2 * config.num_hidden_layers * rows * length * cache_heads(config) * config.head_dim * itemsize


def _write(
    k_BxKxCxS: jax.Array, v_BxKxSxC: jax.Array, new_k: jax.Array, new_v: jax.Array, slot_BxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The cache with new entries [B, T, K, C] at their slots; those past its end are dropped."""
    row = jnp.arange(len(slot_BxT))[:, None]
    return (
        k_BxKxCxS.at[row, :, :, slot_BxT].set(new_k, mode="drop"),
        v_BxKxSxC.at[row, :, slot_BxT].set(new_v, mode="drop"),
    )


class Attention(nnx.Module):
    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.config, self.decode_kernel = config, "plain"  # one of attention.DECODE
        D, C = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nnx.Linear(D, H * C, use_bias=config.attention_bias, rngs=rngs)
        self.k_proj = nnx.Linear(D, K * C, use_bias=config.attention_bias, rngs=rngs)
        self.v_proj = nnx.Linear(D, K * C, use_bias=config.attention_bias, rngs=rngs)
        self.o_proj = nnx.Linear(H * C, D, use_bias=config.output_bias, rngs=rngs)
        self.q_norm = nnx.RMSNorm(C, epsilon=config.rms_norm_eps, rngs=rngs) if config.qk_norm else None
        self.k_norm = nnx.RMSNorm(C, epsilon=config.rms_norm_eps, rngs=rngs) if config.qk_norm else None

    def __call__(self, x_BxTxD, sin, cos, prefix, cache, slot_BxT, first_BxT):
        """prefix: this layer's part of a Prefix or None. cache: (keys, values) or None. -> (out, keys, values)."""
        B, T, _ = x_BxTxD.shape
        H, K, C = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        q = self.q_proj(x_BxTxD).reshape(B, T, H, C)
        k = self.k_proj(x_BxTxD).reshape(B, T, K, C)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, sin, cos), apply_rope(k, sin, cos)
        v = self.v_proj(x_BxTxD).reshape(B, T, K, C)
        repeats = cache_heads(self.config) // K
        if repeats > 1:
            k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
        q = constrain(q, "batch", None, "heads")
        k, v = constrain(k, "batch", None, "kv"), constrain(v, "batch", None, "kv")
        if cache is None:
            k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
            last_BxT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        else:
            k, v = by_shard(_write)(*cache, k, v, slot_BxT)
            last_BxT = slot_BxT

        def attend(q_BxTxHxC, last_BxT, *first_BxT):
            """last_BxT, first_BxT: the last and, where they are not all there, the first key that each query sees."""
            if cache is not None and T == 1:
                own = functools.partial(live_attention, kernel=self.decode_kernel)
                # A row that draws nothing stands past the end: one key is enough for it.
                live_B = jnp.where(last_BxT[:, 0] < k.shape[-1], last_BxT[:, 0] + 1, 1)
                parts = [by_shard(own)(q_BxTxHxC, k, v, live_B)]
            else:
                key_S = jnp.arange(k.shape[-1])[None, None, :]
                seen_BxTxS = key_S <= last_BxT[:, :, None]
                for first in first_BxT:
                    seen_BxTxS &= key_S >= first[:, :, None]
                parts = [partial_attention(q_BxTxHxC, k, v, seen_BxTxS)]
            if prefix is not None and prefix[-1] is None:
                parts.append(prefix_attention(q_BxTxHxC, *prefix))
            elif prefix is not None:
                shared = functools.partial(prefix_attention, kernel=self.decode_kernel)
                parts.append(by_shard(shared)(q_BxTxHxC, *prefix))
            return merge_attention(parts).astype(x_BxTxD.dtype)

        out = by_positions(attend, QUERIES, q, last_BxT, *(() if first_BxT is None else (first_BxT,)))
        return self.o_proj(out.reshape(B, T, H * C)), k, v


class Layer(nnx.Module):
    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.activation = config.hidden_act
        self.input_layernorm = nnx.RMSNorm(D, epsilon=config.rms_norm_eps, rngs=rngs)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = nnx.RMSNorm(D, epsilon=config.rms_norm_eps, rngs=rngs)
        self.gate_proj = nnx.Linear(D, F, use_bias=False, rngs=rngs)
        self.up_proj = nnx.Linear(D, F, use_bias=False, rngs=rngs)
        self.down_proj = nnx.Linear(F, D, use_bias=False, rngs=rngs)

    def __call__(self, x_BxTxD, sin, cos, prefix, cache, slot_BxT, first_BxT):
        out, k, v = self.self_attn(self.input_layernorm(x_BxTxD), sin, cos, prefix, cache, slot_BxT, first_BxT)
        x_BxTxD = x_BxTxD + out
        y = self.post_attention_layernorm(x_BxTxD)
        return x_BxTxD + self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(y)) * self.up_proj(y)), k, v


class TokenEmbedding(nnx.Embed):
    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Gathered over fsdp like any weight, or the compiler would look up columns of all rows and move them afterwards.
        return jnp.take(constrain(self.embedding[...], "vocab"), tokens, axis=0)


class Decoder(nnx.Module):
    """remat: layers are recomputed in the backward pass; set it with `model.set_attributes(remat=True)`."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        self.config, self.remat = config, False
        normal = jax.nn.initializers.normal(0.02)
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size, embedding_init=normal, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.rms_norm_eps, rngs=rngs)

    def __call__(
        self,
        x_BxTxW: jax.Array,
        positions: jax.Array,
        *,
        prefix: Prefix | None = None,
        cache: Suffix | None = None,
        count_B: jax.Array | None = None,
        first_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, Suffix]:
        """Runs the layers over new embeddings.

        x_BxTxW: embeddings; W = (1 + n) * D with DeepStack: the embedding, then what is added after each of the first n layers.
        positions: int32 rotary positions [B, T], or [B, T, 3] in time, height and width (M-RoPE).
        count_B: how many of the T tokens of each row are real (the rest are padding on the right; with a cache they are
        not written). first_BxT: int32, where each token's own conversation begins in its row; None: at 0.
        Returns hidden states [B, T, D] after the last norm and the suffix that now holds the new tokens.
        """
        B, T, W = x_BxTxW.shape
        x_BxTxD, *deep = jnp.split(x_BxTxW, W // self.config.hidden_size, axis=-1)
        count_B = jnp.full(B, T, jnp.int32) if count_B is None else count_B
        section, interleaved = self.config.mrope_section, self.config.mrope_interleaved
        axis_C = None if section is None else mrope_axes(section, interleaved, self.config.head_dim // 2)
        sin, cos = rope_tables(positions, self.config.head_dim, self.config.rope_theta, axis_C)
        slot_BxT = None
        if cache is not None:
            step_T = jnp.arange(T)[None, :]
            # Padding is sent past the end of the cache, where the scatter drops it.
            slot_BxT = jnp.where(step_T < count_B[:, None], cache.length[:, None] + step_T, cache.keys[0].shape[-1])
        keys, values = [], []
        x_BxTxD = constrain(x_BxTxD, "batch")
        for i, layer in enumerate(self.layers):
            layer_prefix = None if prefix is None else (prefix.keys[i], prefix.values[i], *prefix[2:])
            layer_cache = None if cache is None else (cache.keys[i], cache.values[i])
            x_BxTxD, k, v = run_layer(
                self.remat, layer, x_BxTxD, sin, cos, layer_prefix, layer_cache, slot_BxT, first_BxT
            )
            if i < len(deep):
                x_BxTxD = x_BxTxD + deep[i]
            x_BxTxD = constrain(x_BxTxD, "batch")
            keys.append(k)
            values.append(v)
        length_B = count_B if cache is None else cache.length + count_B
        return self.norm(x_BxTxD), Suffix(tuple(keys), tuple(values), length_B)
