"""Views of a real photograph against Pillow and the image processors of transformers that use it.

A processor's output is compared where the vision tower takes it over: normalised pixels, the difference times each channel's
standard deviation, so that 1/255 is one grey level of the 8-bit image.
"""

import functools
import pathlib

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from mvg_jax import frames as fr
from mvg_jax.experiment import folder
from mvg_jax.models import hf
from mvg_jax.models.config import ModelConfig, QwenVisionConfig, QwenVLConfig, TextConfig, with_view_size
from mvg_jax.models.hf_internvl import INTERNVL
from mvg_jax.models.hf_layout import Fields, HFLayoutError, read_image_settings
from mvg_jax.models.hf_qwen_vl import QWEN2_5_VL
from mvg_jax.models.layers import normalise
from mvg_jax.tools import ViewFormat, render_views, stack_sources

HEIGHT, WIDTH = 600, 512
WHOLE = (0, 0, WIDTH, HEIGHT)
CROPS = (WHOLE, (40, 100, 500, 260), (150, 20, 290, 590), (200, 150, 260, 240))  # xyxy: near square, wide, tall, small
GREY = (0.0, 255.0)
SMALL = ViewFormat(56, 84, "bicubic")


@functools.cache
def photograph(mode: str) -> Image.Image:
    """matplotlib's portrait of Grace Hopper, 512 x 600."""
    path = pathlib.Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    return Image.open(path).convert(mode)


def render(pixels: list[np.ndarray], frames: list[fr.Frame], view: ViewFormat, bucket=(HEIGHT, WIDTH)) -> np.ndarray:
    """Views [n, H, W, 3] uint8, one of each image."""
    sources = stack_sources([[x] for x in pixels], [[(1.0, 0.0)]] * len(pixels), *bucket)
    stacked = jax.tree.map(lambda *x: np.stack(x), *frames)
    return np.asarray(render_views(sources, np.arange(len(pixels), dtype=np.int32), stacked, view))


def whole(pixels: np.ndarray, window=GREY) -> fr.Frame:
    return fr.full_frame(*pixels.shape[:2], window, 0)


def part(box, window=GREY) -> fr.Frame:
    """The view of box xyxy, in pixels of the photograph."""
    return fr.zoom(fr.full_frame(HEIGHT, WIDTH, window, 0), np.array(box) / np.array([WIDTH, HEIGHT] * 2) * 1000)


def assert_equal_pixels(views: np.ndarray, theirs: np.ndarray, mean, std) -> None:
    """views: ours [n, H, W, 3]. theirs: normalised pixels of the same shape."""
    grey_levels = np.abs(np.asarray(normalise(views, mean, std)) - theirs) * np.array(std) * 255
    assert views.std() > 20
    assert grey_levels.max() <= 1.001
    assert grey_levels.mean() <= 0.01


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_internvl(mode):
    config = ModelConfig()
    processor = GotOcr2ImageProcessorPil(**INTERNVL.write_processor(config))
    images = [photograph(mode).crop(box) for box in CROPS]
    theirs = np.stack(processor(images, return_tensors="np")["pixel_values"]).transpose(0, 2, 3, 1)
    assert theirs.shape == (len(CROPS), 448, 448, 3)
    pixels = [np.asarray(image) for image in images]
    view = ViewFormat(*config.view_size, config.resample)
    assert_equal_pixels(render(pixels, [*map(whole, pixels)], view), theirs, config.image_mean, config.image_std)
    # Each crop as a zoom into the photograph.
    zooms = render([np.asarray(photograph(mode))] * len(CROPS), [*map(part, CROPS)], view)
    assert_equal_pixels(zooms, theirs, config.image_mean, config.image_std)


@pytest.mark.parametrize(
    ("patch", "box", "pixels"),
    [(14, WHOLE, 100_000), (14, CROPS[1], 120_000), (16, CROPS[2], 50_000), (16, WHOLE, 200_000)],
)
def test_qwen_vl(patch, box, pixels):
    image = photograph("RGB").crop(box)
    size = smart_resize(image.height, image.width, 2 * patch, pixels, pixels)
    config = QwenVLConfig(QwenVisionConfig(patch_size=patch), TextConfig(mrope_section=(16, 24, 24)))
    config = with_view_size(config, size)
    processor = Qwen2VLImageProcessorPil(**QWEN2_5_VL.write_processor(config))
    processor.size = {"shortest_edge": pixels, "longest_edge": pixels}
    given = processor([image], return_tensors="np")
    _, rows, columns = given["image_grid_thw"][0]
    assert (rows * patch, columns * patch) == size
    assert (rows // 2, columns // 2) == config.token_grid
    # Patches come merged token by merged token, [rows/2, columns/2, 2, 2], each as [channel, frame, y, x].
    theirs = given["pixel_values"].reshape(rows // 2, columns // 2, 2, 2, 3, 2, patch, patch)
    np.testing.assert_array_equal(theirs[..., 0, :, :], theirs[..., 1, :, :])
    theirs = theirs[..., 0, :, :].transpose(0, 2, 5, 1, 3, 6, 4).reshape(1, *size, 3)
    view = ViewFormat(*size, config.resample)
    views = render([np.asarray(image)], [whole(np.asarray(image))], view)
    assert_equal_pixels(views, theirs, config.image_mean, config.image_std)


@pytest.mark.parametrize("box", [(100, 200, 300, 350), (10.25, 20.5, 500.125, 130.75), (300.5, 300.5, 303, 302.75)])
def test_a_zoom_reads_the_pixels_it_touches_and_no_others(box):
    outer = (*np.floor(box[:2]).astype(int), *np.ceil(box[2:]).astype(int))
    inner = tuple(edge - outer[i % 2] for i, edge in enumerate(box))
    image = photograph("RGB").crop(outer).resize((84, 56), Image.Resampling.BICUBIC, box=inner)
    pixels = np.array(photograph("RGB"))
    view = render([pixels], [part(box)], SMALL)[0]
    difference = np.abs(view.astype(int) - np.asarray(image))
    assert difference.max() <= 1
    assert difference.mean() < 0.02
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[outer[1] : outer[3], outer[0] : outer[2]] = False
    pixels[outside] = 0
    np.testing.assert_array_equal(render([pixels], [part(box)], SMALL)[0], view)


def test_a_view_does_not_depend_on_its_bucket():
    pixels = np.asarray(photograph("RGB").crop(CROPS[1]))
    alone = render([pixels], [whole(pixels)], SMALL, pixels.shape[:2])
    np.testing.assert_array_equal(render([pixels], [whole(pixels)], SMALL), alone)


def test_a_window_on_eight_bits_comes_after_rounding():
    resized = np.asarray(photograph("L").resize((84, 56), Image.Resampling.BICUBIC)).astype(float)
    pixels = np.asarray(photograph("L"))
    view = render([pixels], [whole(pixels, (100.0, 110.0))], SMALL)[0, ..., 0]
    expected = np.clip(np.rint((resized - 100) * 25.5), 0, 255)
    assert set(np.unique(view)) == {round(25.5 * step) for step in range(11)}
    assert (view != expected).mean() < 0.01


def test_sixteen_bits_are_resampled_as_they_are():
    """Pillow's own float images, then the window."""
    native = np.asarray(photograph("L")).astype(np.uint16) * 200
    resized = np.asarray(Image.fromarray(native.astype(np.float32)).resize((84, 56), Image.Resampling.BICUBIC))
    view = render([native], [whole(native, (20_000.0, 21_000.0))], SMALL)[0, ..., 0]
    np.testing.assert_allclose(view, np.clip((resized - 20_000) / 1000 * 255, 0, 255), atol=0.55)
    assert len(np.unique(view)) > 100


@pytest.mark.parametrize("resample", ["linear", "bicubic"])
def test_a_turned_view_is_the_upright_one_turned(resample):
    pixels = np.asarray(photograph("RGB").crop(CROPS[3]))
    upright = fr.zoom(whole(pixels), np.array([100, 50, 900, 950]))
    turned = [fr.flip(fr.rotate(upright, turns), fr.HORIZONTAL) for turns in range(4)]
    wide, tall = (
        render([pixels] * 4, turned, ViewFormat(*size, resample), pixels.shape[:2]) for size in ((56, 84), (84, 56))
    )
    upright = {False: wide[0][:, ::-1], True: tall[0][:, ::-1]}
    for turns in range(4):
        expected = np.rot90(upright[turns % 2 == 1], -turns)[:, ::-1]
        np.testing.assert_array_equal(wide[turns], expected)


@pytest.mark.parametrize(
    ("view", "steps"),
    [((150, 300), ((WIDTH, 150), (300, 150))), ((300, 100), ((100, HEIGHT), (100, 300)))],
    ids=["down first", "across first"],
)
def test_the_height_comes_first_where_it_loses_most(view, steps):
    """The order shows in the roundings. steps: (width, height) after each of Pillow's passes."""
    image = photograph("L")
    for step in steps:
        image = image.resize(step, Image.Resampling.BICUBIC)
    pixels = np.asarray(photograph("L"))
    ours = render([pixels], [whole(pixels)], ViewFormat(*view, "bicubic"))[0, ..., 0]
    assert (ours != np.asarray(image)).mean() < 0.01


def test_the_folder_says_how_views_are_resampled():
    asset = folder("asset:tiny_internvl")
    assert hf.read_config(asset).resample == "linear"
    assert INTERNVL.write_processor(hf.read_config(asset))["resample"] == Image.Resampling.BILINEAR
    assert INTERNVL.write_processor(ModelConfig())["resample"] == Image.Resampling.BICUBIC
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    read = lambda **more: read_image_settings(Fields("", settings | more, {}, "preprocessor_config.json"))["resample"]
    assert read() == "bicubic"  # as in all three image processors
    with pytest.raises(HFLayoutError, match=r"preprocessor_config\.json: resample is 1; supported"):
        read(resample=Image.Resampling.LANCZOS.value)


def test_wrong_settings_are_refused():
    pixels = np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match="'lanczos': one of"):
        render([pixels], [whole(pixels)], ViewFormat(8, 8, "lanczos"))
    qwen = QwenVLConfig(QwenVisionConfig(), TextConfig(mrope_section=(16, 24, 24)))
    assert with_view_size(qwen, ()) is qwen
    assert with_view_size(qwen, (280, 560)).tokens_per_image == 200
    with pytest.raises(ValueError, match=r"config\.model\.view_size \(280, 500\): both sides must be multiples of 28"):
        with_view_size(qwen, (280, 500))
    with pytest.raises(ValueError, match=r"config\.model\.view_size \(280,\): give \(height, width\)"):
        with_view_size(qwen, (280,))
    with pytest.raises(ValueError, match=r"views of internvl are \(448, 448\)"):
        with_view_size(ModelConfig(), (224, 224))
