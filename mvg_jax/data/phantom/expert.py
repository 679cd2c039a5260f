"""A scripted expert, good and bad: trajectories for the supervised warm-up."""

from collections.abc import Mapping

import numpy as np

from mvg_jax.data.phantom.cases import ZOOM_UNITS, bone_window_call, grid_units, zoom_box, zoom_call
from mvg_jax.data.task import AnswerType, Task, Turn
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
# What the atlas's tasks need besides: not everything there that is small is a lesion.
ZOOM_DETAIL = "The detail is too small. Zoom in."
ZOOM_BOTH = "Compare both details."
ATLAS_THINKS = (*THINKS, ZOOM_DETAIL, ZOOM_BOTH)
_PLACES_TRIED = 1000


def expert(task: Task, rng: np.random.Generator, *, decision: str) -> tuple[Turn, ...]:
    """The turns of one trajectory: what is done first by `decision`, and the answer it leads to.

    direct: answers at once. right: the minimal chain, boxes off by at most one grid cell. wrong_tool: a call that shows
    nothing new. off_target: a zoom that misses every box of the question. needless: a zoom on one of them although
    the overview was enough (on any place if there are none). Who has not seen guesses among the options; a control's answer is
    always seen.
    Any task with a known chain of at most one call will do: a window, or a zoom on each of the task's boxes. Raises ValueError for
    other tasks, for `needless` on a task that needs a tool, for a guess where nothing says what there is to choose from,
    and for an unknown decision.
    """
    if task.chain is None or len(task.chain) > 1:
        raise ValueError(f"task {task.id}: the expert knows chains of at most one call, not {task.chain}")
    control = not task.needs_tool
    blind = Turn(SEEN_AT_ONCE, task.answer) if control else Turn(GUESS, _guess(task, rng))
    one, two = (ZOOM, ZOOM_TWO) if _about_lesions(task) else (ZOOM_DETAIL, ZOOM_BOTH)
    match decision:
        case "direct":
            return (blind,)
        case "right" if control:
            return (Turn(SEEN_AT_ONCE, task.answer),)
        case "right":
            call = task.chain[0]
            if call.name == "window_level_tool":
                return (Turn(BONE, call), Turn(SEEN_NOW, task.answer))
            at = [_jittered(rng, box.xyxy, _zoom_units(task)) for box in task.boxes]
            if len(at) == 1:
                return (Turn(one, zoom_call(*at)), Turn(SEEN_NOW, task.answer))
            return (Turn(two, zoom_call(*at)), Turn(_named(task), task.answer))
        case "wrong_tool":
            return (_wrong(task, rng), blind)
        case "off_target":
            return (Turn(one, zoom_call(_missing(task, rng))), blind)
        case "needless" if control:
            if not task.boxes:
                return (Turn(one, zoom_call(_missing(task, rng))), Turn(SEEN_NOW, task.answer))
            box = task.boxes[rng.integers(len(task.boxes))]
            return (Turn(one, zoom_call(_jittered(rng, box.xyxy, _zoom_units(task)))), Turn(SEEN_NOW, task.answer))
    raise ValueError(f"decision {decision!r} for a task of kind {task.kind!r}")


def mixture(task: Task, rng: np.random.Generator, weights: Mapping[str, float]) -> tuple[Turn, ...]:
    """A trajectory of a random decision; `needless` counts for controls only. weights need not sum to 1."""
    usable = {k: w for k, w in weights.items() if k != "needless" or not task.needs_tool}
    p = np.array(list(usable.values()), float)
    return expert(task, rng, decision=list(usable)[rng.choice(len(p), p=p / p.sum())])


def _guess(task: Task, rng: np.random.Generator) -> str:
    """One of the answers that the question allows, as it is written."""
    if not task.options:
        raise ValueError(f"task {task.id}: there are no options to guess among")
    index = rng.integers(len(task.options)) if task.answer_type == AnswerType.CHOICE else None
    return str(rng.choice(task.options)) if index is None else chr(ord("A") + int(index))


def _about_lesions(task: Task) -> bool:
    return task.dataset == "phantom" or all(box.label.endswith(" lesion") for box in task.boxes)


def _zoom_units(task: Task) -> int:
    """Side of the zoom boxes that show this task's details."""
    if not task.chain or task.chain[0].name != "image_zoom_in_tool":
        return ZOOM_UNITS
    at = task.chain[0].arguments["bbox_2d"]
    x1, _, x2, _ = at[0] if isinstance(at[0], list) else at
    return x2 - x1


def _named(task: Task) -> str:
    """What each view shows, in order. Said aloud, a comparison is two readings and a look-up; in one step it is hardly learnt."""
    return ", ".join(box.label.rsplit(" ", 1)[0] for box in task.boxes)


def _wrong(task: Task, rng: np.random.Generator) -> Turn:
    """A turned image; of a CT-like one also the wrong one of window and zoom."""
    hounsfield = task.images[0].unit == "HU"
    choice = rng.integers(4 if hounsfield else 2)
    if choice == 0:
        axis = str(rng.choice(["horizontal", "vertical"]))
        return Turn(TURN, ToolCall("image_flip_tool", {"axis": axis, "img_idx": 0}))
    if choice == 1:
        return Turn(TURN, ToolCall("image_rotate_tool", {"angle": int(rng.choice([90, 180, 270])), "img_idx": 0}))
    if task.kind == "window":
        return Turn(ZOOM, zoom_call(_jittered(rng, task.boxes[0].xyxy, _zoom_units(task))))
    return Turn(BONE, bone_window_call())


def _jittered(rng: np.random.Generator, xyxy: tuple[float, float, float, float], units: int) -> list[int]:
    """The zoom box around a lesion, its centre off by at most one grid cell either way."""
    x1, y1, x2, y2 = xyxy
    dx, dy = rng.integers(-1, 2, 2) * grid_units(units)
    return zoom_box((x1 + x2) / 2 + float(dx), (y1 + y2) / 2 + float(dy), units)


def _missing(task: Task, rng: np.random.Generator) -> list[int]:
    """A zoom box inside the patient's part of the image that meets no box of the task; any, where the boxes leave no room."""
    for _ in range(_PLACES_TRIED):
        x, y = rng.uniform(180, 820), rng.uniform(250, 750)
        box = zoom_box(float(x), float(y), _zoom_units(task))
        if all(_apart(box, other.xyxy) for other in task.boxes):
            break
    return box


def _apart(a, b) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
