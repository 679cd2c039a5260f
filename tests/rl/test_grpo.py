import dataclasses

import jax
import numpy as np
import optax
import pytest

from mvg_jax.data.task import Turn
from mvg_jax.env.rewards import compute_rewards
from mvg_jax.rl.grpo import GRPOStage, rollout_metrics, sample_index
from mvg_jax.rl.learner import LearnerShapes
from mvg_jax.rl.objective import Objective
from mvg_jax.rollout.policies import ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, rollout
from tests import tiny_world
from tests.tiny_world import ANSWER, LETTERS, ONE, TWO

TASKS = (tiny_world.task(0), tiny_world.task(1))


@pytest.fixture(scope="module")
def stage() -> GRPOStage:
    """The untrained model pays for its malformed turns."""
    learner = tiny_world.learner(LETTERS, optax.adam(1e-2))
    shapes = LearnerShapes(microbatches=1, suffix_lengths=(120,), view_batches=(8,))
    return GRPOStage(tiny_world.world(2), tiny_world.engine(2, LETTERS), learner, shapes, {"error": -1.0}, 0.8, 0, None)


def first_step(stage: GRPOStage, number: int = 1, tasks=TASKS) -> tuple[list, dict]:
    """(weights, metrics) of one step of the untrained model."""
    state, metrics = stage.step(stage.start(tiny_world.own_params()), number, tasks)
    assert state.step == 1
    return jax.tree.leaves(jax.device_get(state.params)), jax.device_get(metrics)


def test_sampler_and_learner_agree(stage):
    for number in (1, 2, 3):
        _, metrics = first_step(stage, number)
        assert 0 < metrics["logprob_gap"] <= 1e-4
        assert metrics["clip_fraction"] == 0
        assert metrics["tokens_sampled"] == metrics["tokens"] > 10


def test_a_step_can_be_repeated(stage):
    def untimed(metrics):
        return {name: value for name, value in metrics.items() if not name.startswith("time/")}

    weights, metrics = first_step(stage)
    again, same = first_step(stage)
    assert all(np.array_equal(a, b) for a, b in zip(weights, again, strict=True))
    assert untimed(metrics) == untimed(same)
    assert metrics["entropy"] != first_step(stage, number=2)[1]["entropy"]
    assert metrics["entropy"] != first_step(dataclasses.replace(stage, seed=1))[1]["entropy"]


@pytest.mark.parametrize("lanes", [1, 2])
def test_nothing_goes_to_the_device_or_comes_back_unasked(stage, lanes):
    world, engine = tiny_world.world(2, lanes=lanes), tiny_world.engine(2, LETTERS, lanes=lanes)
    stage = dataclasses.replace(stage, world=world, engine=engine)
    state, _ = stage.step(stage.start(tiny_world.own_params()), 1, TASKS)
    jax.config.update("jax_transfer_guard", "disallow")  # of all threads
    try:
        state, metrics = stage.step(state, 2, TASKS)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x + 1)(np.ones(3))  # the guard works here, too
    finally:
        jax.config.update("jax_transfer_guard", "allow")
    assert jax.device_get(metrics)["tokens_sampled"] > 0


def test_training_raises_the_reward(stage):
    state, rewards = stage.start(tiny_world.own_params()), []
    for number in range(1, 41):
        state, metrics = stage.step(state, number, TASKS)
        rewards.append(metrics["reward"])
    assert np.mean(rewards[:3]) < -1.5
    assert np.mean(rewards[-8:]) > -0.5


def test_the_reference_is_scored_on_the_same_tokens(stage):
    learner = tiny_world.learner(LETTERS, optax.sgd(0.0), objective=Objective(kl=0.1))
    same = dataclasses.replace(stage, learner=learner, reference=tiny_world.model()[1])
    assert first_step(same)[1]["kl_reference"] < 1e-6
    moved = jax.tree.map(lambda x: x * 1.2, tiny_world.model()[1])
    assert first_step(dataclasses.replace(same, reference=moved))[1]["kl_reference"] > 1e-4


def test_a_task_drawn_twice_gets_samples_of_its_own():
    a, b = TASKS
    assert sample_index([a, b, a, a], 2).tolist() == [0, 1, 0, 1, 2, 3, 4, 5]
    named = [(task.id, i) for task, i in zip(np.repeat([a, b, a], 3), sample_index([a, b, a], 3), strict=True)]
    assert len(set(named)) == 9


def test_metrics_are_means_over_rows_by_need():
    needed, needless = TASKS[0], dataclasses.replace(TASKS[1], chain=())
    script = [[ONE, ANSWER], [ONE, Turn("", "septated")], [TWO, ANSWER], [ANSWER]]
    world = tiny_world.world(2)
    prompts = world.prepare([needed, needless], tools_on=True)
    t, episodes = rollout(world, ScriptedPolicy(tiny_world.PROTOCOL, script, 24), prompts, Phases())
    rewards, terms = compute_rewards({"accuracy": 1.0, "needless_call": -0.5}, episodes)
    got = rollout_metrics(t, episodes, rewards, terms)
    assert got["reward"] == pytest.approx((1.0 + 0.0 + 0.5 + 1.0) / 4)
    assert got["reward/accuracy"] == 0.75
    assert got["reward/needless_call"] == 0.25
    assert got["groups_without_signal"] == 0
    assert got["views"] == 1
    assert got["stop/answer"] == 1
    assert got["stop/max_tokens"] == 0
    assert (got["tool_rate/needed"], got["tool_rate/not_needed"]) == (1, 0.5)
    assert (got["tool_choice/needed"], got["tool_choice/not_needed"]) == (1, 0.5)
    assert got["box_hit/needed"] == 1
    assert (got["accuracy/needed"], got["accuracy/not_needed"]) == (0.5, 1.0)
    assert got["tokens_sampled"] == t.loss_mask_BxL.sum()
    flat = rollout_metrics(t, episodes, np.array([1, 1, 0, 1], np.float32), terms)
    assert flat["groups_without_signal"] == 0.5
