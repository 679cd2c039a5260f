"""Shapes of the models, in the names of the checkpoints they come from."""

import dataclasses

import numpy as np


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
    """A decoder with pre-norm, RoPE, grouped-query attention and gated MLP: Qwen2, Qwen3, Llama and their kin.

    attention_bias, output_bias: of the q, k, v and of the o projection. qk_norm: RMSNorm over each head of q and k.
    mrope_section: M-RoPE, how many of the C/2 angles turn with time, height and width; interleaved: their order.
    """

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
    output_bias: bool = False
    qk_norm: bool = False
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = False
    max_position_embeddings: int = 32768


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """InternVL: vision tower -> pixel shuffle -> two-layer projector -> decoder. resample: see tools.render."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"
    tie_word_embeddings: bool = False
    image_token_id: int = 151667
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resample: str = "bicubic"

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the decoder positions one view takes after pixel shuffle."""
        side = int(self.vision.image_size // self.vision.patch_size * self.downsample_ratio)
        return side, side

    @property
    def tokens_per_image(self) -> int:
        """E: decoder positions one view takes."""
        rows, columns = self.token_grid
        return rows * columns

    @property
    def model_type(self) -> str:
        """The family's name on disk."""
        return "internvl"

    @property
    def view_size(self) -> tuple[int, int]:
        """(H, W) of the views handed to the model."""
        return self.vision.image_size, self.vision.image_size

    @property
    def position_grids(self) -> None:
        """Image placeholders count like text; see `token_positions`."""
        return None


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """A ViT over views of any grid, with 2-D rotary positions and a merger of spatial_merge_size^2 patches a token.

    gated: Qwen2.5-VL (RMSNorm, gated MLP, no bias of the patch embedding), else Qwen3-VL (LayerNorm, plain MLP).
    window_size: pixels a side that layers outside of fullatt_block_indexes attend within; None: all layers see all.
    num_position_embeddings: learned, a square grid to be interpolated; None: there are none.
    deepstack_visual_indexes: layers after which further features are taken for the first layers of the decoder.
    """

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    intermediate_size: int = 3420
    hidden_act: str = "silu"
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    gated: bool = True
    window_size: int | None = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    rope_theta: float = 10_000.0
    num_position_embeddings: int | None = None
    deepstack_visual_indexes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    """Qwen2.5-VL or Qwen3-VL: vision tower -> merger -> decoder with M-RoPE. view_size: (H, W) of the views; resample: see
    tools.render."""

    vision: QwenVisionConfig
    text: TextConfig
    tie_word_embeddings: bool = False
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    view_size: tuple[int, int] = (448, 448)
    resample: str = "bicubic"

    def __post_init__(self):
        unit = self.vision.patch_size * self.vision.spatial_merge_size
        if any(side < unit or side % unit for side in self.view_size):
            raise ValueError(f"view_size {self.view_size}: both sides must be multiples of {unit}")

    @property
    def model_type(self) -> str:
        """The family's name on disk."""
        return "qwen2_5_vl" if self.vision.gated else "qwen3_vl"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the decoder positions that a view takes."""
        unit = self.vision.patch_size * self.vision.spatial_merge_size
        return height // unit, width // unit

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the decoder positions one view takes."""
        return self.grid(*self.view_size)

    @property
    def tokens_per_image(self) -> int:
        """E: decoder positions one view takes."""
        rows, columns = self.token_grid
        return rows * columns

    @property
    def position_grids(self) -> np.ndarray:
        """[1, 1, 2]: the grid of every view; see `token_positions`."""
        return np.array([[self.token_grid]], np.int32)


VLMConfig = ModelConfig | QwenVLConfig


def with_view_size(config: VLMConfig, view_size: tuple[int, ...]) -> VLMConfig:
    """The config with views of (H, W) pixels, () = as it is. ValueError for a size that the family cannot be shown."""
    if view_size in ((), config.view_size):
        return config
    if len(view_size) != 2:
        raise ValueError(f"config.model.view_size {view_size}: give (height, width), or () for the family's own")
    if not isinstance(config, QwenVLConfig):
        raise ValueError(f"config.model.view_size {view_size}: views of {config.model_type} are {config.view_size}")
    try:
        return dataclasses.replace(config, view_size=view_size)
    except ValueError as error:
        raise ValueError(f"config.model.{error}") from None


def with_tokens(config: VLMConfig, vocab_size: int, image_token_id: int) -> VLMConfig:
    """The config for a tokenizer of this size; a vocabulary that is larger already (padded) stays."""
    text = dataclasses.replace(config.text, vocab_size=max(config.text.vocab_size, vocab_size))
    return dataclasses.replace(config, text=text, image_token_id=image_token_id)


def tiny(vocab_size: int = 0, image_token_id: int = 0) -> ModelConfig:
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
        resample="linear",
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


def qwen2_5_vl_7b() -> QwenVLConfig:
    """Qwen2.5-VL-7B."""
    return QwenVLConfig(
        vision=QwenVisionConfig(),
        text=TextConfig(vocab_size=152064, mrope_section=(16, 24, 24)),
    )


def qwen3_vl_4b() -> QwenVLConfig:
    """Qwen3-VL-4B."""
    return _qwen3_vl(
        depth=24, width=1024, mlp=4096, deepstack=(5, 11, 17), text_width=2560, text_mlp=9728, tie_word_embeddings=True
    )


def qwen3_vl_8b() -> QwenVLConfig:
    """Qwen3-VL-8B."""
    return _qwen3_vl(
        depth=27,
        width=1152,
        mlp=4304,
        deepstack=(8, 16, 24),
        text_width=4096,
        text_mlp=12288,
        tie_word_embeddings=False,
    )


def _qwen3_vl(
    depth: int,
    width: int,
    mlp: int,
    deepstack: tuple[int, ...],
    text_width: int,
    text_mlp: int,
    tie_word_embeddings: bool,
) -> QwenVLConfig:
    """What the dense sizes from 4B on have in common: 36 decoder layers of 32 heads of 128."""
    return QwenVLConfig(
        vision=QwenVisionConfig(
            depth=depth,
            hidden_size=width,
            intermediate_size=mlp,
            hidden_act="gelu_pytorch_tanh",
            patch_size=16,
            gated=False,
            window_size=None,
            fullatt_block_indexes=(),
            num_position_embeddings=2304,
            deepstack_visual_indexes=deepstack,
        ),
        text=TextConfig(
            vocab_size=151936,
            hidden_size=text_width,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            intermediate_size=text_mlp,
            rope_theta=5_000_000.0,
            attention_bias=False,
            qk_norm=True,
            mrope_section=(24, 20, 20),
            mrope_interleaved=True,
        ),
        tie_word_embeddings=tie_word_embeddings,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        view_size=(512, 512),
    )


SHAPES = {
    "tiny": tiny,
    "internvl3_1b": internvl3_1b,
    "internvl3_8b": internvl3_8b,
    "qwen2_5_vl_7b": qwen2_5_vl_7b,
    "qwen3_vl_4b": qwen3_vl_4b,
    "qwen3_vl_8b": qwen3_vl_8b,
}
