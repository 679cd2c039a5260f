"""What is kept of the sampled trajectories: filters of one trajectory, caps on equal chains, and the balance of tools and kinds.

All are pure functions of what was sampled. Where some of many equals are kept, a hash of the seed and their names chooses.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from mvg_jax.collection.store import Played
from mvg_jax.config import OFF, Filters
from mvg_jax.data.task import Turn
from mvg_jax.env.episode import Stop, TurnRecord
from mvg_jax.errors import RunError
from mvg_jax.frames import Frame, bounds

KEPT = "kept"
NO_TOOL = "none"
GRID = 100  # boxes whose edges round to the same multiples of this (in 0..1000) are one and the same in a chain


def keyed(*parts: object) -> int:
    """A number below 2**64 that depends on the parts and nothing else."""
    return int.from_bytes(hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()[:8], "big")


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A sampled episode. frames: numpy, of the images that it held. fits: the student's shapes have room for it.

    wrong_without: share of wrong answers when the same policy had no tools; None: not measured.
    """

    played: Played
    frames: Frame
    fits: bool = True
    wrong_without: float | None = None


# ---- filters: (candidate, parameter) -> whether it may stay; OFF lets everything pass ---------------------------------


def well_formed(candidate: Candidate) -> bool:
    """Every turn follows the wire format and the last one is the answer: nothing else can be imitated. Always on."""
    records = candidate.played.records
    return candidate.played.stop == Stop.ANSWER and all(isinstance(record.turn, Turn) for record in records)


def fits(candidate: Candidate) -> bool:
    """Prompt, turns and observations fit the shapes of the model that is to learn them. Always on."""
    return candidate.fits


def correct(candidate: Candidate, least: float) -> bool:
    """The strict score of the answer."""
    return candidate.played.terms["accuracy"] >= least


def errors(candidate: Candidate, most: float) -> bool:
    """Turns that got a typed error."""
    return sum(record.error is not None for record in candidate.played.records) <= most


def turns(candidate: Candidate, most: float) -> bool:
    return len(candidate.played.records) <= most


def tokens(candidate: Candidate, most: float) -> bool:
    """Tokens that the model wrote."""
    return candidate.played.tokens <= most


def redundant(candidate: Candidate, iou: float) -> bool:
    """No call is made twice, and no view shows again what an earlier image shows.

    That is: the same native image through the same window, turned alike, with an intersection over union above `iou`.
    """
    made = [json.dumps([call.name, call.arguments], sort_keys=True) for call in _calls(candidate)]
    return len(set(made)) == len(made) and not _shows_again(candidate, iou)


def needed(candidate: Candidate, share: float) -> bool:
    """A tool was called exactly where one is needed: neither a needless call nor a lucky guess.

    Needed is what the task says; where it says nothing, what at least this share of the answers without tools got wrong.
    """
    needs = candidate.played.task.needs_tool
    if needs is None:
        if candidate.wrong_without is None:
            raise ValueError(f"{candidate.played.task.id}: answers without tools have not been measured")
        needs = candidate.wrong_without >= share
    return needs == bool(_calls(candidate))


ALWAYS: tuple[Callable[[Candidate], bool], ...] = (fits, well_formed)
FILTERS: tuple[Callable[[Candidate, float], bool], ...] = (correct, errors, turns, tokens, redundant)


def verdict(candidate: Candidate, settings: Filters) -> str:
    """KEPT, or the name of the first filter that a candidate fails; all but `needed`, which may have to be measured first."""
    for filter_ in ALWAYS:
        if not filter_(candidate):
            return filter_.__name__
    for filter_ in FILTERS:
        limit = getattr(settings, filter_.__name__)
        if limit != OFF and not filter_(candidate, limit):
            return filter_.__name__
    return KEPT


def must_measure(candidates: Sequence[Candidate], verdicts: Sequence[str], settings: Filters) -> bool:
    """Whether a task has to be tried without tools: something of it would be kept, and nobody has said if it needs a tool."""
    unknown = settings.needed != OFF and candidates[0].played.task.needs_tool is None
    return unknown and KEPT in verdicts


def judge(candidates: Sequence[Candidate], settings: Filters) -> list[str]:
    """The verdicts on all candidates of one task: KEPT, or the name of the filter or cap that each fails."""
    verdicts = [verdict(candidate, settings) for candidate in candidates]
    if settings.needed != OFF:
        verdicts = [
            needed.__name__ if v == KEPT and not needed(c, settings.needed) else v
            for c, v in zip(candidates, verdicts, strict=True)
        ]
    there = [i for i, v in enumerate(verdicts) if v == KEPT]
    groups = [signature(candidates[i].played.records) for i in there]
    for i in capped(groups, settings.chains_per_task):
        verdicts[there[i]] = "chains_per_task"
    return verdicts


def capped(groups: Sequence[Hashable], most: int, order: Sequence[int] | None = None) -> list[int]:
    """Indices of what is too much when no group may have more than `most`; those first in `order` stay (None: as given)."""
    seen: Counter[Hashable] = Counter()
    extra = []
    for i in order if order is not None else range(len(groups)):
        seen[groups[i]] += 1
        if most != OFF and seen[groups[i]] > most:
            extra.append(i)
    return sorted(extra)


def signature(records: Sequence[TurnRecord]) -> tuple:
    """What makes two chains of calls the same to the eye: tools and arguments in order, boxes on a coarse grid, labels aside."""
    return tuple((record.call.name, _coarse(record.call.arguments)) for record in records if record.call)


def _coarse(value: object, key: str = "") -> Hashable:
    if isinstance(value, dict):
        return tuple(sorted((k, _coarse(v, k)) for k, v in value.items() if k != "label"))
    if isinstance(value, list):
        return tuple(_coarse(v, key) for v in value)
    if key == "bbox_2d" and isinstance(value, int | float):
        return round(value / GRID)
    return str(value)


def _calls(candidate: Candidate) -> list:
    return [record.call for record in candidate.played.records if record.call]


def _shows_again(candidate: Candidate, iou: float) -> bool:
    frames, first = candidate.frames, len(candidate.played.task.images)
    held = first + sum(record.views for record in candidate.played.records)
    box = np.asarray(bounds(frames), np.float64)
    turned = np.sign(np.where(np.abs(frames.affine[..., :2]) > 1e-3, frames.affine[..., :2], 0.0))
    for new in range(first, held):
        for old in range(new):
            alike = (
                frames.source[new] == frames.source[old]
                and np.allclose(frames.window[new], frames.window[old], atol=0.5)
                and np.array_equal(turned[new], turned[old])
            )
            if alike and _iou(box[new], box[old]) > iou:
                return True
    return False


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    area = lambda x: float(np.prod(np.maximum(x[2:] - x[:2], 0)))
    both = area(np.concatenate([np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])]))
    return both / (area(a) + area(b) - both)


# ---- balance ---------------------------------------------------------------------------------------------------------


def tool_label(names: Sequence[str]) -> str:
    """The tools of a trajectory in order: "none", "image_zoom_in_tool", "image_zoom_in_tool+window_level_tool"."""
    return "+".join(names) or NO_TOOL


def read_weights(texts: Sequence[str], where: str) -> dict[str, float]:
    """NAME=WEIGHT, "*" for all that are not named; {} of no texts. RunError names `where` and what is wrong."""
    weights = {}
    for text in texts:
        name, _, weight = text.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or name in weights or not 0 <= value < math.inf:
            raise RunError(f"{where} {text!r}: give NAME=WEIGHT once each, with a number of at least 0")
        weights[name] = value
    return weights


def cell_weights(
    cells: Sequence[tuple[str, str]], kinds: Mapping[str, float], tools: Mapping[str, float]
) -> dict[tuple[str, str], float]:
    """The weight of each cell (kind, tools): the product of both. What is not named weighs what "*" does, and nothing without it.

    Without weights for kinds, or for tools, their shares among each other stay as they are.
    """
    supply = Counter(cells)
    of_kind, of_tools = Counter(kind for kind, _ in cells), Counter(label for _, label in cells)
    weights = {}
    for (kind, label), there in supply.items():
        if kinds and tools:
            natural = 1.0
        elif kinds or tools:
            natural = there / (of_kind[kind] if kinds else of_tools[label])
        else:
            natural = float(there)
        named = [group.get(name, group.get("*", 0.0)) for name, group in ((kind, kinds), (label, tools)) if group]
        weights[kind, label] = natural * math.prod(named)
    return weights


def balanced(
    labels: Sequence[Hashable], weights: Mapping[Hashable, float], keep: float, order: Sequence[int]
) -> list[int]:
    """Indices of the share `keep` of all items, in groups as near to the weights as their supply allows; first in `order` first.

    Group g gets min(its supply, t * weight[g]) with one t for all: the smaller `keep`, the nearer. Groups of weight 0 get nothing.
    """
    supply = Counter(labels)
    usable = {group: count for group, count in supply.items() if weights[group] > 0}
    target = min(math.floor(keep * len(labels) + 1e-9), sum(usable.values()))
    quota = _poured(usable, weights, target)
    got: Counter[Hashable] = Counter()
    kept = []
    for i in order:
        if got[labels[i]] < quota.get(labels[i], 0):
            got[labels[i]] += 1
            kept.append(i)
    return sorted(kept)


def _poured(supply: Mapping[Hashable, int], weights: Mapping[Hashable, float], target: int) -> dict[Hashable, int]:
    """`target` items poured into groups at speeds `weights` until each is full."""
    share: dict[Hashable, float] = {}
    left, open_ = float(target), sorted(supply, key=lambda g: (supply[g] / weights[g], str(g)))
    while open_:
        total = sum(weights[g] for g in open_)
        group = open_.pop(0)
        share[group] = min(float(supply[group]), left * weights[group] / total)
        left -= share[group]
    quota = {group: math.floor(value + 1e-9) for group, value in share.items()}
    by_rest = sorted(share, key=lambda g: (quota[g] - share[g], str(g)))
    for group in by_rest[: target - sum(quota.values())]:
        quota[group] += 1
    return quota


def choose(
    outlines: Sequence[Played],
    *,
    tools: Mapping[str, float],
    kinds: Mapping[str, float],
    keep: float,
    chains_per_kind: int,
    seed: int,
) -> list[str]:
    """The verdicts on all that the filters kept: KEPT, "chains_per_kind" or "balance"."""
    names = [[record.call.name for record in episode.records if record.call] for episode in outlines]
    cells = [(episode.task.kind, tool_label(called)) for episode, called in zip(outlines, names, strict=True)]
    order = sorted(range(len(cells)), key=lambda i: (keyed(seed, outlines[i].task.id, outlines[i].sample), i))
    verdicts = [KEPT] * len(cells)
    for i in capped(cells, chains_per_kind, order):
        verdicts[i] = "chains_per_kind"
    there = [i for i in range(len(cells)) if verdicts[i] == KEPT]
    place = {i: n for n, i in enumerate(there)}
    left = [cells[i] for i in there]
    weights = cell_weights(left, kinds, tools)
    chosen = balanced(left, weights, keep, [place[i] for i in order if i in place])
    for n in set(range(len(there))) - set(chosen):
        verdicts[there[n]] = "balance"
    return verdicts


# ---- statistics ------------------------------------------------------------------------------------------------------


def count(kinds: Sequence[str], verdicts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Kind -> verdict -> how many."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind, why in zip(kinds, verdicts, strict=True):
        counts[kind][why] += 1
    return {kind: dict(sorted(row.items())) for kind, row in sorted(counts.items())}


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The counts for a terminal: a line a kind, a column a verdict that occurs."""
    total: Counter[str] = Counter()
    for row in counts.values():
        total.update(row)
    reasons = [KEPT, *(why for why, _ in total.most_common() if why != KEPT)]
    first = max([len("kind"), *map(len, counts)]) + 2
    lines = ["kind".ljust(first) + "".join(name.rjust(max(9, len(name) + 2)) for name in ("sampled", *reasons))]
    for kind, row in [*counts.items(), ("all", total)]:
        cells = [("sampled", sum(row.values())), *((why, row.get(why, 0)) for why in reasons)]
        lines.append(kind.ljust(first) + "".join(str(n).rjust(max(9, len(name) + 2)) for name, n in cells))
    return "\n".join(lines)
