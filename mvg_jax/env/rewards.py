"""Rewards are declared: named terms, each a pure function of a row's facts, summed with the weights of the config.

Facts are what the model wrote and what came of it (parsed turns, error codes, stop reason) and the task's labels; the
text of observations is never read. No term pays for calling a tool, however the weights are set.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mvg_jax.data.task import Task, Turn, question_of
from mvg_jax.env.episode import Episodes, Stop, TurnRecord
from mvg_jax.frames import BOX_UNITS, Frame, bounds
from mvg_jax.scoring.strict import score_question

# A zoom hits a ground-truth box if it overlaps it this well, or shows its centre at least three times magnified.
HIT_IOU = 0.5
HIT_AREA = 1 / 9


class Facts(NamedTuple):
    """One row. answer: as written, None if it did not end with one."""

    task: Task
    stop: Stop
    answer: str | None
    records: tuple[TurnRecord, ...]


def row_facts(episodes: Episodes) -> list[Facts]:
    """The facts of each row."""
    rows = zip(episodes.tasks, episodes.stop_B, episodes.answers, episodes.records, strict=True)
    return [Facts(task, Stop(stop), answer, records) for task, stop, answer, records in rows]


def accuracy(facts: Facts) -> float:
    """1 if the final answer is right by the strict scorer; no answer is wrong."""
    return score_question(question_of(facts.task), facts.answer)


def well_formed(facts: Facts) -> float:
    """1 if every turn follows the wire format and the last one is an answer."""
    return float(facts.stop == Stop.ANSWER and all(isinstance(record.turn, Turn) for record in facts.records))


def needless_call(facts: Facts) -> float:
    """1 if a tool was called although the task is known to need none."""
    return float(facts.task.chain == () and _calls(facts) > 0)


def error(facts: Facts) -> float:
    """How many turns ended with a typed error."""
    return float(_errors(facts))


TERMS: Mapping[str, Callable[[Facts], float]] = {
    "accuracy": accuracy,
    "format": well_formed,
    "needless_call": needless_call,
    "error": error,
}
# Terms that count what should not happen: paying for them would pay for calls and errors.
COSTS = ("needless_call", "error")


def check_weights(weights: Mapping[str, float]) -> None:
    """ValueError for unknown terms, weights that are not finite, and costs that would pay."""
    if unknown := set(weights) - set(TERMS):
        raise ValueError(f"unknown reward terms {sorted(unknown)}; there are {sorted(TERMS)}")
    for name, weight in weights.items():
        if not math.isfinite(weight) or (weight > 0 and name in COSTS):
            raise ValueError(f"weight {weight} of {name}: finite, and at most 0 for {COSTS}")


def compute_rewards(weights: Mapping[str, float], episodes: Episodes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(total [B] float32, each weighted term's unweighted values [B] float32). See check_weights for the errors."""
    check_weights(weights)
    facts = row_facts(episodes)
    terms = {name: np.array([TERMS[name](row) for row in facts], np.float32) for name in weights}
    total = np.zeros(len(facts), np.float32)
    for name, weight in weights.items():
        total += np.float32(weight) * terms[name]
    return total, terms


def tool_statistics(episodes: Episodes) -> dict[str, np.ndarray]:
    """What the rows did with the tools, float32 [B] each, NaN where a figure has no meaning (average with nanmean).

    call: 1 if the row called a tool, legally or not. calls: how many times. error: share of turns with a typed error.
    tool_choice: where the task's chain is known, 1 if the first calls name exactly the chain's tools in order (for an
    empty chain: if it calls nothing). box_hit: in rows with a zoom, on tasks with boxes, the share of ground-truth
    boxes that some zoomed view hits: intersection over union of at least HIT_IOU, or the box's centre lies in the view
    and the view is at most HIT_AREA of its image; both on the native image, through whatever frames lie between.
    """
    facts = row_facts(episodes)
    columns = {
        "call": [float(_calls(row) > 0) for row in facts],
        "calls": [float(_calls(row)) for row in facts],
        "error": [_errors(row) / len(row.records) if row.records else math.nan for row in facts],
        "tool_choice": [_tool_choice(row) for row in facts],
        "box_hit": [_box_hit(row, Frame(*(x[b] for x in episodes.frames))) for b, row in enumerate(facts)],
    }
    return {name: np.array(column, np.float32) for name, column in columns.items()}


def _calls(facts: Facts) -> int:
    return sum(record.call is not None for record in facts.records)


def _errors(facts: Facts) -> int:
    return sum(record.error is not None for record in facts.records)


def _tool_choice(facts: Facts) -> float:
    chain = facts.task.chain
    if chain is None:
        return math.nan
    called = [record.call.name for record in facts.records if record.call is not None]
    wanted = [call.name for call in chain]
    return float(called[: len(wanted)] == wanted if wanted else not called)


def _box_hit(facts: Facts, frames_N: Frame) -> float:
    zooms = [record for record in facts.records if record.views and "bbox_2d" in record.call.arguments]
    if not facts.task.boxes or not zooms:
        return math.nan
    views = [i for record in zooms for i in range(record.first_image, record.first_image + record.views)]
    shown = [(int(frames_N.source[i]), bounds(Frame(*(x[i] for x in frames_N)))) for i in views]
    hits = []
    for box in facts.task.boxes:
        height, width = facts.task.images[box.image].pixels.shape[:2]
        truth = np.array(box.xyxy) / BOX_UNITS * [width, height, width, height]
        hits.append(any(source == box.image and _hits(view, truth, height * width) for source, view in shown))
    return float(np.mean(hits))


def _hits(view: np.ndarray, truth: np.ndarray, image_area: float) -> bool:
    """Both boxes xyxy in native pixels."""
    overlap = _area(np.concatenate([np.maximum(view[:2], truth[:2]), np.minimum(view[2:], truth[2:])]))
    centre = (truth[:2] + truth[2:]) / 2
    inside = bool(np.all(view[:2] <= centre) and np.all(centre <= view[2:]))
    return overlap >= HIT_IOU * (_area(view) + _area(truth) - overlap) or (
        inside and _area(view) <= HIT_AREA * image_area
    )


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.maximum(box[2:] - box[:2], 0)))
