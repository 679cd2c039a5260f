"""config.json and image processor settings as the published checkpoints have them, with smaller sizes."""

import copy
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from mvg_jax.models import hf

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

# ---- InternVL3-{1B,2B,8B,14B}-hf, InternVL3_5-*-HF ---------------------------------------------------------------------

INTERN_VISION = {
    "architectures": ["InternVisionModel"], "attention_bias": True, "attention_dropout": 0.0, "dropout": 0.0,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": 32, "image_size": [32, 32],
    "initializer_factor": 0.1, "initializer_range": 1e-10, "intermediate_size": 64, "layer_norm_eps": 1e-06,
    "layer_scale_init_value": 0.1, "model_type": "internvl_vision", "norm_type": "layer_norm",
    "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": 2, "patch_size": [8, 8],
    "projection_dropout": 0.0, "torch_dtype": "bfloat16", "use_absolute_position_embeddings": True,
    "use_mask_token": False, "use_mean_pooling": True, "use_qk_norm": False,
}  # fmt: skip
QWEN2_TEXT = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 28, "initializer_range": 0.02, "intermediate_size": 48,
    "max_position_embeddings": 32768, "max_window_layers": 70, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"}, "rope_theta": 1000000.0,
    "sliding_window": None, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151674,
}  # fmt: skip
INTERNVL3_V4 = {
    "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5, "image_seq_length": 256,
    "image_token_id": 151667, "model_type": "internvl", "projector_hidden_act": "gelu", "text_config": QWEN2_TEXT,
    "torch_dtype": "bfloat16", "transformers_version": "4.52.0.dev0", "vision_config": INTERN_VISION,
    "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
}  # fmt: skip
_AGED = ("rope_scaling", "rope_theta", "torch_dtype")
INTERNVL3_V5 = INTERNVL3_V4 | {
    "text_config": {key: value for key, value in QWEN2_TEXT.items() if key not in _AGED} | {
        "dtype": "bfloat16", "layer_types": ["full_attention"] * 2, "tie_word_embeddings": False,
        "rope_parameters": {"factor": 2.0, "rope_theta": 1000000.0, "rope_type": "dynamic", "type": "dynamic"},
    },
    "tie_word_embeddings": False, "dtype": "bfloat16", "transformers_version": "5.23.0",
}  # fmt: skip
INTERNVL3_5_V4 = INTERNVL3_V4 | {
    "image_token_id": 151671,
    "text_config": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
        "head_dim": 16, "hidden_act": "silu", "hidden_size": 24, "initializer_range": 0.02, "intermediate_size": 48,
        "layer_types": ["full_attention"] * 2, "max_position_embeddings": 40960, "max_window_layers": 36,
        "model_type": "qwen3", "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
        "torch_dtype": "bfloat16", "use_cache": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "tie_word_embeddings": False, "transformers_version": "4.55.0",
}  # fmt: skip
GOT_OCR = {
    "crop_size": None, "crop_to_patches": False, "data_format": "channels_first", "default_to_square": True,
    "device": None, "do_center_crop": None, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
    "do_resize": True, "image_processor_type": "GotOcr2ImageProcessorFast", "input_data_format": None,
    "max_patches": 12, "min_patches": 1, "processor_class": "InternVLProcessor", "resample": 3,
    "rescale_factor": 0.00392156862745098, "return_tensors": None, "size": {"height": 448, "width": 448}, **IMAGENET,
}  # fmt: skip

# ---- Qwen2.5-VL-{3B,7B}-Instruct: version 4.41's flat file, and what versions 4.5x and 5 write --------------------------

VISION_2_5 = {
    "depth": 4, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 40, "num_heads": 2, "in_chans": 3,
    "out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
    "fullatt_block_indexes": [1, 3], "tokens_per_second": 2, "temporal_patch_size": 2,
}  # fmt: skip
TEXT_2_5 = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 48, "max_position_embeddings": 128000, "max_window_layers": 70,
    "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "sliding_window": 32768, "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
QWEN2_5_FLAT = TEXT_2_5 | TOKENS | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "vision_token_id": 151654,
    "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.41.2",
    "vision_config": VISION_2_5,
}  # fmt: skip
QWEN2_5_V4 = QWEN2_5_FLAT | {
    "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
    "text_config": TEXT_2_5 | {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "image_token_id": None,
        "layer_types": ["full_attention"] * 2, "model_type": "qwen2_5_vl_text", "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"},
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "video_token_id": None,
        "vision_end_token_id": 151653, "vision_start_token_id": 151652, "vision_token_id": 151654,
    },
    "vision_config": VISION_2_5 | {"in_channels": 3, "initializer_range": 0.02, "model_type": "qwen2_5_vl"},
    "transformers_version": "4.55.4",
}  # fmt: skip
QWEN2_5_V5 = TOKENS | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "dtype": "bfloat16", "model_type": "qwen2_5_vl",
    "text_config": TEXT_2_5 | {
        "dtype": "bfloat16", "layer_types": ["full_attention"] * 2, "model_type": "qwen2_5_vl_text",
        "pad_token_id": None, "sliding_window": None,
        "rope_parameters": {"mrope_section": [2, 3, 3], "rope_theta": 1000000.0, "rope_type": "default"},
    },
    "tie_word_embeddings": True, "transformers_version": "5.23.0",
    "vision_config": VISION_2_5 | {
        "in_channels": 3, "model_type": "qwen2_5_vl_vision",
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
    },
}  # fmt: skip
QWEN2_5_TIED_IN_TEXT = copy.deepcopy(QWEN2_5_V4) | {"tie_word_embeddings": False}
PIXELS = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor", **CLIP,
}  # fmt: skip

# ---- Qwen3-VL-{2B,4B,8B}-Instruct ----------------------------------------------------------------------------------------

QWEN3_V4 = TOKENS | {
    "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 48, "max_position_embeddings": 262144, "model_type": "qwen3_vl_text",
        "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "tie_word_embeddings": True, "use_cache": True, "vocab_size": 151936,
    },
    "tie_word_embeddings": True, "transformers_version": "4.57.0.dev0",
    "vision_config": {
        "deepstack_visual_indexes": [1, 2, 4], "depth": 6, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 32,
        "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 64, "model_type": "qwen3_vl",
        "num_heads": 2, "num_position_embeddings": 2304, "out_hidden_size": 32, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
QWEN3_V5 = copy.deepcopy(QWEN3_V4) | {"dtype": "bfloat16", "transformers_version": "5.23.0"}
for _field in ("rope_scaling", "rope_theta", "tie_word_embeddings"):
    del QWEN3_V5["text_config"][_field]
QWEN3_V5["text_config"]["rope_parameters"] = {
    "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_theta": 5000000, "rope_type": "default",
}  # fmt: skip
QWEN3_V5["vision_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
EDGES = {
    "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "merge_size": 2,
    "image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "processor_class": "Qwen3VLProcessor",
    "resample": 3, "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "temporal_patch_size": 2, **HALF,
}  # fmt: skip


def write(folder: pathlib.Path, config: dict, processor: dict, *, has_head: bool) -> pathlib.Path:
    """A folder for `hf.read_config`, which reads of the weights no more than whether there is a head."""
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    head = hf.FAMILIES[config["model_type"]].head
    weights = {head if has_head else "other": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(weights, folder / hf.WEIGHTS)
    return folder


@pytest.mark.parametrize("config", [INTERNVL3_V4, INTERNVL3_V5], ids=["v4", "v5"])
def test_internvl3(tmp_path, config):
    found = hf.read_config(write(tmp_path, config, GOT_OCR, has_head=True))
    assert (found.text.head_dim, found.text.num_attention_heads, found.text.num_key_value_heads) == (2, 14, 2)
    assert (found.text.rope_theta, found.text.attention_bias, found.text.output_bias) == (1e6, True, False)
    assert not found.text.qk_norm
    assert (found.tie_word_embeddings, found.image_token_id, found.text.rms_norm_eps) == (False, 151667, 1e-6)
    assert found.vision.attention_bias
    assert found.image_mean == tuple(IMAGENET["image_mean"])


def test_internvl3_without_a_head_in_the_file_is_tied(tmp_path):
    assert hf.read_config(write(tmp_path, INTERNVL3_V4, GOT_OCR, has_head=False)).tie_word_embeddings


def test_internvl3_5(tmp_path):
    found = hf.read_config(write(tmp_path, INTERNVL3_5_V4, GOT_OCR, has_head=True))
    assert (found.text.head_dim, found.text.qk_norm, found.text.rope_theta) == (16, True, 1e6)
    assert (found.text.attention_bias, found.text.output_bias, found.image_token_id) == (False, False, 151671)
    assert not found.tie_word_embeddings


def test_all_spellings_of_qwen2_5_vl_are_one_config(tmp_path):
    configs = [QWEN2_5_FLAT, QWEN2_5_V4, QWEN2_5_V5, QWEN2_5_TIED_IN_TEXT]
    found = [hf.read_config(write(tmp_path, config, PIXELS, has_head=False)) for config in configs]
    assert found[0] == found[1] == found[2] == found[3]
    text, vision = found[0].text, found[0].vision
    assert (text.mrope_section, text.mrope_interleaved, text.rope_theta, text.head_dim) == ((2, 3, 3), False, 1e6, 16)
    assert (text.attention_bias, text.output_bias, text.qk_norm, text.rms_norm_eps) == (True, False, False, 1e-6)
    assert (vision.window_size, vision.fullatt_block_indexes, vision.rope_theta) == (112, (1, 3), 1e4)
    assert (found[0].tie_word_embeddings, found[0].view_size) == (True, (448, 448))
    assert found[0].image_mean == tuple(CLIP["image_mean"])


def test_qwen2_5_vl_7b_has_its_own_head(tmp_path):
    config = QWEN2_5_FLAT | {"tie_word_embeddings": False}
    assert not hf.read_config(write(tmp_path, config, PIXELS, has_head=True)).tie_word_embeddings


def test_both_spellings_of_qwen3_vl_are_one_config(tmp_path):
    found = [hf.read_config(write(tmp_path, config, EDGES, has_head=False)) for config in (QWEN3_V4, QWEN3_V5)]
    assert found[0] == found[1]
    text, vision = found[0].text, found[0].vision
    assert (text.mrope_section, text.mrope_interleaved, text.rope_theta) == ((24, 20, 20), True, 5e6)
    assert (text.head_dim, text.qk_norm, text.attention_bias) == (128, True, False)
    assert (vision.deepstack_visual_indexes, vision.num_position_embeddings) == ((1, 2, 4), 2304)
    assert (found[0].tie_word_embeddings, found[0].view_size) == (True, (512, 512))
    assert found[0].image_std == (0.5, 0.5, 0.5)
    config = QWEN3_V4 | {"tie_word_embeddings": False}  # the 8B model
    assert not hf.read_config(write(tmp_path, config, EDGES, has_head=True)).tie_word_embeddings


@pytest.mark.parametrize("written", [INTERNVL3_V4, INTERNVL3_5_V4, QWEN2_5_FLAT, QWEN3_V4])
def test_what_we_write_of_it_says_the_same(tmp_path, written):
    processor = GOT_OCR if written["model_type"] == "internvl" else PIXELS
    family = hf.FAMILIES[written["model_type"]]
    found = hf.read_config(write(tmp_path, written, processor, has_head=True))
    again = write(tmp_path, family.write_config(found, "bfloat16"), family.write_processor(found), has_head=True)
    assert hf.read_config(again) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rescale_factor": 1.0}, "preprocessor_config.json: rescale_factor is 1.0; supported: 1/255"),
        ({"do_normalize": False}, "preprocessor_config.json: do_normalize is False"),
        ({"do_rescale": False}, "preprocessor_config.json: do_rescale is False"),
    ],
)
def test_image_settings_that_the_towers_do_not_follow_are_refused(tmp_path, change, said):
    with pytest.raises(hf.HFLayoutError, match=said):
        hf.read_config(write(tmp_path, INTERNVL3_V4, GOT_OCR | change, has_head=True))


@pytest.mark.parametrize("value", ["16", 0, None, [2]])
def test_a_field_of_the_wrong_kind_is_one_error(tmp_path, value):
    config = copy.deepcopy(INTERNVL3_V5)
    config["vision_config"]["num_attention_heads"] = value
    folder = write(tmp_path, config, GOT_OCR, has_head=True)
    with pytest.raises(hf.HFLayoutError, match=r"config\.json"):
        hf.read_config(folder)
