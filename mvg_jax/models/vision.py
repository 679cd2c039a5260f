"""The InternVL vision side: ViT with layer scale, pixel shuffle, projector."""

import jax
import jax.numpy as jnp
from flax import nnx

from mvg_jax.mesh import constrain
from mvg_jax.models.attention import whole_attention
from mvg_jax.models.config import ModelConfig, VisionConfig
from mvg_jax.models.layers import ACTIVATIONS, normalise, run_layer


def _norm(config: VisionConfig, rngs: nnx.Rngs) -> nnx.Module:
    kind = {"layer_norm": nnx.LayerNorm, "rms_norm": nnx.RMSNorm}[config.norm_type]
    return kind(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs)


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.heads, self.vision_kernel = config.num_attention_heads, "plain"  # one of attention.VISION
        D = config.hidden_size
        self.q_proj = nnx.Linear(D, D, use_bias=config.attention_bias, rngs=rngs)
        self.k_proj = nnx.Linear(D, D, use_bias=config.attention_bias, rngs=rngs)
        self.v_proj = nnx.Linear(D, D, use_bias=config.attention_bias, rngs=rngs)
        self.projection_layer = nnx.Linear(D, D, rngs=rngs)
        self.q_norm = nnx.RMSNorm(D, epsilon=1e-6, rngs=rngs) if config.use_qk_norm else None
        self.k_norm = nnx.RMSNorm(D, epsilon=1e-6, rngs=rngs) if config.use_qk_norm else None

    def __call__(self, x_NxSxD: jax.Array) -> jax.Array:
        N, S, D = x_NxSxD.shape
        q, k, v = self.q_proj(x_NxSxD), self.k_proj(x_NxSxD), self.v_proj(x_NxSxD)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(N, S, self.heads, D // self.heads) for y in (q, k, v))
        return self.projection_layer(whole_attention(q, k, v, self.vision_kernel).reshape(N, S, D))


class VisionLayer(nnx.Module):
    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.activation = config.hidden_act
        self.layernorm_before = _norm(config, rngs)
        self.attention = VisionAttention(config, rngs)
        self.layernorm_after = _norm(config, rngs)
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)
        self.lambda_1 = nnx.Param(jnp.full(config.hidden_size, config.layer_scale_init_value, jnp.float32))
        self.lambda_2 = nnx.Param(jnp.full(config.hidden_size, config.layer_scale_init_value, jnp.float32))

    def __call__(self, x_NxSxD: jax.Array) -> jax.Array:
        x_NxSxD = x_NxSxD + self.lambda_1[None, None] * self.attention(self.layernorm_before(x_NxSxD))
        hidden = ACTIVATIONS[self.activation](self.fc1(self.layernorm_after(x_NxSxD)))
        return x_NxSxD + self.lambda_2[None, None] * self.fc2(hidden)


class VisionTower(nnx.Module):
    """uint8 views [N, S, S, 3] -> patch features [N, S/p, S/p, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        vision = config.vision
        self.patch, self.remat = vision.patch_size, False
        self.mean, self.std = config.image_mean, config.image_std
        grid = vision.image_size // vision.patch_size
        normal = jax.nn.initializers.normal(0.02)
        self.cls_token = nnx.Param(jnp.zeros((1, 1, vision.hidden_size)))
        self.position_embeddings = nnx.Param(normal(rngs.params(), (1, 1 + grid * grid, vision.hidden_size)))
        self.patch_embeddings = nnx.Linear(3 * self.patch**2, vision.hidden_size, rngs=rngs)
        self.layers = nnx.List([VisionLayer(vision, rngs) for _ in range(vision.num_hidden_layers)])
        self.layernorm = (
            None
            if vision.use_mean_pooling
            else nnx.LayerNorm(vision.hidden_size, epsilon=vision.layer_norm_eps, rngs=rngs)
        )

    def __call__(self, views_NxSxSx3: jax.Array) -> jax.Array:
        N, S = views_NxSxSx3.shape[:2]
        grid, p = S // self.patch, self.patch
        dtype = self.cls_token[...].dtype
        pixels = normalise(views_NxSxSx3, self.mean, self.std).astype(dtype)
        patches = pixels.reshape(N, grid, p, grid, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(N, grid * grid, p * p * 3)
        x = self.patch_embeddings(patches)
        x = jnp.concatenate([jnp.broadcast_to(self.cls_token[...], (N, 1, x.shape[-1])), x], axis=1)
        x = x + self.position_embeddings[...]
        for layer in self.layers:
            x = run_layer(self.remat, layer, constrain(x, "spread"))
        if self.layernorm is not None:
            x = self.layernorm(x)
        return x[:, 1:].reshape(N, grid, grid, -1)


def pixel_shuffle(x_NxGxGxD: jax.Array, ratio: float) -> jax.Array:
    """Folds each 1/ratio x 1/ratio block of the grid into channels: [N, (G*ratio)^2, D/ratio^2], row-major."""
    N, G, _, D = x_NxGxGxD.shape
    s = round(1 / ratio)
    x = x_NxGxGxD.reshape(N, G // s, s, G // s, s, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(N, (G // s) ** 2, s * s * D)


class Projector(nnx.Module):
    """Shuffled patch features [N, E, 4*Dv] -> decoder embeddings [N, E, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        wide = config.vision.hidden_size * round(1 / config.downsample_ratio) ** 2
        self.activation = config.projector_hidden_act
        self.layer_norm = nnx.LayerNorm(wide, epsilon=1e-5, rngs=rngs)
        self.linear_1 = nnx.Linear(wide, config.text.hidden_size, rngs=rngs)
        self.linear_2 = nnx.Linear(config.text.hidden_size, config.text.hidden_size, rngs=rngs)

    def __call__(self, x_NxExW: jax.Array) -> jax.Array:
        hidden = self.linear_1(self.layer_norm(constrain(x_NxExW, "spread")))
        return self.linear_2(ACTIVATIONS[self.activation](constrain(hidden, "spread")))
