"""Shapes of the models, in the names of the checkpoints they come from."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A ViT over square tiles of `image_size` pixels."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    image_size: int = 448
    patch_size: int = 14
    hidden_act: str = "gelu"
    attention_bias: bool = True
    use_qk_norm: bool = False
    norm_type: str = "layer_norm"
    layer_norm_eps: float = 1e-6
    use_mean_pooling: bool = True
    layer_scale_init_value: float = 0.1


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A Qwen2-type decoder: pre-norm, RoPE, grouped-query attention, gated MLP."""

    vocab_size: int = 151674
    hidden_size: int = 3584
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    intermediate_size: int = 18944
    head_dim: int = 128
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    attention_bias: bool = True


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """InternVL: vision tower -> pixel shuffle -> two-layer projector -> decoder."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool = False
    image_token_id: int = 151667
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def tokens_per_image(self) -> int:
        """E: decoder positions one view takes after pixel shuffle."""
        grid = self.vision.image_size // self.vision.patch_size
        return int(grid * self.downsample_ratio) ** 2


def tiny(vocab_size: int, image_token_id: int) -> ModelConfig:
    """The embedded model: 64 px views, 16 tokens an image, about 1.3 M parameters.

    ReLU everywhere: transcendental functions are dear on CPU, and `hidden_act` is a legal choice of the layout.
    """
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=384,
            image_size=64,
            patch_size=8,
            hidden_act="relu",
            layer_scale_init_value=1.0,
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=384,
            head_dim=32,
            hidden_act="relu",
            rope_theta=10_000.0,
        ),
        projector_hidden_act="relu",
        tie_word_embeddings=True,
        image_token_id=image_token_id,
    )


def internvl3_1b() -> ModelConfig:
    """InternVL3-1B: InternViT-300M and Qwen2.5-0.5B."""
    return ModelConfig(
        text=TextConfig(
            hidden_size=896,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            intermediate_size=4864,
            head_dim=64,
        ),
        tie_word_embeddings=False,
    )


def internvl3_8b() -> ModelConfig:
    """InternVL3-8B: InternViT-300M and Qwen2.5-7B."""
    return ModelConfig()
