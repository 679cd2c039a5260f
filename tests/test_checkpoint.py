import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvg_jax import mesh as mesh_lib
from mvg_jax.checkpoint import CheckpointError, Checkpoints


def make_params_and_key(scale=1.0):
    params = {"layers": [jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) * scale, jnp.full((4,), scale)]}
    return {
        "params": params,
        "optimiser": optax.adamw(1e-3).init(params),
        "key": jax.random.key_data(jax.random.key(7)),
    }


def make_arrays(scale=1.0):
    return make_params_and_key(scale) | {"drawn": np.asarray([2**40 + 1])}


META = {"step": 3, "iterator": {"next_index": 12}, "config": "5e1f", "rate": 0.1}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def run_python(program, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_round_trip_is_bit_exact_and_keeps_the_latest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, make_arrays(float(step)), META | {"step": step})
    checkpoints.close()
    reader = Checkpoints(tmp_path, keep=None)
    assert reader.steps() == (2, 3)
    assert reader.latest() == 3
    arrays, meta = reader.restore(None, jax.eval_shape(make_params_and_key) | {"drawn": np.zeros(1, np.int64)})
    assert_same(arrays, make_arrays(3.0))
    assert isinstance(arrays["drawn"], np.ndarray)
    assert meta == META
    arrays, meta = reader.restore(2, make_arrays())
    assert_same(arrays, make_arrays(2.0))
    assert meta["step"] == 2


def test_restores_onto_another_mesh(tmp_path):
    value = np.arange(64, dtype=np.float32).reshape(8, 8)
    wide = mesh_lib.make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    square = mesh_lib.make_mesh({"data": 1, "fsdp": 2, "tensor": 2})
    sharding = jax.sharding.NamedSharding(square, mesh_lib.fitted_spec(square.shape, ("embed", "mlp"), value.shape))
    whole_columns = jax.sharding.NamedSharding(wide, mesh_lib.fitted_spec(wide.shape, ("embed", None), value.shape))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"w": jax.device_put(value, whole_columns)}, {})
    like = {"w": jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)}
    arrays, _ = checkpoints.restore(1, like)
    assert arrays["w"].sharding == sharding
    np.testing.assert_array_equal(arrays["w"], value)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        Checkpoints(tmp_path / "missing", keep=None)
    assert not (tmp_path / "missing").exists()
    checkpoints = Checkpoints(tmp_path / "empty", keep=1)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoints.restore(None, {})
    checkpoints.save(4, make_arrays(), META)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*; there are 4"):
        checkpoints.restore(3, make_arrays())
    with pytest.raises(CheckpointError, match=r"cannot save step 4 .*step 4 is there already"):
        checkpoints.save(4, make_arrays(), META)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.ones((2, 3), np.float32)}, "b is only in the checkpoint"),
        (
            {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.int32), "c": np.ones(1)},
            "c is not in the checkpoint",
        ),
        ({"a": np.ones((3, 2), np.float32), "b": np.ones(2, np.int32)}, r"a is float32\[2, 3\], wanted float32\[3, "),
        ({"a": np.ones((2, 3), np.float16), "b": np.ones(2, np.int32)}, r"a is float32\[2, 3\], wanted float16\[2, "),
    ],
)
def test_nothing_is_adapted_to_what_was_asked(tmp_path, like, message):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.int32)}, {})
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoints.restore(1, like)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_saved_is_refused_before_writing(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(ValueError, match="cannot save key"):
        checkpoints.save(1, {"key": jax.random.key(0)}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(1, {"a": jnp.ones(1)}, {"state": object()})
    with pytest.raises(ValueError, match="same path"):
        checkpoints.save(1, {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, make_arrays(), META)
    (tmp_path / "1" / "meta" / "metadata").write_text('{"meta": ')
    with pytest.raises(CheckpointError, match="cannot read checkpoint 1") as raised:
        checkpoints.restore(1, make_arrays())
    assert "\n" not in str(raised.value)


def test_full_disk_and_cut_file_are_one_line_and_leave_earlier_checkpoints_alone(tmp_path):
    # A limit on the size of a file is what a full disk is to the writer: write() fails half-way.
    done = run_python(
        """
        import pathlib, resource, sys
        import jax, jax.numpy as jnp
        from mvg_jax.checkpoint import CheckpointError, Checkpoints
        checkpoints = Checkpoints(sys.argv[1], keep=1)
        checkpoints.save(1, {"w": jnp.ones(10)}, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            checkpoints.save(2, {"w": jax.random.normal(jax.random.key(0), (100_000,))}, {})
        except CheckpointError as error:
            print(error)
        arrays, _ = checkpoints.restore(None, {"w": jnp.zeros(10)})
        print(checkpoints.steps(), float(arrays["w"].sum()))
        for path in pathlib.Path(sys.argv[1]).glob("1/arrays/**/d/*"):
            path.write_bytes(path.read_bytes()[:-7])
        try:
            checkpoints.restore(None, {"w": jnp.zeros(10)})
        except CheckpointError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    error, rest, damage = done.stdout.splitlines()
    assert error.endswith("File too large (earlier checkpoints are untouched)")
    assert rest == "(1,) 10.0"
    assert "cannot read checkpoint 1" in damage
    # A write that was in flight when the save failed may come late: what it leaves is no checkpoint, and the next opening removes it.
    (tmp_path / "2.orbax-checkpoint-tmp" / "arrays").mkdir(parents=True, exist_ok=True)
    assert Checkpoints(tmp_path, keep=None).steps() == (1,)
    Checkpoints(tmp_path, keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_a_save_that_is_killed_leaves_nothing_behind(tmp_path):
    # Killed at the last moment: everything is written, the rename that commits is not done.
    done = run_python(
        """
        import os, signal, sys
        import jax.numpy as jnp
        from mvg_jax.checkpoint import Checkpoints
        checkpoints = Checkpoints(sys.argv[1], keep=3)
        checkpoints.save(1, {"w": jnp.ones(10)}, {"n": 1})
        def kill(event, arguments):
            if event == "os.rename" and str(arguments[1]).endswith("/2"):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        checkpoints.save(2, {"w": jnp.zeros(10)}, {"n": 2})
        """,
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(os.listdir(tmp_path)) == 2
    reader = Checkpoints(tmp_path, keep=None)
    assert reader.steps() == (1,)
    assert len(os.listdir(tmp_path)) == 2  # it may be a live run's
    writer = Checkpoints(tmp_path, keep=3)
    arrays, meta = writer.restore(writer.latest(), {"w": np.zeros(10, np.float32)})
    np.testing.assert_array_equal(arrays["w"], np.ones(10))
    assert meta == {"n": 1}
    writer.save(2, {"w": jnp.zeros(10)}, {"n": 2})
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
