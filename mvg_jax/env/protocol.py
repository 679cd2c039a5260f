"""The wire format: a task becomes prompt tokens, an observation becomes tokens, a model's text becomes an action.

    <think>...</think><tool_call>{"name": "...", "arguments": {...}}</tool_call>
    <think>...</think><answer>...</answer>

Text from the model and text from data sets are both untrusted: the first is parsed with bounded size and depth, the
second is tokenised so that no special token can come out of it.
"""

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mvg_jax.data.task import AnswerType, Task, Turn
from mvg_jax.tools.spec import MAX_VIEWS, TEXTS, Registry, ToolCall, observation_text

MAX_TURN_CHARS = 4096
MAX_JSON_DEPTH = 6
MAX_INTEGER = 10**9
MAX_NAME_CHARS = 64

THINK, CALL, ANSWER = "think", "tool_call", "answer"
TURN_TAGS = tuple(f"<{slash}{name}>" for name in (THINK, CALL, ANSWER) for slash in ("", "/"))
# What no turn may contain anywhere: the engine's own marks, whether or not the tokenizer has them as single tokens.
ENGINE_TAGS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>",
    "<tool_response>", "</tool_response>", "<tools>", "</tools>",
)  # fmt: skip
_QWEN_TAGS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

FORMAT_TEXT = "Think, then one call or one answer."
JSON_TEXT = "Illegal JSON."
LENGTH_TEXT = "Turn too long."

_TURN_TAG = re.compile("|".join(re.escape(tag) for tag in TURN_TAGS))
_RESERVED = re.compile("|".join(re.escape(tag) for tag in TURN_TAGS + ENGINE_TAGS + _QWEN_TAGS))
_ENGINE = re.compile("|".join(re.escape(tag) for tag in ENGINE_TAGS + _QWEN_TAGS))
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK = " \t\r\n"


@dataclasses.dataclass(frozen=True)
class Malformed:
    """A turn that does not follow the wire format. text: short and fixed; it never echoes the model."""

    code: str
    text: str


def error_text(code: str, text: str) -> str:
    """The observation's line for a turn that could not be carried out."""
    return f"{code}: {text}"


def question_text(task: Task) -> str:
    """What the user asks; untrusted text. Options are lettered where the answer is a letter."""
    if task.answer_type == AnswerType.CHOICE:
        lines = [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(task.options)]
        return "\n".join([task.question, *lines, "Answer with the letter."])
    return task.question + ("\nOptions: " + ", ".join(task.options) if task.options else "")


def render_turn(turn: Turn) -> str:
    """The turn as text, without the end-of-turn token. ValueError if the text would not parse."""
    text = "".join(part for part, _ in _turn_parts(turn))
    parsed = parse_turn(text)
    if isinstance(parsed, Malformed):
        raise ValueError(f"a turn that does not parse: {text[:200]!r}: {parsed.text}")
    return text


def parse_turn(text: str) -> Turn | Malformed:
    """One model turn (without the end-of-turn token) as a Turn, or Malformed("E1", ...). Never raises.

    Exactly one think block, then exactly one tool call or one non-blank answer; ASCII blanks between the blocks only.
    A call is a JSON object with exactly the keys name (str) and arguments (object); duplicate keys, numbers that are
    not finite or above 1e9, nesting deeper than MAX_JSON_DEPTH and tags hidden in JSON strings are refused.
    """
    if len(text) > MAX_TURN_CHARS:
        return Malformed("E1", LENGTH_TEXT)
    if _SURROGATE.search(text) or _ENGINE.search(text):
        return Malformed("E1", FORMAT_TEXT)
    tags = list(_TURN_TAG.finditer(text))
    kinds = tuple(tag.group() for tag in tags)
    for name in (CALL, ANSWER):
        if kinds == ("<think>", "</think>", f"<{name}>", f"</{name}>"):
            break
    else:
        return Malformed("E1", FORMAT_TEXT)
    opened, closed, first, last = tags
    between = text[: opened.start()] + text[closed.end() : first.start()] + text[last.end() :]
    if between.strip(_BLANK):
        return Malformed("E1", FORMAT_TEXT)
    think = text[opened.end() : closed.start()]
    body = text[first.end() : last.start()]
    if name == ANSWER:
        return Turn(think, body) if body.strip() else Malformed("E1", FORMAT_TEXT)
    try:
        return Turn(think, _parse_call(body))
    except ValueError:
        return Malformed("E1", JSON_TEXT)


def turn_body(turn: Turn) -> str:
    """What stands inside a turn's last block: the call as JSON, or the answer."""
    if isinstance(turn.action, str):
        return turn.action
    call = {"name": turn.action.name, "arguments": turn.action.arguments}
    return json.dumps(call, ensure_ascii=False, allow_nan=False)


def _turn_parts(turn: Turn) -> tuple[tuple[str, bool], ...]:
    """A turn as (text, whether it is ours): the tags are ours, what stands between them is not."""
    name = ANSWER if isinstance(turn.action, str) else CALL
    return (
        (f"<{THINK}>", True),
        (turn.think, False),
        (f"</{THINK}><{name}>", True),
        (turn_body(turn), False),
        (f"</{name}>", True),
    )


def _parse_call(body: str) -> ToolCall:
    """A call from JSON text; ValueError for anything else."""
    # Before the decoder, which recurses once a level. What opens seldom is not deep.
    if body.count("{") + body.count("[") > MAX_JSON_DEPTH and _depth(body) > MAX_JSON_DEPTH:
        raise ValueError("nested too deeply")
    value = _JSON.decode(body)
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        raise ValueError("not a call")
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not isinstance(arguments, dict):
        raise ValueError("not a call")
    # JSON escapes can spell what the turn's own text was already searched for.
    for string in _strings(value):
        if _SURROGATE.search(string) or _RESERVED.search(string):
            raise ValueError("reserved text")
    return ToolCall(name, arguments)


def _depth(body: str) -> int:
    depth = deepest = 0
    inside = escaped = False
    for character in body:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or abs(value) > MAX_INTEGER:
        raise ValueError("number out of range")
    return value


def _small_integer(text: str) -> int:
    if len(text) > 1 + len(str(MAX_INTEGER)) or abs(int(text)) > MAX_INTEGER:
        raise ValueError("number out of range")
    return int(text)


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite, parse_int=_small_integer
)


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer as the environment sees it.

    encode: text -> ids; the strings in `special` become their single ids wherever they occur; adds nothing else.
    decode: ids -> text; special tokens stay visible.
    special: every string that encode turns into a control token, with its id.
    image: the placeholder that stands for one embedding; image_start and image_end: the ids around an image.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    special: Mapping[str, int]
    pad: int
    end_of_turn: int
    image: int
    image_start: int
    image_end: int

    def __post_init__(self):
        for text in self.special:
            if len(text) < 2:
                raise ValueError(f"special token {text!r}: one character cannot be told from plain text")
        named = {self.pad, self.end_of_turn, self.image, self.image_start, self.image_end}
        if missing := named - set(self.special.values()):
            raise ValueError(f"ids {sorted(missing)} are not among the special tokens")

    @functools.cached_property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids a model must never sample: all special tokens but the end of a turn and the tags a turn is made of."""
        allowed = {self.end_of_turn} | {self.special[tag] for tag in TURN_TAGS if tag in self.special}
        return tuple(sorted(set(self.special.values()) - allowed))

    @functools.cached_property
    def _special_start(self) -> re.Pattern:
        # Zero-width, so that overlapping occurrences are all found.
        return re.compile("(?=" + "|".join(re.escape(text) for text in self.special) + ")")

    def encode_parts(self, *parts: tuple[str, bool]) -> list[int]:
        """Ids of the joined parts (text, trusted); in a part that is not trusted no special token is recognised.

        The text is cut inside each special string of an untrusted part and the pieces are encoded on their own, so
        that the text reads the same and decode gives it back unchanged.
        """
        text, cuts = "", [0]
        for part, trusted in parts:
            if not trusted:
                cuts += [len(text) + match.start() + 1 for match in self._special_start.finditer(part)]
            text += part
        cuts.append(len(text))
        return [i for start, stop in itertools.pairwise(cuts) if start < stop for i in self.encode(text[start:stop])]


class Marks(NamedTuple):
    """What stands between the contents of a conversation; trusted text. The defaults are ChatML's, as small as it can be.

    response_role: of a tool's answer in messages for the template: "tool", or "user" where it knows no such role.
    system | system text | question | images | the question | answer | model's turn, end_of_turn | observation | images |
    the tool's line | observed | model's turn, end_of_turn | ...
    question_images, observation_images: what stands (between two images, after the last one).
    """

    response_role: str = "tool"
    system: str = "<|im_start|>system\n"
    question: str = "<|im_end|>\n<|im_start|>user\n"
    question_images: tuple[str, str] = ("", "\n")
    answer: str = "<|im_end|>\n<|im_start|>assistant\n"
    observation: str = "\n<|im_start|>user\n<tool_response>"
    observation_images: tuple[str, str] = ("", "")
    observed: str = "</tool_response><|im_end|>\n<|im_start|>assistant\n"


CHATML = Marks()

# One short line a style, with tools and without.
INSTRUCTIONS = {
    ("compact", True): "Think, then call a tool or answer.",
    ("compact", False): "Think, then answer.",
    ("full", True): (
        "You are a careful reader of medical images. First reason inside <think></think>. "
        "Then either call one function, or give a short final answer inside <answer></answer>."
    ),
    ("full", False): (
        "You are a careful reader of medical images. First reason inside <think></think>. "
        "Then give a short final answer inside <answer></answer>."
    ),
}
STYLES = ("compact", "full")

# The public Hermes / Qwen template for function calls, word for word.
_HERMES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{lines}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def system_text(registry: Registry, style: str, tools_on: bool = True) -> str:
    """The system turn's content in one of STYLES; trusted text."""
    instruction = INSTRUCTIONS[style, tools_on]
    if not tools_on:
        return instruction
    if style == "compact":
        return "\n".join([instruction, "<tools>", *registry.compact_lines(), "</tools>"])
    lines = "\n".join(json.dumps(schema) for schema in registry.schemas())
    return instruction + "\n\n" + _HERMES.format(lines=lines)


@dataclasses.dataclass(frozen=True, eq=False)
class Protocol:
    """Tasks, turns and observations as token ids.

    style: "compact" (a short line a tool, for small models) or "full" (the Hermes block with JSON schemas).
    tokens_per_image: E, the placeholders one view stands for. marks: those of the model's chat template (see chat).
    """

    vocabulary: Vocabulary
    registry: Registry
    style: str
    tokens_per_image: int
    marks: Marks = CHATML

    def __post_init__(self):
        if self.style not in STYLES:
            raise ValueError(f"style {self.style!r}: one of {STYLES}")
        if self.tokens_per_image < 1:
            raise ValueError(f"tokens_per_image {self.tokens_per_image}: at least 1")

    @functools.lru_cache(maxsize=16)  # noqa: B019 - few protocols live, each as long as the program
    def system_text(self, tools_on: bool = True) -> str:
        """The system turn's content; trusted text."""
        return system_text(self.registry, self.style, tools_on)

    def prompt_ids(self, task: Task, tools_on: bool = True) -> list[int]:
        """System turn and user turn, up to where the model begins; E placeholders for each of the task's images."""
        marks = self.marks
        head = marks.system + self.system_text(tools_on) + marks.question
        return self._ids(head, len(task.images), marks.question_images, question_text(task), marks.answer)

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - as above
    def observation_ids(self, count: int, text: str) -> tuple[int, ...]:
        """A tool's answer: count images (0 for an error) and a line of text; begins after the model's end_of_turn."""
        marks = self.marks
        return tuple(self._ids(marks.observation, count, marks.observation_images, text, marks.observed))

    def observation_width(self) -> int:
        """Tokens of the longest observation: views of every tool's text, and format errors."""
        views = [(count, observation_text(code, count)) for code in range(len(TEXTS)) for count in range(MAX_VIEWS + 1)]
        errors = [(0, error_text("E1", text)) for text in (FORMAT_TEXT, JSON_TEXT, LENGTH_TEXT)]
        return max(len(self.observation_ids(count, text)) for count, text in views + errors)

    def turn_ids(self, turn: Turn) -> list[int]:
        """A turn as the model would write it, without end_of_turn. ValueError for what would not parse."""
        render_turn(turn)
        return self.vocabulary.encode_parts(*_turn_parts(turn))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one sampled turn; an end_of_turn at its end is dropped."""
        ids = np.asarray(ids).tolist()
        if ids and ids[-1] == self.vocabulary.end_of_turn:
            ids.pop()
        return self.vocabulary.decode(ids)

    def _ids(self, head: str, count: int, around: tuple[str, str], text: str, tail: str) -> list[int]:
        """Ids of head, `count` images with `around` (between two, after the last), text (not trusted) and tail.

        What no image parts is tokenised as one, as it would be in the whole conversation.
        """
        vocabulary, (between, after) = self.vocabulary, around
        if not count:
            return vocabulary.encode_parts((head, True), (text, False), (tail, True))
        image = [vocabulary.image_start, *[vocabulary.image] * self.tokens_per_image, vocabulary.image_end]
        more = [*self._trusted(between), *image] * (count - 1)
        rest = vocabulary.encode_parts((after, True), (text, False), (tail, True))
        return [*self._trusted(head), *image, *more, *rest]

    @functools.lru_cache(maxsize=64)  # noqa: B019 - as above
    def _trusted(self, text: str) -> tuple[int, ...]:
        """Ids of what stands in front of images, much of it the same in every conversation."""
        return tuple(self.vocabulary.encode_parts((text, True)))
