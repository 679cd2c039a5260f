"""A scripted expert, good and bad: trajectories for the supervised warm-up."""

from collections.abc import Mapping

import numpy as np

from mvg_jax.data.phantom.cases import GRID_UNITS, bone_window_call, zoom_box, zoom_call
from mvg_jax.data.task import Task, Turn
from mvg_jax.tools.spec import ToolCall

DECISIONS = ("direct", "right", "wrong_tool", "off_target", "needless")

# One sentence a situation, so that a small model learns them at once. Only who compares says what each view shows.
ZOOM = "The lesion is too small. Zoom in."
ZOOM_TWO = "Compare both lesions."
BONE = "The bone is clipped. Use the bone window."
TURN = "Turn the image."
SEEN_AT_ONCE = "It is visible."
SEEN_NOW = "Now it is visible."
GUESS = "It is not visible. I guess."
THINKS = (ZOOM, ZOOM_TWO, BONE, TURN, SEEN_AT_ONCE, SEEN_NOW, GUESS)


def expert(task: Task, rng: np.random.Generator, *, decision: str) -> tuple[Turn, ...]:
    """The turns of one trajectory: what is done first by `decision`, and the answer it leads to.

    direct: answers at once. right: the minimal chain, boxes off by at most one grid cell. wrong_tool: a call that shows
    nothing new. off_target: a zoom that misses every lesion of the question. needless: a zoom on one of them although
    the overview was enough. Who has not seen guesses among the options; a control's answer is always seen.
    Raises ValueError for `needless` on a task that needs a tool, and for an unknown decision.
    """
    control = not task.needs_tool
    blind = Turn(SEEN_AT_ONCE, task.answer) if control else Turn(GUESS, str(rng.choice(task.options)))
    match decision:
        case "direct":
            return (blind,)
        case "right" if control:
            return (Turn(SEEN_AT_ONCE, task.answer),)
        case "right":
            call = task.chain[0]
            if call.name == "window_level_tool":
                return (Turn(BONE, call), Turn(SEEN_NOW, task.answer))
            at = [_jittered(rng, box.xyxy) for box in task.boxes]
            if len(at) == 1:
                return (Turn(ZOOM, zoom_call(*at)), Turn(SEEN_NOW, task.answer))
            return (Turn(ZOOM_TWO, zoom_call(*at)), Turn(_named(task), task.answer))
        case "wrong_tool":
            return (_wrong(task, rng), blind)
        case "off_target":
            return (Turn(ZOOM, zoom_call(_missing(task, rng))), blind)
        case "needless" if control:
            box = task.boxes[rng.integers(len(task.boxes))]
            return (Turn(ZOOM, zoom_call(_jittered(rng, box.xyxy))), Turn(SEEN_NOW, task.answer))
    raise ValueError(f"decision {decision!r} for a task of kind {task.kind!r}")


def mixture(task: Task, rng: np.random.Generator, weights: Mapping[str, float]) -> tuple[Turn, ...]:
    """A trajectory of a random decision; `needless` counts for controls only. weights need not sum to 1."""
    usable = {k: w for k, w in weights.items() if k != "needless" or not task.needs_tool}
    p = np.array(list(usable.values()), float)
    return expert(task, rng, decision=list(usable)[rng.choice(len(p), p=p / p.sum())])


def _named(task: Task) -> str:
    """What each view shows, in order. Said aloud, a comparison is two readings and a look-up; in one step it is hardly learnt."""
    return ", ".join(box.label.removesuffix(" lesion") for box in task.boxes)


def _wrong(task: Task, rng: np.random.Generator) -> Turn:
    choice = rng.integers(4)
    if choice == 0:
        axis = str(rng.choice(["horizontal", "vertical"]))
        return Turn(TURN, ToolCall("image_flip_tool", {"axis": axis, "img_idx": 0}))
    if choice == 1:
        return Turn(TURN, ToolCall("image_rotate_tool", {"angle": int(rng.choice([90, 180, 270])), "img_idx": 0}))
    if task.kind == "window":
        return Turn(ZOOM, zoom_call(_jittered(rng, task.boxes[0].xyxy)))
    return Turn(BONE, bone_window_call())


def _jittered(rng: np.random.Generator, xyxy: tuple[float, float, float, float]) -> list[int]:
    """The zoom box around a lesion, its centre off by at most one grid cell either way."""
    x1, y1, x2, y2 = xyxy
    dx, dy = rng.integers(-1, 2, 2) * GRID_UNITS
    return zoom_box((x1 + x2) / 2 + float(dx), (y1 + y2) / 2 + float(dy))


def _missing(task: Task, rng: np.random.Generator) -> list[int]:
    """A zoom box inside the patient's part of the image that meets no box of the task."""
    while True:
        x, y = rng.uniform(180, 820), rng.uniform(250, 750)
        box = zoom_box(float(x), float(y))
        if all(_apart(box, other.xyxy) for other in task.boxes):
            return box


def _apart(a, b) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
