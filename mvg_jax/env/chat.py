"""How a checkpoint's own chat template marks the turns of a conversation.

The template is rendered twice when a program starts, on contents that are easy to find again; what stands between them are the
marks. A third conversation, with tool turns, must then come out of the protocol and out of the template as the same ids.
Templates that know no role `tool` get tool responses as user turns. Templates that edit what was said (dropping the model's
earlier reasoning, say) have no such marks: a conversation here is only ever appended to.
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mvg_jax.data.task import NativeImage, Task
from mvg_jax.env.protocol import (
    FORMAT_TEXT,
    Marks,
    Protocol,
    Turn,
    Vocabulary,
    error_text,
    question_text,
    render_turn,
)
from mvg_jax.models.config import VLMConfig
from mvg_jax.models.tokenizer import (
    ImageTokens,
    Tokenizer,
    chat_template_file,
    image_tokens,
    load_chat_template,
    named_tokens,
    pad_token,
)
from mvg_jax.tools.spec import OK_ZOOM, Registry, ToolCall, observation_text

Messages = list[dict[str, Any]]
Render = Callable[[Messages, bool], str]

_IMAGE = {"type": "image"}
_SYSTEM, _QUESTION, _TURN, _RESPONSE = "systemcontent", "questioncontent", "turncontent", "responsecontent"


class ChatTemplateError(ValueError):
    """A chat template that the protocol cannot follow; the message says what is wrong with it."""


def load_protocol(
    directory: str | pathlib.Path,
    tokenizer: Tokenizer,
    config: VLMConfig,
    registry: Registry,
    style: str,
) -> Protocol:
    """The wire format as the checkpoint in this folder was taught to read it.

    Raises FileNotFoundError, KeyError or ValueError for what the folder lacks, and ChatTemplateError naming the file of a
    template that cannot be followed.
    """
    images, pad = image_tokens(directory, tokenizer, config), pad_token(directory, tokenizer)
    render = template_renderer(load_chat_template(directory), named_tokens(directory))
    try:
        end_of_turn, marks = split_end_of_turn(read_marks(render, images.written), list(tokenizer.added))
        vocabulary = make_vocabulary(
            tokenizer,
            pad=pad,
            end_of_turn=end_of_turn,
            image=images.placeholder,
            image_start=images.start,
            image_end=images.end,
        )
        protocol = Protocol(vocabulary, registry, style, config.tokens_per_image, marks)
        check_protocol(protocol, render, images)
    except ChatTemplateError as error:
        raise ChatTemplateError(
            f"{chat_template_file(directory)}: this chat template cannot be used: {error}"
        ) from error
    return protocol


def make_vocabulary(
    tokenizer: Tokenizer, *, pad: str, end_of_turn: str, image: str, image_start: str, image_end: str
) -> Vocabulary:
    """The tokenizer as the environment sees it. KeyError for a token that it does not have."""
    return Vocabulary(
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        special=tokenizer.added,
        pad=tokenizer.id(pad),
        end_of_turn=tokenizer.id(end_of_turn),
        image=tokenizer.id(image),
        image_start=tokenizer.id(image_start),
        image_end=tokenizer.id(image_end),
    )


def template_renderer(template: str, tokens: Mapping[str, str]) -> Render:
    """(messages, whether the model's turn is to begin) -> text, with what transformers offers to a template.

    tokens: those that the template may call by name, as bos_token. The renderer raises ChatTemplateError.
    """
    import jinja2
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.globals["raise_exception"] = refuse

    def render(messages: Messages, generate: bool) -> str:
        try:
            compiled = environment.from_string(template)
            return compiled.render(messages=messages, tools=None, add_generation_prompt=generate, **tokens)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ChatTemplateError(f"it cannot be rendered: {error}") from error

    return render


def read_marks(render: Render, image: str) -> Marks:
    """The marks of a template. image: what it writes for an image. Raises ChatTemplateError."""
    asked: Messages = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": [_IMAGE, _IMAGE, {"type": "text", "text": _QUESTION}]},
    ]
    prompt = render(asked, True)
    system, question, between, after, answer = _cut(prompt, _SYSTEM, image, image, _QUESTION)
    turn = {"role": "assistant", "content": _TURN}
    for role, opened, closed in (("tool", "", ""), ("user", "<tool_response>", "</tool_response>")):
        parts = [{"type": "text", "text": opened}] if opened else []
        parts += [_IMAGE, _IMAGE, {"type": "text", "text": _RESPONSE + closed}]
        try:
            text = render([*asked, turn, {"role": role, "content": parts}], True)
            if not text.startswith(prompt + _TURN):
                raise ChatTemplateError("it does not keep what was said before")
            observation, *images, observed = _cut(text.removeprefix(prompt + _TURN), image, image, _RESPONSE)
        except ChatTemplateError:
            if role == "user":
                raise
            continue
        if "<tool_response>" in observation and "</tool_response>" in observed:
            return Marks(role, system, question, (between, after), answer, observation, tuple(images), observed)
    raise ChatTemplateError("it writes no tool response")


def _cut(text: str, *contents: str) -> list[str]:
    """What stands before, between and after the contents, each of which must occur as often as it is given."""
    for content in contents:
        if text.count(content) != contents.count(content):
            raise ChatTemplateError(f"it writes {content!r} {text.count(content)} times, not {contents.count(content)}")
    pieces = []
    for content in contents:
        piece, found, text = text.partition(content)
        if not found:
            raise ChatTemplateError(f"it does not keep the order of what was said: {content!r} comes too early")
        pieces.append(piece)
    return [*pieces, text]


def split_end_of_turn(marks: Marks, special: Sequence[str]) -> tuple[str, Marks]:
    """The special token that closes the model's turn, and the marks without it. Raises ChatTemplateError."""
    found = max((token for token in special if marks.observation.startswith(token)), key=len, default=None)
    if found is None:
        raise ChatTemplateError(f"it closes the model's turn with {marks.observation[:40]!r}, not with a special token")
    return found, marks._replace(observation=marks.observation.removeprefix(found))


def probe_task(images: int) -> Task:
    """A question about this many images."""
    black = NativeImage(np.zeros((1, 1), np.uint8))
    return Task("probe", "probe", "probe", (black,) * images, "Which one is it?", "left", options=("left", "right"))


def check_protocol(protocol: Protocol, render: Render, images: ImageTokens) -> None:
    """Raises ChatTemplateError unless the protocol's ids are those of the template's text, tool turns included."""
    zoom = ToolCall("image_zoom_in_tool", {"bbox_2d": [[10, 20, 400, 500], [0, 0, 300, 300]], "img_idx": 0})
    turns = [Turn("Look closer.", zoom), Turn("", zoom), Turn("Now it is clear.", "left")]
    responses = [(2, observation_text(OK_ZOOM, 2)), (0, error_text("E1", FORMAT_TEXT))]
    span = images.start + images.placeholder * protocol.tokens_per_image + images.end
    for count in (1, 2):
        task = probe_task(count)
        ids = protocol.prompt_ids(task)
        asked = [_IMAGE] * count + [{"type": "text", "text": question_text(task)}]
        messages: Messages = [
            {"role": "system", "content": protocol.system_text()},
            {"role": "user", "content": asked},
        ]
        for turn, response in itertools.zip_longest(turns, responses):
            ids += [*protocol.turn_ids(turn), protocol.vocabulary.end_of_turn]
            messages.append({"role": "assistant", "content": render_turn(turn)})
            if response:
                ids += protocol.observation_ids(*response)
                messages.append(response_message(protocol.marks, *response))
        text = render(messages, False).replace(images.written, span)
        expected = protocol.vocabulary.encode(text)
        # After its last turn a template may write what the next one begins with.
        if list(expected[: len(ids)]) != ids or len(expected) > len(ids) + 2:
            at = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), len(expected))
            near = slice(max(at - 8, 0), at + 8)
            decode = protocol.vocabulary.decode
            raise ChatTemplateError(
                f"a conversation with tool turns reads {decode(expected[near])!r} in it and {decode(ids[near])!r} here; "
                "turns must be kept word for word"
            )


def response_message(marks: Marks, count: int, text: str) -> dict[str, Any]:
    """A tool's answer, `count` images and a line, as a message for the template that the marks come from."""
    parts: list[dict[str, Any]] = [_IMAGE] * count + [{"type": "text", "text": text}]
    if marks.response_role == "user":
        parts = [{"type": "text", "text": "<tool_response>"}, *parts, {"type": "text", "text": "</tool_response>"}]
    return {"role": marks.response_role, "content": parts}
