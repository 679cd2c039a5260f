import dataclasses
import itertools
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from mvg_jax.compiles import CompileCount, compile_all
from mvg_jax.rl.learner import Learner, LearnerShapes, make_batch
from mvg_jax.rl.objective import Objective
from mvg_jax.rollout.engine import Shapes
from mvg_jax.trajectory import ENVIRONMENT, Trajectories
from tests import tiny_world
from tests.tiny_world import SPECIAL, plain_logprobs, random_ledger

P, G, B, TEMPERATURE = 4, 2, 8, 0.7
SHAPES = {M: LearnerShapes(microbatches=M, suffix_lengths=(40,), view_batches=(8,)) for M in (1, 2, 4)}
REWARD = np.array([1.0, 0.0, 0.3, 0.2, 0.5, 0.5, 0.0, 1.1], np.float32)
FROZEN = "multi_modal_projector"


@pytest.fixture(scope="module")
def ledger() -> Trajectories:
    """Rows of noise with log-probs near those of the untrained model: ratios fall inside and outside of the clips."""
    t = random_ledger(P, G)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, t.tokens_BxL.shape)
    behaviour = np.where(t.loss_mask_BxL, own_logprobs(t) + noise, 0)
    return dataclasses.replace(t, logprob_BxL=behaviour.astype(np.float32))


def own_logprobs(t: Trajectories) -> np.ndarray:
    """Log-probs of the suffix tokens, 0 where the model did not speak."""
    logprobs = np.take_along_axis(plain_logprobs(t, TEMPERATURE, SPECIAL), t.tokens_BxL[..., None], axis=2)[..., 0]
    return np.where(t.loss_mask_BxL, logprobs, 0)


class Warm(NamedTuple):
    learner: Learner
    compiles_after_warm_up: int


@pytest.fixture(scope="module")
def warm(ledger) -> Warm:
    """The learner of all tests, compiled for 1, 2 and 4 microbatches. Plain descent: a step is gradient plus decay."""
    descent = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.5))
    learner = tiny_world.learner(SPECIAL, descent, objective=Objective(kl=0.05), freeze=(FROZEN,))
    rollout = Shapes(
        prompts=P,
        group=G,
        slots=P * G,
        pool=P,
        prompt_length=12,
        turn_tokens=9,
        suffix_length=40,
        prompt_images=1,
        views=3,
        prefill_prompts=P,
        extend_rows=(P * G,),
        observation_lengths=(14,),
        encode_batches=(8,),
        decode_slots=(P * G,),
        decode_lengths=(40,),
        decode_tokens=9,
    )
    state = learner.init(tiny_world.own_params())
    programs = [learner.lower(state, SHAPES[M], rollout, (tiny_world.SIZE,) * 2, with_reference=M == 2) for M in SHAPES]
    compile_all(list(itertools.chain(*programs)), "compile")
    compiles = CompileCount()
    for M in (1, 2, 4, 2):
        batch = make_batch(ledger, REWARD, np.full(B, TEMPERATURE), SHAPES[M])
        if M == 2:
            batch = batch._replace(reference=learner.score(state.params, batch))
        state, _ = learner.update(state, batch)
    count = compiles.count
    assert state.step == 4
    return Warm(learner, count)


@pytest.fixture
def update(warm):
    """update(ledger, M, reward) -> (weights after one update of the untrained model, metrics), as numpy."""

    def run(t: Trajectories, M: int = 1, reward: np.ndarray = REWARD):
        batch = make_batch(t, reward, np.full(B, TEMPERATURE), SHAPES[M])
        state, metrics = warm.learner.update(warm.learner.init(tiny_world.own_params()), batch)
        return leaves(state.params), jax.device_get(metrics)

    return run


def leaves(params: nnx.State) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}


def distance(a: dict, b: dict) -> float:
    return max(np.abs(a[path] - b[path]).max() for path in a)


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [1, 2, 4])
def test_batches_hold_the_ledger(ledger, M):
    t = ledger
    batch = make_batch(t, REWARD, np.arange(B), LearnerShapes(M, (20, 40), (6, 12)))
    b = B // M
    assert batch.tokens.shape == (M, b, 40)
    assert batch.prompts.shape == (M, P // M, 12)
    np.testing.assert_array_equal(batch.tokens.reshape(B, 40), t.tokens_BxL)
    np.testing.assert_array_equal(batch.mask.reshape(B, 40), t.loss_mask_BxL)
    np.testing.assert_array_equal(batch.positions.reshape(B, 40), t.positions_BxL)
    np.testing.assert_array_equal(batch.behaviour.reshape(B, 40), t.logprob_BxL)
    np.testing.assert_array_equal(batch.reward.reshape(P, G), REWARD.reshape(P, G))
    np.testing.assert_array_equal(batch.temperature.reshape(B), np.arange(B))
    views, index = batch.views, batch.view_index.reshape(M, b, -1)
    for row in range(B):
        m, i = divmod(row, b)
        for slot in range(t.view_count_B[row]):
            np.testing.assert_array_equal(views[m, index[m, i, slot]], t.views_BxNxSxSx3[row, slot])
    assert views.shape[1] == (12 if M == 1 else 6)  # 7 views in all


def test_batches_take_the_smallest_buckets_that_hold(ledger):
    t = ledger
    longest = int(t.length_B.max())
    batch = make_batch(t, REWARD, np.ones(B), LearnerShapes(1, (longest - 1, longest, 40), (1, 7, 40)))
    assert batch.tokens.shape[2] == longest
    assert batch.views.shape[1] == 7
    with pytest.raises(ValueError, match=r"learner.suffix_lengths.*\(3,\)"):
        make_batch(t, REWARD, np.ones(B), LearnerShapes(1, (3,), (8,)))
    with pytest.raises(ValueError, match=r"learner.view_batches: 7 .*\(6,\)"):
        make_batch(t, REWARD, np.ones(B), LearnerShapes(1, (40,), (6,)))
    with pytest.raises(ValueError, match="4 prompts cannot be cut into 3 microbatches"):
        make_batch(t, REWARD, np.ones(B), LearnerShapes(3, (40,), (8,)))


# ---- log-probs and loss ----------------------------------------------------------------------------------------------


def test_scores_are_those_of_whole_rows(warm, ledger):
    batch = make_batch(ledger, REWARD, np.full(B, TEMPERATURE), SHAPES[2])
    got = np.asarray(warm.learner.score(tiny_world.model()[1], batch)).reshape(B, 40)
    np.testing.assert_allclose(got, own_logprobs(ledger), atol=1e-4)


def test_loss_and_metrics_follow_the_log_probs(update, ledger):
    t, mask = ledger, ledger.loss_mask_BxL
    _, metrics = update(t)
    N, logprob = mask.sum(), own_logprobs(t)
    groups = REWARD.reshape(P, G).astype(np.float64)
    deviation = groups.std(axis=1, keepdims=True)
    centred = groups - groups.mean(axis=1, keepdims=True)
    advantage = np.where(deviation > 0, centred / (deviation + 1e-4), 0).reshape(B, 1)
    ratio = np.exp(logprob - t.logprob_BxL)
    clipped = np.clip(ratio, 0.8, 1.28)
    gap = t.logprob_BxL - logprob  # without a reference make_batch takes the behaviour policy for it
    k3 = np.exp(gap) - gap - 1
    loss = 0.05 * k3 - np.minimum(ratio * advantage, clipped * advantage)
    assert metrics["tokens"] == N
    assert metrics["loss"] == pytest.approx(loss[mask].sum() / N, abs=1e-5)
    assert metrics["kl_reference"] == pytest.approx(k3[mask].sum() / N, rel=1e-3)
    assert metrics["logprob_gap"] == pytest.approx(np.abs(gap[mask]).max(), abs=1e-4)
    outside = (ratio * advantage > clipped * advantage)[mask]
    assert 0 < outside.sum() < N
    assert metrics["clip_fraction"] == pytest.approx(outside.mean(), rel=1e-5)


def test_entropy_and_accuracy_are_those_of_the_sampling_policy(update, ledger):
    _, metrics = update(ledger)
    everything = plain_logprobs(ledger, TEMPERATURE, SPECIAL)[ledger.loss_mask_BxL][:, ~SPECIAL]
    assert metrics["entropy"] == pytest.approx(-(np.exp(everything) * everything).sum(axis=1).mean(), rel=1e-4)
    likeliest = np.flatnonzero(~SPECIAL)[everything.argmax(axis=1)]
    assert metrics["token_accuracy"] == pytest.approx((likeliest == ledger.tokens_BxL[ledger.loss_mask_BxL]).mean())


# ---- updates ---------------------------------------------------------------------------------------------------------


def test_the_number_of_microbatches_does_not_change_an_update(update, ledger):
    whole, metrics = update(ledger, 1)
    assert distance(whole, leaves(tiny_world.model()[1])) > 1e-2
    for M in (2, 4):
        cut, others = update(ledger, M)
        assert (
            distance(cut, whole) <= 5e-6
        )  # of 1e-2; sums in another order round differently, and on another CPU again
        for name, value in metrics.items():
            assert others[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_what_the_model_did_not_say_carries_no_gradient(update, ledger):
    """Other observations at the rows' ends, which nothing reads, change nothing; other model tokens do."""
    weights, _ = update(ledger)
    last = (ledger.origin_BxL == ENVIRONMENT) & (ledger.turn_BxL == 1)
    assert last.any(axis=1).all()
    other = (ledger.tokens_BxL + 7) % 1600
    silent = dataclasses.replace(ledger, tokens_BxL=np.where(last, other, ledger.tokens_BxL))
    spoken = dataclasses.replace(ledger, tokens_BxL=np.where(ledger.loss_mask_BxL, other, ledger.tokens_BxL))
    assert distance(update(silent)[0], weights) == 0
    assert distance(update(spoken)[0], weights) > 1e-3


def test_without_signal_and_at_the_reference_there_is_no_gradient(warm, ledger):
    batch = make_batch(ledger, np.ones(B), np.full(B, TEMPERATURE), SHAPES[2])
    batch = batch._replace(reference=warm.learner.score(tiny_world.model()[1], batch))
    _, metrics = warm.learner.update(warm.learner.init(tiny_world.own_params()), batch)
    assert metrics["gradient_norm"] < 1e-5
    assert metrics["kl_behaviour"] > 0.01


def test_frozen_modules_stay_bit_for_bit(update, ledger):
    """Weight decay leaves them alone, too; everything else moves."""
    before, (after, _) = leaves(tiny_world.model()[1]), update(ledger)
    frozen = [path for path in before if FROZEN in path]
    assert len(frozen) == 6
    for path, value in after.items():
        assert np.array_equal(value, before[path]) == (path in frozen), path


def test_both_kinds_of_views_are_learnt_from(update, ledger):
    """The prompts' images and those that calls returned reach the tower's gradient."""
    weights, _ = update(ledger)
    path = ("vision_tower", "patch_embeddings", "kernel")
    for name in ("prompt_views_PxNxSxSx3", "views_BxNxSxSx3"):
        other, _ = update(dataclasses.replace(ledger, **{name: 255 - getattr(ledger, name)}))
        assert np.abs(other[path] - weights[path]).max() > 1e-6


def test_nothing_compiles_after_warm_up(warm):
    assert warm.compiles_after_warm_up == 0
