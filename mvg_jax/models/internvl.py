"""InternVL3: the model as the rest of the code sees it - encode views, embed tokens, run the decoder, read logits."""

import jax
import jax.numpy as jnp
from flax import nnx

from mvg_jax.models.config import ModelConfig
from mvg_jax.models.decoder import Decoder, Prefix, Suffix
from mvg_jax.models.vision import Projector, VisionTower, pixel_shuffle


class InternVL(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.vision_tower = VisionTower(config, rngs)
        self.multi_modal_projector = Projector(config, rngs)
        self.language_model = Decoder(config.text, rngs)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nnx.Linear(config.text.hidden_size, config.text.vocab_size, use_bias=False, rngs=rngs)
        )

    def patch_features(self, views_NxSxSx3: jax.Array) -> jax.Array:
        """uint8 views -> vision features [N, E, 4*Dv] before the projector."""
        return pixel_shuffle(self.vision_tower(views_NxSxSx3), self.config.downsample_ratio)

    def encode_images(self, views_NxSxSx3: jax.Array) -> jax.Array:
        """uint8 views -> embeddings [N, E, D] that stand in for the image placeholders."""
        return self.multi_modal_projector(self.patch_features(views_NxSxSx3))

    def embed(self, tokens_BxT: jax.Array, features_BxNxExD: jax.Array) -> jax.Array:
        """Token embeddings [B, T, D]; the j-th image placeholder of a row takes the j-th feature of its images in order."""
        x_BxTxD = self.language_model.embed_tokens(tokens_BxT)
        B, N, E, D = features_BxNxExD.shape
        image_BxT = tokens_BxT == self.config.image_token_id
        index_BxT = jnp.clip(jnp.cumsum(image_BxT, axis=1) - 1, 0, N * E - 1)
        features = jnp.take_along_axis(features_BxNxExD.reshape(B, N * E, D), index_BxT[..., None], axis=1)
        return jnp.where(image_BxT[..., None], features.astype(x_BxTxD.dtype), x_BxTxD)

    def decode(
        self,
        x_BxTxD: jax.Array,
        positions_BxT: jax.Array,
        *,
        prefix: Prefix | None = None,
        cache: Suffix | None = None,
        count_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Suffix]:
        """The decoder's forward pass; see `Decoder.__call__`."""
        return self.language_model(x_BxTxD, positions_BxT, prefix=prefix, cache=cache, count_B=count_B)

    def prefill(
        self, tokens_PxL: jax.Array, length_P: jax.Array, features_PxNxExD: jax.Array
    ) -> tuple[jax.Array, Prefix]:
        """Runs P prompts, padded on the right, once each: hidden states [P, L, D] and the prefix their groups share."""
        P, L = tokens_PxL.shape
        positions_PxL = jnp.broadcast_to(jnp.arange(L)[None], (P, L))
        hidden, own = self.decode(self.embed(tokens_PxL, features_PxNxExD), positions_PxL, count_B=length_P)
        return hidden, Prefix(own.keys, own.values, length_P)

    def logits(self, hidden_BxD: jax.Array) -> jax.Array:
        """Next-token logits [..., V] in float32."""
        if self.lm_head is None:
            weight_VxD = self.language_model.embed_tokens.embedding[...]
            return jnp.einsum("...d,vd->...v", hidden_BxD, weight_VxD, preferred_element_type=jnp.float32)
        return jnp.einsum("...d,dv->...v", hidden_BxD, self.lm_head.kernel[...], preferred_element_type=jnp.float32)
