import numpy as np
import pytest

from mvg_jax.rl.advantages import group_advantages

REWARDS = np.array([[1.0, 0.0, 0.1, 1.1], [0.1, 0.1, 0.1, 0.1], [0.7, 0.7, 0.7, 0.8]], np.float32)


def test_advantages_are_centred_by_group():
    got = np.asarray(group_advantages(REWARDS, "none"))
    np.testing.assert_allclose(got, REWARDS - REWARDS.mean(axis=1, keepdims=True), atol=1e-6)


def test_std_scales_by_group():
    rewards = REWARDS.astype(np.float64)
    expected = (rewards - rewards.mean(axis=1, keepdims=True)) / (rewards.std(axis=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(group_advantages(REWARDS, "std"), expected, atol=1e-5)


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("group", [3, 7, 8])
def test_groups_without_signal_are_exactly_zero(scale, group):
    """Means of equal floats are off by an ulp, which division by a tiny deviation would blow up."""
    rewards = np.repeat(np.array([[0.1], [1.1], [-0.3], [1 / 3], [0.0]], np.float32), group, axis=1)
    np.testing.assert_array_equal(group_advantages(rewards, scale), np.zeros_like(rewards))


def test_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="'rank'"):
        group_advantages(REWARDS, "rank")
