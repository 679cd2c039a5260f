import jax
import numpy as np
import pytest
from flax import nnx

from mvg_jax.models.vision import pixel_shuffle
from tests import tiny_world


@pytest.mark.parametrize(("grid", "side"), [(4, 2), (6, 3), (4, 1)])
def test_pixel_shuffle_folds_blocks_row_by_row(grid, side):
    D = 3
    x = np.random.default_rng(0).normal(size=(2, grid, grid, D)).astype(np.float32)
    expected = np.zeros((2, (grid // side) ** 2, side * side * D), np.float32)
    for n in range(2):
        for i in range(grid):
            for j in range(grid):
                token = (i // side) * (grid // side) + j // side
                place = (i % side) * side + j % side
                expected[n, token, place * D : (place + 1) * D] = x[n, i, j]
    np.testing.assert_array_equal(pixel_shuffle(x, 1 / side), expected)


def test_embed_puts_features_in_order():
    graph, params = tiny_world.model()
    model = nnx.merge(graph, params)
    image, D = tiny_world.VOCABULARY.image, tiny_world.CONFIG.text.hidden_size
    features = np.random.default_rng(0).normal(size=(2, 3, 2, D)).astype(np.float32)  # 3 images of 2 tokens
    tokens = np.array([[5, image, image, 6, image, image, image, image], [image, image, 7, 7, 8, 9, 0, 0]])
    got = np.asarray(model.embed(tokens, features))
    words = np.asarray(params["language_model"]["embed_tokens"]["embedding"][...])
    for b in range(2):
        images = iter(features[b].reshape(-1, D))
        expected = [next(images) if token == image else words[token] for token in tokens[b]]
        np.testing.assert_array_equal(got[b], expected)


def test_views_are_encoded_one_by_one():
    """An image's features do not depend on what else is in the batch, and differ between images."""
    graph, params = tiny_world.model()
    encode = jax.jit(lambda views: nnx.merge(graph, params).encode_images(views))
    views = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    features = np.asarray(encode(views))
    assert features.shape == (3, tiny_world.E, tiny_world.CONFIG.text.hidden_size)
    np.testing.assert_allclose(encode(views[[2, 0, 2]]), features[[2, 0, 2]], atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 0.1


def test_tokens_of_a_view_run_row_by_row():
    """What shows in the top right quarter stands in the second of 2 x 2 tokens."""
    graph, params = tiny_world.model()
    encode = jax.jit(lambda views: nnx.merge(graph, params).patch_features(views))
    views = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    views[1] = views[0]
    views[1, :8, 8:] = 255 - views[0, :8, 8:]
    before, after = np.asarray(encode(views))
    assert np.abs(after - before).mean(axis=1).argmax() == 1


def test_weights_are_strongly_typed():
    """A weakly typed weight becomes a strong one in the first update, and the second compiles anew."""
    assert not [path for path, leaf in nnx.to_flat_state(tiny_world.model()[1]) if leaf[...].weak_type]
