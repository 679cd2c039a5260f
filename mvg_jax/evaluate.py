"""Evaluates a model on benchmarks, through the same environment and engine that train it.

    python -m mvg_jax.evaluate --config=configs/tiny.py --checkpoint=WORKDIR [--tools=on,off] [--out=DIR]
    python -m mvg_jax.evaluate --config=configs/tiny.py --checkpoint=WORKDIR --samples=8 --config.eval.temperature=1.0
    python -m mvg_jax.evaluate --config=CONFIG --checkpoint=DIR --data=DIR --benchmarks=vqa_rad,slake --protocol=medevalkit --out=DIR
    python -m mvg_jax.evaluate --config=configs/tiny.py --checkpoint=asset:tiny_internvl --guided
    python -m mvg_jax.evaluate --rescore=DIR/predictions.jsonl --protocol=medevalkit --out=OTHER

Prints tables: accuracy by the strict scorer with bootstrap intervals, the protocols asked for, by kind, answer type and modality, use
of tools, and numbers that others published under the same protocol on the same questions. --out=DIR keeps them as evaluation.md and
evaluation.json, and predictions.jsonl with a line for every answer, which --rescore scores again without the model.

What is drawn depends on config.seed, the task and the number of the sample only: config.eval.prompts and config.mesh change nothing.
"""

import json
import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from mvg_jax import config as configs
from mvg_jax import program
from mvg_jax.compiles import use_cache
from mvg_jax.config import Config
from mvg_jax.errors import RunError
from mvg_jax.evaluation import TOOLS_OFF, TOOLS_ON, evaluate, evaluation_parts, open_benchmark, with_tools
from mvg_jax.experiment import Experiment, build, enter_mesh
from mvg_jax.metrics import write_atomically
from mvg_jax.report import markdown, predictions
from mvg_jax.report.figures import figures
from mvg_jax.report.predictions import Prediction

EACH = "each"

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, a Hugging Face folder, or asset:NAME.")
_BENCHMARKS = flags.DEFINE_list(
    "benchmarks",
    [],
    "Data sets, each NAME or NAME:SPLIT; without a split the one that is usually reported. Default: config.eval.sets.",
)
_DATA = flags.DEFINE_string(
    "data", None, "Folder that holds a folder or zip of each data set, named like it (default: config.data.root)."
)
_TASKS = flags.DEFINE_integer(
    "tasks",
    None,
    "At most so many tasks of each data set, spread evenly over it (default: all; of the phantoms config.eval.tasks).",
    lower_bound=1,
)
_PROTOCOL = flags.DEFINE_list(
    "protocol",
    [predictions.STRICT],
    f"How answers are scored: {', '.join(predictions.PROTOCOLS)}. A public protocol scores the data sets that it was published for; "
    "strict scores all, asked for or not.",
)
_SAMPLES = flags.DEFINE_integer(
    "samples", 1, "Answers a task; more than one need config.eval.temperature above 0.", lower_bound=1
)
_TOOLS = flags.DEFINE_list(
    "tools",
    [TOOLS_ON],
    "Which tools the prompt offers: on (all of config.env.tools), off, the name of one, or each (every one alone). Several are "
    "evaluated one after the other, and the first is compared with the others, task by task.",
)
_GUIDED = flags.DEFINE_bool(
    "guided",
    False,
    "Show the model the right views first (the task's minimal chain, where one is known) and let it go on: what it can read, apart "
    "from what it can find.",
)
_OUT = flags.DEFINE_string("out", None, "Folder for evaluation.json, evaluation.md and predictions.jsonl.")
_RESCORE = flags.DEFINE_string("rescore", None, "Score this predictions.jsonl again; nothing is played.")


def main() -> None:
    if _RESCORE.value:
        path = pathlib.Path(_RESCORE.value)
        given = predictions.read(path)
        protocols = predictions.check_protocols(_PROTOCOL.value, (p.dataset for p in given))
        report({"predictions": path.name}, [predictions.scored(p, protocols) for p in given])
        return

    # ---- experiment ----------------------------------------------------------------------------------------------
    if _CONFIG.value is None or _CHECKPOINT.value is None:
        raise RunError("--config and --checkpoint are needed, or --rescore=FILE")
    config = resolved_config()
    use_cache(config.compile_cache)
    enter_mesh(config)
    experiment, params = build(config)

    # ---- what is asked -------------------------------------------------------------------------------------------
    names = _BENCHMARKS.value or config.eval.sets
    opened = [open_benchmark(experiment, name, _TASKS.value) for name in names]
    benchmarks = list({(benchmark.name, benchmark.split): benchmark for benchmark in opened}.values())
    protocols = predictions.check_protocols(_PROTOCOL.value, (benchmark.name for benchmark in benchmarks))
    for benchmark in benchmarks:
        benchmark.check(protocols)
    settings = tool_settings(experiment, _TOOLS.value)
    run = {
        "checkpoint": _CHECKPOINT.value,
        "seed": config.seed,
        "temperature": config.eval.temperature,
        "top k": config.eval.top_k,
        "top p": config.eval.top_p,
        "samples": _SAMPLES.value,
        "guided": _GUIDED.value,
        "tools": list(experiment.protocol.registry.names),
        "most turns": config.env.max_turns,
        "left out": [],
    }

    # ---- play ----------------------------------------------------------------------------------------------------
    world, engine = evaluation_parts(experiment, _SAMPLES.value)
    rows: list[Prediction] = []
    for benchmark in benchmarks:
        unreadable: list[str] = []
        for setting in settings:
            offered = experiment.protocol.registry.names if setting in (TOOLS_ON, TOOLS_OFF) else (setting,)
            played = evaluate(
                with_tools(world, offered),
                engine,
                params,
                benchmark,
                temperature=config.eval.temperature,
                top_k=config.eval.top_k,
                top_p=config.eval.top_p,
                seed=config.seed,
                tools_on=setting != TOOLS_OFF,
                guided=_GUIDED.value,
                title=f"{benchmark.name}, tools {setting}",
                unreadable=unreadable,
                benchmark=benchmark.name,
                split=benchmark.split,
                tools=setting,
            )
            if not played:
                raise RunError(f"{benchmark.name}: no task could be played; {unreadable[0]}")
            rows += [predictions.scored(row, protocols) for row in played]
            if _OUT.value:  # what has been played is not lost if something later goes wrong
                predictions.write(pathlib.Path(_OUT.value) / predictions.FILE, rows)
        lines = dict.fromkeys([*benchmark.left_out, *unreadable])
        run["left out"] += [f"{benchmark.name}:{benchmark.split}: {line}" for line in lines]
    report(run, rows)


def resolved_config() -> Config:
    """The config with what the flags change. RunError when samples would all be the same, or guides would find no tool."""
    values = _CONFIG.value.to_dict()
    values["model"]["checkpoint"] = _CHECKPOINT.value
    if _DATA.value is not None:
        values["data"]["root"] = _DATA.value
    config = configs.from_dict(values)
    if _SAMPLES.value > 1 and config.eval.temperature == 0:
        raise RunError(
            f"--samples={_SAMPLES.value}: greedy answers are all the same; set --config.eval.temperature above 0"
        )
    if _GUIDED.value and _TOOLS.value != [TOOLS_ON]:
        raise RunError("--guided shows views that tools make: leave --tools at on")
    return config


def tool_settings(experiment: Experiment, asked: list[str]) -> tuple[str, ...]:
    """Each choice of tools once, `each` spelled out. RunError on a name that is no tool of the config."""
    tools = experiment.protocol.registry.names
    settings = [name for setting in asked for name in (tools if setting == EACH else (setting,))]
    for setting in settings:
        if setting not in (TOOLS_ON, TOOLS_OFF, *tools):
            raise RunError(f"--tools={setting}: use {', '.join((TOOLS_ON, TOOLS_OFF, EACH, *tools))}")
    if not settings:
        raise RunError("--tools: name at least one choice, or leave it out")
    return tuple(dict.fromkeys(settings))


def report(run: dict, rows: list[Prediction]) -> None:
    """Prints the tables; with --out, writes them, the figures and the predictions."""
    benchmarks = figures(rows)
    text = markdown.evaluation(run, benchmarks)
    program.say(text)
    if _OUT.value and jax.process_index() == 0:
        folder = pathlib.Path(_OUT.value)
        predictions.write(folder / predictions.FILE, rows)
        values = json.dumps({"run": run, "benchmarks": benchmarks}, indent=2, allow_nan=False)
        write_atomically(folder / "evaluation.json", values + "\n")
        write_atomically(folder / "evaluation.md", text)


if __name__ == "__main__":
    program.run(main, required=())
