import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mvg_jax import mesh as mesh_lib
from mvg_jax.errors import RunError


def laid_out(mesh, names, shape):
    return NamedSharding(mesh, mesh_lib.fitted_spec(mesh.shape, names, shape))


def test_sharded_matmul_equals_whole_one_and_is_really_split():
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x_BxD = np.arange(8 * 4, dtype=np.float32).reshape(8, 4)
    w_DxF = np.arange(4 * 6, dtype=np.float32).reshape(4, 6)
    x = jax.device_put(x_BxD, laid_out(mesh, ("batch", None), x_BxD.shape))
    w = jax.device_put(w_DxF, laid_out(mesh, ("embed", "mlp"), w_DxF.shape))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 4)}
    assert {shard.data.shape for shard in w.addressable_shards} == {(2, 3)}
    # The contraction runs over a sharded axis: an Explicit mesh would refuse it.
    np.testing.assert_array_equal(jax.jit(jnp.matmul)(x, w), x_BxD @ w_DxF)


def test_what_does_not_divide_stays_whole():
    mesh = mesh_lib.make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
    assert laid_out(mesh, ("batch", None), (16, 3)).spec == PartitionSpec(("data", "fsdp"), None)
    assert laid_out(mesh, ("batch", None), (4, 3)).spec == PartitionSpec("data", None)
    assert laid_out(mesh, ("batch", None), (3, 3)).spec == PartitionSpec(None, None)


def test_smaller_mesh_takes_the_first_devices():
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    assert list(mesh.devices.flat) == jax.devices()[:1]


def test_every_rule_names_mesh_axes():
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    for name in mesh_lib.RULES:
        assert isinstance(laid_out(mesh, (name, None), (4, 4)).spec, PartitionSpec)


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
        laid_out(mesh, ("batch", "width"), (4, 4))
