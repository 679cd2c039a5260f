import jax
import numpy as np
import pytest

from mvg_jax.rl.objective import Objective, policy_loss

LOW, HIGH = 0.2, 0.28
ADVANTAGE = np.array([1.5, -0.7, 0.9, -2.0, 0.0, 1.0])
MASK = np.array([[1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 1, 0],
                 [1, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]], bool)  # fmt: skip


def reference(objective: Objective, logprob, behaviour, reference_logprob):
    """Slow float64: (loss, tokens or rows' tokens clipped at the lower side, at the upper side)."""
    loss, low, high = 0.0, 0, 0
    for b in range(len(ADVANTAGE)):
        tokens = np.flatnonzero(MASK[b])
        if objective.ratio == "sequence" and len(tokens):
            row_ratio = np.exp(np.mean([logprob[b, t] - behaviour[b, t] for t in tokens]))
        for t in tokens:
            ratio = row_ratio if objective.ratio == "sequence" else np.exp(logprob[b, t] - behaviour[b, t])
            bounded = min(max(ratio, 1 - objective.clip_low), 1 + objective.clip_high)
            loss -= min(ratio * ADVANTAGE[b], bounded * ADVANTAGE[b])
            low += ADVANTAGE[b] < 0 and ratio < 1 - objective.clip_low
            high += ADVANTAGE[b] > 0 and ratio > 1 + objective.clip_high
            gap = reference_logprob[b, t] - logprob[b, t]
            loss += objective.kl * (np.exp(gap) - gap - 1)
    return loss, low, high


def case(ratio: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probs under the policy, the behaviour policy and the reference; ratios on both sides of both clips."""
    rng = np.random.default_rng(4)
    behaviour = -rng.uniform(0.5, 3.0, MASK.shape)
    if ratio == "token":
        gap = rng.uniform(-0.6, 0.6, MASK.shape)
    else:
        gap = rng.uniform(-0.2, 0.2, MASK.shape) + np.array([[0.5], [-0.5], [-0.4], [0.4], [0.1], [0.0]])
    return behaviour + gap, behaviour, behaviour + rng.uniform(-0.5, 0.5, MASK.shape)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_value_and_gradient_follow_a_slow_reference(ratio, kl):
    objective = Objective(ratio=ratio, clip_low=LOW, clip_high=HIGH, kl=kl)
    logprob, behaviour, other = case(ratio)
    expected, low, high = reference(objective, logprob, behaviour, other)
    assert low > 0
    assert high > 0
    assert low + high < MASK.sum()

    def loss(x):
        return policy_loss(
            objective, x, behaviour.astype(np.float32), other.astype(np.float32), ADVANTAGE.astype(np.float32), MASK
        )

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(logprob.astype(np.float32))
    assert value == pytest.approx(expected, rel=1e-5)
    assert sums["clip_fraction"] == low + high
    slow = np.zeros_like(logprob)
    for index in np.ndindex(*logprob.shape):
        step = np.zeros_like(logprob)
        step[index] = 1e-5
        up, down = (reference(objective, logprob + sign * step, behaviour, other)[0] for sign in (1, -1))
        slow[index] = (up - down) / 2e-5
    np.testing.assert_allclose(gradient, slow, atol=2e-5)
    assert (np.asarray(gradient)[~MASK] == 0).all()


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_what_is_outside_of_the_mask_does_not_count(ratio):
    objective, rng = Objective(ratio=ratio, kl=0.1), np.random.default_rng(0)
    arrays = case(ratio)
    others = [np.where(MASK, x, -rng.uniform(0, 3, MASK.shape)) for x in arrays]
    assert policy_loss(objective, *others, ADVANTAGE, MASK)[0] == policy_loss(objective, *arrays, ADVANTAGE, MASK)[0]


def test_statistics_of_the_behaviour_policy_are_zero():
    _, behaviour, other = case("token")
    _, sums = policy_loss(Objective(), behaviour, behaviour, other, ADVANTAGE, MASK)
    assert sums["clip_fraction"] == 0
    assert sums["kl_behaviour"] == 0
    assert sums["kl_reference"] > 0


def test_kl_estimates_are_k3():
    logprob, behaviour, other = case("token")
    _, sums = policy_loss(Objective(), logprob, behaviour, other, ADVANTAGE, MASK)
    gap = (logprob - behaviour)[MASK]
    assert sums["kl_behaviour"] == pytest.approx((np.exp(gap) - 1 - gap).sum(), rel=1e-4)
    gap = (other - logprob)[MASK]
    assert sums["kl_reference"] == pytest.approx((np.exp(gap) - 1 - gap).sum(), rel=1e-4)


@pytest.mark.parametrize(
    "bad", [{"ratio": "row"}, {"clip_low": 1.0}, {"clip_low": 0.0}, {"clip_high": 0.0}, {"kl": -0.1}]
)
def test_illegal_objectives_are_refused(bad):
    with pytest.raises(ValueError, match="objective"):
        Objective(**bad)
