import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mvg_jax import mesh as mesh_lib
from mvg_jax.errors import RunError


def test_sharded_matmul_equals_whole_one_and_is_really_split():
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x_BxD = np.arange(8 * 4, dtype=np.float32).reshape(8, 4)
    w_DxF = np.arange(4 * 6, dtype=np.float32).reshape(4, 6)
    x = jax.device_put(x_BxD, mesh_lib.batch_sharding(mesh))
    w = jax.device_put(w_DxF, mesh_lib.sharding_for(mesh, ("embed", "mlp")))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 4)}
    assert {shard.data.shape for shard in w.addressable_shards} == {(2, 3)}
    # The contraction runs over a sharded axis: an Explicit mesh would refuse it.
    np.testing.assert_array_equal(jax.jit(jnp.matmul)(x, w), x_BxD @ w_DxF)


def test_replicated_is_whole_everywhere():
    mesh = mesh_lib.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    array = jax.device_put(np.ones((3,)), mesh_lib.replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(3,)] * 8


def test_smaller_mesh_takes_the_first_devices():
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    assert list(mesh.devices.flat) == jax.devices()[:1]


def test_every_rule_names_mesh_axes():
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    for name in mesh_lib.RULES:
        assert isinstance(mesh_lib.sharding_for(mesh, (name, None)).spec, PartitionSpec)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"data": 3, "fsdp": 3, "tensor": 1}, "needs 9 devices; there are 8"),
        ({"data": 0, "fsdp": 1, "tensor": 1}, "size >= 1"),
        ({"data": 1, "fsdp": 1}, "size >= 1"),
        ({"data": 1, "fsdp": 1, "model": 1}, "data, fsdp, tensor"),
    ],
)
def test_bad_shapes_are_refused(shape, message):
    with pytest.raises(RunError, match=message):
        mesh_lib.make_mesh(shape)


def test_unknown_logical_axis_is_refused():
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    with pytest.raises(ValueError, match="no sharding rule for"):
        mesh_lib.sharding_for(mesh, ("batch", "width"))
