"""InternVL3: vision tower -> pixel shuffle -> projector -> decoder."""

import jax
from flax import nnx

from mvg_jax.models.config import ModelConfig
from mvg_jax.models.vision import Projector, VisionTower, pixel_shuffle
from mvg_jax.models.vlm import VisionLanguageModel


class InternVL(VisionLanguageModel):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.vision_tower = VisionTower(config, rngs)
        self.multi_modal_projector = Projector(config, rngs)
        super().__init__(config, rngs)

    def patch_features(self, views_NxSxSx3: jax.Array) -> jax.Array:
        """uint8 views -> vision features [N, E, 4*Dv] before the projector."""
        return pixel_shuffle(self.vision_tower(views_NxSxSx3), self.config.downsample_ratio)

    def encode_images(self, views_NxSxSx3: jax.Array) -> jax.Array:
        return self.multi_modal_projector(self.patch_features(views_NxSxSx3))
