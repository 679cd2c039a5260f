"""Measures how fast tasks are read, decoded and fitted, beside how fast rollouts take them in.

    python scripts/bench_pipeline.py --config=configs/tiny.py --config.data.sets="('vqa_rad',)" --config.data.root=DIR [--json=FILE]

Tasks a second of the training stream, as the config reads it: shuffled, mixed, by its threads or worker processes; the first batches,
which wait for these to start, are not counted. With the stream held against `scripts/bench_rollout.py` on the same config.
"""

import json
import time

from absl import app, flags, logging
from bench_rollout import measure
from ml_collections import config_flags
from rollout_work import natural

from mvg_jax import config as configs
from mvg_jax.compiles import use_cache
from mvg_jax.data.pipeline import TaskBatches
from mvg_jax.experiment import build, enter_mesh
from mvg_jax.metrics import write_atomically

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_JSON = flags.DEFINE_string("json", None, "Write the figures to this file too.")
_BATCHES = flags.DEFINE_integer("stream_batches", 40, "Timed batches of the stream.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 5, "Timed rollouts; medians are reported.", lower_bound=1)
WARM_UP = 8


def stream(config: configs.Config, batches: int) -> dict[str, float]:
    """Tasks a second of the training stream."""
    experiment, _ = build(config)
    phases, _ = experiment.tasks.training_phases()
    tasks = TaskBatches(
        phases,
        fit=experiment.tasks.bucket.fit,
        batch=config.rollout.prompts,
        shuffle=config.data.shuffle,
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        workers=config.data.workers,
    )
    for _ in range(max(WARM_UP, config.data.prefetch + 1)):
        next(tasks)
    start = time.perf_counter()
    for _ in range(batches):
        next(tasks)
    seconds = time.perf_counter() - start
    return {"stream_tasks_per_second": batches * config.rollout.prompts / seconds, "unusable": len(tasks.bad)}


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    config = configs.from_dict(_CONFIG.value.to_dict())
    use_cache(config.compile_cache)
    enter_mesh(config)
    figures = stream(config, _BATCHES.value)
    rollout = measure(natural(config), _RUNS.value)
    figures["rollout_tasks_per_second"] = rollout["trajectories_per_second"] / config.rollout.group
    figures["ratio"] = figures["stream_tasks_per_second"] / figures["rollout_tasks_per_second"]
    for name, value in figures.items():
        print(f"{name:<32}{value:>16,.4g}")
    if _JSON.value:
        write_atomically(_JSON.value, json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
