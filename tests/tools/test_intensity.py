import jax
import numpy as np
import pytest

from mvg_jax import frames as fr
from mvg_jax.tools import MAX_VIEWS, ImageInfo, Registry, ToolCall, ToolError
from mvg_jax.tools.intensity import PRESETS, WINDOW_LEVEL

REGISTRY = Registry((WINDOW_LEVEL,))
CT = ImageInfo(512, 512, "HU", (-160.0, 240.0))
MRI = ImageInfo(512, 512, "grey", (0.0, 255.0))


def new_frames(arguments: dict) -> fr.Frame:
    """The frames [R] of a window call on the second of two images."""
    args = REGISTRY.parse(ToolCall("window_level_tool", {**arguments, "img_idx": 1}), (MRI, CT))
    frame = fr.rotate(fr.full_frame(512, 512, CT.window, 0), 1)
    frames = jax.tree.map(lambda *x: np.stack(x), fr.full_frame(64, 64, MRI.window, 0), frame)
    new, count, _ = jax.device_get(WINDOW_LEVEL.reframe(jax.tree.map(jax.numpy.asarray, frames), args))
    assert count == 1
    np.testing.assert_array_equal(new.affine, [frame.affine] * MAX_VIEWS)
    return new


@pytest.mark.parametrize(
    ("arguments", "window"),
    [
        ({"preset": "bone"}, (-500, 1300)),
        ({"preset": "lung"}, (-1350, 150)),
        ({"preset": "soft_tissue"}, (-160, 240)),
        ({"center": 40, "width": 80}, (0, 80)),
        ({"center": -0.5, "width": 1}, (-1, 0)),
    ],
)
def test_window(arguments, window):
    np.testing.assert_array_equal(new_frames(arguments).window, [window] * MAX_VIEWS)


def test_every_preset_is_offered_and_legal():
    assert WINDOW_LEVEL.parameters["properties"]["preset"]["enum"] == list(PRESETS)
    for preset in PRESETS:
        low, high = new_frames({"preset": preset}).window[0]
        assert low < high


def test_only_images_in_hounsfield_units_have_a_window():
    with pytest.raises(ToolError, match="Not a CT image"):
        REGISTRY.parse(ToolCall("window_level_tool", {"preset": "bone", "img_idx": 0}), (MRI, CT))
