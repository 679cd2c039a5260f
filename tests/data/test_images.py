import io
import pickle

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import images
from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, EncodedRef, FileImage, decode, deep, to_8bit
from mvg_jax.data.task import NativeImage

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.stack([GREY, 255 - GREY, np.full_like(GREY, 7)], -1)


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def physical(image):
    return image.pixels * image.slope + image.intercept


def test_grey_stays_grey_and_colour_becomes_rgb():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(GREY)), "a").pixels, GREY)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(COLOUR)), "a").pixels, COLOUR)


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
    native = decode(encoded(Image.fromarray(GREY).convert(mode), format), "x")
    assert (native.pixels.dtype, native.pixels.shape, native.window) == (np.uint8, shape, (0.0, 255.0))


def test_a_photograph_with_a_second_picture_inside():
    content = encoded(
        Image.new("RGB", (4, 3), (90, 90, 90)), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3))]
    )
    assert abs(decode(content, "x").pixels.astype(int) - 90).max() < 3


def test_cmyk_jpeg_becomes_rgb():
    image = Image.fromarray(np.full((16, 16, 3), (200, 40, 40), np.uint8)).convert("CMYK")
    pixels = decode(encoded(image, "JPEG", quality=95), "a").pixels
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[8, 8], (200, 40, 40), atol=12)


def test_palette_becomes_rgb():
    image = Image.fromarray(COLOUR).quantize(16)
    assert image.mode == "P"
    np.testing.assert_array_equal(decode(encoded(image), "a").pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped(mode):
    image = Image.fromarray(COLOUR if mode == "RGBA" else GREY).convert(mode)
    image.putalpha(Image.fromarray(np.zeros_like(GREY)))
    np.testing.assert_array_equal(decode(encoded(image), "a").pixels, COLOUR if mode == "RGBA" else GREY)


def test_black_and_white_becomes_0_and_255():
    bits = GREY > 100
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits)), "a").pixels, bits * np.uint8(255))


def test_16_bits_stay_16_bits_with_a_window_of_their_own():
    values = np.linspace(100, 4000, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = decode(encoded(Image.fromarray(values)), "a")
    assert image.pixels.dtype == np.uint16
    np.testing.assert_array_equal(physical(image), values)
    low, high = image.window
    assert 100 < low < 200
    assert 3900 < high < 4000


def test_32_bit_integers_keep_negative_values():
    values = np.array([[-1000, 0], [40, 3000]], np.int32)
    image = decode(encoded(Image.fromarray(values), "TIFF"), "a")
    assert image.pixels.dtype == np.uint16
    np.testing.assert_array_equal(physical(image), values)


def test_floats_keep_65535_steps():
    values = np.linspace(-1.5, 2.5, 100, dtype=np.float32).reshape(10, 10)
    image = decode(encoded(Image.fromarray(values), "TIFF"), "a")
    np.testing.assert_allclose(physical(image), values, atol=4 / 65535)


@pytest.mark.parametrize(
    "wrong",
    [
        np.array([[1.0, np.nan]]),
        np.array([[np.inf, 1.0]]),
        np.array([[-1.7e308, 1.7e308]]),
        np.zeros((2, 2, 2)),
        np.zeros((0, 4)),
        np.zeros(3),
    ],
)
def test_values_that_are_no_finite_plane_are_refused(wrong):
    with pytest.raises(BadImage, match=r"^a\.tif: "):
        deep(wrong, "a.tif")


@pytest.mark.parametrize("value", [0, 70000, -3])
def test_an_image_of_one_value_has_a_window(value):
    image = deep(np.full((4, 4), value, np.int32), "a")
    np.testing.assert_array_equal(physical(image), value)
    assert image.window[0] < image.window[1]


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert decode(encoded(Image.fromarray(COLOUR), exif=exif), "a").pixels.shape == (3, 4, 3)


def test_the_first_of_several_frames_counts():
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    np.testing.assert_array_equal(
        decode(encoded(first, "TIFF", save_all=True, append_images=[second]), "a").pixels, GREY
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 3\n%%EndComments\n(hello) show\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>",
        encoded(Image.fromarray(COLOUR))[:-30],
        encoded(Image.fromarray(GREY))[:50],
        encoded(Image.new("RGB", (64, 64)), "JPEG")[:400],
        EPS,  # would start another program
        encoded(Image.fromarray(np.full((3, 4), np.nan, np.float32)), "TIFF"),
    ],
    ids=["empty", "html", "cut PNG", "shorter PNG", "cut JPEG", "EPS", "not finite"],
)
def test_what_is_no_whole_image_is_named(content):
    with pytest.raises(BadImage, match=r"^some/image\.png"):
        decode(content, "some/image.png")


@pytest.mark.parametrize("mode", ["LAB", "CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(mode):
    content = encoded(
        Image.new("RGB", (4, 4), "white").convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4)), "TIFF"
    )
    assert Image.open(io.BytesIO(content)).mode == mode
    assert decode(content, "a.tif").pixels.shape == (4, 4, 3)


def test_a_decompression_bomb_is_not_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 11)
    with pytest.raises(BadImage, match="4 x 3 pixels are too many"):
        decode(encoded(Image.fromarray(GREY)), "bomb.png")


def test_a_bomb_that_pillow_refuses_is_a_bad_image():
    content = encoded(Image.new("1", (1, 20000)))
    wide = content.replace((1).to_bytes(4, "big") + (20000).to_bytes(4, "big"), (20000).to_bytes(4, "big") * 2)
    with pytest.raises(BadImage, match=r"bomb\.png"):
        decode(wide, "bomb.png")


def test_a_file_image_loads_when_asked_and_pickles_small(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(GREY)))
    ref = FileImage(Files(tmp_path), "a.png")
    again = pickle.loads(pickle.dumps(ref))  # noqa: S301
    assert again == ref
    assert len(pickle.dumps(ref)) < 500
    assert isinstance(ref, EncodedRef)
    np.testing.assert_array_equal(again.load().pixels, GREY)
    with pytest.raises(BadImage, match=r"gone\.png"):
        FileImage(Files(tmp_path), "gone.png").load()


def test_the_default_window_of_8_bits_changes_nothing():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(to_8bit(NativeImage(pixels)), pixels)


def test_the_window_is_in_physical_units_and_clips():
    raw = np.array([[0, 864, 1064, 1264, 4000]], np.uint16)  # HU + 1024
    image = NativeImage(raw, window=(-160.0, 240.0), intercept=-1024.0, unit="HU")
    np.testing.assert_array_equal(to_8bit(image), [[0, 0, 128, 255, 255]])
