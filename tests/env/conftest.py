"""A character-level tokenizer, tiny tasks, and a device act bound to them."""

import functools
import re
import types

import jax
import numpy as np
import pytest

from mvg_jax.data.task import Box, NativeImage, Task
from mvg_jax.env.episode import task_sources
from mvg_jax.env.protocol import ENGINE_TAGS, TURN_TAGS, Protocol, Vocabulary
from mvg_jax.tools import ToolCall, ViewFormat, apply_tools, default_registry

SPECIAL = {text: i for i, text in enumerate(ENGINE_TAGS + TURN_TAGS)}
_PIECE = re.compile("|".join(map(re.escape, SPECIAL)) + "|.", re.DOTALL)
SIZE = 16
VIEW = ViewFormat(SIZE, SIZE, "linear")
WIDTH = 96


def encode(text):
    return [SPECIAL[p] if p in SPECIAL else len(SPECIAL) + ord(p) for p in _PIECE.findall(text)]


def decode(ids):
    names = {i: text for text, i in SPECIAL.items()}
    return "".join(names[i] if i in names else chr(i - len(SPECIAL)) for i in ids)


VOCABULARY = Vocabulary(
    encode=encode,
    decode=decode,
    special=SPECIAL,
    pad=SPECIAL["<|endoftext|>"],
    end_of_turn=SPECIAL["<|im_end|>"],
    image=SPECIAL["<IMG_CONTEXT>"],
    image_start=SPECIAL["<img>"],
    image_end=SPECIAL["</img>"],
)
REGISTRY = default_registry(None)


def zoom(*box, image=0):
    return ToolCall("image_zoom_in_tool", {"bbox_2d": list(box), "img_idx": image})


def make_task(i=0, **fields):
    """A 32x40 HU image of a ramp; the answer is in the box."""
    pixels = (np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) + 600 + 7 * i).astype(np.uint16)
    values = dict(
        id=f"ramp/{i}",
        dataset="ramp",
        kind="attribute",
        images=(NativeImage(pixels, window=(-160.0, 240.0), intercept=-1024.0, unit="HU"),),
        question="Which is it?",
        answer="calcified",
        options=("homogeneous", "calcified", "septated"),
        boxes=(Box("lesion", (400.0, 400.0, 500.0, 500.0)),),
        chain=(zoom(380, 380, 520, 520),),
    )
    return Task(**{**values, **fields})


def make_act(tasks):
    """apply_tools with one source row a task."""
    sources = jax.device_put(task_sources(tasks, 32, 40))
    row = np.arange(len(tasks), dtype=np.int32)
    return functools.partial(_act, sources, row)


def _act(sources, row, frames, args):
    return apply_tools(REGISTRY, sources, row, frames, args, VIEW)


@pytest.fixture
def protocol():
    return Protocol(VOCABULARY, REGISTRY, "compact", 4)


@pytest.fixture(scope="session")
def tiny():
    """The helpers above, for tests."""
    return types.SimpleNamespace(
        vocabulary=VOCABULARY,
        registry=REGISTRY,
        zoom=zoom,
        task=make_task,
        act=make_act,
        width=WIDTH,
        size=SIZE,
        view=VIEW,
    )
