"""Episodes in text, one row at a time: for speakers that have no tokens of ours, a script or a model behind an endpoint.

The environment is that of `rollout`: the same parser, limits and tools, which run on the device.
"""

import dataclasses
import typing

import jax
import numpy as np

from mvg_jax.data.task import Task
from mvg_jax.env.episode import Episodes, Limits, Stop, finish_text_step, plan_step, reset, shown_at_first, task_sources
from mvg_jax.env.protocol import parse_turn
from mvg_jax.tools import Registry, ToolResult, ViewFormat, apply_tools


class Exchange(typing.NamedTuple):
    """A turn, and the observation it got: views uint8 [n, H, W, 3] and a line of text."""

    said: str
    views: np.ndarray
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """What a speaker knows. views: of the question's images, uint8 [n, H, W, 3]. sample: which try at the task this is."""

    task: Task
    sample: int
    tools_on: bool
    views: np.ndarray
    exchanges: tuple[Exchange, ...] = ()


class Speaker(typing.Protocol):
    """Whoever speaks for the model, in text; several threads may ask at once."""

    name: str

    def speak(self, conversation: Conversation) -> str | Stop:
        """The next turn, untrusted; or why there is none: MAX_TOKENS (cut off) or VOID (not the model's doing)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Where episodes are played. image_size: (H, W) bucket of native images; images: most in one question."""

    registry: Registry
    limits: Limits
    view: ViewFormat
    image_size: tuple[int, int]
    images: int


def play(table: Table, speaker: Speaker, task: Task, sample: int, tools_on: bool) -> tuple[Episodes, tuple[str, ...]]:
    """One episode to its end (a batch of one row), and the line of text that each of its turns got ("" = none)."""
    offered = table.registry if tools_on else Registry(())
    sources = jax.device_put(task_sources([task], *table.image_size, table.images))
    episodes = reset([task], table.limits)
    views = shown_at_first(sources, episodes, table.view)
    conversation = Conversation(task, sample, tools_on, np.asarray(views)[: len(task.images)])
    texts = []
    while episodes.running_B[0]:
        said = speaker.speak(conversation)
        turn, outside = (None, said) if isinstance(said, Stop) else (parse_turn(said), Stop.RUNNING)
        plan = plan_step([offered], episodes, [turn], np.array([outside], np.int32))
        result = apply_tools(table.registry, sources, np.zeros(1, np.int32), plan.frames, plan.args, table.view)
        frames, count, code = jax.device_get((result.frames, result.count, result.code))
        episodes, (text,), (count,) = finish_text_step(plan, ToolResult(result.views, frames, count, code))
        texts.append(text)
        if episodes.running_B[0]:
            exchange = Exchange(said, np.asarray(result.views[0, :count]), text)
            conversation = dataclasses.replace(conversation, exchanges=(*conversation.exchanges, exchange))
    return episodes, tuple(texts)
