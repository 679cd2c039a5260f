"""Evaluates a model on held-out tasks, through the same environment and engine that train it.

    python -m mvg_jax.evaluate --config=configs/tiny.py --checkpoint=WORKDIR [--tools=off] [--config.eval.temperature=1.0]
    python -m mvg_jax.evaluate --config=configs/tiny.py --checkpoint=asset:tiny_internvl --guided

Prints a table by question kind and, with --out=FILE, writes the same as JSON. --guided shows the model the right views first
(the task's minimal chain) and lets it answer: what it can read, apart from what it can find.
"""

import json

import jax
from absl import flags
from ml_collections import config_flags

from mvg_jax import config as configs
from mvg_jax import program
from mvg_jax.evaluation import evaluate, evaluation_parts
from mvg_jax.experiment import build, enter_mesh
from mvg_jax.metrics import write_atomically

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir, a Hugging Face folder, or asset:NAME.")
_TOOLS = flags.DEFINE_enum("tools", "on", ["on", "off"], "Whether the prompt offers tools.")
_GUIDED = flags.DEFINE_bool("guided", False, "Show the right views first.")
_OUT = flags.DEFINE_string("out", None, "Write the figures to this JSON file too.")


def main() -> None:
    values = _CONFIG.value.to_dict()
    values["model"]["checkpoint"] = _CHECKPOINT.value
    config = configs.from_dict(values)
    enter_mesh(config)
    experiment, params = build(config)
    world, engine = evaluation_parts(experiment)
    results = evaluate(
        world,
        engine,
        params,
        experiment.held_out(),
        temperature=config.eval.temperature,
        seed=config.seed,
        tools_on=_TOOLS.value == "on",
        guided=_GUIDED.value,
    )
    figures = json.dumps(results.summary(), indent=2, sort_keys=True)
    program.say(results.table())
    program.say(figures)
    if _OUT.value and jax.process_index() == 0:
        write_atomically(_OUT.value, figures + "\n")


if __name__ == "__main__":
    program.run(main, required=("config", "checkpoint"))
