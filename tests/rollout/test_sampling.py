import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvg_jax.rollout import sampling
from mvg_jax.rollout.sampling import policy_logits, row_keys, token_uniform

V = 12
NONE = np.zeros(V, bool)
draw = jax.jit(sampling.draw)


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
    logits = np.where(banned, -1e30, rng.normal(size=size)).astype(np.float32)
    cumulative = np.asarray(jnp.cumsum(jnp.exp(jax.nn.log_softmax(logits[None])), axis=1))[0]
    edges = np.unique(np.concatenate([cumulative / cumulative[-1], [0.0, 1 - 2**-23]])).astype(np.float32)
    edges = np.unique(np.concatenate([np.nextafter(edges, 0), edges, np.nextafter(edges, 2)]))
    edges = edges[(edges >= 0) & (edges < 1)]
    monkeypatch.setattr(sampling, "token_uniform", lambda name, position: jnp.asarray(edges)[position])
    rows = len(edges)
    token, logprob = sampling.draw(jnp.tile(logits, (rows, 1)), names(rows), jnp.arange(rows), jnp.ones(rows), banned)
    assert rows > 1000
    assert not banned[np.asarray(token)].any()
    assert np.isfinite(logprob).all()
    assert (logprob > -1e3).all()


def uniforms(name_Bx4: np.ndarray, position_B: np.ndarray) -> np.ndarray:
    return np.asarray(jax.vmap(token_uniform)(name_Bx4, position_B))


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
