"""What the families share on disk: names and layouts of tensors, the fields of config.json, the decoder's among them.

torch keeps a linear weight as [out, in] and a convolution as [out, in, kh, kw]; ours are [in, out] and [kh*kw*in, out].
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from flax import nnx

from mvg_jax.models.config import ModelConfig, TextConfig
from mvg_jax.models.layers import ACTIVATIONS

Path = tuple[str | int, ...]


class HFLayoutError(ValueError):
    """A checkpoint folder that contradicts itself or that we cannot run; the message names file, field or tensor."""


# ---------------------------------------------------------------------------------------------------------------------
# Names and layouts of tensors
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


def _films_to_ours(weight_Dx3x2xPxP: np.ndarray) -> np.ndarray:
    return weight_Dx3x2xPxP.transpose(2, 3, 4, 1, 0).reshape(-1, weight_Dx3x2xPxP.shape[0])


def _films_to_disk(kernel_WxD: np.ndarray) -> np.ndarray:
    side = math.isqrt(kernel_WxD.shape[0] // (2 * 3))
    return kernel_WxD.reshape(2, side, side, 3, -1).transpose(4, 3, 0, 1, 2)


AS_IS = Layout(lambda x: x, lambda x: x)
TRANSPOSED = Layout(np.transpose, np.transpose)
PATCHES = Layout(_patches_to_ours, _patches_to_disk)
FILMS = Layout(_films_to_ours, _films_to_disk)  # patches of two frames: all Qwen-VL have temporal_patch_size 2

# A kind of module: our parameter -> (its name on disk, its layout). Which of them exist is the model's business.
LINEAR = {"kernel": ("weight", TRANSPOSED), "bias": ("bias", AS_IS)}
NORM = {"scale": ("weight", AS_IS), "bias": ("bias", AS_IS)}
EMBEDDING = {"embedding": ("weight", AS_IS)}
PATCH_EMBEDDING = {"kernel": ("weight", PATCHES), "bias": ("bias", AS_IS)}
FILM_EMBEDDING = {"kernel": ("weight", FILMS), "bias": ("bias", AS_IS)}
PARAMETER = {"": ("", AS_IS)}

# Our module -> the same module on disk, with its kind; {i} is a layer.
DECODER = (
    ("embed_tokens", "embed_tokens", EMBEDDING),
    ("layers.{i}.input_layernorm", "layers.{i}.input_layernorm", NORM),
    ("layers.{i}.self_attn.q_proj", "layers.{i}.self_attn.q_proj", LINEAR),
    ("layers.{i}.self_attn.k_proj", "layers.{i}.self_attn.k_proj", LINEAR),
    ("layers.{i}.self_attn.v_proj", "layers.{i}.self_attn.v_proj", LINEAR),
    ("layers.{i}.self_attn.o_proj", "layers.{i}.self_attn.o_proj", LINEAR),
    ("layers.{i}.self_attn.q_norm", "layers.{i}.self_attn.q_norm", NORM),
    ("layers.{i}.self_attn.k_norm", "layers.{i}.self_attn.k_norm", NORM),
    ("layers.{i}.post_attention_layernorm", "layers.{i}.post_attention_layernorm", NORM),
    ("layers.{i}.gate_proj", "layers.{i}.mlp.gate_proj", LINEAR),
    ("layers.{i}.up_proj", "layers.{i}.mlp.up_proj", LINEAR),
    ("layers.{i}.down_proj", "layers.{i}.mlp.down_proj", LINEAR),
    ("norm", "norm", NORM),
)

Rows = tuple[tuple[str, str, Mapping[str, tuple[str, Layout]]], ...]


def under(ours: str, disk: str, rows: Rows) -> Rows:
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
# Fields of config.json
# ---------------------------------------------------------------------------------------------------------------------


class Fields:
    """One section of config.json or of another file; what is wrong is reported with the field's full name."""

    def __init__(self, where: str, values: Mapping[str, Any], defaults: Mapping[str, Any], file: str = "config.json"):
        self.where, self.values, self.defaults, self.file = where, values, defaults, file

    def __getitem__(self, field: str) -> Any:
        if field in self.values:
            return self.values[field]
        if field in self.defaults:
            return self.defaults[field]
        raise HFLayoutError(f"{self.file} lacks {self.where}{field}")

    def require(self, field: str, *allowed: Any) -> Any:
        value = self[field]
        if value not in allowed:
            self.refuse(field, f"supported: {list(allowed)}")
        return value

    def multiple(self, field: str, of: str, times: int = 1) -> int:
        """The field, which must be a multiple of `times` that of another."""
        if self[field] % (times * self[of]):
            self.refuse(field, f"it must be a multiple of {f'{times} * ' if times > 1 else ''}{of} ({self[of]})")
        return self[field]

    def refuse(self, field: str, why: str) -> NoReturn:
        raise HFLayoutError(f"{self.file}: {self.where}{field} is {self[field]!r}; {why}")

    def square(self, field: str) -> int:
        value = self[field]
        sides = set(value) if isinstance(value, list) else {value}
        if len(sides) != 1:
            self.refuse(field, "only squares are supported")
        return sides.pop()


# How views are resampled (see tools.render), by the number that Pillow and preprocessor_config.json have for it.
RESAMPLE = {2: "linear", 3: "bicubic"}
RESAMPLE_NUMBERS = {name: number for number, name in RESAMPLE.items()}


def read_tied(top: Mapping[str, Any], text: Mapping[str, Any], has_head: bool) -> bool:
    """Whether the head is the embedding. transformers 5 reads the top level, which wins over text_config; files of
    version 4 may say it in either or none."""
    return top.get("tie_word_embeddings", text.get("tie_word_embeddings", not has_head))


def read_image_settings(image: Fields) -> dict[str, Any]:
    """image_mean, image_std and resample (bicubic where the file does not say) of the image processor."""
    for field in ("do_rescale", "do_normalize"):
        if not image.values.get(field, True):
            image.refuse(field, "supported: true")
    if not math.isclose(image.values.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        image.refuse("rescale_factor", "supported: 1/255")
    number = image.values.get("resample", 3)
    if number not in RESAMPLE:
        image.refuse("resample", f"supported: {RESAMPLE}")
    return {field: tuple(image[field]) for field in ("image_mean", "image_std")} | {"resample": RESAMPLE[number]}


@dataclasses.dataclass(frozen=True)
class DecoderKind:
    """What a decoder's model_type says that its fields do not.

    attention_bias: of q, k and v; None: the field says it, for the output projection too. head_dim: when the field is
    missing; None: hidden_size / num_attention_heads. mrope_section: likewise; None: the decoder has no M-RoPE.
    """

    attention_bias: bool | None
    qk_norm: bool = False
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    mrope_section: tuple[int, int, int] | None = None
    mrope_interleaved: bool = False


DECODERS = {
    "qwen2": DecoderKind(attention_bias=True),
    "qwen3": DecoderKind(attention_bias=None, qk_norm=True, head_dim=128),
    "llama": DecoderKind(attention_bias=None),
    "qwen2_5_vl_text": DecoderKind(attention_bias=True, rope_theta=1e6, rms_norm_eps=1e-5, mrope_section=(16, 24, 24)),
    "qwen3_vl_text": DecoderKind(
        attention_bias=None,
        qk_norm=True,
        head_dim=128,
        rope_theta=5e5,
        mrope_section=(24, 20, 20),
        mrope_interleaved=True,
    ),
}


def read_decoder(text: Fields, model_type: str) -> TextConfig:
    """The decoder's shape. HFLayoutError names a field that says something we cannot run."""
    kind = DECODERS[model_type]
    defaults = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False}
    defaults["rms_norm_eps"] = kind.rms_norm_eps
    # Some files spell out what is left to the default as null.
    text = Fields(text.where, {key: value for key, value in text.values.items() if value is not None}, defaults)
    text.require("mlp_bias", False)
    text.require("use_sliding_window", False)
    text.require("hidden_act", *ACTIVATIONS)
    text.multiple("num_attention_heads", of="num_key_value_heads")
    layers = set(text.values.get("layer_types", ())) - {"full_attention"}
    if layers:
        raise HFLayoutError(f"config.json: {text.where}layer_types holds {sorted(layers)}; supported: full_attention")
    head_dim = text.values.get("head_dim", kind.head_dim) or text["hidden_size"] // text["num_attention_heads"]
    said = kind.attention_bias is None
    rope = _read_rope(text)
    return TextConfig(
        **{
            field: text[field]
            for field in (
                "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "intermediate_size", "hidden_act", "rms_norm_eps",
            )
        },
        head_dim=head_dim,
        rope_theta=float(rope.get("rope_theta", text.values.get("rope_theta", kind.rope_theta))),
        attention_bias=text["attention_bias"] if said else kind.attention_bias,
        output_bias=text["attention_bias"] if said else False,
        qk_norm=kind.qk_norm,
        mrope_section=_mrope_section(text.where, rope, kind, head_dim),
        mrope_interleaved=kind.mrope_interleaved,
        max_position_embeddings=text.values.get("max_position_embeddings", 32768),
    )  # fmt: skip


def _read_rope(text: Fields) -> Mapping[str, Any]:
    """What turns the rotary angles: version 4's rope_scaling, which wins in version 5 too, or its rope_parameters.

    "dynamic" (InternVL3) changes the angles only beyond max_position_embeddings, and is "default" up to there. "linear",
    "llama3", "yarn" and "longrope" change them everywhere.
    """
    for where in ("rope_scaling", "rope_parameters"):
        section = text.values.get(where, {})
        kind = section.get("rope_type", section.get("type", "default"))
        if kind not in ("default", "dynamic", "mrope"):
            raise HFLayoutError(f"config.json: {text.where}{where} has rope_type {kind!r}; supported: default, dynamic")
        if any(isinstance(value, dict) for value in section.values()):
            raise HFLayoutError(f"config.json: {text.where}{where} differs between layers; not supported")
        for values in (section, text.values):
            if values.get("partial_rotary_factor") not in (None, 1.0):
                raise HFLayoutError(f"config.json: {text.where}partial_rotary_factor is not 1; not supported")
    return text.values.get("rope_scaling") or text.values.get("rope_parameters", {})


def _mrope_section(
    where: str, rope: Mapping[str, Any], kind: DecoderKind, head_dim: int
) -> tuple[int, int, int] | None:
    if kind.mrope_section is None:
        if "mrope_section" in rope:
            raise HFLayoutError(f"config.json: {where}rope_parameters has mrope_section; not supported here")
        return None
    section = tuple(rope.get("mrope_section", kind.mrope_section))
    # Interleaved, what the sections do not reach turns with time, and what they have too much is cut off.
    if len(section) != 3 or (sum(section) != head_dim // 2 and not kind.mrope_interleaved):
        raise HFLayoutError(
            f"config.json: {where}rope_parameters has mrope_section {list(section)}; it must be three numbers that "
            f"sum to half of head_dim {head_dim}"
        )
    return section


def write_decoder(config: TextConfig, model_type: str, tied: bool, dtype: str) -> dict[str, Any]:
    """text_config for transformers 5 (rope_parameters), with the fields version 4 reads (rope_theta) beside them."""
    text = {"model_type": model_type, **dataclasses.asdict(config)}
    for field in ("attention_bias", "output_bias", "qk_norm", "mrope_section", "mrope_interleaved"):
        del text[field]
    kind = DECODERS[model_type]
    if kind.attention_bias is None:
        text["attention_bias"] = config.attention_bias
    if kind.head_dim is None and config.head_dim * config.num_attention_heads == config.hidden_size:
        del text["head_dim"]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.mrope_section is not None:
        mrope = {"mrope_section": list(config.mrope_section)}
        mrope |= {"mrope_interleaved": True} if config.mrope_interleaved else {}
        text["rope_parameters"] |= mrope
        text["rope_scaling"] = {"rope_type": "default", **mrope}
    return text | {"tie_word_embeddings": tied, "dtype": dtype}


class Confirmed(NamedTuple):
    """A config field that a tensor's shape must confirm."""

    field: str
    expected: Callable[[ModelConfig], int]
    tensor: str
    found: Callable[[tuple[int, ...]], int]


def decoder_fields(prefix: str) -> tuple[Confirmed, ...]:
    """The decoder's fields that the tensors under `prefix` must confirm."""
    embedding, first = prefix + "embed_tokens.weight", prefix + "layers.0."
    return (
        Confirmed("text_config.vocab_size", lambda c: c.text.vocab_size, embedding, lambda s: s[0]),
        Confirmed("text_config.hidden_size", lambda c: c.text.hidden_size, embedding, lambda s: s[1]),
        Confirmed("text_config.intermediate_size", lambda c: c.text.intermediate_size,
                  first + "mlp.gate_proj.weight", lambda s: s[0]),
        Confirmed("text_config.num_attention_heads * head_dim", lambda c: c.text.num_attention_heads * c.text.head_dim,
                  first + "self_attn.q_proj.weight", lambda s: s[0]),
        Confirmed("text_config.num_key_value_heads * head_dim", lambda c: c.text.num_key_value_heads * c.text.head_dim,
                  first + "self_attn.k_proj.weight", lambda s: s[0]),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that differs between families on disk.

    renamed: (prefix, the prefix we write) of tensor names that other versions of transformers wrote.
    head, embedding: names of the two tensors that may be one.
    read_config(config.json, image processor settings, whether the files hold `head`) -> ModelConfig, and the ways back.
    """

    model: type[nnx.Module]
    names: Rows
    head: str
    embedding: str
    read_config: Callable[[Mapping[str, Any], Fields, bool], ModelConfig]
    write_config: Callable[[ModelConfig, str], dict[str, Any]]
    write_processor: Callable[[ModelConfig], dict[str, Any]]
    fields: tuple[Confirmed, ...]
    depths: tuple[tuple[str, Callable[[ModelConfig], int], re.Pattern], ...]
    renamed: tuple[tuple[str, str], ...] = ()
