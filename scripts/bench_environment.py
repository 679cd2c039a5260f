"""Measures the environment's side of a rollout a row: reading turns, judging them, tools, observations, the ledger.

    python scripts/bench_environment.py --config=configs/tiny.py [--json=FILE] [--calls=30]

Turns come from the scripted expert: the first ones (mostly calls, what costs most) of PhantomVQA's val tasks. Each part is called
for batches of 4 to 128 rows, as the scheduler calls it, and waits for its device work. Printed: microseconds a row, medians, and for
`tools` also the fixed cost of a call in which no row asks for a view. `first views` is a prompt's, shared by its group.
"""

import contextlib
import json
import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from mvg_jax import config as configs
from mvg_jax.data import experts
from mvg_jax.env.episode import finish_step, plan_step, reset
from mvg_jax.env.protocol import parse_turn
from mvg_jax.experiment import enter_mesh, outline
from mvg_jax.mesh import put_rows, to_host
from mvg_jax.metrics import write_atomically
from mvg_jax.packed import pack
from mvg_jax.rollout.scheduler import Phases
from mvg_jax.tools import ToolResult, reframe_packed, render_packed
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Ledger

SIZES = (4, 8, 16, 32, 128)


def measure(config: configs.Config, rows: int, calls: int) -> dict[str, float]:
    """Seconds a call of each part, medians over `calls` calls on `rows` rows, and the views rendered."""
    experiment = outline(config)
    protocol, world = experiment.protocol, experiment.world(config.rollout.prompts, config.rollout.group)
    prompts = min(rows, config.rollout.prompts)
    source = experiment.tasks.source("phantom", "val", 0, prompts)
    tasks = [experiment.tasks.bucket.fit(source[p]) for p in range(prompts)]
    world = experiment.world(prompts, rows // prompts)
    rng = np.random.default_rng(0)
    turns = [experts.mixture(tasks[b * prompts // rows], rng, {"right": 1.0})[0] for b in range(rows)]
    spoken = [[*protocol.turn_ids(turn), protocol.vocabulary.end_of_turn] for turn in turns]
    count_B = np.array([len(ids) for ids in spoken], np.int32)
    tokens_BxT = np.zeros((rows, world.shapes.turn_tokens), np.int32)
    for b, ids in enumerate(spoken):
        tokens_BxT[b, : len(ids)] = ids
    prepared = world.prepare(tasks, tools_on=True)
    source_row_B = np.arange(rows, dtype=np.int32) * prompts // rows
    offered_B = [protocol.registry] * rows
    episodes = reset([tasks[b * prompts // rows] for b in range(rows)], world.limits)
    width = max(world.shapes.observation_lengths)
    room_B = np.full(rows, world.shapes.suffix_length)
    logprobs_BxT = np.zeros(tokens_BxT.shape, np.float32)

    def act(plan):
        calls = put_rows(pack((source_row_B, plan.frames, plan.args)))
        facts = reframe_packed(protocol.registry, calls)
        views = jax.block_until_ready(render_packed(prepared.sources, calls, facts, world.view))
        return ToolResult(views, *to_host(facts).unpack())

    @contextlib.contextmanager
    def timed(name: str):
        start = time.perf_counter()
        yield
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    shapes, vocabulary, seconds = world.shapes, protocol.vocabulary, {}
    every, first = np.arange(rows), np.zeros(rows, np.int32)
    nobody = plan_step(offered_B, episodes, [parse_turn("") for _ in turns])
    for _ in range(calls + 1):
        room = (rows, shapes.suffix_length, (shapes.views, *world.view.shape))
        ledger = Ledger(prepared.tokens, prepared.length, *room, vocabulary.image, protocol.tokens_per_image)
        with timed("decode"):
            texts = [protocol.decode(tokens_BxT[b, : count_B[b]]) for b in range(rows)]
        with timed("parse"):
            parsed = [parse_turn(text) for text in texts]
        with timed("plan"):
            plan = plan_step(offered_B, episodes, parsed)
        with timed("tools"):
            result = act(plan)
        with timed("tools, no view"):
            act(nobody)
        with timed("finish"):
            _, step = finish_step(protocol, plan, result, width, room_B)
        with timed("ledger"):
            ledger.append(every, tokens_BxT, count_B, MODEL, first, logprobs_BxT)
            ledger.append(every, step.observation_ids, step.length_B, ENVIRONMENT, first)
        with timed("ledger, views"):
            ledger.append_views(every, to_host(step.views), step.count_B)
        with timed("first views"):
            world.prepare(tasks, tools_on=True).views.to_host(Phases())
    figures = {name: float(np.median(values[1:])) for name, values in seconds.items()}
    figures["first views"] *= rows / prompts / config.rollout.group  # of as many prompts as such rows have
    return figures | {"views": int(result.count.sum())}


_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_JSON = flags.DEFINE_string("json", None, "Write the figures, in seconds a call, to this file too.")
_CALLS = flags.DEFINE_integer("calls", 30, "Timed calls of each part; medians are reported.", lower_bound=1)


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    config = configs.from_dict(_CONFIG.value.to_dict())
    enter_mesh(config)
    figures = {rows: measure(config, rows, _CALLS.value) for rows in SIZES}
    print(f"{'microseconds a row':<20}" + "".join(f"{rows:>9} rows" for rows in SIZES))
    for name in figures[SIZES[0]]:
        values = [figures[rows][name] / rows * (1 if name == "views" else 1e6) for rows in SIZES]
        print(f"{name:<20}" + "".join(f"{value:>14.4g}" for value in values))
    if _JSON.value:
        write_atomically(_JSON.value, json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
