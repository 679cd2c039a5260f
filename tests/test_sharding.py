"""Several devices compute what one does: sampled tokens, loss, gradients and checkpoints, on every kind of mesh."""

import contextlib
import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax.mesh import make_mesh
from mvg_jax.rl.learner import Learner, LearnerShapes, make_batch
from mvg_jax.rl.objective import Objective
from tests import tiny_world
from tests.tiny_world import ANSWER, LETTERS, ONE, TWO, flip

P, G = 8, 2
MESHES = {  # data, fsdp, tensor
    "fsdp=8": (1, 8, 1),
    "fsdp=4 tensor=2": (1, 4, 2),
    "data=2 fsdp=2 tensor=2": (2, 2, 2),
    "fsdp=2 tensor=4": (1, 2, 4),  # twice as many as key-value heads
}
TASKS = [tiny_world.task(i) for i in range(P)]
SCRIPT = [[TWO], [ONE], [flip(0)], [ANSWER], [TWO], [TWO], [ONE], []] * G  # shards differ in their number of views
REWARD = np.linspace(-1.0, 1.0, P * G).astype(np.float32) ** 2
SHAPES = LearnerShapes(microbatches=1, suffix_lengths=(120,), view_batches=(48,))


def on(name: str | None):
    """The mesh of that name as the current one; None: one device."""
    if name is None:
        return contextlib.nullcontext()
    return jax.set_mesh(make_mesh(dict(zip(("data", "fsdp", "tensor"), MESHES[name], strict=True))))


@functools.cache
def learner() -> Learner:
    """Plain descent at rate 1: what a step subtracts is the gradient. Momentum, so that there are moments."""
    return Learner(
        tiny_world.model()[0],
        optax.sgd(1.0, momentum=0.9),
        LETTERS,
        loss="policy",
        objective=Objective(),
        advantage_scale="std",
        freeze=("vision_tower",),
    )


@functools.cache
def result(name: str | None) -> dict:
    """A rollout and an update: the ledger, and the state and metrics after an update."""
    with on(name):
        ledger, _, _ = tiny_world.play(TASKS, script=SCRIPT)
        batch = make_batch(ledger, REWARD, np.ones(P * G), SHAPES)
        state, metrics = learner().update(learner().init(tiny_world.own_params()), batch)
        return {"ledger": ledger, "state": state, "metrics": jax.device_get(metrics)}


@pytest.mark.parametrize("name", MESHES)
def test_the_same_tokens_are_sampled(name):
    one, many = result(None)["ledger"], result(name)["ledger"]
    turns = [len(np.unique(one.turn_BxL[b, : one.length_B[b]])) for b in range(P * G)]
    assert len(set(turns)) > 1, "rows must end at different times"
    np.testing.assert_array_equal(many.tokens_BxL, one.tokens_BxL)
    np.testing.assert_array_equal(many.views_BxNxSxSx3, one.views_BxNxSxSx3)
    np.testing.assert_allclose(many.logprob_BxL, one.logprob_BxL, atol=1e-5)


@pytest.mark.parametrize("name", MESHES)
def test_the_same_update_is_made(name):
    one, many = result(None), result(name)
    for key, value in one["metrics"].items():
        assert many["metrics"][key] == pytest.approx(value, abs=1e-5), key
    before = weights(tiny_world.model()[1])
    expected, got = weights(one["state"].params), weights(many["state"].params)
    assert max(np.abs(expected[path] - before[path]).max() for path in before) > 1e-2
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, atol=1e-5, err_msg=str(path))


def weights(params: nnx.State) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
