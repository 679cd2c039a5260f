import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mvg_jax.models.decoder import Suffix
from mvg_jax.models.layers import QUERIES, by_positions
from tests.tiny_world import CONFIG, model


@pytest.mark.parametrize("size", [0, 1, 3, 7, 9])
def test_positions_in_parts_give_what_they_give_together(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 3)), jnp.float32)
    y = jnp.arange(14).reshape(2, 7)
    most = []

    def f(x_BxTx3, y_BxT):
        most.append(x_BxTx3.shape[1])
        return {"a": jnp.sin(x_BxTx3), "b": y_BxT * 2}

    out = by_positions(f, size, x, y)
    np.testing.assert_allclose(out["a"], np.sin(x), atol=1e-6)
    np.testing.assert_array_equal(out["b"], y * 2)
    assert set(most) == {size if 0 < size < 7 else 7}
    gradient = jax.grad(lambda x: by_positions(f, size, x, y)["a"].sum())(x)
    np.testing.assert_allclose(gradient, np.cos(x), atol=1e-6)


def test_long_rows_attend_as_short_ones_do(monkeypatch):
    """A row of more than QUERIES tokens, whole and with a cache, against the pass whose scores all exist at once."""
    T = QUERIES + 37
    decoder = nnx.merge(*model()).language_model
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, T, CONFIG.text.hidden_size)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(T)[None], (2, T))
    count = jnp.array([T, T - 50])

    def run():
        whole, _ = decoder(x, positions, count_B=count)
        cache = Suffix.empty(CONFIG.text, 2, T + 5, jnp.float32)
        cached, _ = decoder(x, positions, cache=cache, count_B=count)
        return whole, cached

    parts = run()
    monkeypatch.setattr("mvg_jax.models.decoder.QUERIES", 0)
    for part, full in zip(parts, run(), strict=True):
        np.testing.assert_allclose(part[0], full[0], atol=2e-5)
        np.testing.assert_allclose(part[1, : T - 50], full[1, : T - 50], atol=2e-5)
