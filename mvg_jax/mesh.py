"""The device mesh and THE table of sharding rules: logical axis → mesh axes. Nothing else names a mesh axis."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mvg_jax.errors import RunError

AXES = ("data", "fsdp", "tensor")

# Logical axes of weights and of batches. Activations name their batch axis and leave the rest None: the compiler
# follows the weights.
RULES: dict[str, str | tuple[str, ...] | None] = {
    # Rows are independent, so they go over every axis that does not split a matmul; fsdp devices are data-parallel too.
    "batch": ("data", "fsdp"),
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


def make_mesh(shape: Mapping[str, int]) -> Mesh:
    """Mesh with axes (data, fsdp, tensor) of the sizes in `shape`, over the first data·fsdp·tensor devices.

    Axis types are Auto: JAX's own default, Explicit, refuses contractions over a sharded axis.
    Raises RunError when an axis is unknown, missing or < 1, when there are too few devices, and when several processes
    would leave devices out (a process without a device in the mesh hangs at the first collective).
    """
    if set(shape) != set(AXES) or any(size < 1 for size in shape.values()):
        raise RunError(f"mesh shape must give a size >= 1 for each of {', '.join(AXES)}; got {dict(shape)}")
    sizes = tuple(shape[axis] for axis in AXES)
    needed, devices = math.prod(sizes), jax.devices()
    if needed > len(devices):
        raise RunError(f"mesh {dict(shape)} needs {needed} devices; there are {len(devices)} ({devices[0].platform})")
    if jax.process_count() > 1 and needed != len(devices):
        raise RunError(f"mesh {dict(shape)} must cover all {len(devices)} devices of {jax.process_count()} processes")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:needed])


def sharding_for(mesh: Mesh, logical_axes: Sequence[str | None]) -> NamedSharding:
    """Sharding of an array whose dims carry these names (None = not split). ValueError on a name without a rule."""
    unknown = [name for name in logical_axes if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"no sharding rule for {unknown}; rules exist for {sorted(RULES)}")
    return NamedSharding(mesh, PartitionSpec(*(None if name is None else RULES[name] for name in logical_axes)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Dim 0 over the batch axes, the rest whole."""
    return sharding_for(mesh, ("batch",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return sharding_for(mesh, ())
