import io

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import images
from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, FileImage, decode, deep

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


def test_grey_stays_as_it_is_and_transparency_is_dropped():
    assert (decode(encoded(Image.fromarray(RAMP)), "x").pixels == RAMP).all()
    clear = Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (4, 3), 0)])
    assert (decode(encoded(clear), "x").pixels == RAMP).all()


def test_cmyk_keeps_its_colours():
    red = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), "x").pixels
    assert (red[..., 0] > 200).all()
    assert (red[..., 1:] < 60).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_kept(format):
    values = RAMP.astype(np.uint16) * 300
    native = decode(encoded(Image.fromarray(values), format), "x")
    assert native.pixels.dtype == np.uint16
    assert (native.pixels == values).all()
    assert values.min() <= native.window[0] < native.window[1] <= values.max()


def test_signed_and_fractional_greys_keep_their_values():
    for values in (RAMP.astype(np.int32) - 1000, RAMP.astype(np.float32) / 7 - 3):
        native = decode(encoded(Image.fromarray(values), "TIFF"), "x")
        assert native.pixels.dtype == np.uint16
        np.testing.assert_allclose(native.pixels * native.slope + native.intercept, values, atol=1e-3)


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert decode(encoded(Image.fromarray(RAMP), "JPEG", exif=exif), "x").pixels.shape == (3, 4)


def test_a_photograph_with_a_second_picture_inside():
    content = encoded(
        Image.new("RGB", (4, 3), (90, 90, 90)), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3))]
    )
    assert abs(decode(content, "x").pixels.astype(int) - 90).max() < 3


def test_the_first_of_several_frames():
    frames = [Image.new("L", (4, 3), value) for value in (10, 200)]
    assert (decode(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "x").pixels == 10).all()


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


def test_too_many_pixels_are_not_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 11)
    with pytest.raises(BadImage, match="4 x 3 pixels are too many"):
        decode(encoded(Image.fromarray(RAMP)), "x")


@pytest.mark.parametrize(
    "values", [np.zeros((0, 3)), np.zeros(3), np.array([[np.inf, 1.0]]), np.array([[-1.7e308, 1.7e308]])]
)
def test_values_that_are_no_picture(values):
    with pytest.raises(BadImage, match=r"^x: "):
        deep(values, "x")


def test_a_constant_image_has_a_window():
    native = deep(np.full((2, 2), 7.0), "x")
    assert native.window[0] < native.window[1]
    assert (native.pixels * native.slope + native.intercept == 7).all()


def test_an_image_of_a_data_set(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(RAMP)))
    files = Files(tmp_path)
    assert (FileImage(files, "a.png").load().pixels == RAMP).all()
    with pytest.raises(BadImage, match=r"holds no b\.png"):
        FileImage(files, "b.png").load()
