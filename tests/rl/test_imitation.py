import jax
import numpy as np
import optax
import pytest

from mvg_jax.rl.imitation import Scripted, SFTStage
from mvg_jax.rl.learner import Learner, LearnerShapes
from mvg_jax.rollout.policies import ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, rollout
from tests import tiny_world
from tests.tiny_world import ANSWER, ONE, SPECIAL, TWO, plain_logprobs

TASKS = (tiny_world.task(0), tiny_world.task(1))
MIXTURE = {"right": 0.7, "direct": 0.3}


class Expert:
    """Zooms in one box or two, or answers at once if told so; remembers what it was told."""

    def __init__(self):
        self.told = []

    def __call__(self, task, rng, mixture):
        self.told.append(mixture)
        return (ANSWER,) if "right" not in mixture else (ONE if rng.random() < 0.5 else TWO, ANSWER)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return tiny_world.learner(SPECIAL, optax.adam(1e-2), loss="cross_entropy", advantage_scale="none")


def make_stage(learner: Learner, tools_off: float, right_first: int = 0, seed: int = 0) -> SFTStage:
    shapes = LearnerShapes(microbatches=1, suffix_lengths=(64,), view_batches=(8,))
    teach = Scripted(Expert(), MIXTURE, tools_off=tools_off, right_first=right_first, group=2, seed=seed)
    return SFTStage(world=tiny_world.world(2), learner=learner, shapes=shapes, teach=teach)


def test_the_loss_is_the_mean_cross_entropy_of_the_demonstration(learner):
    stage = make_stage(learner, tools_off=1.0)
    _, metrics = stage.step(stage.start(tiny_world.own_params()), 1, TASKS)
    assert stage.teach.demonstrate.told == [{"direct": 1.0}] * 4
    world = tiny_world.world(2)
    policy = ScriptedPolicy(tiny_world.PROTOCOL, [[ANSWER]] * 4, 24)
    t, _ = rollout(world, policy, world.prepare(TASKS, tools_on=False), Phases())
    logprobs = np.take_along_axis(plain_logprobs(t, 1.0, SPECIAL), t.tokens_BxL[..., None], axis=2)[..., 0]
    assert metrics["loss"] == pytest.approx(-logprobs[t.loss_mask_BxL].mean(), rel=1e-4)
    assert metrics["tokens"] == t.loss_mask_BxL.sum() == 4 * 6


def test_demonstrations_are_learnt(learner):
    stage = make_stage(learner, tools_off=0.0)
    state, losses = stage.start(tiny_world.own_params()), []
    for number in range(1, 31):
        state, metrics = stage.step(state, number, TASKS)
        losses.append(float(metrics["loss"]))
    assert stage.teach.demonstrate.told == [MIXTURE] * 4 * 30
    assert losses[0] > 6  # about log V
    assert losses[-1] < 1
    assert metrics["token_accuracy"] > 0.8
    assert state.step == 30


def test_a_step_follows_from_seed_and_number(learner):
    def weights(seed, number):
        stage = make_stage(learner, 0.3, seed=seed)
        state, _ = stage.step(stage.start(tiny_world.own_params()), number, TASKS)
        return jax.tree.leaves(jax.device_get(state.params))

    def equal(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    base = weights(0, 1)
    assert equal(weights(0, 1), base)
    assert not all(equal(weights(seed, number), base) for seed, number in ((0, 2), (0, 3), (0, 4)))
    assert not all(equal(weights(seed, 1), base) for seed in (1, 2, 3))


def test_tools_are_off_in_their_share_of_steps(learner):
    stage = make_stage(learner, tools_off=0.3)
    state = stage.start(tiny_world.own_params())
    for number in range(1, 61):
        state, _ = stage.step(state, number, TASKS)
    off = np.mean([told == {"direct": 1.0} for told in stage.teach.demonstrate.told])
    assert 0.15 < off < 0.45


def test_right_trajectories_come_first(learner):
    stage = make_stage(learner, tools_off=1.0, right_first=2)
    state = stage.start(tiny_world.own_params())
    for number in range(1, 5):
        state, _ = stage.step(state, number, TASKS)
    assert stage.teach.demonstrate.told == [{"right": 1.0}] * 8 + [{"direct": 1.0}] * 8
