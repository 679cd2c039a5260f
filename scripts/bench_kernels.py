"""Measures the ways to compute attention on this device, in the config's own programs and shapes, and says which are fastest.

    python scripts/bench_kernels.py --config=configs/internvl3_8b.py [--runs=7] [--json=FILE]

Weights are the config's checkpoint, or random ones of config.model.shape where it names none. encode: the largest batch of views.
decode: all slots, all of them at the end of each entry of config.rollout.decode_lengths, prompts as long as they may be; a token of
all slots. All take turns; milliseconds are medians. off: how far from `plain`, relative to its largest feature, or in log-probs of
the same draws up to the first other token. What cannot run here is named with the reason.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import flags
from rollout_work import load

from mvg_jax import config as configs
from mvg_jax import program
from mvg_jax.compiles import use_cache
from mvg_jax.errors import RunError
from mvg_jax.experiment import Experiment, enter_mesh
from mvg_jax.mesh import put_rows
from mvg_jax.metrics import write_atomically
from mvg_jax.models.attention import DECODE, VISION, Kernels, interpreted
from mvg_jax.packed import pack
from mvg_jax.rollout.engine import Engine, Going
from mvg_jax.rollout.sampling import Sampling, row_keys
from mvg_jax.rollout.scheduler import World

OPTION = {"encode": "vision_kernel", "decode": "decode_kernel"}


class Timed(NamedTuple):
    """One way to run one program. milliseconds: of a call, or of a token; None with the reason why it does not run."""

    program: str
    shape: str
    kernel: str
    milliseconds: float | None
    off: float | None
    reason: str = ""


class Case(NamedTuple):
    """A program under each kernel: () -> what it gives (to compare), steps: by which its time is divided."""

    program: str
    shape: str
    runs: dict[str, Callable[[], Any]]
    steps: int


def cases(
    experiment: Experiment, params: list[jax.Array], world: World, engine_of: Callable[[Kernels], Engine]
) -> list[Case]:
    """Encode at its largest batch, decode at each of its lengths."""
    shapes, view = world.shapes, experiment.model.view_size
    count = max(shapes.encode_batches)
    views = put_rows(np.random.default_rng(0).integers(0, 256, (count, 1, *view, 3), dtype=np.uint8))
    index = put_rows(np.arange(count, dtype=np.int32))

    def encode(kernel: str) -> Callable[[], Any]:
        return lambda: engine_of(Kernels(vision_kernel=kernel)).encode(params, views, index)

    held = []  # one cache for all: each call writes what it reads of the tokens it draws, and all read the same before these

    def decode(kernel: str, length: int) -> Callable[[], Any]:
        going = put_rows(pack(at_the_end(experiment, world, length)))
        counts = put_rows(np.full(shapes.pool, shapes.prompt_length - 1, np.int32))

        def run():
            engine = engine_of(Kernels(decode_kernel=kernel))
            state = held[0] if held else engine.start(params)
            state, drawn = engine.decode(params, state, going, counts, engine.banned_V, length=length)
            held[:] = [state]
            return drawn

        return run

    found = [Case("encode", f"{count} views", {name: encode(name) for name in VISION}, 1)]
    for length in shapes.decode_lengths:
        runs = {name: decode(name, length) for name in DECODE}
        found.append(Case("decode", f"{shapes.slots} x {length}", runs, min(shapes.decode_tokens, length)))
    return found


def at_the_end(experiment: Experiment, world: World, length: int) -> Going:
    """All slots about to draw the last tokens that a cache of this length has room for."""
    shapes = world.shapes
    S, steps = shapes.slots, min(shapes.decode_tokens, length)
    every = lambda value: np.full(S, value, np.int32)
    seat = np.arange(S, dtype=np.int32) % (shapes.pool * shapes.group)
    names = row_keys(0, 0, [str(b) for b in range(S)], np.zeros(S, np.int32))
    token = experiment.protocol.vocabulary.end_of_turn  # which no draw can be: a turn never ends
    return Going(
        seat,
        every(token),
        every(length - steps),
        every(shapes.prompt_length + length - steps),
        every(steps),
        every(1),
        names,
        Sampling.of(np.ones(S, np.float32)),
    )


def measure(config: configs.Config, runs: int) -> list[Timed]:
    """Every kernel of every case. RunError as for a run of the config."""
    experiment, stored = load(config, None)
    world = experiment.world(config.rollout.prompts, config.rollout.group)
    made: dict[Kernels, Engine] = {}

    def engine_of(kernels: Kernels) -> Engine:
        if kernels not in made:
            named = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **kernels._asdict()))
            made[kernels] = dataclasses.replace(experiment, config=named).engine(world)
            end = experiment.protocol.vocabulary.end_of_turn
            made[kernels].banned_V = made[kernels].banned_V.at[end].set(True)
        return made[kernels]

    params, found = engine_of(Kernels()).weights(stored), []
    for case in tqdm.tqdm(cases(experiment, params, world, engine_of), desc="measure", unit="program", disable=None):
        found += timed(case, runs)
    return found


def timed(case: Case, runs: int) -> list[Timed]:
    """Milliseconds and differences of one program's kernels, which take turns."""
    gives, reasons, seconds = {}, {}, {}
    for name, run in case.runs.items():
        if name == "pallas" and interpreted():
            reasons[name] = "needs a GPU; here it is only interpreted"
            continue
        try:
            gives[name] = jax.device_get(run())
        except (
            Exception
        ) as error:  # whatever a backend says to a kernel that it does not know: it is told, and the others go on
            if name == "plain":
                raise
            reasons[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for _ in range(runs):
        for name in gives:
            start = time.perf_counter()
            jax.block_until_ready(case.runs[name]())
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    median = {name: statistics.median(of) * 1000 / case.steps for name, of in seconds.items()}
    return [
        Timed(
            case.program,
            case.shape,
            name,
            median.get(name),
            distance(gives["plain"], gives[name]) if name in gives else None,
            reasons.get(name, ""),
        )
        for name in case.runs
    ]


def distance(plain: Any, other: Any) -> float:
    """Of features: largest difference / largest feature. Of draws: of log-probs while the tokens are the same; inf if none are."""
    if not hasattr(plain, "logprobs"):
        wide = lambda x: np.asarray(x, np.float32)
        return float(abs(wide(plain) - wide(other)).max() / abs(wide(plain)).max())
    same = np.cumprod(plain.tokens == other.tokens, axis=1).astype(bool)
    return float(abs(plain.logprobs - other.logprobs)[same].max()) if same.any() else float("inf")


def fastest(found: list[Timed]) -> dict[str, str]:
    """By program: the kernel that takes the least in all of its shapes together."""
    chosen = {}
    for name in OPTION:
        rows = [row for row in found if row.program == name]
        runs = {row.kernel for row in rows} - {row.kernel for row in rows if row.milliseconds is None}
        total = {kernel: sum(row.milliseconds for row in rows if row.kernel == kernel) for kernel in runs}
        chosen[name] = min(total, key=total.__getitem__)
    return chosen


def show(found: list[Timed]) -> None:
    print(f"{'program':<10}{'shape':<16}{'kernel':<10}{'ms':>10}{'off':>12}")
    for row in found:
        said = row.reason if row.milliseconds is None else f"{row.milliseconds:>10.3f}{row.off:>12.2g}"
        print(f"{row.program:<10}{row.shape:<16}{row.kernel:<10}{said}")
    print("fastest here:", *(f"--config.rollout.{OPTION[name]}={kernel}" for name, kernel in fastest(found).items()))


def define_flags() -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
    flags.DEFINE_string("json", None, "Write the figures to this file too.")
    flags.DEFINE_integer("runs", 7, "Timed calls of each; medians are reported.", lower_bound=1)


def main() -> None:
    config = configs.from_dict(flags.FLAGS.config.to_dict())
    if max(dataclasses.astuple(config.mesh)) > 1:
        raise RunError("kernels are measured on one device; leave config.mesh at 1")
    use_cache(config.compile_cache)
    enter_mesh(config)
    found = measure(config, flags.FLAGS.runs)
    show(found)
    if flags.FLAGS.json:
        write_atomically(flags.FLAGS.json, json.dumps([row._asdict() for row in found], indent=2) + "\n")


if __name__ == "__main__":
    define_flags()
    program.run(main, ("config",))
