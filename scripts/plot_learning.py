"""Draws the learning curves of one or more GRPO runs: `python scripts/plot_learning.py --out=FILE.png WORKDIR [WORKDIR ...]`.

Thin lines are runs, the thick line their mean over a window of five steps; dots are the held-out evaluation before and after.
"""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from mvg_jax.metrics import read_metrics

_OUT = flags.DEFINE_string("out", None, "The picture's file (.png).", required=True)

PANELS = (
    ("accuracy, items that need a tool", "accuracy/needed", ("accuracy/before", "accuracy/after")),
    ("tool rate where needed", "tool_rate/needed", ("tool_rate/needed_before", "tool_rate/needed")),
    ("tool rate where not needed", "tool_rate/not_needed", ("tool_rate/not_needed_before", "tool_rate/not_needed")),
    ("right tool first, where needed", "tool_choice/needed", ("tool_choice/before", "tool_choice/after")),
)


def main(arguments: list[str]) -> None:
    folders = [pathlib.Path(name) for name in arguments[1:]]
    if not folders:
        raise app.UsageError("name at least one workdir")
    runs = [read_metrics(folder / "grpo" / "metrics.jsonl") for folder in folders]
    ends = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    steps = min(len(run) for run in runs)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.2), layout="constrained", sharey=True)
    for axis, (title, key, (before, after)) in zip(axes, PANELS, strict=True):
        values = np.array([[record.get(key, np.nan) for record in run[:steps]] for run in runs])
        x = np.arange(1, steps + 1)
        axis.plot(x, values.T, color="tab:blue", alpha=0.25, linewidth=0.8)
        known = ~np.isnan(values)  # a batch may hold no task of a kind
        over_window = lambda y: np.convolve(y.sum(axis=0), np.ones(5), mode="same")
        smooth = over_window(np.where(known, values, 0.0)) / np.maximum(over_window(known.astype(float)), 1.0)
        axis.plot(x, smooth, color="tab:blue", linewidth=2, label=f"training, sampled ({len(runs)} runs)")
        held_out = {"color": "tab:orange", "zorder": 3, "s": 18}
        axis.scatter([0] * len(ends), [end[before] for end in ends], label="held out", **held_out)
        axis.scatter([steps] * len(ends), [end[after] for end in ends], **held_out)
        if key == "accuracy/needed":
            axis.axhline(ends[0]["accuracy/chance"], color="grey", linestyle=":", label="chance")
            axis.legend(fontsize=8, loc="lower right")
        axis.set(title=title, xlabel="GRPO step", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    figure.savefig(_OUT.value, dpi=90)


if __name__ == "__main__":
    app.run(main)
