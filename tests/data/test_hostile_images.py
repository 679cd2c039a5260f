"""Image formats that are read, and bytes that are none of them."""

import io

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data.images import BadImage, decode, deep

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("mode", "format", "shape"),
    [
        ("L", "PNG", (3, 4)),
        ("1", "PNG", (3, 4)),
        ("LA", "PNG", (3, 4)),
        ("RGB", "PNG", (3, 4, 3)),
        ("RGBA", "PNG", (3, 4, 3)),
        ("P", "PNG", (3, 4, 3)),
        ("CMYK", "JPEG", (3, 4, 3)),
        ("CMYK", "TIFF", (3, 4, 3)),
        ("YCbCr", "JPEG", (3, 4, 3)),
        ("RGB", "WEBP", (3, 4, 3)),
        ("L", "GIF", (3, 4, 3)),  # always a palette
        ("RGB", "BMP", (3, 4, 3)),
    ],
)
def test_eight_bit_modes(mode, format, shape):
    native = decode(encoded(Image.fromarray(RAMP).convert(mode), format), "x")
    assert (native.pixels.dtype, native.pixels.shape, native.window) == (np.uint8, shape, (0.0, 255.0))


def test_a_photograph_with_a_second_picture_inside():
    content = encoded(
        Image.new("RGB", (4, 3), (90, 90, 90)), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3))]
    )
    assert abs(decode(content, "x").pixels.astype(int) - 90).max() < 3


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 3\n%%EndComments\n(hello) show\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        encoded(Image.fromarray(RAMP))[:50],
        encoded(Image.new("RGB", (64, 64)), "JPEG")[:400],
        EPS,  # would start another program
        encoded(Image.fromarray(np.full((3, 4), np.nan, np.float32)), "TIFF"),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "EPS", "not finite"],
)
def test_bad_images_are_named(content):
    with pytest.raises(BadImage, match=r"^broken\.png"):
        decode(content, "broken.png")


@pytest.mark.parametrize(
    "values", [np.zeros((0, 3)), np.zeros(3), np.array([[np.inf, 1.0]]), np.array([[-1.7e308, 1.7e308]])]
)
def test_values_that_are_no_picture(values):
    with pytest.raises(BadImage, match=r"^x: "):
        deep(values, "x")
