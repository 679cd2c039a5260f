"""A vision-language model as the rest of the code sees it: encode views, embed tokens, run the decoder, read logits.

A family adds what turns views into features; it makes those parts before calling this constructor.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mvg_jax.models.config import VLMConfig
from mvg_jax.models.decoder import Decoder, Prefix, Suffix
from mvg_jax.models.lora import LoRALinear
from mvg_jax.positions import token_positions


class ShapesOnly(nnx.Rngs):
    """For `nnx.eval_shape` of a model: one key for all. Tracing nnx's counters takes quadratic time, minutes for deep models."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


class VisionLanguageModel(nnx.Module):
    def __init__(self, config: VLMConfig, rngs: nnx.Rngs):
        self.config = config
        self.language_model = Decoder(config.text, rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nnx.Linear(config.text.hidden_size, config.text.vocab_size, use_bias=False, rngs=rngs)
        )

    def encode_images(self, views_NxHxWx3: jax.Array) -> jax.Array:
        """uint8 views -> features [N, E, W] that stand in for their image placeholders.

        W is D, or (1 + n) * D with DeepStack: the embedding, then what the first n decoder layers add.
        """
        raise NotImplementedError

    def positions(self, tokens_BxT: jax.Array, count_B: jax.Array, start_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rotary positions of tokens that go on at start_B, and the next after count_B of them; see `token_positions`."""
        return token_positions(tokens_BxT, count_B, start_B, self.config.image_token_id, self.config.position_grids)

    def embed(self, tokens_BxT: jax.Array, features_BxNxExW: jax.Array) -> jax.Array:
        """Embeddings [B, T, W]; the j-th image placeholder of a row takes the j-th feature of its images in order."""
        x_BxTxW = self.language_model.embed_tokens(tokens_BxT)
        B, N, E, W = features_BxNxExW.shape
        if x_BxTxW.shape[-1] < W:  # DeepStack adds nothing to words
            x_BxTxW = jnp.pad(x_BxTxW, ((0, 0), (0, 0), (0, W - x_BxTxW.shape[-1])))
        image_BxT = tokens_BxT == self.config.image_token_id
        index_BxT = jnp.clip(jnp.cumsum(image_BxT, axis=1) - 1, 0, N * E - 1)
        features = jnp.take_along_axis(features_BxNxExW.reshape(B, N * E, W), index_BxT[..., None], axis=1)
        return jnp.where(image_BxT[..., None], features.astype(x_BxTxW.dtype), x_BxTxW)

    def decode(
        self,
        x_BxTxW: jax.Array,
        positions: jax.Array,
        *,
        prefix: Prefix | None = None,
        cache: Suffix | None = None,
        count_B: jax.Array | None = None,
        first_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, Suffix]:
        """The decoder's forward pass; see `Decoder.__call__`."""
        return self.language_model(x_BxTxW, positions, prefix=prefix, cache=cache, count_B=count_B, first_BxT=first_BxT)

    def prefill(
        self, tokens_PxL: jax.Array, length_P: jax.Array, features_PxNxExW: jax.Array
    ) -> tuple[jax.Array, Prefix]:
        """Runs P prompts, padded on the right, once each: hidden states [P, L, D] and the prefix their groups share."""
        positions, _ = self.positions(tokens_PxL, length_P, jnp.zeros_like(length_P))
        hidden, own = self.decode(self.embed(tokens_PxL, features_PxNxExW), positions, count_B=length_P)
        return hidden, Prefix(own.keys, own.values, length_P)

    def logits(self, hidden_BxD: jax.Array) -> jax.Array:
        """Next-token logits [..., V] in float32."""
        if self.lm_head is None:
            weight_VxD = self.language_model.embed_tokens.embedding[...]
            return jnp.einsum("...d,vd->...v", hidden_BxD, weight_VxD, preferred_element_type=jnp.float32)
        logits = jnp.einsum("...d,dv->...v", hidden_BxD, self.lm_head.kernel[...], preferred_element_type=jnp.float32)
        return logits + self.lm_head.adapted(hidden_BxD) if isinstance(self.lm_head, LoRALinear) else logits
