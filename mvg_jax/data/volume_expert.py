"""A scripted expert, good and bad, for tasks whose known chain is a zoom on a named box, or nothing."""

from collections.abc import Mapping

import numpy as np

from mvg_jax.data.labelled_volume import zoom_call
from mvg_jax.data.task import Task, Turn
from mvg_jax.tools.spec import ToolCall

DECISIONS = ("direct", "right", "wrong_tool", "off_target", "needless")

ZOOM = "It is too small. Zoom in."
TURN = "Turn the image."
SEEN_AT_ONCE = "It is visible."
SEEN_NOW = "Now it is visible."
GUESS = "It is not visible. I guess."


def expert(task: Task, rng: np.random.Generator, *, decision: str) -> tuple[Turn, ...]:
    """The turns of one trajectory: what is done first by `decision`, and the answer it leads to.

    direct: answers at once. right: the task's chain. wrong_tool: turns or mirrors the image. off_target: zooms on a box of the same
    size elsewhere. needless: a zoom on something the question is about although the overview was enough. Who has not seen guesses
    among the options. ValueError for a task without options or known chain, for `needless` where it does not apply, and for an
    unknown decision.
    """
    if task.chain is None or not task.options:
        raise ValueError(f"task {task.id}: the expert plays tasks with options and a known chain")
    blind = Turn(GUESS, str(rng.choice(task.options))) if task.chain else Turn(SEEN_AT_ONCE, task.answer)
    seen = Turn(SEEN_NOW, task.answer)
    match decision:
        case "direct":
            return (blind,)
        case "right":
            return (*(Turn(ZOOM, call) for call in task.chain), seen) if task.chain else (blind,)
        case "wrong_tool":
            flips = [ToolCall("image_flip_tool", {"axis": axis, "img_idx": 0}) for axis in ("horizontal", "vertical")]
            turns = [ToolCall("image_rotate_tool", {"angle": angle, "img_idx": 0}) for angle in (90, 180, 270)]
            calls = flips + turns
            return (Turn(TURN, calls[rng.integers(len(calls))]), blind)
        case "off_target" if task.chain:
            return (Turn(ZOOM, zoom_call(_elsewhere(task.chain[0].arguments["bbox_2d"], rng))), blind)
        case "off_target":
            return (blind,)
        case "needless" if not task.chain:
            around = [_around(box.xyxy) for box in task.boxes] or [[250, 250, 750, 750]]
            return (Turn(ZOOM, zoom_call(around[rng.integers(len(around))])), seen)
    raise ValueError(f"decision {decision!r} for a task of kind {task.kind!r}")


def mixture(task: Task, rng: np.random.Generator, weights: Mapping[str, float]) -> tuple[Turn, ...]:
    """A trajectory of a random decision; `needless` counts only where no tool is needed. weights need not sum to 1."""
    usable = {k: w for k, w in weights.items() if k != "needless" or not task.needs_tool}
    p = np.array(list(usable.values()), float)
    return expert(task, rng, decision=list(usable)[rng.choice(len(p), p=p / p.sum())])


def _elsewhere(box: list[int], rng: np.random.Generator) -> list[int]:
    """A box of the same size, drawn until its centre lies outside of this one."""
    x1, y1, x2, y2 = box
    if x2 - x1 > 500 or y2 - y1 > 500:  # there is no elsewhere
        return [0, 0, 1000, 1000]
    while True:
        x, y = int(rng.integers(0, 1001 - (x2 - x1))), int(rng.integers(0, 1001 - (y2 - y1)))
        moved = [x, y, x + x2 - x1, y + y2 - y1]
        centre = (moved[0] + moved[2]) / 2, (moved[1] + moved[3]) / 2
        if not (x1 <= centre[0] <= x2 and y1 <= centre[1] <= y2):
            return moved


def _around(xyxy: tuple[float, float, float, float]) -> list[int]:
    """A box in whole units, at least 28 wide."""
    x1, y1, x2, y2 = xyxy
    return [max(int(x1) - 14, 0), max(int(y1) - 14, 0), min(int(x2) + 15, 1000), min(int(y2) + 15, 1000)]
