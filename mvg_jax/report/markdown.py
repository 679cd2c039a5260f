"""Figures as Markdown tables. Names of kinds and tasks come from data sets and are written so that they cannot become markup."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mvg_jax.scoring.question import DRAWN, RAISED

# What stands beside a public protocol's scores where its rule does more than score.
_MARKS = {
    DRAWN: "share of answers for which the published rule draws an option at random.",
    RAISED: "share of answers on which the published code fails; scored 0 here.",
}
_ESCAPED = {ord(c): f"\\{c}" for c in r"\`*_[]<>|#~!"} | {ord(c): " " for c in "\r\n\t"}


def evaluation(run: Mapping[str, Any], benchmarks: Mapping[str, Any]) -> str:
    """The whole report of an evaluation: how it was run, and the `figures` of each benchmark."""
    said = [(key, ", ".join(map(str, v)) if isinstance(v, list | tuple) else v) for key, v in run.items()]
    parts = ["# Evaluation", table(("run", ""), said)]
    for name, figures in benchmarks.items():
        parts += _benchmark(name, figures)
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; its first column reads from the left, the others from the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).encode("utf-8", "replace").decode().translate(_ESCAPED)


def _range(row: Mapping[str, Any]) -> str:
    return f"{row['low']:.3f} .. {row['high']:.3f}" if "low" in row else "-"


def _answers(figures: Mapping[str, Any]) -> str:
    return f"{figures['samples']} answer{'s' if figures['samples'] > 1 else ''}"


def _benchmark(name: str, figures: Mapping[str, Any]) -> list[str]:
    settings = figures["tools"]
    head = f"{_cell(name)}: {figures['items']} tasks of split {_cell(figures['split'])}, {_answers(figures)} each"
    parts = [f"## {head}", _overview(settings)]
    for difference, row in figures["differences"].items():
        parts.append(f"Accuracy, tools {_cell(difference)}: {row['mean']:+.3f} ({_range(row)}, paired).")
    parts += [
        "Accuracy is the strict score; intervals are 95 % bootstrap percentiles over tasks.",
        "### Protocols",
        table(
            ("protocol", "metric", "tools", "value", "95 %", "items"),
            [
                (protocol, metric, tools, row["mean"], _range(row), row["items"])
                for tools, setting in settings.items()
                for protocol, metrics in setting["protocols"].items()
                for metric, row in metrics.items()
            ],
        ),
    ]
    metrics = {metric for setting in settings.values() for row in setting["protocols"].values() for metric in row}
    parts += [f"`{metric}`: {text}" for metric, text in _MARKS.items() if metric in metrics]
    for tools, setting in settings.items():
        parts += _setting(tools, setting)
    return parts + _published(figures)


def _overview(settings: Mapping[str, Any]) -> str:
    names = [name for name in next(iter(settings.values()))["sampling"] if not name.startswith("avg")]
    head = (
        *("tools", "accuracy", "95 %", "chance", *names, "answered", "call rate"),
        *("tokens", "turns", "images"),
    )
    rows = [
        (
            *(tools, s["accuracy"], _range(s), s["chance"], *(s["sampling"][name]["mean"] for name in names)),
            *(s["answered"], s["call rate"], s["tokens"], s["turns"], s["images"]),
        )
        for tools, s in settings.items()
    ]
    return table(head, rows)


def _setting(tools: str, setting: Mapping[str, Any]) -> list[str]:
    parts = []
    others = list(setting["other"])
    for title, groups in setting["by"].items():
        if groups:
            parts.append(f"### By {title}, tools {_cell(tools)}")
            head = (title, "items", "chance", "accuracy", "95 %", *others, "call rate")
            parts.append(
                table(
                    head,
                    [
                        (
                            *(name, row["items"], row["chance"], row["accuracy"], _range(row)),
                            *(row["other"][other] for other in others),
                            row["call rate"],
                        )
                        for name, row in groups.items()
                    ],
                )
            )
    use = setting["tool use"]
    parts.append(f"### Tool use, tools {_cell(tools)}")
    parts.append(table(("", ""), [(key, value) for key, value in use.items() if key != "tools"]))
    if use["tools"]:
        head = ("tool", "calls", "call rate", "error rate", "accuracy with")
        parts.append(table(head, [(name, *row.values()) for name, row in use["tools"].items()]))
    return parts


def _published(figures: Mapping[str, Any]) -> list[str]:
    """One table a setting; numbers of two settings never share one."""
    parts = ["### Beside published numbers"]
    without = []
    for entry in figures["published"]:
        setting, ours = entry["setting"], entry["ours"]
        named = f"{setting['benchmark']} {setting['split']}, {setting['languages']}, {setting['items']} items {setting['form']}"
        if not entry["others"]:
            without.append(setting["protocol"])
            continue
        parts.append(f"Protocol {_cell(setting['protocol'])}, {_cell(setting['metric'])}; {_cell(named)}; in percent.")
        prompt = f"this run: {figures['prompt']} prompt, tools {entry['tools']}, {_answers(figures)} a task"
        rows = [(row["model"], f"{row['number']:.2f}", row["source"]) for row in entry["others"]]
        parts.append(table(("model", "number", "source"), [("ours", f"{100 * ours['mean']:.2f}", prompt), *rows]))
    if without:
        names = ", ".join(dict.fromkeys(map(_cell, without)))
        parts.append(f"No number published for exactly this benchmark, split, form and protocol is known for: {names}.")
    return parts
