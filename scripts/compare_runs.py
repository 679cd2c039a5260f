"""Sets evaluations side by side, task by task: a table, paired bootstrap differences, a picture.

    python scripts/compare_runs.py --out=FILE.png "base=EVAL:off" "base, tools listed=EVAL:on" "SFT=EVAL0,EVAL1" "GRPO=EVAL2,EVAL3"

Each argument is LABEL=FOLDER[,FOLDER ...][:TOOLS]: folders that `mvg_jax.evaluate --out` wrote, one a training seed, of the same
tasks; TOOLS picks the rows of one setting (default: on). Intervals are 95 %, tasks drawn with replacement, a task's seeds together.
The last run is compared with every other, and with `majority`: for every kind of question the one answer that would have done best
on these very tasks, which is more than anyone could know beforehand.
"""

import json
import pathlib
from collections import Counter
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from mvg_jax.report import predictions
from mvg_jax.report.predictions import Prediction
from mvg_jax.report.statistics import Interval, bootstrap, paired_bootstrap

_OUT = flags.DEFINE_string("out", None, "The picture's file (.png); the figures go beside it as .json.", required=True)
_TITLE = flags.DEFINE_string("title", "held-out accuracy", "What stands above the picture.")


class Run(NamedTuple):
    """right_TxS: whether each of T tasks was answered right under each of S seeds; called_TxS: whether a tool was called."""

    label: str
    right_TxS: np.ndarray
    called_TxS: np.ndarray


def read_run(argument: str) -> tuple[str, list[list[Prediction]]]:
    """(label, rows of each seed in the order of their ids)."""
    label, _, where = argument.partition("=")
    folders, _, tools = where.partition(":")
    seeds = []
    for folder in folders.split(","):
        rows = predictions.read(pathlib.Path(folder) / predictions.FILE)
        chosen = sorted((row for row in rows if row.tools == (tools or "on")), key=lambda row: (row.benchmark, row.id))
        if not chosen:
            raise app.UsageError(f"{folder} holds no rows of tools {tools or 'on'}")
        seeds.append(chosen)
    return label, seeds


def columns(label: str, seeds: list[list[Prediction]]) -> Run:
    of = lambda value: np.array([[value(row) for row in rows] for rows in seeds], float).T
    return Run(label, of(lambda row: row.correct), of(lambda row: bool(row.calls)))


def majority(rows: list[Prediction]) -> Run:
    """The best constant answer of each kind of question, with hindsight."""
    best = {
        key: Counter(row.gold for row in rows if (row.benchmark, row.kind) == key).most_common(1)[0][0]
        for key in {(row.benchmark, row.kind) for row in rows}
    }
    right = np.array([[row.gold == best[row.benchmark, row.kind]] for row in rows], float)
    return Run("majority", right, np.zeros_like(right))


def main(arguments: list[str]) -> None:
    if len(arguments) < 3:
        raise app.UsageError("name two runs or more, each LABEL=FOLDER[,FOLDER ...][:TOOLS]")
    read = [read_run(argument) for argument in arguments[1:]]
    tasks = read[0][1][0]
    names = [(row.benchmark, row.id) for row in tasks]
    for label, seeds in read:
        if any([(row.benchmark, row.id) for row in rows] != names for rows in seeds):
            raise app.UsageError(f"{label} was evaluated on other tasks than {read[0][0]}")
    runs = [majority(tasks), *(columns(label, seeds) for label, seeds in read)]
    needed = np.array([row.needs_tool is True for row in tasks])
    parts = {"all tasks": np.ones(len(tasks), bool)}
    if needed.any() and not needed.all():
        parts |= {"tool needed": needed, "not needed": ~needed}

    # ---- table ---------------------------------------------------------------------------------------------------
    figures: dict[str, dict] = {}
    for part, chosen in parts.items():
        print(f"\n{part} ({chosen.sum()})\n{'':<28}{'accuracy':>9}  {'95 % interval':<17}{'calls':>6}  seeds")
        for run in runs:
            found, seeds = bootstrap(run.right_TxS[chosen]), run.right_TxS[chosen].mean(axis=0)
            calls = float(run.called_TxS[chosen].mean())
            each = " ".join(f"{value:.3f}" for value in seeds)
            print(f"{run.label:<28}{found.mean:>9.3f}  {_span(found):<17}{calls:>6.2f}  {each}")
            figures.setdefault(part, {})[run.label] = found._asdict() | {"calls": calls, "seeds": seeds.tolist()}
        for run in runs[:-1]:
            found = paired_bootstrap(runs[-1].right_TxS[chosen], run.right_TxS[chosen])
            name = f"{runs[-1].label} - {run.label}"
            print(f"{name:<28}{found.mean:>+9.3f}  {_span(found)}")
            figures[part][name] = found._asdict()
    pathlib.Path(_OUT.value).with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")

    # ---- picture -------------------------------------------------------------------------------------------------
    figure, axes = plt.subplots(1, len(parts), figsize=(1.5 + 3.2 * len(parts), 3.4), layout="constrained", sharey=True)
    for axis, (part, chosen) in zip(np.atleast_1d(axes), parts.items(), strict=True):
        for place, run in enumerate(runs):
            found = bootstrap(run.right_TxS[chosen])
            error = [[found.mean - found.low], [found.high - found.mean]]
            axis.bar(
                place, found.mean, yerr=error, capsize=4, color="lightgrey" if place == 0 else "tab:blue", alpha=0.7
            )
            seeds = run.right_TxS[chosen].mean(axis=0)
            axis.scatter([place] * len(seeds), seeds, color="tab:orange", s=14, zorder=3)
        axis.set(title=f"{part} ({chosen.sum()})", ylim=(0, 1))
        axis.set_xticks(range(len(runs)), [run.label for run in runs], rotation=25, ha="right")
        axis.grid(alpha=0.3, axis="y")
    figure.suptitle(f"{_TITLE.value} (bars: mean and 95 % interval; dots: training seeds)", fontsize=10)
    figure.savefig(_OUT.value, dpi=90)


def _span(interval: Interval) -> str:
    return (
        f"{interval.low:+.3f} .. {interval.high:+.3f}"
        if interval.low < 0
        else f"{interval.low:.3f} .. {interval.high:.3f}"
    )


if __name__ == "__main__":
    app.run(main)
