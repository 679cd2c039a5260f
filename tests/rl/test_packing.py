import dataclasses

import jax
import numpy as np
import optax
import pytest

from mvg_jax.data.task import Demonstration
from mvg_jax.errors import RunError
from mvg_jax.rl.imitation import Scripted, SFTStage, stored, turn_kinds
from mvg_jax.rl.learner import Learner, LearnerShapes
from mvg_jax.rl.packing import KINDS, first_fit, pack, pack_shapes
from mvg_jax.rollout.policies import ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, rollout
from tests import tiny_world
from tests.tiny_world import ANSWER, ONE, SPECIAL, TWO, plain_logprobs

TASKS = tuple(map(tiny_world.task, range(4)))
SCRIPT = [[ONE, ANSWER], [ANSWER], [TWO, ANSWER], [ONE, TWO, ANSWER]]
LENGTH = 160


def play(tasks=TASKS, script=SCRIPT):
    world = dataclasses.replace(tiny_world.world(4, 1))
    policy = ScriptedPolicy(tiny_world.PROTOCOL, script, world.shapes.turn_tokens)
    return rollout(world, policy, world.prepare(tasks, tools_on=True), Phases())


@pytest.fixture(scope="module")
def played():
    return play()


SHAPES = pack_shapes(1, LENGTH, 4, tiny_world.E, 4)


@pytest.mark.parametrize("seed", range(5))
def test_rows_hold_everything_once_and_no_more_than_they_can(seed):
    lengths = np.random.default_rng(seed).integers(1, 101, 40).tolist()
    rows = first_fit(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(40))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 100
    assert len(rows) <= 1.25 * sum(lengths) / 100 + 1


def test_what_fits_no_row_is_refused():
    with pytest.raises(ValueError, match="101 tokens does not fit a packed row of 100"):
        first_fit([3, 101], 100)


def test_packed_rows_are_the_ledger(played):
    """Every conversation is there once, token for token, with its own positions, views and targets."""
    t, episodes = played
    batch = jax.tree.map(lambda x: np.asarray(x[0]), pack(t, turn_kinds(t, episodes), SHAPES))
    found = {}
    for row in range(len(batch.tokens)):
        starts = [i for i in range(LENGTH) if batch.first[row, i] == i and batch.tokens[row, i : i + 2].any()]
        placeholders = np.cumsum(batch.tokens[row] == t.image_token_id)
        for start in starts:
            if (batch.first[row] == start).sum() == 1:
                continue  # padding
            own = np.flatnonzero(batch.first[row] == start)
            np.testing.assert_array_equal(batch.positions[row, own], np.arange(len(own)))
            mine = batch.mask[row] & (batch.target[row] >= start) & (batch.target[row] <= own[-1])
            before = 0 if start == 0 else placeholders[start - 1]
            first, last = before // tiny_world.E, placeholders[own[-1]] // tiny_world.E
            found[tuple(batch.tokens[row, own])] = (
                batch.target[row][mine] - start,
                batch.kind[row][mine],
                batch.views[batch.view_index[row, first:last]],
            )
    assert len(found) == 4
    for b in range(4):
        ahead, own = t.prompt_length_P[b], t.length_B[b]
        target, kind, views = found[(*t.prompts_PxL[b, :ahead], *t.tokens_BxL[b, :own])]
        np.testing.assert_array_equal(target, ahead + np.flatnonzero(t.loss_mask_BxL[b]))
        turns = t.turn_BxL[b, t.loss_mask_BxL[b]]
        np.testing.assert_array_equal(kind == KINDS.index("answer"), turns == len(SCRIPT[b]) - 1)
        expected = np.concatenate([t.prompt_views_PxNxSxSx3[b], t.views_BxNxSxSx3[b, : t.view_count_B[b]]])
        np.testing.assert_array_equal(views, expected)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return tiny_world.learner(SPECIAL, optax.adam(1e-2), loss="cross_entropy", advantage_scale="none")


def packed_stage(learner: Learner) -> SFTStage:
    return SFTStage(tiny_world.world(4, 1), learner, LearnerShapes(1, (64,), (8,)), stored, SHAPES)


DEMONSTRATIONS = [Demonstration(task, tuple(turns)) for task, turns in zip(TASKS, SCRIPT, strict=True)]


def test_the_loss_is_that_of_every_conversation_on_its_own(learner, played):
    """Nothing leaks from one conversation of a row into the next."""
    t, episodes = played
    stage = packed_stage(learner)
    logprobs = np.take_along_axis(plain_logprobs(t, 1.0, SPECIAL), t.tokens_BxL[..., None], axis=2)[..., 0]
    kinds = turn_kinds(t, episodes)
    means = stage.validate(stage.start(tiny_world.own_params()), DEMONSTRATIONS)
    _, metrics = stage.step(stage.start(tiny_world.own_params()), 1, DEMONSTRATIONS)
    assert metrics["loss"] == pytest.approx(-logprobs[t.loss_mask_BxL].mean(), rel=1e-4)
    assert means["loss"] == pytest.approx(-logprobs[t.loss_mask_BxL].mean(), rel=1e-4)
    for kind in KINDS:
        own = t.loss_mask_BxL & (kinds == KINDS.index(kind))
        assert means[f"loss/{kind}"] == pytest.approx(-logprobs[own].mean(), rel=1e-4)
        assert float(metrics[f"loss/{kind}"]) == pytest.approx(-logprobs[own].mean(), rel=1e-4)
        assert 0 <= metrics[f"token_accuracy/{kind}"] <= 1
    assert means["tokens"] == metrics["tokens"] == t.loss_mask_BxL.sum()
    real = t.length_B.sum() + t.prompt_length_P.sum()
    assert metrics["goodput"] == pytest.approx(real / (LENGTH * -(-real // LENGTH)), rel=0.5)


def test_the_gradient_is_that_of_rows_behind_their_prompts(learner):
    """One step of the packed stage and one of the plain one end in the same weights."""
    scripted = dict(zip((task.id for task in TASKS), SCRIPT, strict=True))
    teach = Scripted(lambda task, rng, mixture: scripted[task.id], {"right": 1.0}, 0.0, 0, 1, 0)
    plain = SFTStage(tiny_world.world(4, 1), learner, LearnerShapes(1, (120,), (12,)), teach)
    packed = packed_stage(learner)
    a, _ = plain.step(plain.start(tiny_world.own_params()), 1, TASKS)
    b, _ = packed.step(packed.start(tiny_world.own_params()), 1, DEMONSTRATIONS)
    for x, y in zip(jax.tree.leaves(a.opt_state), jax.tree.leaves(b.opt_state), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-3)


def test_a_prompt_without_tools_is_learnt_beside_others(learner):
    stage = packed_stage(learner)
    some = [dataclasses.replace(d, tools_on=bool(i)) for i, d in enumerate(DEMONSTRATIONS)]
    some[0] = dataclasses.replace(some[0], turns=(ANSWER,))
    world = stage.world.prepare([d.task for d in some], [d.tools_on for d in some])
    assert world.length[0] != world.length[1] or (world.tokens[0] != world.tokens[1]).any()
    _, metrics = stage.step(stage.start(tiny_world.own_params()), 1, some)
    assert np.isfinite(metrics["loss"])


def test_a_pack_length_that_may_not_hold_a_trajectory_is_refused():
    from configs import tiny_sft
    from mvg_jax import config as configs
    from mvg_jax.experiment import build

    c = tiny_sft.get_config()
    c.sft.pack_length, c.model.checkpoint = 100, "asset:tiny_internvl"
    with pytest.raises(RunError, match=r"config\.sft\.pack_length 100.*184"):
        build(configs.from_dict(c.to_dict()))[0].sft_stage()
