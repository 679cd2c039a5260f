"""The figures of an evaluation: from predictions alone, so that a file of them gives the same figures without a model.

Accuracy is the strict score, a mean over tasks of the mean over their samples. Everything here is plain JSON values.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from mvg_jax.errors import RunError
from mvg_jax.report.predictions import STRICT, Prediction
from mvg_jax.report.statistics import Interval, bootstrap, majority, paired_bootstrap, pass_at_k
from mvg_jax.scoring import PROTOCOLS
from mvg_jax.scoring.published import ASKED, CHOICE, Setting, beside
from mvg_jax.scoring.question import CHOICE as CHOICE_TYPE
from mvg_jax.scoring.question import DRAWN, RAISED
from mvg_jax.scoring.strict import normalise

Samples = tuple[Prediction, ...]  # of one task, by sample number
NO_SUCH_TOOL = "no such tool"
UNSAID = "not said"
GROUPINGS: dict[str, Callable[[Prediction], str]] = {
    "kind": lambda p: p.kind or UNSAID,
    "answer type": lambda p: p.answer_type,
    "modality": lambda p: p.modality or UNSAID,
    "language": lambda p: p.language or UNSAID,
    "tool": lambda p: {True: "needed", False: "not needed", None: UNSAID}[p.needs_tool],
}


def figures(predictions: Iterable[Prediction], seed: int = 0) -> dict[str, Any]:
    """benchmark -> its figures; of several splits of a benchmark, benchmark:split -> its figures. seed: of the bootstrap.

    RunError unless every task of a benchmark has the same samples, and the same tasks were played with all choices of tools.
    """
    groups = grouped(predictions, lambda p: (p.benchmark, p.split))
    splits = Counter(benchmark for (benchmark, _), _ in groups)
    named = {f"{name}:{split}" if splits[name] > 1 else name: rows for (name, split), rows in groups}
    return {name: _benchmark(rows, seed) for name, rows in named.items()}


def grouped(items: Iterable[Any], key: Callable[[Any], Hashable]) -> list[tuple[Any, list[Any]]]:
    """Items with equal keys together, in the order in which keys first come."""
    groups: dict[Hashable, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def tasks_of(predictions: Iterable[Prediction]) -> list[Samples]:
    """The samples of each task. RunError unless all have equally many, numbered from 0."""
    tasks = [tuple(sorted(rows, key=lambda p: p.sample)) for _, rows in grouped(predictions, lambda p: p.id)]
    for samples in tasks:
        if [p.sample for p in samples] != list(range(len(tasks[0]))):
            raise RunError(
                f"{samples[0].benchmark}: task {samples[0].id} has the samples {[p.sample for p in samples]}, "
                f"not 0 to {len(tasks[0]) - 1} as others"
            )
    return tasks


def correct(tasks: Sequence[Samples]) -> np.ndarray:
    """Strict scores [T, S]."""
    return np.array([[p.correct for p in samples] for samples in tasks])


def _benchmark(predictions: list[Prediction], seed: int) -> dict[str, Any]:
    by_tools = {tools: tasks_of(rows) for tools, rows in grouped(predictions, lambda p: p.tools)}
    first, *others = by_tools
    return {
        "split": predictions[0].split,
        "items": len(by_tools[first]),
        "samples": len(by_tools[first][0]),
        "prompt": predictions[0].prompt,
        "tools": {tools: _setting(tasks, seed) for tools, tasks in by_tools.items()},
        "differences": {
            f"{first} - {tools}": _interval(difference(by_tools[first], by_tools[tools], seed)) for tools in others
        },
        "published": [row for tools, tasks in by_tools.items() for row in _published(tools, tasks, seed)],
    }


def _setting(tasks: list[Samples], seed: int) -> dict[str, Any]:
    """All that is said of one benchmark under one choice of tools."""
    rows = list(itertools.chain.from_iterable(tasks))
    overall = _group(tasks, seed)
    return overall | {
        "answered": _mean([p.answer is not None for p in rows]),
        "stops": {stop: len(group) / len(rows) for stop, group in sorted(grouped(rows, lambda p: p.stop))},
        "tokens": _mean([p.tokens for p in rows]),
        "turns": _mean([p.turns for p in rows]),
        "images": _mean([p.images + p.views for p in rows]),
        "views": _mean([p.views for p in rows]),
        "sampling": _sampling(tasks, seed),
        "protocols": {name: _protocol(name, tasks, seed) for name in rows[0].scores},
        "by": {title: _split(tasks, key, seed) for title, key in GROUPINGS.items()},
        "tool use": _tool_use(rows),
    }


def _split(tasks: list[Samples], key: Callable[[Prediction], str], seed: int) -> dict[str, Any]:
    """A row of figures for each part; none where there is only one."""
    parts = grouped(tasks, lambda samples: key(samples[0]))
    return {name: _group(group, seed) for name, group in sorted(parts)} if len(parts) > 1 else {}


def _group(tasks: list[Samples], seed: int) -> dict[str, Any]:
    """A row of a table."""
    rows = list(itertools.chain.from_iterable(tasks))
    return {
        "items": len(tasks),
        "chance": _mean([p.chance for p in rows]),
        **_interval(bootstrap(correct(tasks), seed=seed), "accuracy"),
        "other": {name: _aggregate(name, rows).get("accuracy") for name in rows[0].scores if name != STRICT},
        "call rate": _mean([len(p.calls) > 0 for p in rows]),
    }


def _sampling(tasks: list[Samples], seed: int) -> dict[str, Any]:
    """avg@k, pass@j and the majority's accuracy of k samples; nothing for one."""
    right_TxS = correct(tasks)
    k = right_TxS.shape[1]
    if k == 1:
        return {}
    figures_ = {f"avg@{k}": _interval(bootstrap(right_TxS, seed=seed))}
    for j in sorted({1 << i for i in range(k.bit_length()) if 1 << i <= k} | {k}):
        figures_[f"pass@{j}"] = _interval(bootstrap(pass_at_k(right_TxS > 0, j), seed=seed))
    chosen = [majority([_vote(p) for p in samples]) for samples in tasks]
    voted = [0.0 if i is None else samples[i].correct for i, samples in zip(chosen, tasks, strict=True)]
    return figures_ | {f"majority@{k}": _interval(bootstrap(voted, seed=seed))}


def _vote(prediction: Prediction) -> str | None:
    """What a sample votes for: the option that it names by letter, text or both; else its words."""
    if prediction.answer is None:
        return None
    said = normalise(prediction.answer)
    options = [normalise(option) for option in prediction.options]
    for letter, option in zip("abcdefghijklmnopqrstuvwxyz", options, strict=False):
        if said in (option, f"{letter} {option}") or (said == letter and letter not in options):
            return option
    return said


def _aggregate(protocol: str, rows: Sequence[Prediction]) -> dict[str, float]:
    """The protocol's own metrics of a data set; none where it scores none of the rows."""
    scores = [p.scores[protocol] for p in rows if p.scores[protocol]]
    return PROTOCOLS[protocol].aggregate(scores) if scores else {}


def _protocol(name: str, tasks: list[Samples], seed: int) -> dict[str, Any]:
    """metric -> mean and interval, over the questions that have it."""
    whole = _aggregate(name, list(itertools.chain.from_iterable(tasks)))
    metrics = {}
    for metric, value in whole.items():
        scored = [[p.scores[name][metric] for p in samples if metric in p.scores[name]] for samples in tasks]
        values = [np.mean(task) for task in scored if task]
        interval = bootstrap(values, seed=seed)._asdict() if metric not in (DRAWN, RAISED) else {}
        # Where the public rule is another than a mean over questions, an interval of that mean would mislead.
        same = interval and abs(interval["mean"] - value) < 1e-9
        metrics[metric] = {"mean": value, "items": len(values)} | (
            {"low": interval["low"], "high": interval["high"]} if same else {}
        )
    return metrics


def _tool_use(rows: list[Prediction]) -> dict[str, Any]:
    """How tools were called and what came of it. Rates are of answers (call), of calls (error) and of turns (malformed)."""
    calls = [call for p in rows for call in p.calls]
    with_call, without = [p for p in rows if p.calls], [p for p in rows if not p.calls]
    # A name that is no tool's is the model's own text, and does not become a row of a table.
    name = lambda call: NO_SUCH_TOOL if call.error == "E2" else call.name
    per_tool = {}
    for tool, group in sorted(grouped(calls, name)):
        users = [p for p in rows if any(name(call) == tool for call in p.calls)]
        per_tool[tool] = {
            "calls": len(group),
            "call rate": len(users) / len(rows),
            "error rate": _mean([call.error is not None for call in group]),
            "accuracy with": _mean([p.correct for p in users]),
        }
    return {
        "call rate": len(with_call) / len(rows),
        "calls": len(calls) / len(rows),
        "error rate": _mean([call.error is not None for call in calls]),
        "malformed": sum(p.malformed for p in rows) / max(sum(p.turns for p in rows), 1),
        "accuracy with a call": _mean([p.correct for p in with_call]),
        "accuracy without a call": _mean([p.correct for p in without]),
        "tool choice": _mean([p.tool_choice for p in rows if p.tool_choice is not None]),
        "box hit": _mean([p.box_hit for p in rows if p.box_hit is not None]),
        "tools": per_tool,
    }


def _published(tools: str, tasks: list[Samples], seed: int) -> list[dict[str, Any]]:
    """Each protocol's headline, and its metrics for which others published a number under exactly the same setting."""
    tables = []
    for name in tasks[0][0].scores:
        for metric, ours in _protocol(name, tasks, seed).items():
            scored = [samples[0] for samples in tasks if metric in samples[0].scores[name]]
            setting = Setting(
                benchmark=scored[0].dataset,
                protocol=name,
                split=scored[0].split,
                languages="+".join(sorted({p.language for p in scored})),
                form=CHOICE if {p.answer_type for p in scored} == {CHOICE_TYPE} else ASKED,
                items=len(scored),
                metric=metric,
            )
            others = [{"model": row.model, "number": row.number, "source": row.source} for row in beside(setting)]
            if others or metric == "accuracy":
                tables.append({"tools": tools, "setting": setting._asdict(), "ours": ours, "others": others})
    return tables


def difference(a: Sequence[Samples], b: Sequence[Samples], seed: int = 0) -> Interval:
    """Accuracy of a less that of b, paired by task. RunError unless both speak of the same tasks in the same order."""
    if [samples[0].id for samples in a] != [samples[0].id for samples in b]:
        first = a[0][0] if a else b[0][0]
        raise RunError(f"{first.benchmark}: two runs of different tasks cannot be compared")
    return paired_bootstrap(correct(a), correct(b), seed=seed)


def _interval(interval: Interval, name: str = "mean") -> dict[str, float]:
    return {name: interval.mean, "low": interval.low, "high": interval.high}


def _mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return float(np.mean(np.array(values, np.float64))) if len(values) else None
