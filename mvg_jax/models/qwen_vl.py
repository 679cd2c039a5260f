"""Qwen2.5-VL and Qwen3-VL: vision tower -> merger (and DeepStack mergers) -> decoder with M-RoPE.

A view has a static size, so everything that depends on its grid is a numpy constant. The tower runs on slots: patches in the
order of windows, in a window in the order of merged tokens, in a token its patches row by row. Windows at the edge of a
grid that is no multiple of the window are filled up with slots that nobody attends to.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvg_jax.mesh import constrain
from mvg_jax.models.attention import whole_attention
from mvg_jax.models.config import QwenVisionConfig, QwenVLConfig
from mvg_jax.models.layers import ACTIVATIONS, apply_rope, normalise, run_layer
from mvg_jax.models.vlm import VisionLanguageModel


class Slots(NamedTuple):
    """Where the patches of a (rows, columns) grid stand in W windows of S slots.

    patch_WxS: index of the patch, row by row, int; -1 in slots without one. token_E: of each merged token, row by row, the
    place among the W*S/merge^2 of the slots.
    """

    patch_WxS: np.ndarray
    token_E: np.ndarray


def make_slots(rows: int, columns: int, merge: int, window: int | None) -> Slots:
    """rows, columns: of patches. window: merged tokens a side; None: one window holds all."""
    tall, wide = rows // merge, columns // merge
    block = np.arange(rows * columns).reshape(tall, merge, wide, merge).transpose(0, 2, 1, 3).reshape(tall, wide, -1)
    down, right = (tall, wide) if window is None else (window, window)
    block = np.pad(block, ((0, -tall % down), (0, -wide % right), (0, 0)), constant_values=-1)
    high, broad = block.shape[0] // down, block.shape[1] // right
    patch_WxS = block.reshape(high, down, broad, right, -1).transpose(0, 2, 1, 3, 4).reshape(high * broad, -1)
    first = patch_WxS.reshape(-1, merge * merge)[:, 0]  # each token's upper left patch: in order of rows, then columns
    order = np.argsort(np.where(first < 0, rows * columns, first), kind="stable")
    return Slots(patch_WxS, order[: tall * wide])


def rotary_tables(slots: Slots, columns: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """(sin, cos) [1, W*S, C/2]: the first half of the angles turns with the patch's row, the other with its column."""
    inverse = np.float32(theta) ** (-np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2))
    patch = np.maximum(slots.patch_WxS.reshape(-1, 1), 0)
    angle = np.concatenate([x.astype(np.float32) * inverse for x in (patch // columns, patch % columns)], axis=-1)
    return np.sin(angle)[None], np.cos(angle)[None]


def interpolation(rows: int, columns: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear, corner on corner: indices [rows*columns, 4] into a flat side x side grid and their float32 weights."""

    def taps(length):
        at = np.arange(length, dtype=np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
        low = np.floor(at).astype(np.int32)
        part = at - low
        return np.stack([low, np.minimum(low + 1, side - 1)], axis=1), np.stack([1 - part, part], axis=1)

    (index_y, weight_y), (index_x, weight_x) = taps(rows), taps(columns)
    index = index_y[:, None, :, None] * side + index_x[None, :, None, :]
    weight = weight_y[:, None, :, None] * weight_x[None, :, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)


def _norm(config: QwenVisionConfig, size: int, rngs: nnx.Rngs) -> nnx.Module:
    kind = nnx.RMSNorm if config.gated else nnx.LayerNorm
    return kind(size, epsilon=1e-6, rngs=rngs)


class VisionAttention(nnx.Module):
    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        self.heads, self.vision_kernel = config.num_heads, "plain"  # one of attention.VISION
        D = config.hidden_size
        self.qkv = nnx.Linear(D, 3 * D, rngs=rngs)
        self.proj = nnx.Linear(D, D, rngs=rngs)

    def __call__(self, x_NxSxD: jax.Array, sin: np.ndarray, cos: np.ndarray, real_WxS: np.ndarray) -> jax.Array:
        """real_WxS: windows, each attending within itself, and which of their slots hold a patch."""
        N, _, D = x_NxSxD.shape
        W, S = real_WxS.shape
        qkv = self.qkv(x_NxSxD).reshape(N, W * S, 3, self.heads, D // self.heads)
        q, k = (apply_rope(qkv[:, :, i], sin, cos) for i in (0, 1))
        q, k, v = (y.reshape(N, W, S, self.heads, D // self.heads) for y in (q, k, qkv[:, :, 2]))
        real_NWxS = None if real_WxS.all() else np.tile(real_WxS, (N, 1))
        out = whole_attention(*(y.reshape(N * W, S, *y.shape[3:]) for y in (q, k, v)), self.vision_kernel, real_NWxS)
        return self.proj(out.reshape(N, W * S, D))


class VisionMLP(nnx.Module):
    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.activation = config.hidden_act
        self.gate_proj = nnx.Linear(D, F, rngs=rngs) if config.gated else None
        self.up_proj = nnx.Linear(D, F, rngs=rngs)
        self.down_proj = nnx.Linear(F, D, rngs=rngs)

    def __call__(self, x_NxSxD: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.activation]
        if self.gate_proj is None:
            return self.down_proj(act(self.up_proj(x_NxSxD)))
        return self.down_proj(act(self.gate_proj(x_NxSxD)) * self.up_proj(x_NxSxD))


class VisionBlock(nnx.Module):
    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        self.norm1 = _norm(config, config.hidden_size, rngs)
        self.attn = VisionAttention(config, rngs)
        self.norm2 = _norm(config, config.hidden_size, rngs)
        self.mlp = VisionMLP(config, rngs)

    def __call__(self, x_NxSxD: jax.Array, sin: np.ndarray, cos: np.ndarray, real_WxS: np.ndarray) -> jax.Array:
        x_NxSxD = x_NxSxD + self.attn(self.norm1(x_NxSxD), sin, cos, real_WxS)
        return x_NxSxD + self.mlp(self.norm2(x_NxSxD))


class VisionTower(nnx.Module):
    """uint8 views [N, H, W, 3] -> merge^2 patches side by side [N, E, merge^2, Dv]: after each DeepStack layer, and the last."""

    def __init__(self, config: QwenVLConfig, rngs: nnx.Rngs):
        vision = config.vision
        self.config, self.mean, self.std, self.remat = vision, config.image_mean, config.image_std, False
        pixels = vision.temporal_patch_size * vision.patch_size**2 * 3
        self.patch_embed = nnx.Linear(pixels, vision.hidden_size, use_bias=not vision.gated, rngs=rngs)
        normal = jax.nn.initializers.normal(0.02)
        self.pos_embed = (
            None
            if vision.num_position_embeddings is None
            else nnx.Embed(vision.num_position_embeddings, vision.hidden_size, embedding_init=normal, rngs=rngs)
        )
        self.blocks = nnx.List([VisionBlock(vision, rngs) for _ in range(vision.depth)])

    def __call__(self, views_NxHxWx3: jax.Array) -> list[jax.Array]:
        c = self.config
        N, H, W, _ = views_NxHxWx3.shape
        p, rows, columns = c.patch_size, H // c.patch_size, W // c.patch_size
        window = None if c.window_size is None else c.window_size // c.patch_size // c.spatial_merge_size
        slots = make_slots(rows, columns, c.spatial_merge_size, window)
        real_WxS = slots.patch_WxS >= 0
        sin, cos = rotary_tables(slots, columns, c.hidden_size // c.num_heads, c.rope_theta)

        pixels = normalise(views_NxHxWx3, self.mean, self.std).astype(self.patch_embed.kernel.dtype)
        patches = pixels.reshape(N, rows, p, columns, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(N, rows * columns, -1)
        films = jnp.tile(patches, (1, 1, c.temporal_patch_size))  # a still image is a film of equal frames
        x = self.patch_embed(films)
        if self.pos_embed is not None:
            index, weight = interpolation(rows, columns, math.isqrt(c.num_position_embeddings))
            table = self.pos_embed.embedding[...].astype(jnp.float32)
            x = x + jnp.einsum("pt,ptd->pd", weight, table[index])[None].astype(x.dtype)
        x = x[:, np.maximum(slots.patch_WxS.reshape(-1), 0)]
        taken = []
        for i, block in enumerate(self.blocks):
            full = window is None or i in c.fullatt_block_indexes
            x = constrain(x, "spread")
            x = run_layer(self.remat, block, x, sin, cos, real_WxS.reshape(1, -1) if full else real_WxS)
            if i in c.deepstack_visual_indexes:
                taken.append(x)
        merged = c.spatial_merge_size**2
        return [y.reshape(N, -1, merged, c.hidden_size)[:, slots.token_E] for y in (*taken, x)]


class Merger(nnx.Module):
    """Patches side by side [N, E, merge^2, Dv] -> decoder embeddings [N, E, D]. norm_all: the norm is over all of them."""

    def __init__(self, config: QwenVLConfig, norm_all: bool, rngs: nnx.Rngs):
        vision = config.vision
        wide = vision.hidden_size * vision.spatial_merge_size**2
        self.norm_all = norm_all
        self.norm = _norm(vision, wide if norm_all else vision.hidden_size, rngs)
        self.linear_1 = nnx.Linear(wide, wide, rngs=rngs)
        self.linear_2 = nnx.Linear(wide, config.text.hidden_size, rngs=rngs)

    def __call__(self, x_NxExMxD: jax.Array) -> jax.Array:
        N, E, M, D = x_NxExMxD.shape
        x = x_NxExMxD.reshape(N, E, M * D) if self.norm_all else x_NxExMxD
        x = constrain(self.norm(x).reshape(N, E, M * D), "spread")
        return self.linear_2(ACTIVATIONS["gelu"](constrain(self.linear_1(x), "spread")))


class Projector(nnx.Module):
    """The merger, and one more for each DeepStack layer, in the order in which the config names the layers."""

    def __init__(self, config: QwenVLConfig, rngs: nnx.Rngs):
        self.merger = Merger(config, norm_all=False, rngs=rngs)
        deep = config.vision.deepstack_visual_indexes
        self.deepstack = nnx.List([Merger(config, norm_all=True, rngs=rngs) for _ in deep])
        self.by_layer = tuple(sorted(range(len(deep)), key=lambda i: deep[i]))

    def __call__(self, taken: list[jax.Array]) -> jax.Array:
        *deep, last = taken
        mergers = [self.deepstack[i] for i in self.by_layer]
        parts = [self.merger(last), *(merger(x) for merger, x in zip(mergers, deep, strict=True))]
        return jnp.concatenate(parts, axis=-1)


class QwenVL(VisionLanguageModel):
    def __init__(self, config: QwenVLConfig, rngs: nnx.Rngs):
        self.vision_tower = VisionTower(config, rngs)
        self.multi_modal_projector = Projector(config, rngs)
        super().__init__(config, rngs)

    def encode_images(self, views_NxHxWx3: jax.Array) -> jax.Array:
        return self.multi_modal_projector(self.vision_tower(views_NxHxWx3))
