import jax.numpy as jnp
import numpy as np
import pytest

from mvg_jax import config
from mvg_jax.errors import RunError
from mvg_jax.rl.optimizer import make_optimizer


def steps(c: config.Optimizer, total: int, gradient: float = 0.5, start: float = 1.0) -> list[float]:
    """How far one weight moves in each of `total` updates: Adam walks by the learning rate under a steady gradient."""
    optimizer, weight = make_optimizer(c, total), jnp.array([start])
    state, moves = optimizer.init(weight), []
    for _ in range(total):
        move, state = optimizer.update(jnp.array([gradient]), state, weight)
        moves.append(float(move[0]))
        weight = weight + move
    return moves


def test_constant_rate_after_linear_warm_up():
    got = steps(config.Optimizer(learning_rate=0.04, warmup_steps=4), 8)
    np.testing.assert_allclose(got, -0.04 * np.array([0, 0.25, 0.5, 0.75, 1, 1, 1, 1]), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(steps(config.Optimizer(learning_rate=0.04), 3), [-0.04] * 3, rtol=1e-4)


def test_cosine_ends_at_zero():
    got = steps(config.Optimizer(learning_rate=0.1, warmup_steps=2, schedule="cosine"), 11)
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(9) / 9))
    np.testing.assert_allclose(got, -np.array([0, 0.05, *cosine]), rtol=1e-3, atol=1e-6)
    assert abs(got[-1]) < 0.005


def test_weights_decay_towards_zero():
    got = steps(config.Optimizer(learning_rate=0.01, weight_decay=0.5), 1, gradient=0.0, start=3.0)
    assert got[0] == pytest.approx(-0.01 * 0.5 * 3.0)


def test_gradients_are_clipped_by_their_global_norm():
    """A spike does not fill Adam's memory: after it, steps are as large as before."""
    optimizer = make_optimizer(config.Optimizer(learning_rate=0.1, clip_norm=1.0, b2=0.5), 10)
    weight = jnp.zeros(2)
    state = optimizer.init(weight)
    _, spiked = optimizer.update(jnp.array([3000.0, 4000.0]), state, weight)
    after, _ = optimizer.update(jnp.array([0.6, 0.8]), spiked, weight)
    np.testing.assert_allclose(after, -0.1, rtol=1e-3)


def test_unknown_schedules_are_refused():
    with pytest.raises(RunError, match=r"optimizer.schedule 'linear': use one of constant, cosine"):
        make_optimizer(config.Optimizer(schedule="linear"), 10)
