"""Questions about one image and about two, in one batch."""

import dataclasses

import numpy as np
import pytest

from mvg_jax.errors import RunError
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.policies import SampledPolicy
from mvg_jax.rollout.scheduler import Phases, rollout
from tests import tiny_world
from tests.tiny_world import LETTERS, VOCABULARY, plain_logprobs, task


def wide_world(images: int):
    narrow = tiny_world.world(2)
    shapes = dataclasses.replace(narrow.shapes, prompt_images=images, prompt_length=48)
    return dataclasses.replace(narrow, shapes=shapes)


def play(tasks, images: int):
    world = wide_world(images)
    engine = Engine(tiny_world.model()[0], world.shapes, VOCABULARY.end_of_turn, LETTERS)
    policy = SampledPolicy(
        engine,
        engine.weights(tiny_world.model()[1]),
        seed=0,
        step=0,
        sample_B=np.arange(4) % 2,
        temperature_B=np.ones(4),
    )
    return rollout(world, policy, world.prepare(tasks, tools_on=True), Phases())[0]


def two_images(i: int):
    return dataclasses.replace(task(i), images=task(i).images + task(i + 50).images)


@pytest.fixture(scope="module")
def mixed():
    return play([task(0), two_images(1)], images=2)


def test_a_question_about_one_image_is_played_the_same_beside_others(mixed):
    alone = play([task(0), task(1)], images=1)
    rows = slice(0, 2)
    np.testing.assert_array_equal(mixed.tokens_BxL[rows], alone.tokens_BxL[rows])
    np.testing.assert_allclose(mixed.logprob_BxL[rows], alone.logprob_BxL[rows], atol=1e-5)


def test_each_image_of_a_question_is_seen(mixed):
    """Against whole rows run plainly, with the images in order."""
    own = slice(2, 4)
    whole = dataclasses.replace(
        mixed,
        **{
            f.name: getattr(mixed, f.name)[1:] if f.name.startswith("prompt") else getattr(mixed, f.name)[own]
            for f in dataclasses.fields(mixed)
            if isinstance(getattr(mixed, f.name), np.ndarray)
        },
    )
    expected = np.take_along_axis(plain_logprobs(whole, 1.0, LETTERS), whole.tokens_BxL[..., None], axis=2)[..., 0]
    mask = whole.loss_mask_BxL
    np.testing.assert_allclose(whole.logprob_BxL[mask], expected[mask], atol=1e-4)
    swapped = dataclasses.replace(whole, prompt_views_PxNxSxSx3=whole.prompt_views_PxNxSxSx3[:, ::-1])
    other = np.take_along_axis(plain_logprobs(swapped, 1.0, LETTERS), whole.tokens_BxL[..., None], axis=2)[..., 0]
    assert np.abs(other[mask] - expected[mask]).max() > 1e-3


def test_more_images_than_the_shapes_hold_are_refused():
    with pytest.raises(RunError, match="and 2 images do not fit 48 and 1"):
        wide_world(1).prepare([task(0), two_images(1)], tools_on=True)
