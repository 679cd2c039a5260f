import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvg_jax.data.phantom import patterns, views
from mvg_jax.data.phantom.scene import SIDE, Lesion


@pytest.mark.parametrize("low_high", [(0.0, 512.0), (0.0, 81.92), (430.08, 512.0), (163.84, 245.76), (100.0, 356.0)])
def test_weights_are_those_of_scale_and_translate(low_high):
    low, high = low_high
    image = np.random.default_rng(0).normal(0, 100, (SIDE, SIDE)).astype(np.float32)
    scale = views.VIEW / (high - low)
    want = jax.image.scale_and_translate(
        jnp.asarray(image), (views.VIEW, views.VIEW), (0, 1), jnp.full(2, scale), jnp.full(2, -low * scale), "linear",
        antialias=True, precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    w = views.weights(SIDE, low, high, views.VIEW)
    np.testing.assert_allclose(views.sample(image, w, w), want, atol=2e-2)


@pytest.mark.parametrize("kind", [*patterns.ATTRIBUTES, *patterns.COUNTS])
def test_no_overview_shows_a_pattern(kind):
    lesion = Lesion("liver", 171.3, 214.9, 13.0, 60.0, kind, 0.7, (0.3, -0.2, 0.9, -0.5, 0.1, 0.4))
    image = np.zeros((SIDE, SIDE))
    y, x = patterns.window_start(lesion)
    image[y : y + patterns.WINDOW, x : x + patterns.WINDOW] = patterns.pattern(lesion)
    d = views.weights(SIDE, 0, SIDE, views.VIEW)
    assert np.abs(d @ image @ d.T).max() < 1e-9
    if kind != "homogeneous":
        zoom = [views.weights(SIDE, c - 41, c + 41, views.VIEW) for c in (lesion.y, lesion.x)]
        assert np.abs(views.sample(image, *zoom)).max() > 80  # HU
