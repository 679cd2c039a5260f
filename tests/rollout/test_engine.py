import jax
import numpy as np
import pytest

from mvg_jax.compiles import CompileCount, compile_all
from mvg_jax.rollout.engine import Engine, Shapes, bucket
from mvg_jax.rollout.sampling import Sampling, row_keys
from mvg_jax.rollout.scheduler import GuidedPolicy, Phases, SampledPolicy, ScriptedPolicy, rollout
from mvg_jax.tools import MAX_VIEWS
from tests import tiny_world
from tests.tiny_world import ANSWER, ONE, TWO, E, flip

P, B = 2, 4
MIXES = {
    "two views a row": [[TWO], [TWO], [TWO], [TWO]],
    "one view a row": [[ONE], [ONE], [ONE], [ONE]],
    "all sorts": [[ONE], [TWO], [flip(0)], [ANSWER]],
}


@pytest.fixture(scope="module")
def begun():
    """(engine, prompts, features): two prompts taken in."""
    engine, params = tiny_world.engine(P, tiny_world.LETTERS), tiny_world.model()[1]
    prompts = tiny_world.world(P).prepare([tiny_world.task(0), tiny_world.task(1)], tools_on=True)
    features = engine.encode(params, prompts.views.reshape(-1, 16, 16, 3), np.arange(P))
    return engine, prompts, features.reshape(P, 1, *features.shape[1:])


def decode(begun, active, *, temperature=1.0, seed=0):
    engine, prompts, features = begun
    params = tiny_world.model()[1]
    state = engine.prefill(params, prompts.tokens, prompts.length, features)
    names = row_keys(seed, 0, ["a", "a", "b", "b"], np.array([0, 1, 0, 1]))
    return engine.decode(params, state, np.array(active), names, Sampling.of(np.full(B, temperature)), engine.banned_V)


def test_bucket_is_the_smallest_that_holds():
    assert [bucket((4, 8), size, "x") for size in (0, 4, 5, 8)] == [4, 4, 8, 8]
    with pytest.raises(ValueError, match=r"rollout.lengths: 9 does not fit the bucket table \(4, 8\)"):
        bucket((4, 8), 9, "rollout.lengths")


def test_rows_of_a_group_share_prompt_and_differ_in_noise(begun):
    _, drawn = decode(begun, [True] * B, temperature=0.0)
    assert (drawn.tokens[0] == drawn.tokens[1]).all()
    assert (drawn.tokens[2] == drawn.tokens[3]).all()
    assert (drawn.tokens[0] != drawn.tokens[2]).any()
    _, drawn = decode(begun, [True] * B)
    assert len({tuple(row) for row in drawn.tokens.tolist()}) == B


def test_a_turn_ends_with_its_end_and_nothing_after(begun):
    end, T = tiny_world.VOCABULARY.end_of_turn, tiny_world.world(P).shapes.turn_tokens
    for seed in range(20):
        state, drawn = jax.device_get(decode(begun, [True, True, False, True], seed=seed))
        assert drawn.count[2] == 0
        assert not drawn.ended[2]
        for row, logprob, count, ended in zip(drawn.tokens, drawn.logprobs, drawn.count, drawn.ended, strict=True):
            assert (row[count:] == 0).all()
            assert (logprob[count:] == 0).all()
            assert (logprob[:count] < 0).all()
            assert (row[:count] == end).sum() == ended
            assert ended or count in (0, T)
        # The last token has no keys and values yet.
        np.testing.assert_array_equal(state.suffix.length, np.maximum(drawn.count - 1, 0))
        last = [row[count - 1] if count else 0 for row, count in zip(drawn.tokens, drawn.count, strict=True)]
        np.testing.assert_array_equal(state.pending_B, last)


def test_extend_leaves_other_rows_alone(begun):
    engine, _, _ = begun
    params = tiny_world.model()[1]
    state, _ = decode(begun, [True] * B)
    before = jax.device_get(state)
    tokens = np.full((B, 16), 200, np.int32)
    features = np.zeros((B, MAX_VIEWS, E, tiny_world.CONFIG.text.hidden_size), np.float32)
    after = jax.device_get(
        engine.extend(params, state, np.array([True, False, True, False]), tokens, np.array([3, 5, 16, 0]), features)
    )
    np.testing.assert_array_equal(after.suffix.length - before.suffix.length, [4, 0, 17, 0])
    np.testing.assert_array_equal(after.logits[[1, 3]], before.logits[[1, 3]])
    assert np.abs(after.logits[[0, 2]] - before.logits[[0, 2]]).max(axis=1).min() > 0.01
    for ours, theirs in zip(after.suffix.keys, before.suffix.keys, strict=True):
        np.testing.assert_array_equal(ours[[1, 3]], theirs[[1, 3]])


def test_encode_takes_only_the_views_that_are_named(begun):
    engine, _, _ = begun
    params = tiny_world.model()[1]
    views = np.random.default_rng(0).integers(0, 256, (B * MAX_VIEWS, 16, 16, 3)).astype(np.uint8)
    some = np.asarray(engine.encode(params, views, np.array([5, B * MAX_VIEWS])))
    all_ = np.asarray(engine.encode(params, views, np.arange(B * MAX_VIEWS)))
    np.testing.assert_allclose(some[5], all_[5], atol=1e-5)
    assert (np.delete(some, 5, axis=0) == 0).all()
    assert (np.abs(all_).max(axis=(1, 2)) > 0.1).all()


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
    joined = shapes.turn_tokens - 1 + max(shapes.observation_lengths)  # how a scripted turn is fed
    compile_all(engine.lower(params, (tiny_world.SIZE,) * 2, MAX_VIEWS, extra_lengths=(joined,)), "compile")
    warm = compiles.count
    assert warm >= 8  # encode of prompts and 2 buckets, prefill, decode, extend in 3 lengths
    play_mixes(engine)
    assert compiles.count == warm
