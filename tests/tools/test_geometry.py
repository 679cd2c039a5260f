import jax
import numpy as np
import pytest

from mvg_jax import frames as fr
from mvg_jax.tools import MAX_VIEWS, ImageInfo, Registry, ToolCall, ToolError
from mvg_jax.tools.geometry import FLIP, ROTATE, ZOOM_IN

REGISTRY = Registry((ZOOM_IN, FLIP, ROTATE))
CT = ImageInfo(512, 512, "HU", (-160.0, 240.0))
FRAMES = jax.tree.map(
    lambda *x: np.stack(x), fr.full_frame(400, 800, (0.0, 255.0), 0), fr.full_frame(512, 512, (0.0, 255.0), 1)
)


def parse(name: str, arguments: dict, *images: ImageInfo):
    return REGISTRY.parse(ToolCall(name, arguments), images or (CT, CT))


def reframe(tool, arguments: dict):
    """The new frames [R] and count of a call on FRAMES."""
    frames, count, _ = jax.device_get(
        tool.reframe(jax.tree.map(jax.numpy.asarray, FRAMES), parse(tool.name, arguments))
    )
    assert frames.affine.shape == (MAX_VIEWS, 2, 3)
    return frames, count


def test_one_box_and_a_list_of_one_box_are_the_same_call():
    one = parse("image_zoom_in_tool", {"bbox_2d": [100, 200, 300, 400], "img_idx": 1})
    many = parse("image_zoom_in_tool", {"bbox_2d": [[100, 200, 300, 400]], "img_idx": 1, "label": "liver"})
    jax.tree.map(np.testing.assert_array_equal, one, many)
    np.testing.assert_array_equal(one.boxes, [[100, 200, 300, 400], [0, 0, 1000, 1000]])
    assert (one.count, one.image) == (1, 1)


def test_several_boxes_come_back_in_their_order():
    frames, count = reframe(ZOOM_IN, {"bbox_2d": [[500, 500, 1000, 1000], [0, 0, 250, 500]], "img_idx": 0})
    assert count == 2
    np.testing.assert_allclose(fr.bounds(frames), [[400, 200, 800, 400], [0, 0, 200, 200]], atol=1e-3)
    np.testing.assert_array_equal(frames.source, [0, 0])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([500, 500, 510, 500.5 + 9.5], [491, 491, 519, 519]),
        ([0, 400, 10, 440], [0, 400, 28, 440]),
        ([995, 100, 1000, 128], [972, 100, 1000, 128]),
        ([100, 100, 128, 140], [100, 100, 128, 140]),
    ],
)
def test_a_small_box_grows_around_its_centre_and_stays_inside(box, expected):
    args = parse("image_zoom_in_tool", {"bbox_2d": box, "img_idx": 0})
    np.testing.assert_allclose(args.boxes[0], expected, atol=1e-4)


def test_the_aspect_is_that_of_the_native_pixels():
    box = {"bbox_2d": [0, 0, 1000, 20], "img_idx": 0}
    parse("image_zoom_in_tool", box, CT)
    with pytest.raises(ToolError, match="Box too thin"):
        parse("image_zoom_in_tool", box, ImageInfo(256, 1024, "grey", (0.0, 255.0)))


def test_zooming_ends_where_the_native_pixels_end():
    smallest = {"bbox_2d": [0, 0, 20, 20], "img_idx": 0}
    parse("image_zoom_in_tool", smallest, ImageInfo(72, 72, "HU", (0.0, 1.0)))
    with pytest.raises(ToolError, match="Box too small"):
        parse("image_zoom_in_tool", smallest, ImageInfo(72, 71, "HU", (0.0, 1.0)))


@pytest.mark.parametrize(("axis", "corner"), [("horizontal", [700, 0, 800, 100]), ("vertical", [0, 300, 100, 400])])
def test_flip(axis, corner):
    frames, count = reframe(FLIP, {"axis": axis, "img_idx": 0})
    assert count == 1
    np.testing.assert_allclose(fr.box_to_source(frames, np.array([0, 0, 125, 250])), [corner] * MAX_VIEWS, atol=1e-3)


@pytest.mark.parametrize(
    ("angle", "corner"), [(90, [0, 412, 100, 512]), (180, [412, 412, 512, 512]), (270, [412, 0, 512, 100])]
)
def test_rotate_is_clockwise(angle, corner):
    frames, count = reframe(ROTATE, {"angle": angle, "img_idx": 1})
    assert count == 1
    np.testing.assert_array_equal(frames.source, [1, 1])
    top_left = np.array([0, 0, 100, 100]) / 512 * 1000
    np.testing.assert_allclose(fr.box_to_source(frames, top_left), [corner] * MAX_VIEWS, atol=1e-3)
