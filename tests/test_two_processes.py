"""Two processes of two devices each, joined over loopback, do what one process on one device does.

They run this file as a program: `python -m tests.test_two_processes PORT PROCESS FOLDER`.
"""

import contextlib
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax.checkpoint import Checkpoints
from mvg_jax.evaluation import evaluate
from mvg_jax.mesh import agree, make_mesh, to_whole
from mvg_jax.models.axes import place
from mvg_jax.report import predictions
from mvg_jax.rl.grpo import GRPOStage
from mvg_jax.rl.learner import LearnerShapes
from tests import tiny_world
from tests.processes import LIMIT, running
from tests.tiny_world import ANSWER, LETTERS, ONE, TWO

ROOT = pathlib.Path(__file__).parents[1]
TASKS = [tiny_world.task(i) for i in range(4)]
SCRIPT = [
    [TWO],
    [ONE],
    [ANSWER],
    [ANSWER],
    [ONE],
    [TWO],
    [ANSWER],
    [ANSWER],
]  # process 1 is through after its first turn
METRICS = (
    "loss",
    "gradient_norm",
    "entropy",
    "reward",
    "tokens",
    "tokens_sampled",
    "logprob_gap",
    "groups_without_signal",
)


def stage() -> GRPOStage:
    learner = tiny_world.learner(LETTERS, optax.sgd(0.5, momentum=0.9))
    shapes = LearnerShapes(microbatches=1, suffix_lengths=(120,), view_batches=(8,))
    return GRPOStage(tiny_world.world(4), tiny_world.engine(4, LETTERS), learner, shapes, {"error": -1.0}, 0.8, 0, None)


def work(process: int, processes: int, folder: pathlib.Path) -> None:
    """A scripted rollout in two lanes, an evaluation, then two steps of GRPO on this process's share; results go to the folder."""
    own = [task for i, task in enumerate(TASKS) if i % processes == process]
    script = [turns for i, turns in enumerate(SCRIPT) if i // 2 % processes == process]
    ledger, _, _ = tiny_world.play(own, script=script, lanes=2)
    rows = {"tokens": ledger.tokens_BxL, "logprobs": ledger.logprob_BxL, "views": ledger.views_BxNxSxSx3}
    rows["first_views"] = np.repeat(ledger.prompt_views_PxNxSxSx3, ledger.group_size, axis=0)
    np.savez(folder / f"rows_{process}.npz", **rows, turns=ledger.turn_BxL.max(axis=1))
    params = place(tiny_world.model()[1])
    tasks = [tiny_world.task(i) for i in range(6)]
    world, engine = tiny_world.world(4), tiny_world.engine(4, LETTERS)
    played = evaluate(world, engine, params, tasks, temperature=1.0, seed=0, tools_on=True)
    (folder / f"played_{process}").write_text("\n".join(map(predictions.to_json, played)))
    state = (stage_ := stage()).start(tiny_world.own_params())
    history = []
    for number in (1, 2):
        state, metrics = stage_.step(state, number, own)
        history.append([float(metrics[name]) for name in METRICS])
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(2, state, {"step": 2})
    checkpoints.close()
    weights = {".".join(map(str, path)): to_whole(leaf[...]) for path, leaf in nnx.to_flat_state(state.params)}
    np.savez(folder / f"end_{process}.npz", **weights, history=np.array(history))


@contextlib.contextmanager
def port_of_ours() -> Iterator[int]:
    """A port that is held, so that nobody else is given it, but that a process of ours may share: gRPC asks for that as well."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """What one process left, and what two left."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    logs = [two / f"log_{i}" for i in (0, 1)]
    with port_of_ours() as port, contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "tests.test_two_processes", str(port)]
        pair = [
            stack.enter_context(running([*command, str(i), str(two)], logs[i], cwd=ROOT, env=environment))
            for i in (0, 1)
        ]
        work(0, 1, one)
        codes = [process.wait(LIMIT) for process in pair]
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return one, two


def test_rows_are_those_of_one_process_wherever_they_are_played(folders):
    one, two = folders
    whole = np.load(one / "rows_0.npz")
    parts = [np.load(two / f"rows_{i}.npz") for i in (0, 1)]
    assert parts[1]["turns"].max() < parts[0]["turns"].min(), "one process must be through before the other"
    for i, part in enumerate(parts):
        own = np.arange(8) // 2 % 2 == i
        np.testing.assert_array_equal(part["tokens"], whole["tokens"][own])
        np.testing.assert_array_equal(part["views"], whole["views"][own])
        np.testing.assert_array_equal(part["first_views"], whole["first_views"][own])
        np.testing.assert_allclose(part["logprobs"], whole["logprobs"][own], atol=1e-5)


def test_each_process_knows_all_of_an_evaluation(folders):
    one, two = folders
    expected = (one / "played_0").read_text()
    assert len(expected.splitlines()) == 12
    assert [(two / f"played_{i}").read_text() for i in (0, 1)] == [expected] * 2


def test_two_steps_come_to_the_same_metrics_and_weights(folders):
    one, two = folders
    expected, *ends = (dict(np.load(path)) for path in (one / "end_0.npz", two / "end_0.npz", two / "end_1.npz"))
    start = {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(tiny_world.model()[1])}
    assert max(np.abs(expected[name] - start[name]).max() for name in start) > 1e-2
    for end in ends:
        for name, value in expected.items():
            np.testing.assert_allclose(end[name], value, atol=1e-5, err_msg=name)
    for name in start:
        np.testing.assert_array_equal(ends[0][name], ends[1][name])


def test_their_checkpoint_is_read_by_one_process(folders):
    _, two = folders
    checkpoints = Checkpoints(two / "checkpoints", keep=None)
    state, meta = checkpoints.restore(None, stage().start(tiny_world.own_params()))
    checkpoints.close()
    assert (meta, int(state.step)) == ({"step": 2}, 2)
    end = np.load(two / "end_0.npz")
    for path, leaf in nnx.to_flat_state(state.params):
        np.testing.assert_array_equal(leaf[...], end[".".join(map(str, path))])


if __name__ == "__main__":
    port, process, folder = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
    jax.set_mesh(make_mesh({"data": 2, "fsdp": 1, "tensor": 2}))
    assert agree(int(process), -int(process)) == (1, 0)
    work(int(process), 2, pathlib.Path(folder))
