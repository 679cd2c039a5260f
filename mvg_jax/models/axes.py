"""The logical axes of every parameter of every family, and the two layouts that follow: for training and for sampling.

    training   split over fsdp and tensor; the optimiser's moments likewise
    sampling   split over tensor only, so that no token waits for weights to be gathered

`to_sampling` goes from one to the other between an update and the next rollout.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from mvg_jax.errors import RunError
from mvg_jax.mesh import RULES, SAMPLING_RULES, axis_size, constrain, fitted_spec
from mvg_jax.models.config import TextConfig

Path = tuple[str | int, ...]

# Matrices: tower -> module -> the axes of its kernel or embedding. A bias or an adapter follows its kernel. Vision tower and
# projector are small: their views are spread over the tensor devices instead of their weights.
KERNELS: dict[str, dict[str, tuple[str | None, str | None]]] = {
    "language_model": {
        "embed_tokens": ("vocab", "embed"),
        "q_proj": ("embed", "heads"),
        "k_proj": ("embed", "kv"),
        "v_proj": ("embed", "kv"),
        "o_proj": ("heads", "embed"),
        "gate_proj": ("embed", "mlp"),
        "up_proj": ("embed", "mlp"),
        "down_proj": ("mlp", "embed"),
    },
    "lm_head": {"lm_head": ("embed", "vocab")},
    "vision_tower": {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv", "fc1", "gate_proj", "up_proj"), ("embed", None)),
        **dict.fromkeys(("projection_layer", "proj", "fc2", "down_proj"), (None, "embed")),
        **dict.fromkeys(("patch_embeddings", "patch_embed", "pos_embed"), (None, "embed")),
    },
    "multi_modal_projector": dict.fromkeys(("linear_1", "linear_2"), ("embed", None)),
}
# Vectors of one entry a channel, and the vision tower's position table: whole everywhere.
WHOLE = ("scale", "lambda_1", "lambda_2", "cls_token", "position_embeddings")


def parameter_axes(path: Path) -> tuple[str | None, ...]:
    """Logical axes of the parameter at this path of the module tree; () = whole. KeyError for one that no rule knows."""
    module, leaf = str(path[-2]) if len(path) > 1 else "", path[-1]
    if leaf in WHOLE or (leaf == "bias" and "norm" in module):
        return ()
    kernels = KERNELS.get(path[0], {})
    if module not in kernels or leaf not in ("kernel", "embedding", "bias", "lora_a", "lora_b"):
        raise KeyError(f"no sharding rule for parameter {'.'.join(map(str, path))}")
    rows, columns = kernels[module]
    if leaf == "bias":  # over fsdp it is not worth a gather
        return () if columns == "embed" else (columns,)
    return {"lora_a": (rows, None), "lora_b": (None, columns)}.get(leaf, (rows, columns))


def check_tensor_axis(tensor: int, text: TextConfig) -> None:
    """RunError when the decoder cannot be split over `tensor` devices. Key-value heads may be fewer: then they are repeated."""
    H, K, F = text.num_attention_heads, text.num_key_value_heads, text.intermediate_size
    fits = lambda t: H % t == 0 and F % t == 0 and (K % t == 0 or t % K == 0)
    if not fits(tensor):
        legal = ", ".join(str(t) for t in range(1, H + 1) if fits(t))
        raise RunError(
            f"config.mesh.tensor is {tensor}: {H} query heads, {K} key-value heads and {F} MLP channels can be split over {legal}"
        )


def constrain_parameters(tree: Any) -> Any:
    """Inside a compiled program: the training layout of weights, gradients or optimiser state."""
    return jax.tree.map_with_path(lambda path, x: constrain(x, *_axes(path, x)), tree)


def shardings(tree: Any, rules: Mapping[str, Any] = RULES) -> Any:
    """Sharding of each leaf of a pytree of weights or optimiser state on the current mesh."""
    mesh = jax.sharding.get_mesh()
    return jax.tree.map_with_path(
        lambda path, x: NamedSharding(mesh, fitted_spec(mesh.shape, _axes(path, x), x.shape, rules)), tree
    )


def place(tree: Any) -> Any:
    """Weights or optimiser state that every process holds in full -> the training layout. Arrays that have it are shared."""
    if jax.sharding.get_mesh().empty:
        return tree
    return jax.tree.map(lambda x, to: x if _has(x, to) else _cut(np.asarray(x), to), tree, shardings(tree))


def place_array(path: Path, array: np.ndarray) -> jax.Array:
    """A parameter on the host -> the training layout; for `hf.load`. Returns when the host's copy is no longer needed."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.block_until_ready(jnp.asarray(array))
    sharding = NamedSharding(mesh, fitted_spec(mesh.shape, parameter_axes(path), array.shape))
    return jax.block_until_ready(_cut(array, sharding))


def _cut(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _has(x: jax.Array, sharding: NamedSharding) -> bool:
    return x.sharding.is_equivalent_to(sharding, x.ndim)


def _axes(path: tuple, x: jax.Array) -> tuple[str | None, ...]:
    """Logical axes of a leaf: optimiser state holds parameters under their own paths, and counters."""
    parts = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").split(".")
    start = next((i for i, part in enumerate(parts) if part in KERNELS), None)
    if start is None and x.ndim == 0:
        return ()
    return parameter_axes(tuple(parts[start:]))


def to_sampling(params: nnx.State, text: TextConfig, dtype: jnp.dtype | None) -> nnx.State:
    """Training weights -> sampling weights: split over tensor only, in `dtype` (None: as they are). Returns once they are there.

    Arrays that need no change are shared: on one device and without a cast that is all of them.
    """
    whole_kv = _whole_kv(text)
    leaves, structure = jax.tree.flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    target = [None] * len(leaves)
    if not jax.sharding.get_mesh().empty:
        target = jax.tree.leaves(sampling_shardings(params, text))
    moving = {
        name: x
        for name, (_, x), to in zip(names, leaves, target, strict=True)
        if dtype not in (None, x.dtype) or (to is not None and not _has(x, to))
    }
    if moving:
        moving = jax.block_until_ready(_move(moving, whole_kv, dtype))
    return structure.unflatten([moving.get(name, x) for name, (_, x) in zip(names, leaves, strict=True)])


def sampling_shardings(params: Any, text: TextConfig) -> Any:
    """Sharding of each weight in the sampling layout on the current mesh."""
    return shardings(params, _sampling_rules(_whole_kv(text)))


def _whole_kv(text: TextConfig) -> bool:
    """Fewer key-value heads than devices are repeated, which takes all of their projections everywhere."""
    return text.num_key_value_heads % axis_size("tensor") != 0


def _sampling_rules(whole_kv: bool) -> Mapping[str, Any]:
    return SAMPLING_RULES | {"kv": None} if whole_kv else SAMPLING_RULES


@functools.partial(jax.jit, static_argnames=("whole_kv", "dtype"))
def _move(params: dict[str, jax.Array], whole_kv: bool, dtype: jnp.dtype | None) -> dict[str, jax.Array]:
    rules = _sampling_rules(whole_kv)
    cast = lambda x: x if dtype is None else x.astype(dtype)
    return jax.tree.map_with_path(lambda path, x: constrain(cast(x), *_axes(path, x), rules=rules), params)
