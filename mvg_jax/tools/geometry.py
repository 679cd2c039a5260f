"""Zoom, flip and rotate: tools that change where a view looks."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mvg_jax import frames as fr
from mvg_jax.tools.spec import (
    IMG_IDX,
    MAX_VIEWS,
    OK_FLIP,
    OK_ROTATE,
    OK_ZOOM,
    ImageInfo,
    Tool,
    ToolArgs,
    ToolError,
    named_frames,
    named_image,
)

MIN_SIDE = 28.0  # smallest side of a zoom box in units of 0..1000; smaller ones are enlarged (as in verl's zoom tool)
MIN_PIXELS = 2.0  # a box of fewer native pixels a side shows nothing
MAX_ASPECT = 100.0  # in native pixels (as in DeepEyes and verl)

_AXES = {"horizontal": fr.HORIZONTAL, "vertical": fr.VERTICAL}
_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}


def _encode_zoom(arguments: Mapping[str, Any], images: Sequence[ImageInfo]) -> ToolArgs:
    image = named_image(arguments, images)
    boxes = arguments["bbox_2d"]
    boxes = boxes if isinstance(boxes[0], list) else [boxes]
    if len(boxes) > MAX_VIEWS:
        raise ToolError("E4", "Too many boxes.")
    return ToolArgs.of(image, boxes=[_checked_box(box, images[image]) for box in boxes], count=len(boxes))


def _checked_box(box: Sequence[float], image: ImageInfo) -> tuple[float, float, float, float]:
    """The box xyxy, its short sides enlarged to MIN_SIDE. Raises ToolError E4."""
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= fr.BOX_UNITS and 0 <= y1 < y2 <= fr.BOX_UNITS):
        raise ToolError("E4", "Illegal box.")
    width, height = (x2 - x1) * image.width, (y2 - y1) * image.height
    if width > MAX_ASPECT * height or height > MAX_ASPECT * width:
        raise ToolError("E4", "Box too thin.")
    (x1, x2), (y1, y2) = _enlarged(x1, x2), _enlarged(y1, y2)
    if min((x2 - x1) * image.width, (y2 - y1) * image.height) < MIN_PIXELS * fr.BOX_UNITS:
        raise ToolError("E4", "Box too small.")
    return x1, y1, x2, y2


def _enlarged(low: float, high: float) -> tuple[float, float]:
    """The interval, at least MIN_SIDE long, enlarged around its centre and shifted inside 0..1000."""
    if high - low >= MIN_SIDE:
        return low, high
    low = min(max((low + high - MIN_SIDE) / 2, 0.0), fr.BOX_UNITS - MIN_SIDE)
    return low, low + MIN_SIDE


def _reframe_zoom(frames: fr.Frame, args: ToolArgs) -> tuple[fr.Frame, jax.Array, jax.Array]:
    return fr.zoom(named_frames(frames, args), args.boxes), args.count, jnp.int32(OK_ZOOM)


ZOOM_IN = Tool(
    name="image_zoom_in_tool",
    description="Zoom in on one or several regions of an image; each comes back as a new image at native resolution.",
    parameters={
        "type": "object",
        "properties": {
            "bbox_2d": {
                "anyOf": [_BOX, {"type": "array", "items": _BOX, "minItems": 1}],
                "description": f"[x1, y1, x2, y2] in 0-1000 relative to the image, or a list of at most {MAX_VIEWS}",
            },
            "label": {"type": "string", "maxLength": 100, "description": "what the region shows"},
            "img_idx": IMG_IDX,
        },
        "required": ["bbox_2d", "img_idx"],
        "additionalProperties": False,
    },
    compact="image_zoom_in_tool(bbox_2d, img_idx)",
    encode=_encode_zoom,
    reframe=_reframe_zoom,
)


def _encode_flip(arguments: Mapping[str, Any], images: Sequence[ImageInfo]) -> ToolArgs:
    return ToolArgs.of(named_image(arguments, images), numbers=[_AXES[arguments["axis"]]])


def _reframe_flip(frames: fr.Frame, args: ToolArgs) -> tuple[fr.Frame, jax.Array, jax.Array]:
    return fr.flip(named_frames(frames, args), args.numbers[0].astype(jnp.int32)), args.count, jnp.int32(OK_FLIP)


FLIP = Tool(
    name="image_flip_tool",
    description="Mirror an image: horizontal swaps left and right, vertical swaps top and bottom.",
    parameters={
        "type": "object",
        "properties": {"axis": {"type": "string", "enum": list(_AXES)}, "img_idx": IMG_IDX},
        "required": ["axis", "img_idx"],
        "additionalProperties": False,
    },
    compact="image_flip_tool(axis, img_idx)",
    encode=_encode_flip,
    reframe=_reframe_flip,
)


def _encode_rotate(arguments: Mapping[str, Any], images: Sequence[ImageInfo]) -> ToolArgs:
    return ToolArgs.of(named_image(arguments, images), numbers=[arguments["angle"] // 90])


def _reframe_rotate(frames: fr.Frame, args: ToolArgs) -> tuple[fr.Frame, jax.Array, jax.Array]:
    return fr.rotate(named_frames(frames, args), args.numbers[0].astype(jnp.int32)), args.count, jnp.int32(OK_ROTATE)


ROTATE = Tool(
    name="image_rotate_tool",
    description="Turn an image clockwise.",
    parameters={
        "type": "object",
        "properties": {
            "angle": {"type": "integer", "enum": [90, 180, 270], "description": "degrees clockwise"},
            "img_idx": IMG_IDX,
        },
        "required": ["angle", "img_idx"],
        "additionalProperties": False,
    },
    compact="image_rotate_tool(angle, img_idx)",
    encode=_encode_rotate,
    reframe=_reframe_rotate,
)
