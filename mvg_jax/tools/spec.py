"""What a tool is: its schema for the model, its host-side argument check, and its pure array function on the device.

A call goes ToolCall (untrusted JSON) -> Registry.parse -> ToolArgs (fixed shapes) -> apply_tools -> ToolResult.
Whatever can be wrong with a call is found on the host and raised as a ToolError; on the device every call is legal.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np

from mvg_jax.frames import Frame
from mvg_jax.mesh import by_shard
from mvg_jax.packed import Packed, pack
from mvg_jax.tools.render import Sources, ViewFormat, render_views

MAX_VIEWS = 2  # R: views one call may return. A shape that every compiled program shares.
NUMBERS = 4  # scalars a tool may take beside its boxes

# What the model is told beside the views, by code: (one view, several). Append only: stored trajectories hold codes.
NO_CALL, OK_ZOOM, OK_FLIP, OK_ROTATE, OK_WINDOW = range(5)
TEXTS = (
    ("", ""),
    ("Zoomed view.", "Zoomed views."),
    ("Flipped view.", "Flipped views."),
    ("Rotated view.", "Rotated views."),
    ("Windowed view.", "Windowed views."),
)


def observation_text(code: int, count: int) -> str:
    """The line of text that goes with `count` views of a call that ended with `code`."""
    return TEXTS[code][0 if count == 1 else 1]


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call as the model wrote it: a name and JSON-decoded arguments, both untrusted until Registry.parse."""

    name: str
    arguments: dict[str, Any]


class ToolError(Exception):
    """A call that cannot be carried out. The text is short and static; it never repeats what the model wrote.

    Codes: E1 format, E2 unknown tool, E3 missing or ill-typed argument, E4 illegal value.
    """

    def __init__(self, code: str, text: str):
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What a call may know on the host of an image in the conversation.

    height, width: native pixels that the view shows along its own v and u axes.
    unit: "HU" or "grey". window: (low, high) in that unit.
    """

    height: float
    width: float
    unit: str
    window: tuple[float, float]


class ToolArgs(NamedTuple):
    """A legal call in fixed shapes; stack rows for leading dimensions.

    kind: int32, index into the registry, -1 = no call. image: int32, img_idx. boxes: [R, 4] float32, xyxy in 0..1000.
    count: int32, views asked for. numbers: [4] float32, what else the tool takes.
    """

    kind: jax.Array | np.ndarray
    image: jax.Array | np.ndarray
    boxes: jax.Array | np.ndarray
    count: jax.Array | np.ndarray
    numbers: jax.Array | np.ndarray

    @classmethod
    def of(
        cls, image: int, boxes: Sequence[Sequence[float]] = (), numbers: Sequence[float] = (), count: int = 1
    ) -> "ToolArgs":
        """One call (numpy), its kind still -1. Unused boxes are the whole view: no tool ever meets an empty one."""
        boxes_Rx4 = np.array([[0, 0, 1000, 1000]] * MAX_VIEWS, np.float32)
        boxes_Rx4[: len(boxes)] = np.array(boxes, np.float32).reshape(-1, 4)
        numbers_4 = np.zeros(NUMBERS, np.float32)
        numbers_4[: len(numbers)] = numbers
        return cls(np.int32(-1), np.int32(image), boxes_Rx4, np.int32(count), numbers_4)


NO_ARGS = ToolArgs.of(image=0, count=0)  # of a row that calls nothing
NO_ARGS.boxes.flags.writeable = NO_ARGS.numbers.flags.writeable = False


class ToolResult(NamedTuple):
    """What calls gave. views: [..., R, H, W, 3] uint8, black from count on. frames: [..., R]. count, code: [...] int32.

    Frames from count on are legal but mean nothing.
    """

    views: jax.Array
    frames: Frame
    count: jax.Array
    code: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Tool:
    """A tool of the frame family: it changes what a view shows of its native image.

    parameters: JSON schema of the arguments, which the model reads and Registry.parse enforces.
    compact: one short line for small models.
    encode(arguments, images): ToolArgs without kind from schema-valid arguments; raises ToolError E3 or E4.
    reframe(frames [N], args): (frames [R], count, code), a pure array function of one row.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    compact: str
    encode: Callable[[Mapping[str, Any], Sequence[ImageInfo]], ToolArgs]
    reframe: Callable[[Frame, ToolArgs], tuple[Frame, jax.Array, jax.Array]]

    def apply(self, sources: Sources, frames: Frame, args: ToolArgs, view: ViewFormat) -> ToolResult:
        """One row's call on its own: sources pixels [M, H, W, C], frames [N]."""
        new, count, code = self.reframe(frames, args)
        row = jnp.where(jnp.arange(MAX_VIEWS) < count, 0, -1)
        views = render_views(jax.tree.map(lambda x: x[None], sources), row, new, view)
        return ToolResult(views, new, count, code)

    @functools.cached_property
    def validator(self) -> jsonschema.Draft202012Validator:
        return jsonschema.Draft202012Validator(self.parameters)


# For writers of tools.

IMG_IDX = {"type": "integer", "description": "0-based index of an image in the conversation"}


def named_image(arguments: Mapping[str, Any], images: Sequence[ImageInfo]) -> int:
    """The argument img_idx. Raises ToolError E4 when the conversation has no such image."""
    index = int(arguments["img_idx"])
    if not 0 <= index < len(images):
        raise ToolError("E4", "No such image.")
    return index


def named_frames(frames: Frame, args: ToolArgs) -> Frame:
    """The frame that the call names, R times: [N] -> [R]."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x[args.image], (MAX_VIEWS, *x.shape[1:])), frames)


@dataclasses.dataclass(frozen=True)
class Registry:
    """The tools a model may call; ToolArgs.kind is the position. Hashable: a static argument of compiled programs."""

    tools: tuple[Tool, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.tools)

    def schemas(self) -> list[dict[str, Any]]:
        """OpenAI-style function schemas, one a tool, for the <tools> block."""
        return [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
            for t in self.tools
        ]

    def compact_lines(self) -> list[str]:
        return [tool.compact for tool in self.tools]

    def no_call(self) -> ToolArgs:
        """The arguments of a row that calls nothing."""
        return NO_ARGS

    def parse(self, call: ToolCall, images: Sequence[ImageInfo]) -> ToolArgs:
        """The call as arrays (numpy). Raises ToolError, and nothing else, whatever JSON value the model sent.

        images: the images of the conversation so far, in the order of img_idx.
        """
        kind = self.check(call)
        return self.tools[kind].encode(call.arguments, images)._replace(kind=np.int32(kind))

    def check(self, call: ToolCall) -> int:
        """The kind of a call whose arguments fit its tool's schema, whatever images there are. ToolError as in `parse`."""
        kind = next((i for i, tool in enumerate(self.tools) if tool.name == call.name), None)
        if kind is None:
            raise ToolError("E2", "Unknown tool.")
        _check_bounded(call.arguments)
        _check_schema(self.tools[kind].validator, call.arguments)
        return kind


_MAX_DEPTH, _MAX_ITEMS, _MAX_STRING, _MAX_NUMBER = 4, 32, 512, 1e6
# Schema keywords about the value of a well-typed argument; all others are about its presence and type.
_VALUE_KEYWORDS = frozenset({"enum", "minimum", "maximum", "exclusiveMinimum", "maxLength", "maxItems"})


def _check_bounded(value: Any, depth: int = 0) -> None:
    """Refuses values on which validation itself could be slow or fail: endless nesting, integers of 5,000 digits."""
    if isinstance(value, (dict, list)):
        if depth == _MAX_DEPTH or len(value) > _MAX_ITEMS:
            raise ToolError("E3", "Arguments too large.")
        for item in value.values() if isinstance(value, dict) else value:
            _check_bounded(item, depth + 1)
    elif isinstance(value, str) and len(value) > _MAX_STRING:
        raise ToolError("E4", "Text too long.")
    elif isinstance(value, (int, float)) and not -_MAX_NUMBER <= value <= _MAX_NUMBER:  # true of nan too
        raise ToolError("E4", "Number out of range.")


def _check_schema(validator: jsonschema.Draft202012Validator, arguments: Any) -> None:
    if fits(arguments, validator.schema):
        return
    keywords = {error.validator for error in validator.iter_errors(arguments)}
    if keywords - _VALUE_KEYWORDS:
        raise ToolError("E3", "Missing or ill-typed argument.")
    if keywords:
        raise ToolError("E4", "Illegal value.")


_TYPES = {"object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "integer": (int,)}
# By schema keyword: whether a value, its own type known, fits. (value, what the keyword says, the schema)
_FITS: dict[str, Callable[[Any, Any, Mapping[str, Any]], bool]] = {
    "description": lambda value, text, schema: True,
    "type": lambda value, name, schema: type(name) is str and type(value) in _TYPES.get(name, ()),
    "enum": lambda value, allowed, schema: any(type(value) is type(one) and value == one for one in allowed),
    "minimum": lambda value, least, schema: type(value) in _TYPES["number"] and value >= least,
    "maximum": lambda value, most, schema: type(value) in _TYPES["number"] and value <= most,
    "maxLength": lambda value, most, schema: type(value) is str and len(value) <= most,
    "minItems": lambda value, least, schema: type(value) is list and len(value) >= least,
    "maxItems": lambda value, most, schema: type(value) is list and len(value) <= most,
    "items": lambda value, one, schema: type(value) is list and all(fits(item, one) for item in value),
    "anyOf": lambda value, some, schema: any(fits(value, one) for one in some),
    "required": lambda value, names, schema: type(value) is dict and all(name in value for name in names),
    "properties": lambda value, known, schema: (
        type(value) is dict and all(fits(item, known[name]) for name, item in value.items() if name in known)
    ),
    "additionalProperties": lambda value, more, schema: (
        type(value) is dict and more is False and value.keys() <= schema["properties"].keys()
    ),
}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value surely fits a schema; False proves nothing, ask jsonschema.

    Most calls are legal, and jsonschema takes 30 to 130 us to say so. Stricter than it wherever there is a doubt: on keywords that
    are not in _FITS, on 1.0 as an integer, and on keywords about another type than the value's, which it ignores.
    """
    return type(schema) is dict and all(
        word in _FITS and _FITS[word](value, wanted, schema) for word, wanted in schema.items()
    )


@functools.partial(jax.jit, static_argnames=("registry", "view"))
def apply_tools(
    registry: Registry, sources: Sources, source_row: jax.Array, frames: Frame, args: ToolArgs, view: ViewFormat
) -> ToolResult:
    """Carries out one call a row, of any mix of tools, in one compiled program.

    source_row: [B] int32, the row of `sources` (of the same shard) that each conversation is about. frames: [B, N]. args: [B].
    Frame arithmetic runs every tool's branch for every row, a few flops; pixels are rendered once, where asked for.
    """

    def apply(sources: Sources, source_row: jax.Array, frames: Frame, args: ToolArgs) -> ToolResult:
        new_BxR, count_B, code_B = _reframe(registry, frames, args)
        return ToolResult(_render(view, sources, source_row, new_BxR, count_B), new_BxR, count_B, code_B)

    return by_shard(apply)(sources, source_row, frames, args)


def _reframe(registry: Registry, frames: Frame, args: ToolArgs) -> tuple[Frame, jax.Array, jax.Array]:
    """(frames [B, R], count [B], code [B]) of a call a row."""

    def reframe(frames_N: Frame, row_args: ToolArgs):
        branches = [_no_call] + [tool.reframe for tool in registry.tools]
        return jax.lax.switch(row_args.kind + 1, branches, frames_N, row_args)

    return jax.vmap(reframe)(frames, args)


def _render(view: ViewFormat, sources: Sources, source_row: jax.Array, new_BxR: Frame, count_B: jax.Array) -> jax.Array:
    row_BxR = jnp.where(jnp.arange(MAX_VIEWS)[None] < count_B[:, None], source_row[:, None], -1)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), new_BxR)
    return render_views(sources, row_BxR.reshape(-1), flat, view).reshape(*row_BxR.shape, *view.shape)


def _no_call(frames: Frame, args: ToolArgs):
    return named_frames(frames, args), jnp.int32(0), jnp.int32(NO_CALL)


# The same in two programs: who waits for what is said of the views need not wait for the views.


@functools.partial(jax.jit, static_argnames="registry")
def reframe_packed(registry: Registry, calls: Packed) -> Packed:
    """What calls = pack((source_row, frames, args)) give beside views: pack((frames, count, code))."""
    return by_shard(lambda calls: pack(_reframe(registry, *calls.unpack()[1:])))(calls)


@functools.partial(jax.jit, static_argnames="view")
def render_packed(sources: Sources, calls: Packed, facts: Packed, view: ViewFormat) -> jax.Array:
    """Their views [B, R, H, W, 3] uint8. facts: what `reframe_packed` said of them."""

    def render(sources: Sources, calls: Packed, facts: Packed) -> jax.Array:
        frames, count, _ = facts.unpack()
        return _render(view, sources, calls.unpack()[0], frames, count)

    return by_shard(render)(sources, calls, facts)
