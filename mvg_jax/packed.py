"""Many small arrays as one, on their way between host and device: there each costs more than its bytes."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvg_jax.mesh import abstract


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """The bits of a pytree of arrays [n, ...], side by side. words: [n, K] int32. A pytree itself, whose structure is static.

    like: what was packed: its structure, and of each array the dimensions after the first and the type.
    """

    words: jax.Array | np.ndarray
    like: tuple[Any, tuple[tuple[tuple[int, ...], str], ...]] = dataclasses.field(metadata={"static": True})

    def unpack(self) -> Any:
        """The pytree, of numpy arrays where words is one."""
        structure, each = self.like
        ends = np.cumsum([0, *(math.prod(shape) for shape, _ in each)]).tolist()
        cuts = zip(ends, ends[1:], each, strict=False)
        n = len(self.words)
        return structure.unflatten(
            [_bits(self.words[:, i:j], dtype).reshape(n, *shape) for i, j, (shape, dtype) in cuts]
        )


def pack(tree: Any) -> Packed:
    """Arrays [n, ...], numpy or jax, of types of four bytes. ValueError for any other."""
    leaves, structure = jax.tree.flatten(tree)
    if odd := {str(x.dtype) for x in leaves if x.dtype.itemsize != 4}:
        raise ValueError(f"{', '.join(sorted(odd))}: only types of four bytes are packed")
    xp = np if all(isinstance(x, np.ndarray) for x in leaves) else jnp
    words = xp.concatenate([_bits(x, "int32").reshape(len(x), math.prod(x.shape[1:])) for x in leaves], axis=1)
    return Packed(words, (structure, tuple((x.shape[1:], x.dtype.name) for x in leaves)))


def abstract_packed(tree: Any) -> Packed:
    """What `pack(tree)`, put by `put_rows`, looks like to `jit.lower`. tree: of ShapeDtypeStructs."""
    packed = jax.eval_shape(pack, tree)
    return dataclasses.replace(packed, words=abstract(packed.words.shape, jnp.int32, "batch"))


def _bits(x: jax.Array | np.ndarray, dtype: str) -> jax.Array | np.ndarray:
    """The same bits as another type of as many bytes."""
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x).view(dtype)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(dtype))
