import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mvg_jax.models import decoder as decoder_lib
from mvg_jax.models.attention import merge_attention, partial_attention, prefix_attention
from mvg_jax.models.config import TextConfig
from mvg_jax.models.decoder import Decoder, Prefix, Suffix, suffix_bytes
from mvg_jax.models.layers import apply_rope, rope_tables
from tests import tiny_world

CONFIG = TextConfig(
    vocab_size=16,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    head_dim=8,
    rope_theta=100.0,
)
P, G, L, T = 2, 3, 5, 4  # prompts, rows a prompt, prompt bucket, suffix bucket
LENGTH_P = np.array([5, 2], np.int32)
D = CONFIG.hidden_size


@pytest.fixture(scope="module")
def decoder() -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(Decoder(CONFIG, nnx.Rngs(1)))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def run(graph, params, x, positions, prefix=None, cache=None, count_B=None):
    return nnx.merge(graph, params)(x, positions, prefix=prefix, cache=cache, count_B=count_B)


def counted(rows: int, length: int, start=0) -> np.ndarray:
    return (np.broadcast_to(start, rows)[:, None] + np.arange(length)[None]).astype(np.int32)


# ---- the parts -------------------------------------------------------------------------------------------------------


def test_rope_turns_each_pair_by_its_angle():
    B, length, H, C, theta = 2, 3, 2, 8, 50.0
    x, positions = noise(B, length, H, C), np.array([[0, 1, 7], [100, 5, 2]])
    got = apply_rope(x, *rope_tables(positions, C, theta))
    for b in range(B):
        for t in range(length):
            for c in range(C // 2):
                angle = positions[b, t] * theta ** (-2 * c / C)
                a, d = x[b, t, :, c].astype(np.float64), x[b, t, :, c + C // 2].astype(np.float64)
                np.testing.assert_allclose(got[b, t, :, c], a * np.cos(angle) - d * np.sin(angle), atol=1e-4)
                np.testing.assert_allclose(got[b, t, :, c + C // 2], d * np.cos(angle) + a * np.sin(angle), atol=1e-4)


def test_rope_scores_depend_on_the_distance_alone():
    q, k = noise(1, 1, 1, 8, seed=1), noise(1, 1, 1, 8, seed=2)

    def score(at, of):
        turned = [apply_rope(x, *rope_tables(np.array([[p]]), 8, 50.0)) for x, p in ((q, at), (k, of))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(4, 9)) > 1e-2


def attention_reference(q, k, v, mask):
    """float64, one query at a time; query head h reads key head h // (H / K)."""
    B, length, H, C = q.shape
    out = np.zeros(q.shape)
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    for b in range(B):
        for t in range(length):
            for h in range(H):
                head = h // (H // k.shape[2])
                seen = np.flatnonzero(mask[b, t])
                scores = k[b, seen, head] @ q[b, t, h] / np.sqrt(C)
                weights = np.exp(scores - scores.max())
                out[b, t, h] = weights @ v[b, seen, head] / weights.sum()
    return out


def cached(k_BxSxKxC, v_BxSxKxC):
    """As a cache holds them."""
    return k_BxSxKxC.transpose(0, 2, 3, 1), v_BxSxKxC.transpose(0, 2, 1, 3)


def test_shared_prefix_and_suffix_merge_to_plain_attention():
    B, H, K, C = P * G, 4, 2, 8
    q, k, v = 3 * noise(B, T, H, C), 3 * noise(B, T, K, C, seed=1), noise(B, T, K, C, seed=2)
    prefix_k, prefix_v = 3 * noise(P, L, K, C, seed=3), noise(P, L, K, C, seed=4)
    causal = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    own = partial_attention(q, *cached(k, v), causal)
    got = merge_attention([own, prefix_attention(q, *cached(prefix_k, prefix_v), LENGTH_P)])
    seen = np.broadcast_to(np.repeat(np.arange(L)[None] < LENGTH_P[:, None], G, axis=0)[:, None], (B, T, L))
    expected = attention_reference(
        q,
        np.concatenate([np.repeat(prefix_k, G, axis=0), k], axis=1),
        np.concatenate([np.repeat(prefix_v, G, axis=0), v], axis=1),
        np.concatenate([seen, causal], axis=2),
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(merge_attention([own]), attention_reference(q, k, v, causal), atol=1e-5)


def test_a_part_without_keys_changes_nothing():
    B, H, K, C = P * G, 4, 2, 8
    q, k, v = noise(B, T, H, C), noise(B, T, K, C, seed=1), noise(B, T, K, C, seed=2)
    own = partial_attention(q, *cached(k, v), np.ones((B, T, T), bool))
    nothing = prefix_attention(q, *cached(noise(P, L, K, C), noise(P, L, K, C)), np.zeros(P, np.int32))
    np.testing.assert_array_equal(merge_attention([own, nothing]), merge_attention([own]))


# ---- the decoder -----------------------------------------------------------------------------------------------------


def prefill(graph, params, x_PxLxD, length_P) -> tuple[jax.Array, Prefix]:
    hidden, own = run(graph, params, x_PxLxD, counted(len(x_PxLxD), x_PxLxD.shape[1]), count_B=length_P)
    return hidden, Prefix(own.keys, own.values, length_P)


def plain(graph, params, prompt_PxLxD, suffix_BxTxD):
    """Hidden states [B, T, D] of the suffixes, each row over its own copy of its prompt, without prefix or cache."""
    start_B = np.repeat(LENGTH_P, G)[:, None]
    both = jnp.concatenate([jnp.repeat(prompt_PxLxD, G, axis=0), suffix_BxTxD], axis=1)
    place = np.arange(L + T)[None]
    index = np.where(place < start_B, place, np.minimum(L + place - start_B, L + T - 1))  # the prompt's padding goes
    rows = jnp.take_along_axis(both, index[..., None], axis=1)
    hidden = run(graph, params, rows, counted(P * G, L + T))[0]
    return jnp.take_along_axis(hidden, (start_B + np.arange(T)[None])[..., None], axis=1)


def test_rows_on_a_shared_prefix_equal_rows_on_their_own_copy(decoder):
    prompt, suffix = noise(P, L, D), noise(P * G, T, D, seed=1)
    _, prefix = prefill(*decoder, prompt, LENGTH_P)
    positions = counted(P * G, T, np.repeat(LENGTH_P, G))
    shared, _ = run(*decoder, suffix, positions, prefix)
    np.testing.assert_allclose(shared, plain(*decoder, prompt, suffix), atol=1e-5)
    # The same prompts, each prefilled as often as it has rows.
    _, repeated = prefill(*decoder, np.repeat(prompt, G, axis=0), np.repeat(LENGTH_P, G))
    np.testing.assert_allclose(run(*decoder, suffix, positions, repeated)[0], shared, atol=1e-5)


def test_gradients_through_the_shared_prefix_are_those_of_the_plain_pass(decoder):
    graph, params = decoder
    prompt, suffix, weight = noise(P, L, D), noise(P * G, T, D, seed=1), noise(P * G, T, D, seed=2)

    def shared_loss(params, prompt, suffix):
        _, prefix = prefill(graph, params, prompt, LENGTH_P)
        return (run(graph, params, suffix, counted(P * G, T, np.repeat(LENGTH_P, G)), prefix)[0] * weight).sum()

    def plain_loss(params, prompt, suffix):
        return (plain(graph, params, prompt, suffix) * weight).sum()

    got = jax.jit(jax.grad(shared_loss, argnums=(0, 1, 2)))(params, prompt, suffix)
    expected = jax.jit(jax.grad(plain_loss, argnums=(0, 1, 2)))(params, prompt, suffix)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * (1 + np.abs(theirs).max()))
    assert np.abs(got[1][1, LENGTH_P[1] :]).max() == 0  # nothing reaches the padding of a prompt
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[0]["layers"]))


def test_padding_on_the_right_is_never_seen(decoder):
    prompt = noise(P, L, D)
    hidden, prefix = prefill(*decoder, prompt, LENGTH_P)
    prompt[1, LENGTH_P[1] :] = 9.0
    other, prefix_other = prefill(*decoder, prompt, LENGTH_P)
    np.testing.assert_array_equal(other[0], hidden[0])
    np.testing.assert_array_equal(other[1, : LENGTH_P[1]], hidden[1, : LENGTH_P[1]])

    suffix, count_B = noise(P * G, T, D, seed=1), np.array([4, 0, 2, 1, 3, 4], np.int32)
    positions = counted(P * G, T, np.repeat(LENGTH_P, G))
    cache = Suffix.empty(CONFIG, P * G, 6, jnp.float32)._replace(length=np.full(P * G, 2, np.int32))
    first, held = run(*decoder, suffix, positions, prefix, cache, count_B)
    padding = np.arange(T)[None] >= count_B[:, None]
    suffix[padding] = -9.0
    second, held_other = run(*decoder, suffix, positions, prefix_other, cache, count_B)
    np.testing.assert_array_equal(np.asarray(second)[~padding], np.asarray(first)[~padding])
    np.testing.assert_array_equal(held.length, 2 + count_B)
    for ours, theirs in zip(jax.tree.leaves(held), jax.tree.leaves(held_other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    unwritten = (np.arange(6)[None] >= 2 + count_B[:, None]) | (np.arange(6)[None] < 2)
    by_token = [np.moveaxis(k, 3, 1) for k in held.keys] + [np.moveaxis(v, 2, 1) for v in held.values]
    for array in by_token:
        assert (np.asarray(array)[unwritten] == 0).all()
        assert (np.abs(np.asarray(array)[~unwritten]).max(axis=(1, 2)) > 0).all()


def test_suffix_bytes_are_the_bytes_of_a_suffix():
    for dtype in (jnp.float32, jnp.bfloat16):
        made = Suffix.empty(CONFIG, 3, 7, dtype)
        real = sum(x.nbytes for x in made.keys + made.values)
        assert suffix_bytes(CONFIG, 3, 7, jnp.dtype(dtype).itemsize) == real
        assert len(made.keys) == CONFIG.num_hidden_layers
        assert made.length.tolist() == [0, 0, 0]


def test_a_conversation_in_pieces_equals_one_pass_over_the_whole():
    """Prefill, then turns of decoding and observations with images, rows of different lengths: every hidden state."""
    graph, params = tiny_world.model()
    image, E = tiny_world.VOCABULARY.image, tiny_world.E
    rng = np.random.default_rng(0)
    words = lambda n: rng.integers(0, 1600, n).tolist()
    span = [image] * E
    prompts = [[*words(2), *span, *words(3)], [*span, *words(1)]]
    rows = [  # each row's pieces, fed to the cache one after the other; two rows a prompt
        [words(1), words(1), [*words(2), *span, *words(1)], words(1), [*span, *span]],
        [words(1), [], words(3), words(1), words(2)],
        [words(1), words(1), [*words(1), *span, *span], [], []],
        [[], words(1), [*span, *words(4)], words(1), [*words(1), *span]],
    ]
    width = max(len(prompt) for prompt in prompts) + max(sum(map(len, row)) for row in rows)
    features = noise(4, 3, E, tiny_world.CONFIG.text.hidden_size)  # of each row's views, in order
    prompt_features = noise(2, 1, E, tiny_world.CONFIG.text.hidden_size, seed=1)

    def padded(lists, length):
        tokens = [[*ids, *[0] * (length - len(ids))] for ids in lists]
        return np.array(tokens, np.int32), np.array([len(ids) for ids in lists], np.int32)

    @jax.jit
    def prefill(params, tokens, length, features):
        return nnx.merge(graph, params).prefill(tokens, length, features)

    @jax.jit
    def extend(params, tokens, count_B, features, prefix, suffix):
        model = nnx.merge(graph, params)
        start = jnp.repeat(prefix.length, 2) + suffix.length
        positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
        return model.decode(model.embed(tokens, features), positions, prefix=prefix, cache=suffix, count_B=count_B)

    prompt_hidden, prefix = prefill(params, *padded(prompts, 9), prompt_features)
    suffix = Suffix.empty(tiny_world.CONFIG.text, 4, 24, jnp.float32)
    got, seen = [[] for _ in rows], np.zeros(4, int)
    for piece in range(5):
        tokens, count_B = padded([row[piece] for row in rows], 1 if piece in (0, 1, 3) else 9)
        own = np.stack([np.roll(features[b], -seen[b], axis=0) for b in range(4)])  # the views in this piece come first
        hidden, suffix = extend(params, tokens, count_B, own, prefix, suffix)
        seen += (tokens == image).sum(axis=1) // E
        for b in range(4):
            got[b].append(np.asarray(hidden[b, : count_B[b]]))
    whole = [prompts[b // 2] + list(itertools.chain(*row)) for b, row in enumerate(rows)]
    all_features = np.concatenate([np.repeat(prompt_features, 2, axis=0), features], axis=1)
    expected, _ = prefill(params, *padded(whole, width), all_features)
    for b, row in enumerate(rows):
        start = len(prompts[b // 2])
        np.testing.assert_allclose(prompt_hidden[b // 2, :start], expected[b, :start], atol=1e-5)
        np.testing.assert_allclose(np.concatenate(got[b]), expected[b, start : start + sum(map(len, row))], atol=1e-5)
    assert suffix.length.tolist() == [sum(map(len, row)) for row in rows]
    assert seen.tolist() == [3, 0, 2, 2]


def test_a_row_that_draws_nothing_reads_one_key(decoder, monkeypatch):
    """A kernel that reads live keys only must not read all of those whose turn is over."""
    asked, attend = [], decoder_lib.live_attention
    monkeypatch.setattr(
        decoder_lib, "live_attention", lambda *inputs, **kernel: asked.append(inputs[3]) or attend(*inputs, **kernel)
    )
    cache = Suffix.empty(CONFIG, 3, T, jnp.float32)._replace(length=jnp.array([2, 0, 3]))
    nnx.merge(*decoder)(noise(3, 1, D), counted(3, 1), cache=cache, count_B=jnp.array([1, 0, 0]))
    assert [length_B.tolist() for length_B in asked] == [[3, 1, 1]] * CONFIG.num_hidden_layers
