"""The device mesh and THE table of sharding rules: logical axis → mesh axes. Nothing else names a mesh axis.

A program that runs on several devices enters `jax.set_mesh(make_mesh(...))` once; everything below asks JAX for that mesh. Without
one (a single device) every function here leaves its arrays as they are, so that there is one code path.

Rows are cut into *shards*, one for each place on the axes (data, fsdp); a process holds the rows of its own devices. Host code sees
its own rows only: `put_rows` sends them, `to_host` fetches them, `gather` shows those of all processes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mvg_jax.errors import RunError

AXES = ("data", "fsdp", "tensor")

# Logical axes of weights and of batches. Activations name their rows and heads; the compiler follows the weights for the rest.
RULES: dict[str, str | tuple[str, ...] | None] = {
    # Rows are independent, so they go over every axis that does not split a matmul; fsdp devices are data-parallel too.
    "batch": ("data", "fsdp"),
    # Rows of work that needs no split weights (views in the small vision tower, draws from logits): tensor devices share it, too.
    "spread": ("data", "fsdp", "tensor"),
    # The one axis nearly every weight has: splitting it stores weights, gradients and moments in 1/fsdp of the memory,
    # and they are gathered a layer at a time when used.
    "embed": "fsdp",
    # Megatron layout: columns of the first matmul of a block and rows of the second, one all-reduce a block.
    "heads": "tensor",
    "kv": "tensor",
    "mlp": "tensor",
    # The largest single weight; logits stay split over the vocabulary until the log-sum-exp.
    "vocab": "tensor",
    # Layers are scanned: an axis that is looped over cannot be split.
    "layers": None,
}

# For sampling: a token would gather every weight over fsdp once more, so each fsdp device holds its tensor share whole.
SAMPLING_RULES = RULES | {"embed": None}


def make_mesh(shape: Mapping[str, int]) -> Mesh:
    """Mesh with axes (data, fsdp, tensor) of the sizes in `shape`, over the first data·fsdp·tensor devices.

    Axis types are Auto: JAX's own default, Explicit, refuses contractions over a sharded axis.
    Raises RunError when an axis is unknown, missing or < 1, when there are too few devices, and, with several processes, when
    devices would be left out (a process without a device in the mesh hangs at the first collective) or when tensor would span
    processes (rows belong to one process).
    """
    if set(shape) != set(AXES) or any(size < 1 for size in shape.values()):
        raise RunError(f"mesh shape must give a size >= 1 for each of {', '.join(AXES)}; got {dict(shape)}")
    sizes = tuple(shape[axis] for axis in AXES)
    needed, devices = math.prod(sizes), jax.devices()
    if needed > len(devices):
        raise RunError(f"mesh {dict(shape)} needs {needed} devices; there are {len(devices)} ({devices[0].platform})")
    if jax.process_count() > 1 and needed != len(devices):
        raise RunError(f"mesh {dict(shape)} must cover all {len(devices)} devices of {jax.process_count()} processes")
    if jax.local_device_count() % shape["tensor"] and jax.process_count() > 1:
        raise RunError(
            f"mesh {dict(shape)}: tensor must divide the {jax.local_device_count()} devices of a process, "
            f"whose rows are its own"
        )
    mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed])
    for places in mesh.devices.reshape(-1, shape["tensor"]):  # devices may be put in another order than they were given
        if len({device.process_index for device in places}) > 1:
            raise RunError(f"mesh {dict(shape)}: tensor spans processes on this machine; make it smaller")
    return mesh


def axis_size(axis: str) -> int:
    """Devices along an axis of the current mesh; 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def shard_count() -> int:
    """Shards that rows are cut into, over all processes."""
    return axis_size("data") * axis_size("fsdp")


def local_shards() -> int:
    """Those of this process."""
    return shard_count() // jax.process_count()


def fitted_spec(
    sizes: Mapping[str, int], logical_axes: Sequence[str | None], shape: Sequence[int], rules: Mapping[str, Any] = RULES
) -> PartitionSpec:
    """The rules' spec for an array of this shape on a mesh of these sizes: of a dimension's mesh axes only as many of the first
    as divide it, so that what does not divide stays whole. ValueError on a name without a rule."""
    _check_names(logical_axes)

    def axes_of(name: str | None, length: int):
        axes = () if name is None else rules[name]
        axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
        while length % math.prod(sizes[axis] for axis in axes):
            axes = axes[:-1]
        return axes[0] if len(axes) == 1 else axes or None

    return PartitionSpec(*map(axes_of, logical_axes, shape))


def constrain(x: jax.Array, *logical_axes: str | None, rules: Mapping[str, Any] = RULES) -> jax.Array:
    """Inside a compiled program: lays x out by the rules; dims after the named ones stay whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitted_spec(mesh.shape, logical_axes, x.shape, rules))


def abstract(shape: Sequence[int], dtype: Any, *logical_axes: str | None) -> jax.ShapeDtypeStruct:
    """What an array of this layout looks like to `jit.lower`."""
    mesh = jax.sharding.get_mesh()
    sharding = None if mesh.empty else NamedSharding(mesh, fitted_spec(mesh.shape, logical_axes, shape))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def by_shard(f: Callable) -> Callable:
    """f over arrays (pytrees) whose dim 0 are rows, run on each shard's rows apart: nothing moves between devices."""

    def mapped(*args):
        if jax.sharding.get_abstract_mesh().empty:
            return f(*args)
        axes = RULES["batch"]
        rows = PartitionSpec(axes)
        # check_vma would ask every loop inside of f to mark its constants as varying.
        return jax.shard_map(f, in_specs=(rows,) * len(args), out_specs=rows, axis_names=set(axes), check_vma=False)(
            *args
        )

    return mapped


def put_rows(tree: Any, axis: int = 0) -> Any:
    """This process's rows (numpy, along `axis`) as device arrays of all processes' rows."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * axis, RULES["batch"]))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def to_host(tree: Any) -> Any:
    """Numpy of this process's rows (of arrays that are whole everywhere: of all)."""
    leaves, structure = jax.tree.flatten(tree)
    fetched = jax.device_get([_own_pieces(x) for x in leaves])
    return structure.unflatten([np.concatenate(x) if isinstance(x, list) else x for x in fetched])


def _own_pieces(x: Any) -> Any:
    """The pieces of x along dim 0 that this process holds, each once, in order; x itself if it holds all."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return x
    pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return [pieces[start] for start in sorted(pieces)]


def to_whole(x: jax.Array) -> np.ndarray:
    """The whole array on every host, whatever its layout. All processes must call it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def gather(rows: np.ndarray) -> np.ndarray:
    """This process's rows (host numpy) -> those of all processes, process by process. A host sync between processes."""
    return rows if jax.process_count() == 1 else multihost_utils.process_allgather(rows, tiled=True)


def gather_texts(texts: Iterable[str]) -> list[str]:
    """This process's texts -> those of all processes, process by process; each has equally many. Like `gather`."""
    rows = [text.encode() for text in texts]
    if jax.process_count() == 1:
        return [row.decode() for row in rows]
    (width,) = agree(max(map(len, rows)))
    length_B = gather(np.array([len(row) for row in rows], np.int32))
    padded_BxL = gather(np.stack([np.frombuffer(row.ljust(width, b"\0"), np.uint8) for row in rows]))
    return [bytes(row[:length]).decode() for row, length in zip(padded_BxL, length_B, strict=True)]


def agree(*values: int) -> tuple[int, ...]:
    """The largest of all processes' values, one by one: what programs are chosen by must be the same everywhere."""
    return tuple(gather(np.array([values])).max(axis=0).tolist())


def _check_names(logical_axes: Sequence[str | None]) -> None:
    unknown = [name for name in logical_axes if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"no sharding rule for {unknown}; rules exist for {sorted(RULES)}")
