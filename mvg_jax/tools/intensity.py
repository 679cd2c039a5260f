"""Window and level: tools that change how a view's physical values are shown."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mvg_jax import frames as fr
from mvg_jax.tools.spec import IMG_IDX, OK_WINDOW, ImageInfo, Tool, ToolArgs, ToolError, named_frames, named_image

# Customary CT windows, (center, width) in HU.
PRESETS = {
    "bone": (400, 1800),
    "lung": (-600, 1500),
    "soft_tissue": (40, 400),
    "brain": (40, 80),
    "subdural": (75, 215),
}


def _encode_window(arguments: Mapping[str, Any], images: Sequence[ImageInfo]) -> ToolArgs:
    image = named_image(arguments, images)
    match sorted(set(arguments) - {"img_idx"}):
        case ["preset"]:
            center, width = PRESETS[arguments["preset"]]
        case ["center", "width"]:
            center, width = arguments["center"], arguments["width"]
        case _:
            raise ToolError("E3", "Give a preset, or center and width.")
    if images[image].unit != "HU":
        raise ToolError("E4", "Not a CT image.")
    return ToolArgs.of(image, numbers=[center - width / 2, center + width / 2])


def _reframe_window(frames: fr.Frame, args: ToolArgs) -> tuple[fr.Frame, jax.Array, jax.Array]:
    low, high = (jnp.broadcast_to(args.numbers[i], args.boxes.shape[:1]) for i in range(2))
    return fr.with_window(named_frames(frames, args), low, high), args.count, jnp.int32(OK_WINDOW)


WINDOW_LEVEL = Tool(
    name="window_level_tool",
    description="Show a CT image through another intensity window: a preset, or center and width in HU.",
    parameters={
        "type": "object",
        "properties": {
            "preset": {"type": "string", "enum": list(PRESETS)},
            "center": {"type": "number", "minimum": -10000, "maximum": 10000, "description": "HU"},
            "width": {"type": "number", "minimum": 1, "maximum": 20000, "description": "HU"},
            "img_idx": IMG_IDX,
        },
        "required": ["img_idx"],
        "additionalProperties": False,
    },
    compact="window_level_tool(preset, img_idx)",
    encode=_encode_window,
    reframe=_reframe_window,
)
