"""The environment as Gymnasium sees it: one episode at a time, driven by text from outside.

The same code as a batch of rollouts, with one row. Importing this module needs gymnasium; nothing else in env does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np

from mvg_jax.data.task import Task
from mvg_jax.env.episode import Episodes, Limits, Stop, reset, shown_at_first, step, task_sources
from mvg_jax.env.protocol import MAX_TURN_CHARS, Protocol, question_text
from mvg_jax.env.rewards import check_weights, compute_rewards
from mvg_jax.tools.render import Sources, ViewFormat
from mvg_jax.tools.spec import apply_tools

MAX_TEXT_CHARS = 32768
# The texts of the two spaces: the basic multilingual plane without surrogates and control characters.
CHARSET = frozenset("\t\n") | frozenset(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0xD800), *range(0xE000, 0x10000)]))

_ENDS = (Stop.ANSWER, Stop.VOID)


class MedicalVQAEnv(gymnasium.Env):
    """One question about medical images. Action: the text of a model's turn (see protocol). Rewards come at the end.

    Observation: text (at first system text and question, then the tool's line), images uint8 [N, H, W, 3] (all views so
    far, black beyond count) and count. terminated: the model answered, or the episode is void; truncated: a limit.
    reset options: {"task": index} picks the task, otherwise it is drawn by the seed.
    info: task (id) and, at the end, stop (the reason) and each reward term, unweighted.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(
        self,
        tasks: Sequence[Task],
        protocol: Protocol,
        limits: Limits,
        weights: Mapping[str, float],
        view: ViewFormat,
        tools_on: bool = True,
    ):
        check_weights(weights)
        self._tasks, self._protocol, self._limits, self._weights = tasks, protocol, limits, dict(weights)
        self._view, self._tools_on = view, tools_on
        self._episode: Episodes | None = None
        self._sources: Sources | None = None
        self.action_space = gymnasium.spaces.Text(MAX_TURN_CHARS, min_length=0, charset=CHARSET)
        shape = (limits.max_images, *view.shape)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "text": gymnasium.spaces.Text(MAX_TEXT_CHARS, min_length=0, charset=CHARSET),
                "images": gymnasium.spaces.Box(0, 255, shape, np.uint8),
                "count": gymnasium.spaces.Discrete(limits.max_images + 1),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins an episode. ValueError for an unknown option or a task index out of range."""
        super().reset(seed=seed)
        options = options if options is not None else {}
        if unknown := set(options) - {"task"}:
            raise ValueError(f"unknown options {sorted(unknown)}; there is 'task'")
        index = options["task"] if "task" in options else int(self.np_random.integers(len(self._tasks)))
        if not 0 <= index < len(self._tasks):
            raise ValueError(f"task {index} of {len(self._tasks)}")
        task = self._tasks[index]
        self._episode = reset([task], self._limits)
        height, width = np.max([image.pixels.shape[:2] for image in task.images], axis=0)
        self._sources = jax.device_put(task_sources([task], int(height), int(width)))
        self._images = np.array(shown_at_first(self._sources, self._episode, self._view))
        text = self._protocol.system_text(self._tools_on) + "\n\n" + question_text(task)
        return self._observation(text), {"task": task.id}

    def step(self, action: str) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Takes one turn. RuntimeError before reset or after the end."""
        if self._episode is None or not self._episode.running_B[0]:
            raise RuntimeError("no episode is running: call reset")
        first = int(self._episode.images_B[0])
        width = self._protocol.observation_width()
        self._episode, result = step(self._protocol, self._act, self._episode, [action], width)
        count = int(result.count_B[0])
        self._images = self._images.copy()  # observations handed out stay as they were
        self._images[first : first + count] = np.asarray(result.views[0, :count])
        info: dict[str, Any] = {"task": self._episode.tasks[0].id}
        reward, stop = 0.0, Stop(self._episode.stop_B[0])
        if stop != Stop.RUNNING:
            total, terms = compute_rewards(self._weights, self._episode)
            reward = float(total[0])
            info |= {"stop": stop.name, **{name: float(values[0]) for name, values in terms.items()}}
        truncated = stop not in (Stop.RUNNING, *_ENDS)
        return self._observation(result.texts[0]), reward, stop in _ENDS, truncated, info

    def _act(self, frames, args):
        return apply_tools(self._protocol.registry, self._sources, np.zeros(1, np.int32), frames, args, self._view)

    def _observation(self, text: str) -> dict[str, Any]:
        shown = "".join(c if c in CHARSET else "\ufffd" for c in text)
        return {"text": shown, "images": self._images, "count": int(self._episode.images_B[0])}
