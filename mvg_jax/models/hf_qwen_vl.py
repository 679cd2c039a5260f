"""Qwen2.5-VL and Qwen3-VL (dense) on disk."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from mvg_jax.models.config import QwenVisionConfig, QwenVLConfig
from mvg_jax.models.hf_layout import (
    DECODER,
    EMBEDDING,
    FILM_EMBEDDING,
    LINEAR,
    NORM,
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
from mvg_jax.models.layers import ACTIVATIONS
from mvg_jax.models.qwen_vl import QwenVL

# Views have a grid of this many decoder positions a side unless the config is told another size.
TOKENS_A_SIDE = 16

_BLOCK = (
    ("norm1", "norm1", NORM),
    ("norm2", "norm2", NORM),
    ("attn.qkv", "attn.qkv", LINEAR),
    ("attn.proj", "attn.proj", LINEAR),
)
_GATED = (
    ("mlp.gate_proj", "mlp.gate_proj", LINEAR),
    ("mlp.up_proj", "mlp.up_proj", LINEAR),
    ("mlp.down_proj", "mlp.down_proj", LINEAR),
)
_PLAIN = (("mlp.up_proj", "mlp.linear_fc1", LINEAR), ("mlp.down_proj", "mlp.linear_fc2", LINEAR))
_MERGER = (("norm", "norm", NORM), ("linear_1", "linear_fc1", LINEAR), ("linear_2", "linear_fc2", LINEAR))
NAMES_2_5 = (
    under("language_model", "model", DECODER)
    + (("vision_tower.patch_embed", "visual.patch_embed.proj", FILM_EMBEDDING),)
    + under("vision_tower.blocks.{i}", "visual.blocks.{i}", _BLOCK + _GATED)
    + (
        ("multi_modal_projector.merger.norm", "visual.merger.ln_q", NORM),
        ("multi_modal_projector.merger.linear_1", "visual.merger.mlp.0", LINEAR),
        ("multi_modal_projector.merger.linear_2", "visual.merger.mlp.2", LINEAR),
        ("lm_head", "lm_head", LINEAR),
    )
)
NAMES_3 = (
    under("language_model", "model.language_model", DECODER)
    + (
        ("vision_tower.patch_embed", "model.visual.patch_embed.proj", FILM_EMBEDDING),
        ("vision_tower.pos_embed", "model.visual.pos_embed", EMBEDDING),
    )
    + under("vision_tower.blocks.{i}", "model.visual.blocks.{i}", _BLOCK + _PLAIN)
    + under("multi_modal_projector.merger", "model.visual.merger", _MERGER)
    + under("multi_modal_projector.deepstack.{i}", "model.visual.deepstack_merger_list.{i}", _MERGER)
    + (("lm_head", "lm_head", LINEAR),)
)

# What transformers takes for a field that a config.json leaves out.
DEFAULTS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
AXIAL = {"rope_type": "axial", "rope_theta": 10_000.0}
VISION_2_5 = {
    "in_channels": 3,
    "depth": 32,
    "hidden_size": 3584,
    "num_heads": 16,
    "intermediate_size": 3420,
    "hidden_act": "silu",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "out_hidden_size": 3584,
}
VISION_3 = {
    "in_channels": 3,
    "depth": 27,
    "hidden_size": 1152,
    "num_heads": 16,
    "intermediate_size": 4304,
    "hidden_act": "gelu_pytorch_tanh",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": (8, 16, 24),
    "out_hidden_size": 3584,
}


def _reader(defaults: Mapping[str, Any], text_type: str, gated: bool) -> Callable[..., QwenVLConfig]:
    def read(config: Mapping[str, Any], processor: Fields, has_head: bool) -> QwenVLConfig:
        if not isinstance(config.get("vision_config"), dict):
            raise HFLayoutError("config.json lacks vision_config")
        nested = isinstance(config.get("text_config"), dict)
        if not nested and "hidden_size" not in config:  # Qwen2.5-VL's own files have the decoder's fields at the top
            raise HFLayoutError("config.json lacks text_config")
        top = Fields("", config, DEFAULTS)
        text = Fields("text_config.", config["text_config"], {}) if nested else Fields("", config, {})
        vision = Fields("vision_config.", config["vision_config"], defaults)
        vision.require("out_hidden_size", text["hidden_size"])
        decoder = read_decoder(text, text_type)
        shape = _read_vision(vision, gated)
        side = TOKENS_A_SIDE * shape.patch_size * shape.spatial_merge_size
        # transformers 5 takes either place of this family's for a yes: older files have it in text_config.
        tied = read_tied(config, text.values, has_head) or (gated and bool(text.values.get("tie_word_embeddings")))
        return QwenVLConfig(
            vision=shape,
            text=decoder,
            tie_word_embeddings=tied,
            **{field: top[field] for field in DEFAULTS},
            **read_image_settings(processor),
            view_size=(side, side),
        )

    return read


def _read_vision(vision: Fields, gated: bool) -> QwenVisionConfig:
    """The tower's shape; HFLayoutError names a field that says something we cannot run."""
    vision.require("temporal_patch_size", 2)
    vision.require("in_channels", 3)
    vision.require("hidden_act", *ACTIVATIONS)
    vision.multiple("hidden_size", of="num_heads", times=4)  # a head's angles turn in pairs with row and column
    own = {}
    if gated:
        unit = vision.square("patch_size") * vision["spatial_merge_size"]
        if vision["window_size"] < unit:
            vision.refuse("window_size", f"a window must hold at least one token of {unit} pixels a side")
        own |= {"window_size": vision["window_size"], "fullatt_block_indexes": tuple(vision["fullatt_block_indexes"])}
    else:
        deep = tuple(vision["deepstack_visual_indexes"])
        if len(set(deep)) < len(deep) or not set(deep) <= set(range(vision["depth"])):
            vision.refuse("deepstack_visual_indexes", f"they must be different layers below depth ({vision['depth']})")
        own |= {"window_size": None, "fullatt_block_indexes": (), "deepstack_visual_indexes": deep}
        own |= {"num_position_embeddings": vision["num_position_embeddings"]}
    rope = Fields("vision_config.rope_parameters.", vision.values.get("rope_parameters") or {}, AXIAL)
    rope.require("rope_type", "axial", "default")
    return QwenVisionConfig(
        **{field: vision[field] for field in ("depth", "hidden_size", "num_heads", "intermediate_size", "hidden_act")},
        patch_size=vision.square("patch_size"),
        temporal_patch_size=vision["temporal_patch_size"],
        spatial_merge_size=vision["spatial_merge_size"],
        rope_theta=float(rope["rope_theta"]),
        gated=gated,
        **own,
    )


def _writer(family: str, architecture: str, defaults: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    def write(config: QwenVLConfig, dtype: str) -> dict[str, Any]:
        vision = dataclasses.asdict(config.vision)
        vision = {field: vision[field] for field in defaults if field in vision}
        vision |= {"out_hidden_size": config.text.hidden_size, "in_channels": 3, "dtype": dtype}
        vision["rope_parameters"] = {**AXIAL, "rope_theta": config.vision.rope_theta}
        return {
            "architectures": [architecture],
            "model_type": family,
            "dtype": dtype,
            **{field: getattr(config, field) for field in DEFAULTS},
            "tie_word_embeddings": config.tie_word_embeddings,
            "text_config": write_decoder(config.text, family + "_text", config.tie_word_embeddings, dtype),
            "vision_config": {"model_type": family + "_vision", **vision},
        }

    return write


def _write_processor(config: QwenVLConfig) -> dict[str, Any]:
    """preprocessor_config.json: images keep their aspect ratio and take about as many pixels as our views."""
    height, width = config.view_size
    vision = config.vision
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height * width, "longest_edge": height * width},
        "resample": RESAMPLE_NUMBERS[config.resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }


def _fields(text: str, visual: str, mlp: str) -> tuple[Confirmed, ...]:
    patches = visual + "patch_embed.proj.weight"
    return (
        *decoder_fields(text),
        Confirmed("vision_config.hidden_size", lambda c: c.vision.hidden_size, patches, lambda s: s[0]),
        Confirmed("vision_config.temporal_patch_size", lambda c: c.vision.temporal_patch_size, patches, lambda s: s[2]),
        Confirmed("vision_config.patch_size", lambda c: c.vision.patch_size, patches, lambda s: s[3]),
        Confirmed("vision_config.intermediate_size", lambda c: c.vision.intermediate_size,
                  visual + f"blocks.0.mlp.{mlp}.weight", lambda s: s[0]),
    )  # fmt: skip


def _depths(text: str, visual: str) -> tuple:
    layer = lambda prefix: re.compile(re.escape(prefix) + r"(\d+)\.")
    return (
        ("text_config.num_hidden_layers", lambda c: c.text.num_hidden_layers, layer(text + "layers.")),
        ("vision_config.depth", lambda c: c.vision.depth, layer(visual + "blocks.")),
    )


QWEN2_5_VL = Family(
    model=QwenVL,
    names=NAMES_2_5,
    head="lm_head.weight",
    embedding="model.embed_tokens.weight",
    read_config=_reader(VISION_2_5, "qwen2_5_vl_text", gated=True),
    write_config=_writer("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", VISION_2_5),
    write_processor=_write_processor,
    fields=_fields("model.", "visual.", "gate_proj"),
    depths=_depths("model.", "visual."),
    # The names in memory of transformers 4.52 and later, which some tools save as they are.
    renamed=(("model.language_model.", "model."), ("model.visual.", "visual.")),
)
QWEN3_VL = Family(
    model=QwenVL,
    names=NAMES_3,
    head="lm_head.weight",
    embedding="model.language_model.embed_tokens.weight",
    read_config=_reader(VISION_3, "qwen3_vl_text", gated=False),
    write_config=_writer("qwen3_vl", "Qwen3VLForConditionalGeneration", VISION_3),
    write_processor=_write_processor,
    fields=(
        *_fields("model.language_model.", "model.visual.", "linear_fc1"),
        Confirmed("vision_config.num_position_embeddings", lambda c: c.vision.num_position_embeddings,
                  "model.visual.pos_embed.weight", lambda s: s[0]),
    ),
    depths=(
        *_depths("model.language_model.", "model.visual."),
        ("vision_config.deepstack_visual_indexes (their number)", lambda c: len(c.vision.deepstack_visual_indexes),
         re.compile(r"model\.visual\.deepstack_merger_list\.(\d+)\.")),
    ),
)  # fmt: skip
