import jax
import numpy as np
import pytest

from mvg_jax.compiles import CompileCount, compile_all
from mvg_jax.rollout.engine import Engine, Going, Opening, Shapes, State, Told, bucket, state_bytes
from mvg_jax.rollout.policies import GuidedPolicy, SampledPolicy, ScriptedPolicy
from mvg_jax.rollout.sampling import Sampling, row_keys
from mvg_jax.rollout.scheduler import Phases, rollout
from mvg_jax.tools import MAX_VIEWS
from tests import tiny_world
from tests.tiny_world import ANSWER, ONE, TWO, flip, packed

P, B = 2, 4
MIXES = {
    "two views a row": [[TWO], [TWO], [TWO], [TWO]],
    "one view a row": [[ONE], [ONE], [ONE], [ONE]],
    "all sorts": [[ONE], [TWO], [flip(0)], [ANSWER]],
}


@pytest.fixture(scope="module")
def begun():
    """(engine, prompts, features): two prompts and what they show."""
    engine, params = tiny_world.engine(P, tiny_world.LETTERS), tiny_world.model()[1]
    prompts = tiny_world.world(P).prepare([tiny_world.task(0), tiny_world.task(1)], tools_on=True)
    return engine, prompts, engine.encode(params, prompts.views.of(np.arange(P)), np.arange(P))


def opened(begun, entry=(0, 1)) -> State:
    engine, prompts, features = begun
    params = tiny_world.model()[1]
    opening = Opening(np.array(entry), prompts.tokens, prompts.length - 1, np.arange(P)[:, None])
    return engine.prefill(params, engine.start(params), packed(opening), features)


def going(prompts, left, seat=(0, 1, 2, 3), temperature=1.0, seed=0, least=1) -> Going:
    """Two rows of each prompt, at their beginning, in the slots' order."""
    last_P = prompts.tokens[np.arange(P), prompts.length - 1]
    names = row_keys(seed, 0, ["a", "a", "b", "b"], np.array([0, 1, 0, 1]))
    zeros, two = np.zeros(B, np.int32), np.arange(B) // 2
    left, sampling = np.array(left, np.int32), Sampling.of(np.full(B, temperature))
    return Going(
        np.array(seat),
        last_P[two],
        zeros,
        (prompts.length - 1)[two],
        left,
        np.full(B, least),
        names,
        sampling,
    )


def decode(begun, left, *, state=None, **changes):
    engine, prompts, _ = begun
    rows, count_M = going(prompts, left, **changes), prompts.length - 1
    params = tiny_world.model()[1]
    return engine.decode(
        params,
        opened(begun) if state is None else state,
        packed(rows),
        count_M,
        engine.banned_V,
        length=120,
    )


def test_bucket_is_the_smallest_that_holds():
    assert [bucket((4, 8), size, "x") for size in (0, 4, 5, 8)] == [4, 4, 8, 8]
    with pytest.raises(ValueError, match=r"rollout.lengths: 9 does not fit the bucket table \(4, 8\)"):
        bucket((4, 8), 9, "rollout.lengths")


def test_rows_of_a_group_share_prompt_and_differ_in_noise(begun):
    _, drawn = decode(begun, [16] * B, temperature=0.0)
    assert (drawn.tokens[0] == drawn.tokens[1]).all()
    assert (drawn.tokens[2] == drawn.tokens[3]).all()
    assert (drawn.tokens[0] != drawn.tokens[2]).any()
    _, drawn = decode(begun, [16] * B)
    assert len({tuple(row) for row in drawn.tokens.tolist()}) == B


def test_a_turn_ends_with_its_end_and_nothing_after(begun):
    end = tiny_world.VOCABULARY.end_of_turn
    for seed in range(20):
        state, drawn = jax.device_get(decode(begun, [16, 16, 0, 9], seed=seed))
        assert drawn.count[2] == 0
        assert not drawn.ended[2]
        left = (16, 16, 0, 9)
        for row, logprob, count, ended, most in zip(
            drawn.tokens, drawn.logprobs, drawn.count, drawn.ended, left, strict=True
        ):
            assert (row[count:] == 0).all()
            assert (logprob[count:] == 0).all()
            assert (logprob[:count] < 0).all()
            assert (row[:count] == end).sum() == ended
            assert ended or count == most
        # Of every token drawn but the last, and of the prompt's last, there are keys: as many as were drawn.
        held = [(np.abs(state.keys[0][b]).sum(axis=(0, 1)) > 0).sum() for b in range(B)]
        np.testing.assert_array_equal(held, drawn.count)


def test_a_call_ends_when_all_is_drawn_or_few_go_on(begun):
    whole = jax.device_get(decode(begun, [16] * B)[1])
    some = jax.device_get(decode(begun, [3] * B)[1])
    np.testing.assert_array_equal(some.count, np.minimum(whole.count, 3))
    np.testing.assert_array_equal(
        some.tokens[:, :3], np.where(np.arange(3) < some.count[:, None], whole.tokens[:, :3], 0)
    )
    early = jax.device_get(decode(begun, [2, 16, 16, 5], least=3)[1])  # one may be through, not two
    alone = np.minimum(whole.count, [2, 16, 16, 5])
    np.testing.assert_array_equal(early.count, np.minimum(alone, sorted(alone)[1]))
    assert (early.count < alone).any()


def test_a_row_may_sit_anywhere(begun):
    """The first prompt's rows in slots 1 and 2, and the prompts in the pool the other way round."""
    engine, prompts, _ = begun
    base = jax.device_get(decode(begun, [16] * B)[1])
    order = [2, 0, 1, 3]
    rows = going(prompts, [16] * B)
    moved = jax.tree.map(lambda x: x[order], rows)._replace(
        seat=np.array([0, 3, 2, 1])
    )  # entry 0 holds the second prompt
    state, count_M = opened(begun, (1, 0)), (prompts.length - 1)[::-1]
    _, drawn = engine.decode(tiny_world.model()[1], state, packed(moved), count_M, engine.banned_V, length=120)
    np.testing.assert_array_equal(drawn.tokens, base.tokens[order])
    np.testing.assert_allclose(drawn.logprobs, base.logprobs[order], atol=1e-5)
    # A slot with nobody in it changes nothing for the others.
    rows = going(prompts, [16, 0, 16, 16], seat=(0, P * 2, 2, 3))
    _, drawn = jax.device_get(
        engine.decode(
            tiny_world.model()[1], opened(begun), packed(rows), prompts.length - 1, engine.banned_V, length=120
        )
    )
    np.testing.assert_array_equal(drawn.tokens[[0, 2, 3]], base.tokens[[0, 2, 3]])
    assert np.isfinite(drawn.logprobs).all()


def test_extend_leaves_other_rows_alone(begun):
    engine, prompts, features = begun
    params = tiny_world.model()[1]
    before = jax.device_get(opened(begun))
    tokens = np.full((2, 16), 200, np.int32)
    zeros = np.zeros(2, int)
    nothing = np.full((2, MAX_VIEWS), features.shape[0])
    told = Told(
        np.array([2, B]),
        np.array([1, 0]),
        (prompts.length - 1)[::-1],
        tokens,
        np.array([5, 0]),
        zeros,
        zeros,
        nothing,
    )
    after = jax.device_get(engine.extend(params, jax.device_put(before), packed(told), features))
    for ours, theirs in zip(after.keys, before.keys, strict=True):
        np.testing.assert_array_equal(ours[[0, 1, 3]], theirs[[0, 1, 3]])
        assert (np.abs(ours[2]).sum(axis=(0, 1)) > 0).sum() == 5
    for ours, theirs in zip(after.prompt_keys, before.prompt_keys, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_encode_takes_only_the_views_that_are_named(begun):
    engine, _, _ = begun
    params = tiny_world.model()[1]
    views = np.random.default_rng(0).integers(0, 256, (B, MAX_VIEWS, 16, 16, 3)).astype(np.uint8)
    some = np.asarray(engine.encode(params, views, np.array([5, B * MAX_VIEWS])))
    all_ = np.asarray(engine.encode(params, views, np.arange(B * MAX_VIEWS)))
    np.testing.assert_allclose(some[0], all_[5], atol=1e-5)
    assert len(some) == len(all_) == max(engine.shapes.encode_batches)
    assert (some[2:] == 0).all()
    assert (np.abs(all_[: B * MAX_VIEWS]).max(axis=(1, 2)) > 0.1).all()


def test_a_state_has_the_bytes_of_the_formula(begun):
    engine, _, _ = begun
    held = sum(x.nbytes for x in jax.tree.leaves(opened(begun)))
    assert state_bytes(tiny_world.CONFIG.text, engine.shapes, 4) == held


def play_mixes(engine: Engine) -> None:
    world, params = tiny_world.world(P), tiny_world.model()[1]
    for step, script in enumerate(MIXES.values()):
        policy = SampledPolicy(engine, params, seed=0, step=step, sample_B=np.arange(B) % 2, temperature_B=np.ones(B))
        policy = GuidedPolicy(ScriptedPolicy(tiny_world.PROTOCOL, script, world.shapes.turn_tokens), policy, 1)
        rollout(world, policy, world.prepare([tiny_world.task(step), tiny_world.task(9)], tools_on=True), Phases())


def test_nothing_compiles_after_warm_up():
    play_mixes(tiny_world.engine(P, tiny_world.LETTERS))  # compiles what little runs outside of the engine
    graph, params = tiny_world.model()
    shapes: Shapes = tiny_world.world(P).shapes
    engine = Engine(graph, shapes, tiny_world.VOCABULARY.end_of_turn, tiny_world.LETTERS)
    compiles = CompileCount()
    programs = engine.lower(params, (tiny_world.SIZE,) * 2, MAX_VIEWS) + tiny_world.world(P).lower()
    compile_all(programs, "compile")
    warm = compiles.count
    assert warm >= 13  # start, decode and prefill, see in 3 shapes, extend in 2 x 2 buckets, encode of prompts and in 2
    play_mixes(engine)
    assert compiles.count == warm
