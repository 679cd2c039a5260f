import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvg_jax.models.layers import MASKED
from mvg_jax.rollout import sampling
from mvg_jax.rollout.sampling import Sampling, policy_logits, row_keys, token_uniform

V = 12
NONE = np.zeros(V, bool)
draw_filtered = jax.jit(sampling.draw)
kept = jax.jit(sampling.kept)


def draw(logits, name, position, temperature, banned):
    return draw_filtered(logits, name, position, Sampling.of(temperature), banned)


def names(rows: int, seed: int = 0) -> np.ndarray:
    return row_keys(seed, 3, ["a"] * rows, np.arange(rows))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def test_policy_logits_divide_by_each_rows_temperature():
    logits = np.random.default_rng(0).normal(size=(3, V)).astype(np.float32)
    got = policy_logits(logits, jnp.array([0.5, 0.0, 2.0]), jnp.asarray(NONE))
    np.testing.assert_allclose(got, logits / np.array([[0.5], [1.0], [2.0]]), rtol=1e-6)


def test_policy_logits_of_whole_rows_ban_and_are_float32():
    logits = jnp.ones((2, 5, V), jnp.bfloat16)
    banned = np.arange(V) == 4
    got = policy_logits(logits, jnp.array([0.5, 1.0]), banned[None, None])
    assert got.dtype == jnp.float32
    assert (got[:, :, 4] < -1e29).all()
    np.testing.assert_array_equal(got[:, :, :4], np.broadcast_to([[[2.0]], [[1.0]]], (2, 5, 4)))


def test_frequencies_follow_the_distribution():
    rows = 20_000
    rng = np.random.default_rng(1)
    logits, banned = rng.normal(size=V).astype(np.float32) * 1.5, np.arange(V) % 5 == 0
    token, _ = draw(jnp.tile(logits, (rows, 1)), names(rows), jnp.zeros(rows, jnp.int32), jnp.full(rows, 0.7), banned)
    expected = rows * np.exp(log_softmax(np.where(banned, -np.inf, logits / 0.7)))
    counts = np.bincount(token, minlength=V)
    assert (counts[banned] == 0).all()
    chi2 = ((counts - expected)[~banned] ** 2 / expected[~banned]).sum()
    assert chi2 < 26.1  # P = 0.001 at 8 degrees of freedom; the seed is fixed


def test_log_prob_is_that_of_the_distribution_drawn_from():
    rows = 64
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(rows, V)).astype(np.float32) * 3
    temperature = rng.uniform(0.3, 2, rows).astype(np.float32)
    banned = np.arange(V) < 3
    token, logprob = draw(logits, names(rows), np.zeros(rows, np.int32), temperature, banned)
    expected = log_softmax(np.where(banned, -np.inf, logits / temperature[:, None]))
    np.testing.assert_allclose(logprob, expected[np.arange(rows), token], atol=1e-5)


def test_temperature_zero_takes_the_likeliest_legal_token():
    rows = 50
    logits = np.random.default_rng(3).normal(size=(rows, V)).astype(np.float32)
    logits[:, 7] = 10.0
    banned = np.arange(V) == 7
    token, _ = draw(logits, names(rows), np.zeros(rows, np.int32), np.zeros(rows, np.float32), banned)
    np.testing.assert_array_equal(token, np.where(banned, -np.inf, logits).argmax(1))
    assert len(set(token.tolist())) > 5


def test_rows_differ_in_temperature_within_a_batch():
    logits = np.tile(np.linspace(0, 1, V, dtype=np.float32), (400, 1))
    token, _ = draw(logits, names(400), np.zeros(400, np.int32), np.repeat([0.0, 1.0], 200).astype(np.float32), NONE)
    assert (token[:200] == V - 1).all()
    assert len(set(token[200:].tolist())) == V


def test_tokens_of_probability_zero_are_never_drawn(monkeypatch):
    """At the very edges of the cumulative sum too, where XLA's tree of additions makes it move by an ulp."""
    rng = np.random.default_rng(0)
    size = 1000
    banned = rng.random(size) < 0.5
    banned[[0, -1]] = True
    banned[256:400] = True  # a block of the sampler's sum and more
    logits = np.where(banned, -1e30, rng.normal(size=size)).astype(np.float32)
    weights = jnp.exp(jax.nn.log_softmax(logits[None]))
    cumulative = np.asarray(jnp.cumsum(weights, axis=1))[0]
    blocks = jnp.cumsum(jnp.pad(weights, ((0, 0), (0, 24))).reshape(8, 128).sum(axis=1))
    within = jnp.cumsum(jnp.pad(weights, ((0, 0), (0, 24))).reshape(8, 128), axis=1)
    two_levels = np.asarray((blocks - blocks[0])[:, None] + within).reshape(-1) / float(blocks[-1])
    edges = np.unique(np.concatenate([cumulative / cumulative[-1], two_levels, blocks, [0.0, 1 - 2**-23]]))
    edges = edges.astype(np.float32)
    edges = np.unique(np.concatenate([np.nextafter(edges, 0), edges, np.nextafter(edges, 2)]))
    edges = edges[(edges >= 0) & (edges < 1)]
    monkeypatch.setattr(sampling, "token_uniform", lambda name, position: jnp.asarray(edges)[position])
    rows = len(edges)
    token, logprob = jax.jit(lambda *args: sampling.draw(*args))(  # traced anew: the noise is another
        jnp.tile(logits, (rows, 1)), names(rows), jnp.arange(rows), Sampling.of(np.ones(rows)), banned
    )
    assert rows > 1000
    assert not banned[np.asarray(token)].any()
    assert np.isfinite(logprob).all()
    assert (logprob > -1e3).all()


def uniforms(name_Bx4: np.ndarray, position_B: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(token_uniform)(name_Bx4, position_B))


@pytest.mark.parametrize("size", [1, 128, 1649])
def test_the_token_is_where_the_cumulative_sum_passes_the_uniform(size):
    rows = 500
    rng = np.random.default_rng(size)
    logits = (rng.normal(size=(rows, size)) * rng.uniform(0.1, 5, (rows, 1))).astype(np.float32)
    position = np.arange(rows)
    token, logprob = draw(logits, names(rows), position, np.ones(rows), np.zeros(size, bool))
    uniform = uniforms(names(rows), position).astype(np.float64)
    likely = log_softmax(logits)
    cumulative = np.cumsum(np.exp(likely), axis=1)
    expected = np.minimum((cumulative <= uniform[:, None]).sum(axis=1), size - 1)
    on_an_edge = np.abs(cumulative - uniform[:, None]).min(axis=1) < 1e-6
    assert on_an_edge.mean() < 0.02
    np.testing.assert_array_equal(np.where(on_an_edge, expected, token), expected)
    np.testing.assert_allclose(logprob, likely[position, token], atol=2e-6, rtol=1e-6)


# ---- top-k and top-p ---------------------------------------------------------------------------------------------------


def sorted_reference(policy: np.ndarray, k: int, p: float) -> tuple[np.ndarray, float]:
    """The tokens [V] that top-k, then top-p leave, by sorting in float64; how near to p a mass comes that decides."""
    below = (policy.max() - policy).astype(np.float64)  # in float32: what is equal there is equally likely
    order = np.argsort(below, kind="stable")
    if 0 < k < len(policy):
        order = order[below[order] <= below[order[k - 1]]]
    weight = np.exp(-below[order])
    likelier = np.searchsorted(below[order], below[order], side="left")  # how many are, of each
    mass = np.concatenate([[0.0], np.cumsum(weight)])[likelier] / weight.sum()
    chosen = order[mass < p] if p < 1 else order
    return np.isin(np.arange(len(policy)), chosen), np.abs(mass - p)[mass > 0].min(initial=1.0)


def adversarial(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Rows of logits that a filter may get wrong."""
    normal = rng.normal(size=size) * 3
    one_hot = np.full(size, -40.0)
    one_hot[size // 2] = 40.0
    rows = {
        "normal": normal,
        "flat": normal * 1e-3,
        "peaked": normal * 30,
        "all equal": np.full(size, 3.25),
        "zeros of both signs": np.where(rng.random(size) < 0.5, 0.0, -0.0),
        "one-hot": one_hot,
        "ties": np.round(normal),
        "two values": np.where(rng.random(size) < 0.3, 1.0, 2.0),
        "neighbours": 1 + np.arange(size) * 2.0**-23,
        "far from 0": normal + 1e4,
        "huge": normal * 1e10,
        "tiny": normal * 1e-30,  # XLA takes subnormal numbers as 0
        "half banned": np.where(rng.random(size) < 0.5, MASKED, normal),
        "all but one banned": np.where(np.arange(size) == 2, 1.0, MASKED),
    }
    return {name: row.astype(np.float32) for name, row in rows.items()}


@pytest.mark.parametrize("size", [3, 40, 1649])
def test_filters_keep_what_sorting_keeps(size):
    rows = adversarial(np.random.default_rng(size), size)
    policy = np.stack(list(rows.values()))
    decided = 0
    for k in (0, 1, 2, 7, size - 1, size, 10 * size):
        for p in (1.0, 1e-9, 0.1, 0.5, 0.9, 0.999):
            got = np.asarray(kept(policy, np.full(len(rows), k, np.int32), np.full(len(rows), p, np.float32)))
            for row, (name, logits) in enumerate(rows.items()):
                expected, margin = sorted_reference(logits, k, p)
                live = logits > MASKED  # whether a token of probability 0 is kept makes no difference
                if p == 1 or margin > 2e-6:
                    decided += 1
                    np.testing.assert_array_equal(got[row, live], expected[live], err_msg=f"{name}, k={k}, p={p}")
                assert got[row, logits.argmax()]
    assert decided > 0.85 * 7 * 6 * len(rows)


def test_filters_agree_with_sorting_on_many_random_rows():
    rng = np.random.default_rng(5)
    rows = 400
    policy = (rng.normal(size=(rows, 200)) * rng.uniform(0.01, 8, (rows, 1))).astype(np.float32)
    k, p = rng.integers(0, 220, rows).astype(np.int32), rng.uniform(0.01, 1, rows).astype(np.float32)
    p[::5], k[::7] = 1.0, 0
    found = [sorted_reference(policy[b], int(k[b]), float(p[b])) for b in range(rows)]
    clear = np.array([margin > 2e-6 or p[b] == 1 for b, (_, margin) in enumerate(found)])
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(np.asarray(kept(policy, k, p))[clear], np.stack([x for x, _ in found])[clear])


def test_equally_likely_tokens_stay_or_go_together():
    policy = np.array([[2.0, 1.0, 2.0, 1.0, 0.0, 1.0]], np.float32)
    keeps = lambda k, p: np.flatnonzero(np.asarray(kept(policy, np.array([k], np.int32), np.array([p], np.float32)))[0])
    np.testing.assert_array_equal(keeps(1, 1.0), [0, 2])
    np.testing.assert_array_equal(keeps(3, 1.0), [0, 1, 2, 3, 5])
    np.testing.assert_array_equal(keeps(0, 0.5), [0, 2])  # of 2e² + 3e + 1 they hold 0.62
    np.testing.assert_array_equal(keeps(0, 0.7), [0, 1, 2, 3, 5])
    np.testing.assert_array_equal(keeps(6, 0.99), range(6))


def test_top_p_counts_the_mass_that_top_k_left():
    policy = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
    only_p = kept(policy, np.array([0], np.int32), np.array([0.5], np.float32))
    both = kept(policy, np.array([2], np.int32), np.array([0.5], np.float32))
    np.testing.assert_array_equal(only_p, [[True, True, False, False]])
    np.testing.assert_array_equal(both, [[True, False, False, False]])  # 0.4 of 0.7


def test_a_logit_that_is_no_number_shows():
    policy = np.array([[1.0, np.nan, 0.0]], np.float32)
    banned, sampling_ = np.zeros(3, bool), Sampling.of([1.0], top_k=1)
    _, logprob = draw_filtered(policy, names(1), np.zeros(1, np.int32), sampling_, banned)
    assert np.isnan(logprob).all()


def test_filtered_draws_follow_the_renormalised_distribution():
    rows = 20_000
    logits = np.random.default_rng(1).normal(size=V).astype(np.float32) * 2
    banned = np.arange(V) == logits.argmax()
    legal = np.where(banned, MASKED, logits / np.float32(0.7)).astype(np.float32)
    expected, _ = sorted_reference(legal, 6, 0.9)
    token, logprob = draw_filtered(
        jnp.tile(logits, (rows, 1)), names(rows), np.zeros(rows, np.int32),
        Sampling.of(np.full(rows, 0.7), top_k=6, top_p=0.9), banned,
    )  # fmt: skip
    likely = log_softmax(np.where(expected, legal, -np.inf))
    counts = np.bincount(token, minlength=V)
    assert 2 < expected.sum() < 6
    assert counts[~expected].sum() == 0
    np.testing.assert_allclose(logprob, likely[np.asarray(token)], atol=2e-6)
    share = np.exp(likely[expected])
    chi2 = ((counts[expected] - rows * share) ** 2 / (rows * share)).sum()
    assert chi2 < 16.3  # P = 0.001 at 3 degrees of freedom; the seed is fixed


def test_rows_without_a_filter_and_greedy_rows_draw_the_same_beside_rows_with_one():
    rows, size = 60, 300
    logits = np.random.default_rng(2).normal(size=(rows, size)).astype(np.float32)
    temperature = np.tile(np.array([1.0, 0.0, 0.6], np.float32), 20)
    args = logits, names(rows), np.arange(rows)
    plain = draw(*args, temperature, np.zeros(size, bool))
    mixed = Sampling(
        temperature, np.where(np.arange(rows) % 3 == 0, 0, 4).astype(np.int32), np.ones(rows, np.float32)
    )  # the first of each three has no filter, the second is greedy
    token, logprob = draw_filtered(*args, mixed, np.zeros(size, bool))
    same = np.arange(rows) % 3 < 2
    np.testing.assert_array_equal(np.asarray(token)[same], np.asarray(plain[0])[same])
    np.testing.assert_array_equal(np.asarray(logprob)[same], np.asarray(plain[1])[same])
    top = np.argsort(-logits, axis=1)[:, :4]
    assert all(token[b] in top[b] for b in np.flatnonzero(~same))
    assert (np.asarray(logprob)[~same] > np.asarray(plain[1])[~same]).mean() > 0.5


def test_other_filters_compile_nothing():
    args = np.zeros((4, 9), np.float32), names(4), np.arange(4)
    banned = np.zeros(9, bool)
    draw_filtered(*args, Sampling.of(np.ones(4)), banned)
    compiled = draw_filtered._cache_size()
    for k, p in ((3, 1.0), (0, 0.4), (2, 0.9)):
        draw_filtered(*args, Sampling.of(np.ones(4), k, p), banned)
    assert draw_filtered._cache_size() == compiled


def test_noise_depends_on_its_name_alone():
    tasks, sample, position = ["a", "b", "a", "c"], np.array([0, 0, 1, 5]), np.array([0, 9, 9, 3])
    noise = uniforms(row_keys(1, 2, tasks, sample), position)
    order = [2, 0, 3]
    again = uniforms(row_keys(1, 2, [tasks[i] for i in order], sample[order]), position[order])
    np.testing.assert_array_equal(again, noise[order])
    assert ((noise >= 0) & (noise < 1)).all()


@pytest.mark.parametrize("part", ["seed", "step", "task", "sample", "position"])
def test_noise_differs_in_every_part_of_its_name(part):
    def noise(seed=1, step=1, task="1", sample=1, position=1):
        return uniforms(row_keys(seed, step, [task], np.array([sample])), np.array([position]))[0]

    values = {noise()} | {float(noise(**{part: str(i) if part == "task" else i})) for i in range(2, 7)}
    assert len(values) == 6


def test_parts_of_a_name_do_not_stand_in_for_each_other():
    noise = [uniforms(np.array([[*part[:4]]], np.uint32), np.array(part[4:]))[0] for part in 9 * np.eye(5, dtype=int)]
    assert len(set(noise)) == 5


def test_a_row_of_nan_draws_an_id_of_the_vocabulary_and_shows():
    logits = jnp.full((1, 256), jnp.nan)
    token, logprob = draw(logits, names(1), np.zeros(1, np.int32), np.ones(1), np.zeros(256, bool))
    assert 0 <= int(token[0]) < 256
    assert np.isnan(logprob[0])
