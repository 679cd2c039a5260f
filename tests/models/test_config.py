import math

import jax
import pytest
from flax import nnx

from mvg_jax.models import config
from mvg_jax.models.internvl import InternVL


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (config.tiny(1664, 5), 1_429_120),
        (config.internvl3_1b(), 938_193_024),
        (config.internvl3_8b(), 7_944_373_760),
    ],
)
def test_the_shapes_have_their_published_sizes(shape, parameters):
    """InternVL3-1B and -8B are published as 0.94 and 7.94 billion; nothing is allocated here."""
    state = nnx.state(nnx.eval_shape(lambda: InternVL(shape, nnx.Rngs(0))), nnx.Param)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)) == parameters
    assert shape.tokens_per_image == (16 if shape.vision.image_size == 64 else 256)
