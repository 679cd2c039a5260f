import dataclasses

import numpy as np
import pytest

from mvg_jax.data.fit import Bucket
from mvg_jax.data.images import BadImage
from mvg_jax.data.task import NativeImage, Task

GREY = Bucket(height=32, width=40, channels=1, bits=16, images=2)
COLOUR = dataclasses.replace(GREY, channels=3, bits=8)


def one(*images: NativeImage) -> Task:
    return Task("t", "t", "t", images, "?", "yes")


def test_what_fits_is_left_alone():
    task = one(NativeImage(np.zeros((32, 40), np.uint16)))
    assert GREY.fit(task) is task


def test_larger_images_shrink_to_the_bucket_and_keep_their_shape_and_scale():
    ramp = np.arange(64 * 60, dtype=np.uint16).reshape(64, 60)
    small = GREY.fit(one(NativeImage(ramp, spacing_mm=0.5))).images[0]
    assert small.pixels.shape == (32, 30)
    assert small.pixels.dtype == np.uint16
    assert small.spacing_mm == 1.0
    assert np.abs(small.pixels - ramp.reshape(32, 2, 30, 2).mean(axis=(1, 3))).max() <= 0.5


def test_grey_becomes_colour_and_16_bits_become_what_their_window_shows():
    hu = NativeImage(np.array([[24, 1024, 1064, 3024]], np.uint16), (-160.0, 240.0), 1.0, -1024.0, "HU")
    shown = COLOUR.fit(one(hu)).images[0]
    assert shown.pixels.shape == (1, 4, 3)
    assert shown.pixels[0, :, 0].tolist() == [0, 102, 128, 255]
    assert (shown.window, shown.slope, shown.intercept, shown.unit) == ((0.0, 255.0), 1.0, 0.0, "grey")


def test_8_bits_in_16_keep_their_values():
    task = GREY.fit(one(NativeImage(np.array([[3, 250]], np.uint8))))
    assert task.images[0].pixels.dtype == np.uint16
    assert task.images[0].pixels.tolist() == [[3, 250]]
    assert task.images[0].window == (0.0, 255.0)


def test_colour_does_not_fit_grey_and_too_many_images_fit_nothing():
    with pytest.raises(BadImage, match=r"config\.data\.channels"):
        GREY.fit(one(NativeImage(np.zeros((4, 4, 3), np.uint8))))
    with pytest.raises(BadImage, match="3 images"):
        GREY.fit(one(*[NativeImage(np.zeros((4, 4), np.uint8))] * 3))
