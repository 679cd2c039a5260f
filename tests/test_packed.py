from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvg_jax.packed import abstract_packed, pack


class Some(NamedTuple):
    many: np.ndarray
    one: np.ndarray
    names: np.ndarray


def some(n: int) -> Some:
    """Values that no cast to another of these types would keep."""
    floats = np.array([np.float32(0.1), -np.inf, np.nan, 3e38], np.float32)
    return Some(
        np.resize(floats, (n, 2, 3)),
        np.int32(-(2**31)) + np.arange(n, dtype=np.int32),
        np.full((n, 4), 2**32 - 1, np.uint32),
    )


@pytest.mark.parametrize("n", [0, 1, 5])
def test_what_is_packed_comes_back_bit_for_bit(n):
    tree = some(n)
    packed = pack(tree)
    assert (packed.words.dtype, packed.words.shape) == (np.int32, (n, 11))
    assert isinstance(packed.unpack(), Some)
    assert isinstance(packed.unpack().many, np.ndarray)
    for back in (
        packed.unpack(),
        pack(jax.tree.map(jnp.asarray, tree)).unpack(),
        jax.jit(lambda p: p.unpack())(packed),
    ):
        chex.assert_trees_all_equal_shapes_and_dtypes(back, tree)
        jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_one_array_goes_into_a_program_and_one_comes_out():
    program = jax.jit(lambda p: pack(p.unpack()._replace(one=p.unpack().one + 1)))
    assert len(jax.tree.leaves(program(pack(some(3))))) == 1
    np.testing.assert_array_equal(program(pack(some(3))).unpack().one, some(3).one + 1)
    # Lowered on shapes alone it is the same program.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), some(3))
    assert program.lower(abstract_packed(shapes)).as_text() == program.lower(pack(some(3))).as_text()


def test_types_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="bool, float64: only types of four bytes"):
        pack((np.zeros(2), np.zeros(2, bool), np.zeros(2, np.int32)))
