"""Reads and writes Hugging Face checkpoint folders: config.json, safetensors, generation and image processor settings.

What differs between families is one `Family` each (hf_internvl.py, hf_qwen_vl.py): a table of names (ours <-> on disk, with the
layout of each kind of parameter), functions between config.json and the model's config, and the config fields that the
shapes on disk must confirm.
"""

import contextlib
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from mvg_jax.mesh import to_whole
from mvg_jax.models.config import ModelConfig
from mvg_jax.models.hf_internvl import INTERNVL
from mvg_jax.models.hf_layout import AS_IS, TRANSPOSED, Disk, Family, Fields, HFLayoutError, Layout, Path, disk_names
from mvg_jax.models.hf_qwen_vl import QWEN2_5_VL, QWEN3_VL
from mvg_jax.models.vlm import ShapesOnly

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
PIECE_BYTES = 64_000_000  # read at a time
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}

FAMILIES = {"internvl": INTERNVL, "qwen2_5_vl": QWEN2_5_VL, "qwen3_vl": QWEN3_VL}


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
        family, config = _read_config(directory, tensors)
        stored = _stored_names(family, tensors)
        if config.tie_word_embeddings and family.head in stored:
            _check_tied(directory, tensors, stored[family.head], stored.get(family.embedding, ""))
            del stored[family.head]
        shapes = {name: tuple(tensors[old].get_slice(old).get_shape()) for name, old in stored.items()}
        graph, state = nnx.split(nnx.eval_shape(lambda: family.model(config, ShapesOnly(0))))
        flat = dict(nnx.to_flat_state(state))
        places = disk_names(family.names, {path: leaf.shape for path, leaf in flat.items()})
        _check(directory, family, config, places, shapes)
        for path, (name, _, layout) in places.items():
            old = stored[name]
            kind = tensors[old].get_slice(old).get_dtype()
            if kind not in DTYPES:
                raise HFLayoutError(f"{directory}: {name} is of type {kind}; supported: {sorted(DTYPES)}")
            array = _read(tensors[old], old, layout, dtype)
            flat[path] = flat[path].replace(place(path, array))
            del array  # before the next is read
    return nnx.merge(graph, nnx.from_flat_state(list(flat.items())))


def _read(file: Any, name: str, layout: Layout, dtype: jnp.dtype) -> np.ndarray:
    """A tensor in our layout and type. What is stored is read in pieces, so that the host holds it no second time."""
    stored = file.get_slice(name)
    if layout not in (AS_IS, TRANSPOSED) or not stored.get_shape():
        return np.ascontiguousarray(layout.to_ours(file.get_tensor(name)), dtype=dtype)
    rows, *rest = stored.get_shape()
    array = np.empty([*rest, rows] if layout is TRANSPOSED else [rows, *rest], dtype)
    step = max(PIECE_BYTES // (4 * math.prod(rest)), 1)
    for start in range(0, rows, step):
        piece = slice(start, min(start + step, rows))
        if layout is TRANSPOSED:
            array[..., piece] = np.moveaxis(stored[piece], 0, -1)
        else:
            array[piece] = stored[piece]
    return array


def read_config(directory: str | pathlib.Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder; the weights' headers are read, the weights are not."""
    directory = pathlib.Path(directory)
    with _open_weights(directory) as tensors:
        return _read_config(directory, tensors)[1]


def _stored_names(family: Family, tensors: Iterable[str]) -> dict[str, str]:
    """The name we would write -> the name in the files."""
    stored = {}
    for old in tensors:
        renamed = next(
            (new + old.removeprefix(prefix) for prefix, new in family.renamed if old.startswith(prefix)), old
        )
        stored[renamed] = old
    return stored


def _read_config(directory: pathlib.Path, tensors: Iterable[str]) -> tuple[Family, ModelConfig]:
    config = _json(directory / "config.json")
    if config.get("model_type") not in FAMILIES:
        raise HFLayoutError(
            f"{directory}/config.json: model_type is {config.get('model_type')!r}; supported: {sorted(FAMILIES)}"
        )
    family = FAMILIES[config["model_type"]]
    if (directory / "preprocessor_config.json").is_file():
        processor = Fields("", _json(directory / "preprocessor_config.json"), {}, "preprocessor_config.json")
    else:  # transformers 5 saves the whole processor in one file
        whole = _json(directory / "processor_config.json")
        processor = Fields("image_processor.", whole.get("image_processor", {}), {}, "processor_config.json")
    try:
        read = family.read_config(config, processor, family.head in _stored_names(family, tensors))
        if not 0 <= read.image_token_id < read.text.vocab_size:
            vocabulary = f"text_config.vocab_size is {read.text.vocab_size}"
            raise HFLayoutError(f"config.json: image_token_id is {read.image_token_id}, but {vocabulary}")
    except HFLayoutError as error:
        raise HFLayoutError(f"{directory}: {error}") from None
    except (TypeError, ZeroDivisionError, AttributeError) as error:
        raise HFLayoutError(f"{directory}/config.json: a field has a value of the wrong kind: {error}") from error
    return family, read


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


def _check_tied(directory: pathlib.Path, tensors: Mapping[str, Any], head: str, embedding: str) -> None:
    """A tied model's file may hold the head once more; transformers ties the two only if they are equal, and so do we."""
    first, *rest = (tensors[name].get_slice(name) for name in (head, embedding) if name in tensors)
    same = [first.get_shape()] == [other.get_shape() for other in rest]
    rows, step = first.get_shape()[0], 4096  # rows at a time: neither is ever on the host as a whole
    pieces = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    if not same or any((first[piece] != rest[0][piece]).any() for piece in pieces):
        raise HFLayoutError(
            f"{directory}: config.json contradicts the weights: tie_word_embeddings is True, but {head} is not {embedding}; "
            "with tie_word_embeddings false the model has this head of its own"
        )


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
    if not config.tie_word_embeddings and family.head not in shapes:
        wrong.append(f"tie_word_embeddings is False, but there is no {family.head}")
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
    files with an index; one file's tensors are on the host at a time. Tokenizer files are not touched. With several processes
    all must call it, and process 0 writes.
    """
    directory = pathlib.Path(directory)
    writes = jax.process_index() == 0
    dtype = np.dtype(dtype)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype {dtype}: one of {[str(known) for known in DTYPES.values()]}")
    family = FAMILIES[model.config.model_type]
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
    if writes:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "config.json", family.write_config(model.config, dtype.name))
        _write(directory / "preprocessor_config.json", family.write_processor(model.config))
        _write(directory / "generation_config.json", {"eos_token_id": end_of_turn, "pad_token_id": pad})
    weight_map = {}
    for number, paths in enumerate(shards, 1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {}
        for path in paths:
            array = places[path].layout.to_disk(to_whole(flat[path][...]))
            if writes:
                arrays[places[path].name] = np.ascontiguousarray(array, dtype=dtype)
        if not writes:
            continue
        safetensors.numpy.save_file(arrays, directory / file, metadata={"format": "pt"})
        shutil.copymode(directory / "config.json", directory / file)  # safetensors makes files only the owner can read
        weight_map |= dict.fromkeys(arrays, file)
    if not writes:
        return
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
