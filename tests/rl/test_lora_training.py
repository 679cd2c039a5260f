"""GRPO on adapters: only they change, sampler and learner agree, and what is written is the merged model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax.checkpoint import Checkpoints
from mvg_jax.models import hf
from mvg_jax.models.lora import add_lora, is_adapter, merge_lora
from mvg_jax.rl.grpo import GRPOStage
from mvg_jax.rl.learner import LearnerShapes
from mvg_jax.rl.logprobs import Forward, cast
from mvg_jax.rl.objective import Objective
from mvg_jax.rollout.engine import Engine
from tests import tiny_world
from tests.tiny_world import LETTERS

TASKS = (tiny_world.task(0), tiny_world.task(1))
SHAPES = LearnerShapes(microbatches=1, suffix_lengths=(120,), view_batches=(8,))


def make(dtype: str, kl: float = 0.0) -> tuple[GRPOStage, nnx.State]:
    """A stage on adapters, and its weights: the base in `dtype`."""
    model = nnx.merge(tiny_world.model()[0], cast(tiny_world.own_params(), dtype))
    add_lora(model, ("language_model.*_proj",), rank=4, alpha=8.0, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    world = tiny_world.world(2)
    engine = Engine(graph, world.shapes, tiny_world.VOCABULARY.end_of_turn, LETTERS, jnp.dtype(dtype))
    options = {"objective": Objective(kl=kl), "adapters_only": True, "forward": Forward(compute_dtype=dtype)}
    learner = tiny_world.learner(LETTERS, optax.adam(1e-2), graph=graph, **options)
    learned, frozen = nnx.split_state(params, learner.filter, ...)
    reference = nnx.merge_state(jax.tree.map(jnp.copy, learned), frozen) if kl else None
    return GRPOStage(world, engine, learner, SHAPES, {"error": -1.0}, 0.8, 0, reference), params


def leaves(params: nnx.State) -> dict[tuple, np.ndarray]:
    return {path: np.array(leaf[...]) for path, leaf in nnx.to_flat_state(params)}


@pytest.fixture(scope="module")
def trained() -> tuple[GRPOStage, nnx.State, dict, list[dict]]:
    """(stage, state after some steps, weights before, metrics of each step)."""
    stage, params = make("float32", kl=0.1)
    before = leaves(params)
    state, history = stage.start(params), []
    for number in range(1, 7):
        state, metrics = stage.step(state, number, TASKS)
        history.append(jax.device_get(metrics))
    return stage, state, before, history


def test_only_adapters_change(trained):
    _, state, before, history = trained
    after = leaves(state.params)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed
    assert all(is_adapter(path) for path in changed)
    assert {path[-1] for path in changed} == {"lora_a", "lora_b"}  # after the first step B is no longer zero
    assert max(metrics["logprob_gap"] for metrics in history) <= 1e-4
    assert history[0]["kl_reference"] < 1e-6 < history[-1]["kl_reference"]


def test_a_checkpoint_holds_them_and_not_the_base(trained, tmp_path):
    _, state, _, _ = trained
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(1, state.kept(), {})
    kept, _ = checkpoints.restore(None, jax.eval_shape(lambda x: x, state.kept()))
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert size(kept) == 3 * size(state.learned) + 2  # two moments; Adam's counter and ours
    restored = state.regained(kept)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_written_is_the_merged_model(trained, tmp_path):
    stage, state, _, _ = trained
    model = nnx.merge(stage.learner.graph, state.params)
    tokens, length = jnp.arange(6, dtype=jnp.int32)[None], jnp.array([6])
    features = jnp.ones((1, 1, tiny_world.E, model.config.text.hidden_size))
    expected = model.prefill(tokens, length, features)[0]
    merge_lora(model)
    hf.save(model, tmp_path, dtype=jnp.float32, end_of_turn=1, pad=0)
    loaded = hf.load(tmp_path, jnp.float32)
    np.testing.assert_allclose(loaded.prefill(tokens, length, features)[0], expected, atol=1e-5)


def test_a_half_precision_base_with_full_precision_adapters():
    stage, params = make("bfloat16")
    state, history = stage.start(params), []
    for number in range(1, 5):
        state, metrics = stage.step(state, number, TASKS)
        history.append(jax.device_get(metrics))
    after = dict(nnx.to_flat_state(state.params))
    assert {str(leaf[...].dtype) for path, leaf in after.items() if is_adapter(path)} == {"float32"}
    assert {str(leaf[...].dtype) for path, leaf in after.items() if not is_adapter(path)} == {"bfloat16"}
    assert max(metrics["gradient_norm"] for metrics in history) > 0
    assert (
        max(metrics["logprob_gap"] for metrics in history) < 0.3
    )  # rounding of two orders of the same sums in bfloat16
