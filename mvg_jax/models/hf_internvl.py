"""InternVL on disk: the `*-hf` layout, with a Qwen2, Qwen3 or Llama decoder."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mvg_jax.models.config import ModelConfig, TextConfig, VisionConfig
from mvg_jax.models.hf_layout import (
    DECODER,
    LINEAR,
    NORM,
    PARAMETER,
    PATCH_EMBEDDING,
    RESAMPLE_NUMBERS,
    Confirmed,
    Family,
    Fields,
    HFLayoutError,
    decoder_fields,
    read_decoder,
    read_image_settings,
    read_tied,
    under,
    write_decoder,
)
from mvg_jax.models.internvl import InternVL
from mvg_jax.models.layers import ACTIVATIONS

VISION_NAMES = (
    ("cls_token", "embeddings.cls_token", PARAMETER),
    ("position_embeddings", "embeddings.position_embeddings", PARAMETER),
    ("patch_embeddings", "embeddings.patch_embeddings.projection", PATCH_EMBEDDING),
    ("layers.{i}.layernorm_before", "encoder.layer.{i}.layernorm_before", NORM),
    ("layers.{i}.attention.q_proj", "encoder.layer.{i}.attention.q_proj", LINEAR),
    ("layers.{i}.attention.k_proj", "encoder.layer.{i}.attention.k_proj", LINEAR),
    ("layers.{i}.attention.v_proj", "encoder.layer.{i}.attention.v_proj", LINEAR),
    ("layers.{i}.attention.q_norm", "encoder.layer.{i}.attention.q_norm", NORM),
    ("layers.{i}.attention.k_norm", "encoder.layer.{i}.attention.k_norm", NORM),
    ("layers.{i}.attention.projection_layer", "encoder.layer.{i}.attention.projection_layer", LINEAR),
    ("layers.{i}.lambda_1", "encoder.layer.{i}.lambda_1", PARAMETER),
    ("layers.{i}.lambda_2", "encoder.layer.{i}.lambda_2", PARAMETER),
    ("layers.{i}.layernorm_after", "encoder.layer.{i}.layernorm_after", NORM),
    ("layers.{i}.fc1", "encoder.layer.{i}.mlp.fc1", LINEAR),
    ("layers.{i}.fc2", "encoder.layer.{i}.mlp.fc2", LINEAR),
    ("layernorm", "layernorm", NORM),
)
OTHER_NAMES = (
    ("multi_modal_projector.layer_norm", "multi_modal_projector.layer_norm", NORM),
    ("multi_modal_projector.linear_1", "multi_modal_projector.linear_1", LINEAR),
    ("multi_modal_projector.linear_2", "multi_modal_projector.linear_2", LINEAR),
    ("lm_head", "language_model.lm_head", LINEAR),
)


# What transformers takes for a field that a config.json leaves out (older versions wrote only what differed).
DEFAULTS = {
    "downsample_ratio": 0.5,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
VISION_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "attention_bias": False,
    "use_qk_norm": False,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "use_mask_token": False,
    "use_absolute_position_embeddings": True,
    "layer_scale_init_value": 0.1,
    "use_mean_pooling": True,
}


def _decoder_type(text: TextConfig) -> str:
    if text.qk_norm:
        return "qwen3"
    return "qwen2" if text.attention_bias and not text.output_bias else "llama"


def _read(config: Mapping[str, Any], processor: Fields, has_head: bool) -> ModelConfig:
    for section in ("text_config", "vision_config"):
        if not isinstance(config.get(section), dict):
            raise HFLayoutError(f"config.json lacks {section}")
    top = Fields("", config, DEFAULTS)
    text = Fields("text_config.", config["text_config"], {})
    vision = Fields("vision_config.", config["vision_config"], VISION_DEFAULTS)
    top.require("vision_feature_layer", -1)
    top.require("vision_feature_select_strategy", "default")
    vision.require("num_channels", 3)
    vision.require("use_mask_token", False)
    vision.require("use_absolute_position_embeddings", True)
    vision.require("norm_type", "layer_norm", "rms_norm")
    model_type = text.require("model_type", "qwen2", "qwen3", "llama")
    vision.require("hidden_act", *ACTIVATIONS)
    top.require("projector_hidden_act", *ACTIVATIONS)
    vision.multiple("hidden_size", of="num_attention_heads")
    fold = 1 / top["downsample_ratio"]
    if fold != round(fold):
        top.refuse("downsample_ratio", "supported: 1, 1/2, 1/3, ...")
    image_size, patch_size = vision.square("image_size"), vision.square("patch_size")
    if image_size % (patch_size * round(fold)):
        vision.refuse(
            "image_size", f"it must be a multiple of patch_size / downsample_ratio ({patch_size * round(fold)})"
        )
    return ModelConfig(
        vision=VisionConfig(
            **{
                field: vision[field]
                for field in (
                    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
                    "attention_bias", "use_qk_norm", "norm_type", "layer_norm_eps", "use_mean_pooling",
                    "layer_scale_init_value",
                )
            },
            image_size=image_size,
            patch_size=patch_size,
        ),
        text=read_decoder(text, model_type),
        downsample_ratio=top["downsample_ratio"],
        projector_hidden_act=top["projector_hidden_act"],
        tie_word_embeddings=read_tied(config, config["text_config"], has_head),
        image_token_id=top["image_token_id"],
        **read_image_settings(processor),
    )  # fmt: skip


def _write(config: ModelConfig, dtype: str) -> dict[str, Any]:
    vision = dataclasses.asdict(config.vision)
    for field in ("image_size", "patch_size"):
        vision[field] = [vision[field], vision[field]]
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "dtype": dtype,
        "image_token_id": config.image_token_id,
        "image_seq_length": config.tokens_per_image,
        "downsample_ratio": config.downsample_ratio,
        "projector_hidden_act": config.projector_hidden_act,
        "tie_word_embeddings": config.tie_word_embeddings,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": write_decoder(config.text, _decoder_type(config.text), config.tie_word_embeddings, dtype),
        "vision_config": {"model_type": "internvl_vision", "num_channels": 3, "dtype": dtype, **vision},
    }


def _processor(config: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json: one tile, as the Pil image processor of transformers reads it."""
    side = config.vision.image_size
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 1,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": RESAMPLE_NUMBERS[config.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


_VISION = "vision_tower."
_FIRST_VISION = _VISION + "encoder.layer.0."
FIELDS = (
    *decoder_fields("language_model.model."),
    Confirmed("vision_config.hidden_size", lambda c: c.vision.hidden_size,
              _VISION + "embeddings.cls_token", lambda s: s[2]),
    Confirmed("vision_config.patch_size", lambda c: c.vision.patch_size,
              _VISION + "embeddings.patch_embeddings.projection.weight", lambda s: s[3]),
    Confirmed("vision_config.image_size (patches a view)",
              lambda c: (c.vision.image_size // c.vision.patch_size) ** 2,
              _VISION + "embeddings.position_embeddings", lambda s: s[1] - 1),
    Confirmed("vision_config.intermediate_size", lambda c: c.vision.intermediate_size,
              _FIRST_VISION + "mlp.fc1.weight", lambda s: s[0]),
    Confirmed("downsample_ratio (channels a token)",
              lambda c: c.vision.hidden_size * round(1 / c.downsample_ratio) ** 2,
              "multi_modal_projector.layer_norm.weight", lambda s: s[0]),
)  # fmt: skip
DEPTHS = (
    ("text_config.num_hidden_layers", lambda c: c.text.num_hidden_layers,
     re.compile(r"language_model\.model\.layers\.(\d+)\.")),
    ("vision_config.num_hidden_layers", lambda c: c.vision.num_hidden_layers,
     re.compile(r"vision_tower\.encoder\.layer\.(\d+)\.")),
)  # fmt: skip


INTERNVL = Family(
    model=InternVL,
    names=under("language_model", "language_model.model", DECODER)
    + under("vision_tower", "vision_tower", VISION_NAMES)
    + OTHER_NAMES,
    head="language_model.lm_head.weight",
    embedding="language_model.model.embed_tokens.weight",
    read_config=_read,
    write_config=_write,
    write_processor=_processor,
    fields=FIELDS,
    depths=DEPTHS,
    # The names in memory of transformers 4.52 and later, which some tools save as they are.
    renamed=(
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
)
