"""Reads and writes Hugging Face checkpoint folders: config.json, safetensors, generation and image processor settings.

Each family is one `Family`: a table of names (ours <-> on disk, with the layout of each kind of parameter), a pair of
functions between config.json and ModelConfig, and a table of config fields that the shapes on disk must confirm.
torch keeps a linear weight as [out, in] and a convolution as [out, in, kh, kw]; ours are [in, out] and [kh*kw*in, out].
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from mvg_jax.models.config import ModelConfig, TextConfig, VisionConfig
from mvg_jax.models.internvl import InternVL

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}

Path = tuple[str | int, ...]


class HFLayoutError(ValueError):
    """A checkpoint folder that contradicts itself or that we cannot run; the message names file, field or tensor."""


# ---------------------------------------------------------------------------------------------------------------------
# The name tables
# ---------------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How an array on disk becomes ours, and back."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_disk: Callable[[np.ndarray], np.ndarray]


def _patches_to_ours(weight_Dx3xPxP: np.ndarray) -> np.ndarray:
    return weight_Dx3xPxP.transpose(2, 3, 1, 0).reshape(-1, weight_Dx3xPxP.shape[0])


def _patches_to_disk(kernel_WxD: np.ndarray) -> np.ndarray:
    side = math.isqrt(kernel_WxD.shape[0] // 3)
    return kernel_WxD.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


AS_IS = Layout(lambda x: x, lambda x: x)
TRANSPOSED = Layout(np.transpose, np.transpose)
PATCHES = Layout(_patches_to_ours, _patches_to_disk)

# A kind of module: our parameter -> (its name on disk, its layout). Which of them exist is the model's business.
LINEAR = {"kernel": ("weight", TRANSPOSED), "bias": ("bias", AS_IS)}
NORM = {"scale": ("weight", AS_IS), "bias": ("bias", AS_IS)}
EMBEDDING = {"embedding": ("weight", AS_IS)}
PATCH_EMBEDDING = {"kernel": ("weight", PATCHES), "bias": ("bias", AS_IS)}
PARAMETER = {"": ("", AS_IS)}

# Our module -> the same module on disk, with its kind; {i} is a layer.
DECODER = (
    ("embed_tokens", "embed_tokens", EMBEDDING),
    ("layers.{i}.input_layernorm", "layers.{i}.input_layernorm", NORM),
    ("layers.{i}.self_attn.q_proj", "layers.{i}.self_attn.q_proj", LINEAR),
    ("layers.{i}.self_attn.k_proj", "layers.{i}.self_attn.k_proj", LINEAR),
    ("layers.{i}.self_attn.v_proj", "layers.{i}.self_attn.v_proj", LINEAR),
    ("layers.{i}.self_attn.o_proj", "layers.{i}.self_attn.o_proj", LINEAR),
    ("layers.{i}.post_attention_layernorm", "layers.{i}.post_attention_layernorm", NORM),
    ("layers.{i}.gate_proj", "layers.{i}.mlp.gate_proj", LINEAR),
    ("layers.{i}.up_proj", "layers.{i}.mlp.up_proj", LINEAR),
    ("layers.{i}.down_proj", "layers.{i}.mlp.down_proj", LINEAR),
    ("norm", "norm", NORM),
)
INTERNVL_VISION = (
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
INTERNVL_REST = (
    ("multi_modal_projector.layer_norm", "multi_modal_projector.layer_norm", NORM),
    ("multi_modal_projector.linear_1", "multi_modal_projector.linear_1", LINEAR),
    ("multi_modal_projector.linear_2", "multi_modal_projector.linear_2", LINEAR),
    ("lm_head", "language_model.lm_head", LINEAR),
)

Rows = tuple[tuple[str, str, Mapping[str, tuple[str, Layout]]], ...]


def _under(ours: str, disk: str, rows: Rows) -> Rows:
    return tuple((f"{ours}.{left}", f"{disk}.{right}", kind) for left, right, kind in rows)


class Disk(NamedTuple):
    """Where one of our parameters lives on disk."""

    name: str
    shape: tuple[int, ...]
    layout: Layout


def disk_names(rows: Rows, shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, Disk]:
    """The place on disk of each parameter (path in the module tree -> shape). KeyError for one not in the table."""
    table = {}
    for ours, disk, kind in rows:
        for leaf, (leaf_on_disk, layout) in kind.items():
            table[f"{ours}.{leaf}".rstrip(".")] = (f"{disk}.{leaf_on_disk}".rstrip("."), layout)
    found = {}
    for path, shape in shapes.items():
        layer = next((part for part in path if isinstance(part, int)), None)
        name, layout = table[".".join("{i}" if isinstance(part, int) else part for part in path)]
        # A broadcast scalar has every shape and no memory.
        on_disk = layout.to_disk(np.broadcast_to(np.float32(0), shape)).shape
        found[path] = Disk(name.replace("{i}", str(layer)), on_disk, layout)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# InternVL's config.json
# ---------------------------------------------------------------------------------------------------------------------

# What transformers takes for a field that a config.json leaves out (older versions wrote only what differed).
INTERNVL_DEFAULTS = {
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
TEXT_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}


class _Fields:
    """One section of config.json; what is wrong is reported with the field's full name."""

    def __init__(self, where: str, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        self.where, self.values, self.defaults = where, values, defaults

    def __getitem__(self, field: str) -> Any:
        if field in self.values:
            return self.values[field]
        if field in self.defaults:
            return self.defaults[field]
        raise HFLayoutError(f"config.json lacks {self.where}{field}")

    def require(self, field: str, *allowed: Any) -> Any:
        value = self[field]
        if value not in allowed:
            raise HFLayoutError(f"config.json: {self.where}{field} is {value!r}; supported: {list(allowed)}")
        return value

    def square(self, field: str) -> int:
        value = self[field]
        sides = set(value) if isinstance(value, list) else {value}
        if len(sides) != 1:
            raise HFLayoutError(f"config.json: {self.where}{field} is {value!r}; only squares are supported")
        return sides.pop()


def _rope_theta(text: _Fields) -> float:
    """The base of the rotary angles, from version 5's rope_parameters or version 4's rope_theta and rope_scaling.

    "dynamic" (InternVL3) changes the angles only beyond the trained length, and is taken as "default" up to it.
    """
    rope = text.values.get("rope_parameters") or {}
    scaling = text.values.get("rope_scaling") or {}
    for where, section in (("rope_parameters", rope), ("rope_scaling", scaling)):
        kind = section.get("rope_type", section.get("type", "default"))
        if kind not in ("default", "dynamic"):
            raise HFLayoutError(f"config.json: {text.where}{where} has rope_type {kind!r}; supported: default, dynamic")
    return float(rope["rope_theta"] if "rope_theta" in rope else text["rope_theta"])


def _internvl_config(config: Mapping[str, Any], processor: Mapping[str, Any], has_head: bool) -> ModelConfig:
    for section in ("text_config", "vision_config"):
        if not isinstance(config.get(section), dict):
            raise HFLayoutError(f"config.json lacks {section}")
    top = _Fields("", config, INTERNVL_DEFAULTS)
    text = _Fields("text_config.", config["text_config"], TEXT_DEFAULTS)
    vision = _Fields("vision_config.", config["vision_config"], VISION_DEFAULTS)
    top.require("vision_feature_layer", -1)
    top.require("vision_feature_select_strategy", "default")
    vision.require("num_channels", 3)
    vision.require("use_mask_token", False)
    vision.require("use_absolute_position_embeddings", True)
    vision.require("norm_type", "layer_norm", "rms_norm")
    if text.require("model_type", "qwen2", "llama") == "llama":
        for field in ("attention_bias", "mlp_bias"):
            if text.values.get(field, False):
                raise HFLayoutError(f"config.json: text_config.{field} is true; not supported for llama")
    if text.values.get("use_sliding_window", False):
        raise HFLayoutError("config.json: text_config.use_sliding_window is true; not supported")
    # transformers 5 reads the top level, which wins over text_config; files of version 4 may say it in either or none.
    tied = config.get("tie_word_embeddings", config["text_config"].get("tie_word_embeddings", not has_head))
    image = _Fields("", processor, {"rescale_factor": 1 / 255})
    heads = text["num_attention_heads"]
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
            image_size=vision.square("image_size"),
            patch_size=vision.square("patch_size"),
        ),
        text=TextConfig(
            **{
                field: text[field]
                for field in (
                    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                    "intermediate_size", "hidden_act", "rms_norm_eps",
                )
            },
            head_dim=text.values.get("head_dim") or text["hidden_size"] // heads,
            rope_theta=_rope_theta(text),
            attention_bias=text["model_type"] == "qwen2",
        ),
        downsample_ratio=top["downsample_ratio"],
        projector_hidden_act=top["projector_hidden_act"],
        tie_word_embeddings=tied,
        image_token_id=top["image_token_id"],
        image_mean=tuple(image["image_mean"]),
        image_std=tuple(image["image_std"]),
    )  # fmt: skip


def _internvl_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json for transformers 5 (rope_parameters), with the fields version 4 reads (rope_theta) beside them."""
    vision, text = dataclasses.asdict(config.vision), dataclasses.asdict(config.text)
    for field in ("image_size", "patch_size"):
        vision[field] = [vision[field], vision[field]]
    qwen = text.pop("attention_bias")
    if text["head_dim"] * text["num_attention_heads"] == text["hidden_size"]:
        del text["head_dim"]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": text["rope_theta"]}
    text |= {"max_position_embeddings": 32768, "tie_word_embeddings": config.tie_word_embeddings, "dtype": dtype}
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
        "text_config": {"model_type": "qwen2" if qwen else "llama", **text},
        "vision_config": {"model_type": "internvl_vision", "num_channels": 3, "dtype": dtype, **vision},
    }


def _internvl_processor(config: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json: one tile, bicubic, as the Pil image processor of transformers reads it."""
    side = config.vision.image_size
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 1,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


class Confirmed(NamedTuple):
    """A config field that a tensor's shape must confirm."""

    field: str
    expected: Callable[[ModelConfig], int]
    tensor: str
    found: Callable[[tuple[int, ...]], int]


_TEXT, _VISION = "language_model.model.", "vision_tower."
_FIRST, _FIRST_VISION = _TEXT + "layers.0.", _VISION + "encoder.layer.0."
INTERNVL_FIELDS = (
    Confirmed("text_config.vocab_size", lambda c: c.text.vocab_size, _TEXT + "embed_tokens.weight", lambda s: s[0]),
    Confirmed("text_config.hidden_size", lambda c: c.text.hidden_size, _TEXT + "embed_tokens.weight", lambda s: s[1]),
    Confirmed("text_config.intermediate_size", lambda c: c.text.intermediate_size,
              _FIRST + "mlp.gate_proj.weight", lambda s: s[0]),
    Confirmed("text_config.num_attention_heads * head_dim", lambda c: c.text.num_attention_heads * c.text.head_dim,
              _FIRST + "self_attn.q_proj.weight", lambda s: s[0]),
    Confirmed("text_config.num_key_value_heads * head_dim", lambda c: c.text.num_key_value_heads * c.text.head_dim,
              _FIRST + "self_attn.k_proj.weight", lambda s: s[0]),
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
INTERNVL_DEPTHS = (
    ("text_config.num_hidden_layers", lambda c: c.text.num_hidden_layers,
     re.compile(r"language_model\.model\.layers\.(\d+)\.")),
    ("vision_config.num_hidden_layers", lambda c: c.vision.num_hidden_layers,
     re.compile(r"vision_tower\.encoder\.layer\.(\d+)\.")),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that differs between families on disk.

    read_config(config.json, image processor settings, whether the files hold `head`) -> ModelConfig, and the ways back.
    """

    model: type[nnx.Module]
    names: Rows
    head: str
    read_config: Callable[[Mapping[str, Any], Mapping[str, Any], bool], ModelConfig]
    write_config: Callable[[ModelConfig, str], dict[str, Any]]
    write_processor: Callable[[ModelConfig], dict[str, Any]]
    fields: tuple[Confirmed, ...]
    depths: tuple[tuple[str, Callable[[ModelConfig], int], re.Pattern], ...]


FAMILIES = {
    "internvl": Family(
        model=InternVL,
        names=_under("language_model", "language_model.model", DECODER)
        + _under("vision_tower", "vision_tower", INTERNVL_VISION)
        + INTERNVL_REST,
        head="language_model.lm_head.weight",
        read_config=_internvl_config,
        write_config=_internvl_json,
        write_processor=_internvl_processor,
        fields=INTERNVL_FIELDS,
        depths=INTERNVL_DEPTHS,
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def load(
    directory: str | pathlib.Path,
    dtype: jnp.dtype,
    place: Callable[[Path, np.ndarray], jax.Array] = lambda path, array: jnp.asarray(array),
) -> nnx.Module:
    """The model of a checkpoint folder, its parameters cast to `dtype`.

    Reads one tensor at a time; `place` puts each (already in our layout and type) on the devices, so the host never
    holds more than one. Raises FileNotFoundError for a missing file and HFLayoutError for anything that does not fit.
    """
    directory = pathlib.Path(directory)
    with _open_weights(directory) as tensors:
        family, config = _read_config(directory, has_head=lambda family: family.head in tensors)
        shapes = {name: tuple(handle.get_slice(name).get_shape()) for name, handle in tensors.items()}
        graph, state = nnx.split(nnx.eval_shape(lambda: family.model(config, nnx.Rngs(0))))
        flat = dict(nnx.to_flat_state(state))
        places = disk_names(family.names, {path: leaf.shape for path, leaf in flat.items()})
        _check(directory, family, config, places, shapes)
        for path, (name, _, layout) in places.items():
            kind = tensors[name].get_slice(name).get_dtype()
            if kind not in DTYPES:
                raise HFLayoutError(f"{directory}: {name} is of type {kind}; supported: {sorted(DTYPES)}")
            array = layout.to_ours(tensors[name].get_tensor(name))
            flat[path] = flat[path].replace(place(path, np.ascontiguousarray(array, dtype=dtype)))
    return nnx.merge(graph, nnx.from_flat_state(list(flat.items())))


def read_config(directory: str | pathlib.Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder; the weights' headers are read, the weights are not."""
    directory = pathlib.Path(directory)
    with _open_weights(directory) as tensors:
        return _read_config(directory, has_head=lambda family: family.head in tensors)[1]


def _read_config(directory: pathlib.Path, has_head: Callable[[Family], bool]) -> tuple[Family, ModelConfig]:
    config = _json(directory / "config.json")
    if config.get("model_type") not in FAMILIES:
        raise HFLayoutError(
            f"{directory}/config.json: model_type is {config.get('model_type')!r}; supported: {sorted(FAMILIES)}"
        )
    family = FAMILIES[config["model_type"]]
    if (directory / "preprocessor_config.json").is_file():
        processor = _json(directory / "preprocessor_config.json")
    else:  # transformers 5 saves the whole processor in one file
        processor = _json(directory / "processor_config.json").get("image_processor", {})
    try:
        return family, family.read_config(config, processor, has_head(family))
    except HFLayoutError as error:
        raise HFLayoutError(f"{directory}: {error}") from None


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise HFLayoutError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise HFLayoutError(f"{path} is not a JSON object")
    return value


@contextlib.contextmanager
def _open_weights(directory: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Tensor name -> the open file that holds it."""
    # As transformers does: one whole file wins over an index.
    if (directory / WEIGHTS).is_file() or not (directory / INDEX).is_file():
        files = [WEIGHTS]
    else:
        files = sorted(set(_json(directory / INDEX).get("weight_map", {}).values()))
    with contextlib.ExitStack() as stack:
        tensors = {}
        for file in files:
            path = directory / file
            if not path.is_file():
                raise FileNotFoundError(f"{directory} holds no {file}")
            try:
                handle = stack.enter_context(safetensors.safe_open(path, framework="np"))
            except safetensors.SafetensorError as error:
                raise HFLayoutError(f"{path} is damaged or cut short: {error}") from error
            tensors |= dict.fromkeys(handle.keys(), handle)
        yield tensors


def _check(directory: pathlib.Path, family: Family, config: ModelConfig, places: Mapping[Path, Disk],
           shapes: Mapping[str, tuple[int, ...]]) -> None:  # fmt: skip
    """Raises one HFLayoutError for all that is wrong: first the config fields, if they explain it, else the tensors."""
    expected_shapes = {disk.name: disk.shape for disk in places.values()}
    wrong = []
    for field, expected, tensor, found in family.fields:
        shape = shapes.get(tensor, ())
        # A tensor of another rank says nothing about a field; it is reported below.
        if len(shape) == len(expected_shapes[tensor]) and found(shape) != expected(config):
            wrong.append(f"{field} is {expected(config)}, but {tensor} {shape} says {found(shape)}")
    for field, expected, pattern in family.depths:
        layers = {int(match.group(1)) for match in map(pattern.match, shapes) if match}
        if layers and max(layers) + 1 != expected(config):
            wrong.append(f"{field} is {expected(config)}, but the files hold layers up to {max(layers)}")
    if config.tie_word_embeddings == (family.head in shapes):
        state = "there is" if config.tie_word_embeddings else "there is no"
        wrong.append(f"tie_word_embeddings is {config.tie_word_embeddings}, but {state} {family.head}")
    if wrong:
        raise HFLayoutError(f"{directory}: config.json contradicts the weights: " + "; ".join(wrong))
    problems = {
        "missing": sorted(set(expected_shapes) - set(shapes)),
        "unexpected": sorted(set(shapes) - set(expected_shapes)),
        "wrong shape": [
            f"{name} {shapes[name]} instead of {shape}"
            for name, shape in sorted(expected_shapes.items())
            if name in shapes and shapes[name] != shape
        ],
    }
    if any(problems.values()):
        said = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise HFLayoutError(f"{directory}: the weights do not fit the model: {said}")


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def save(
    model: nnx.Module,
    directory: str | pathlib.Path,
    *,
    dtype: jnp.dtype,
    end_of_turn: int,
    pad: int,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes what `load` reads and transformers opens: weights in `dtype` and the three JSON files beside them.

    end_of_turn, pad: token ids for generation_config.json. More than max_shard_bytes of weights are cut into several
    files with an index; one file's tensors are on the host at a time. Tokenizer files are not touched.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(dtype)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype {dtype}: one of {[str(known) for known in DTYPES.values()]}")
    family = next(family for family in FAMILIES.values() if isinstance(model, family.model))
    flat = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    places = disk_names(family.names, {path: leaf.shape for path, leaf in flat.items()})
    shards, size = [[]], 0
    for path in sorted(places, key=lambda path: places[path].name):
        bytes_ = math.prod(places[path].shape) * dtype.itemsize
        if shards[-1] and size + bytes_ > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(path)
        size += bytes_
    _write(directory / "config.json", family.write_config(model.config, dtype.name))
    _write(directory / "preprocessor_config.json", family.write_processor(model.config))
    _write(directory / "generation_config.json", {"eos_token_id": end_of_turn, "pad_token_id": pad})
    weight_map = {}
    for number, paths in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for path in paths:
            array = places[path].layout.to_disk(np.asarray(flat[path][...]))
            arrays[places[path].name] = np.ascontiguousarray(array, dtype=dtype)
        safetensors.numpy.save_file(arrays, directory / file, metadata={"format": "pt"})
        shutil.copymode(directory / "config.json", directory / file)  # safetensors makes files only the owner can read
        weight_map |= dict.fromkeys(arrays, file)
    # A folder written before with other sharding must not keep its index or files beside the new ones.
    for path in list(directory.iterdir()):
        ours = re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json", path.name)
        if ours and path.name not in weight_map.values():
            path.unlink()
    if len(shards) > 1:
        total = sum(math.prod(disk.shape) for disk in places.values()) * dtype.itemsize
        _write(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
