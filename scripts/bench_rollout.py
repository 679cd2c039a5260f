"""Measures the rollout engine on a config's own tasks: tokens, trajectories, goodput and seconds a phase, beside their floors.

    python scripts/bench_rollout.py --config=configs/tiny.py [--json=FILE] [--batches=5]

Sampled at the config's temperature with the config's weights. Every phase waits for its own device work, so phases add up to
the wall time and hide no overlap. Goodput = real token positions (not padding, not after a stop, a shared prefix counted once)
/ positions computed. Floors are max(bytes / measured bandwidth, FLOPs / measured FLOP/s) of this machine.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from mvg_jax import config as configs
from mvg_jax.compiles import CompileCount, compile_all, use_cache
from mvg_jax.experiment import build, enter_mesh
from mvg_jax.metrics import write_atomically
from mvg_jax.models.decoder import suffix_bytes
from mvg_jax.rl.grpo import sample_index
from mvg_jax.rollout.policies import SampledPolicy
from mvg_jax.rollout.scheduler import Phases, rollout
from mvg_jax.tools.spec import MAX_VIEWS


def measured_rates() -> tuple[float, float]:
    """(bytes/s of reading a large array, float32 FLOP/s of a large matmul) of this device, best of five."""
    large = jnp.ones(2**25, jnp.float32)
    square = jnp.ones((2048, 2048), jnp.float32)
    total, product = jax.jit(jnp.sum), jax.jit(jnp.matmul)

    def best(run):
        run()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return (
        large.nbytes / best(lambda: total(large).block_until_ready()),
        2 * 2048**3 / best(lambda: product(square, square).block_until_ready()),
    )


def measure(config: configs.Config, batches: int) -> dict[str, float]:
    """The figures of `batches` timed rollouts, medians, after one that warms up."""
    experiment, params = build(config)
    world = experiment.world(config.rollout.prompts, config.rollout.group)
    engine, shapes = experiment.engine(world), world.shapes
    params = engine.weights(params)
    bandwidth, flops = measured_rates()
    compiles = CompileCount()
    start = time.perf_counter()
    compile_all(engine.lower(params, experiment.model.view_size, MAX_VIEWS), "compile")
    P, B = shapes.prompts, shapes.rows
    source = experiment.tasks.source("phantom", "val", 0, P * (batches + 1))
    temperature_B = np.full(B, config.rollout.temperature, np.float32)

    walls, phases_of, rows = [], [], []
    for batch in range(batches + 1):
        tasks = [experiment.tasks.bucket.fit(source[batch * P + p]) for p in range(P)]
        phases = Phases(block=True)
        policy = SampledPolicy(
            engine,
            params,
            seed=config.seed,
            step=batch,
            sample_B=sample_index(tasks, shapes.group),
            temperature_B=temperature_B,
        )
        begin = time.perf_counter()
        with phases("prompts") as work:
            prompts = world.prepare(tasks, tools_on=True)
            work.append(prompts.views)
        trajectories, episodes = rollout(world, policy, prompts, phases)
        walls.append(time.perf_counter() - begin)
        phases_of.append(phases)
        rows.append((trajectories, episodes))
        if batch == 0:
            warm_seconds, warm = time.perf_counter() - start, compiles.count
    walls, phases_of, rows = walls[1:], phases_of[1:], rows[1:]

    # ---- work done, and positions computed for it ------------------------------------------------------------------
    sampled = np.array([t.loss_mask_BxL.sum() for t, _ in rows])
    useful, computed, decode_steps = [], [], []
    for trajectories, _ in rows:
        turns = int(trajectories.turn_BxL.max()) + 1
        useful.append(trajectories.prompt_length_P.sum() + trajectories.length_B.sum())
        model = trajectories.loss_mask_BxL
        longest = [int((model & (trajectories.turn_BxL == turn)).sum(axis=1).max()) for turn in range(turns)]
        decode_steps.append(sum(longest))
        observed = [
            int((~model & (trajectories.origin_BxL > 0) & (trajectories.turn_BxL == turn)).sum(axis=1).max())
            for turn in range(turns)
        ]
        widths = [min(w for w in shapes.observation_lengths if w >= n) + 1 for n in observed if n]
        computed.append(P * shapes.prompt_length + B * (sum(longest) + sum(widths)))
    weights = sum(x.nbytes for x in jax.tree.leaves(params))
    parameters = sum(x.size for x in jax.tree.leaves(params))
    kv = suffix_bytes(experiment.model.text, B, shapes.suffix_length, jnp.dtype(config.model.compute_dtype).itemsize)
    steps = float(np.median(decode_steps))
    wall = float(np.median(walls))
    figures = {
        "tokens_per_second": float(np.median(sampled / walls)),
        "trajectories_per_second": B / wall,
        "goodput": float(np.median(np.array(useful) / np.array(computed))),
        "seconds": wall,
        "warmup_seconds": warm_seconds,
        "compiles_after_warmup": compiles.count - warm,
        "host_reads_per_batch": phases_of[-1].host_reads,
        "kv_bytes": kv,
        "rows": B,
        "bandwidth_bytes_per_second": bandwidth,
        "flops_per_second": flops,
        "floor/decode": max(steps * (weights + kv) / bandwidth, steps * 2 * B * parameters / flops),
    }
    for name in phases_of[0].seconds:
        figures[f"seconds/{name}"] = float(np.median([phases.seconds[name] for phases in phases_of]))
    figures["floor_share/decode"] = figures["floor/decode"] / figures["seconds/decode"]
    return figures


_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_JSON = flags.DEFINE_string("json", None, "Write the figures to this file too.")
_BATCHES = flags.DEFINE_integer("batches", 5, "Timed batches; medians are reported.", lower_bound=1)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    config = configs.from_dict(_CONFIG.value.to_dict())
    use_cache(config.compile_cache)
    enter_mesh(config)
    figures = measure(config, _BATCHES.value)
    for name, value in figures.items():
        print(f"{name:<32}{value:>16,.4g}")
    if _JSON.value:
        write_atomically(_JSON.value, json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
