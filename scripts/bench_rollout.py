"""Measures rollouts: of fixed work, or of PhantomVQA's tasks at their natural lengths; beside their floors and beside others.

    python scripts/bench_rollout.py --config=configs/tiny.py [--json=FILE] [--runs=5] [--against=transformers,reprefill]
        [--rows=32 --group=4 --turns=3 --images=1 --prompt_tokens=320 --observation_tokens=80 --turn_tokens=32 --view_side=N]
    python scripts/bench_rollout.py --config=configs/tiny.py --natural [--rows=N --group=N] [...]

Weights are the config's checkpoint, or random ones of config.model.shape where it names none; temperature and types are the
config's. Fixed work: every row takes exactly these turns and tokens; each turn but the last is a zoom, an observation comes after it.
Natural: the model says what is a call and when a turn ends; the slots are those of the config's batch, the rows four times as many
if not given. All work is included: images, prompts, tools, the host.

--against=transformers: `generate` of Hugging Face transformers, once a turn over the whole history, on the same weights and ids (with
--natural: on the conversations that ours had). --against=reprefill: our engine, driven like that. All take turns, after a warm-up;
every figure is a median of runs, every ratio the median of the ratios of a round: how many times as fast ours is.

seconds: of a rollout. seconds/PHASE: of rollouts in which every phase waits for its own device work, so that they add up, overlap
nothing, and may take longer together. host_share: of those, all that is not encode, prefill, extend or decode. alone_share: of
rollouts that do not wait, the time in which the host or the tools worked and no lane's model did, see `Phases`. slot_occupancy: while
rows of any lane that has begun wait for a slot, which with lanes follows the clock a little.
floor/, floor_share/: see rollout_floors.
goodput: real token positions (no padding, nothing after a stop, a shared prefix once) / positions computed.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags
from rollout_baselines import Reprefill, Transformers, check_transformers, grey_pictures, requests
from rollout_floors import PHASES, Load, Rates, costs, load
from rollout_work import Endless, Setting, Work, fixed, natural

from mvg_jax import config as configs
from mvg_jax import program
from mvg_jax.compiles import CompileCount, compile_all, use_cache
from mvg_jax.errors import RunError
from mvg_jax.experiment import enter_mesh, export, rollout_kernels
from mvg_jax.metrics import write_atomically
from mvg_jax.models.config import ModelConfig
from mvg_jax.rollout.engine import Engine, Shapes, state_bytes
from mvg_jax.rollout.scheduler import Phases, Policy, rollout
from mvg_jax.tools.spec import MAX_VIEWS
from mvg_jax.trajectory import Trajectories

AGAINST = ("transformers", "reprefill")
SHARED = 0.5  # of a GPU's memory, where torch wants some too


class Played(NamedTuple):
    """A rollout: its wall time, and of ours the phases and trajectories."""

    seconds: float
    phases: Phases | None = None
    trajectories: Trajectories | None = None


def play(setting: Setting, policy: Policy, block: bool = False) -> Played:
    """One rollout from tasks to trajectories. block: every phase waits for its own device work."""
    phases = Phases(block=block)
    start = time.perf_counter()
    with phases("prompts") as work:
        prompts = setting.world.prepare(setting.tasks, tools_on=True)
        work.append(prompts.sources)
    trajectories, _ = rollout(setting.world, policy, prompts, phases)
    return Played(time.perf_counter() - start, phases, trajectories)


def measure(setting: Setting, runs: int, against: Sequence[str] = ()) -> dict[str, float]:
    """The figures of `runs` rounds. RunError where a comparison cannot be made."""
    experiment = setting.experiment
    compiles, start = CompileCount(), time.perf_counter()
    programs = setting.engine.lower(setting.params, experiment.model.view_size, MAX_VIEWS) + setting.world.lower()
    compile_all(programs, "compile")
    first = play(setting, setting.policy(), block=True)
    figures = {"warmup_seconds": time.perf_counter() - start, "kv_bytes": cache_bytes(setting)}
    rates = measured_rates(jnp.dtype(experiment.config.model.compute_dtype))
    figures |= {"bandwidth_bytes_per_second": rates.bandwidth, "flops_per_second": rates.flops}

    # ---- rounds --------------------------------------------------------------------------------------------------------
    contenders: dict[str, Callable[[], Played]] = {
        "ours": lambda: play(setting, setting.policy()),
        "waiting": lambda: play(setting, setting.policy(), block=True),
    }
    if "transformers" in against:
        other = transformers_of(setting, first.trajectories)
        contenders["transformers"] = lambda: Played(other.run())
        contenders["transformers, one token a turn"] = lambda: Played(other.run(new_tokens=1))
    if "reprefill" in against:
        policy = reprefill_of(setting)
        contenders["reprefill"] = lambda: play(setting, policy())
    quiet = not sys.stderr.isatty()
    for run in tqdm.tqdm(contenders.values(), desc="warm up", unit="run", disable=quiet):
        run()
    warm = compiles.count
    found = {name: [] for name in contenders}
    for name in tqdm.tqdm([*contenders] * runs, desc="measure", unit="run", disable=quiet):
        # Kept trajectories would take the memory that the next run could use again.
        found[name].append(contenders[name]()._replace(trajectories=None))
    figures["compiles_after_warmup"] = compiles.count - warm

    # ---- figures -------------------------------------------------------------------------------------------------------
    work = load(first.trajectories, setting.world.shapes.slots * setting.world.shapes.lanes)
    figures |= of_ours(setting, work, found["ours"]) | of_phases(setting, work, rates, found["waiting"])
    seconds = {name: [one.seconds for one in of] for name, of in found.items()}
    ratio = lambda slow, fast: statistics.median(a / b for a, b in zip(slow, fast, strict=True))
    for name in against:
        figures[f"seconds_of/{name}"] = statistics.median(seconds[name])
        figures[f"ratio/{name}"] = ratio(seconds[name], seconds["ours"])
    if "transformers" in against:
        # A turn's first token costs generate what its whole history does: the others are decode. All of ours are.
        pairs = zip(seconds["transformers"], seconds["transformers, one token a turn"], strict=True)
        theirs = [whole - one for whole, one in pairs]
        drawn = work.decode - turns_of(first.trajectories)
        figures["decode_tokens_per_second_of/transformers"] = drawn / statistics.median(theirs)
        ours = [one.phases.seconds["decode"] * drawn / work.decode for one in found["waiting"]]
        figures["ratio/decode_transformers"] = ratio(theirs, ours)
    return figures


def of_ours(setting: Setting, work: Load, played: Sequence[Played]) -> dict[str, float]:
    """Of the rollouts as a whole."""
    shapes = setting.world.shapes
    seconds = statistics.median(one.seconds for one in played)
    counts = played[-1].phases.counts
    return {
        "seconds": seconds,
        "tokens_per_second": work.decode / seconds,
        "trajectories_per_second": shapes.rows / seconds,
        "rows": shapes.rows,
        "prompts": shapes.prompts,
        "slots": shapes.slots * shapes.lanes,
        "lanes": shapes.lanes,
        "sampled_tokens": work.decode,
        "goodput": work.positions / counts["positions"],
        "slot_occupancy": statistics.median(occupancy(one.phases.counts) for one in played),
        "host_reads": played[-1].phases.host_reads,
        # Of the prompts as well, during which nothing else can run here; in training the update before does.
        "alone_share": statistics.median(
            (one.phases.alone + one.phases.seconds["prompts"]) / one.seconds for one in played
        ),
    }


def occupancy(counts: Mapping[str, int]) -> float:
    """Share of the slots' steps that drew a token, while rows waited for a slot, or, where none had to, of all."""
    when = "queued" if counts["slot_steps/queued"] else "drain"
    return counts[f"tokens/{when}"] / counts[f"slot_steps/{when}"]


def of_phases(setting: Setting, work: Load, rates: Rates, played: Sequence[Played]) -> dict[str, float]:
    """Of rollouts that wait: each phase, and beside its seconds the least it could take."""
    experiment, figures = setting.experiment, {}
    for name in dict.fromkeys(name for one in played for name in one.phases.seconds):
        figures[f"seconds/{name}"] = statistics.median(one.phases.seconds.get(name, 0.0) for one in played)
    on_model = lambda one: sum(one.phases.seconds.get(name, 0.0) for name in PHASES)
    figures["host_share"] = statistics.median(1 - on_model(one) / one.seconds for one in played)
    itemsize = jnp.dtype(experiment.config.model.compute_dtype).itemsize
    vision = sum(itemsize * x.size for path, x in jax.tree.leaves_with_path(setting.stored) if is_vision(path))
    for name, cost in costs(experiment.model, work, itemsize, vision).items():
        figures[f"floor/{name}"] = cost.seconds(rates)
        if f"seconds/{name}" in figures:  # one turn has no extend
            figures[f"floor_share/{name}"] = figures[f"floor/{name}"] / figures[f"seconds/{name}"]
    figures["floor"] = sum(figures[f"floor/{name}"] for name in PHASES)
    figures["decode_tokens_per_second"] = work.decode / figures["seconds/decode"]
    return figures


def turns_of(trajectories: Trajectories) -> int:
    """How many turns there are, of all rows."""
    mask_BxL = trajectories.loss_mask_BxL
    return len(set(zip(np.nonzero(mask_BxL)[0].tolist(), trajectories.turn_BxL[mask_BxL].tolist(), strict=True)))


def cache_bytes(setting: Setting) -> int:
    """Bytes of the KV caches of all lanes: what the formula says, or it is an error."""
    held = jax.tree.leaves(setting.engine.abstract_state(setting.params))
    size = setting.world.shapes.lanes * sum(x.size * x.dtype.itemsize for x in held)
    formula = state_bytes(setting.experiment.model.text, setting.world.shapes, held[0].dtype.itemsize)
    if size != formula:
        raise AssertionError(f"a KV cache of {size} bytes where the formula says {formula}")
    return size


def measured_rates(dtype: jnp.dtype) -> Rates:
    """Of reading a large array, and of a large matrix product in this type; best of five."""
    large, side, times = (2**25, 2048, 2) if jax.devices()[0].platform == "cpu" else (2**28, 8192, 20)
    # Several times in one call, each on what came of the last, so that starting it and waiting for it cost nothing beside; of random
    # numbers, because a GPU multiplies equal ones faster.
    array = jax.random.normal(jax.random.key(0), (large,))
    square = (jax.random.normal(jax.random.key(1), (side, side)) * side**-0.5).astype(dtype)
    read = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, total: (x + total).sum() * 1e-9, 0.0))
    multiply = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: y @ x, x))

    def best(run: Callable[[], jax.Array]) -> float:
        """Seconds of one of `times`, in the best of five calls."""
        run().block_until_ready()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            run().block_until_ready()
            seconds.append(time.perf_counter() - start)
        return min(seconds) / times

    return Rates(array.nbytes / best(lambda: read(array)), 2 * side**3 / best(lambda: multiply(square)))


def reprefill_of(setting: Setting) -> Callable[[], Policy]:
    """Makes policies that share their engines."""
    engines: dict[Shapes, Engine] = {}
    config, graph, banned_V = setting.experiment.config, setting.experiment.graph, setting.engine.banned_V
    end_of_turn = setting.experiment.protocol.vocabulary.end_of_turn

    def engine_of(shapes: Shapes) -> Engine:
        if shapes not in engines:
            dtype, kernels = jnp.dtype(config.model.compute_dtype), rollout_kernels(config, shapes)
            engines[shapes] = Engine(graph, shapes, end_of_turn, np.asarray(banned_V), dtype, kernels)
        return engines[shapes]

    def make() -> Policy:
        policy = Reprefill(
            engine_of,
            setting.params,
            setting.world.shapes,
            seed=config.seed,
            sample_B=setting.sample_B,
            temperature_B=setting.temperature_B,
        )
        return Endless(policy) if setting.endless else policy

    return make


def transformers_of(setting: Setting, trajectories: Trajectories) -> Transformers:
    """The same conversations, on weights that went through a folder. RunError where it is not installed or knows no such model."""
    experiment = setting.experiment
    if not isinstance(experiment.model, ModelConfig):
        raise RunError(f"--against=transformers: InternVL only, not {experiment.model.model_type}")
    vocabulary = experiment.protocol.vocabulary
    check_transformers()
    with tempfile.TemporaryDirectory() as directory:
        export(experiment, setting.stored, pathlib.Path(directory))
        return Transformers(
            pathlib.Path(directory),
            experiment.model,
            requests(trajectories, vocabulary.pad),
            grey_pictures(setting.tasks),
            trajectories.group_size,
            temperature=experiment.config.rollout.temperature,
            banned=vocabulary.banned_ids,
            end_of_turn=None,
            pad=vocabulary.pad,
            dtype=experiment.config.model.compute_dtype,
        )


def is_vision(path) -> bool:
    """Whether a parameter serves the encoding of images."""
    return not any(getattr(key, "key", None) in ("language_model", "lm_head") for key in path)


def show(figures: dict[str, float]) -> None:
    """Phases as a table, then the rest."""
    print(f"{'phase':<12}{'seconds':>12}{'floor':>12}{'share':>8}")
    for name in (name.removeprefix("seconds/") for name in figures if name.startswith("seconds/")):
        floor, share = figures.get(f"floor/{name}"), figures.get(f"floor_share/{name}")
        said = f"{floor:>12.4g}{share:>8.2f}" if share is not None else ""
        print(f"{name:<12}{figures[f'seconds/{name}']:>12.4g}{said}")
    print()
    for name, value in figures.items():
        if not name.startswith(("seconds/", "floor/", "floor_share/")):
            print(f"{name:<44}{value:>16,.4g}")


def define_flags() -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
    flags.DEFINE_string("json", None, "Write the figures to this file too.")
    flags.DEFINE_integer("runs", 5, "Timed rounds; medians are reported.", lower_bound=1)
    flags.DEFINE_list("against", [], f"What else to run in the same rounds: {', '.join(AGAINST)}.")
    flags.DEFINE_bool("natural", False, "PhantomVQA's val tasks at natural lengths instead of fixed work.")
    flags.DEFINE_integer("view_side", None, "Fixed work: pixels a side of an InternVL's views, smaller than its own.")
    for field in dataclasses.fields(Work):
        flags.DEFINE_integer(field.name, None, f"Fixed work; {field.default} if not given.")


def main() -> None:
    f = flags.FLAGS
    if unknown := set(f.against) - set(AGAINST):
        raise RunError(f"--against: {', '.join(sorted(unknown))}; there are {', '.join(AGAINST)}")
    if "transformers" in f.against:
        check_transformers()
    config = configs.from_dict(f.config.to_dict())
    use_cache(config.compile_cache)
    enter_mesh(config)
    given = {field.name: f[field.name].value for field in dataclasses.fields(Work)}
    given = {name: value for name, value in given.items() if value is not None}
    if f.natural:
        if odd := sorted(set(given) - {"rows", "group"}) + ["view_side"] * (f.view_side is not None):
            raise RunError(f"--natural takes its lengths from the config; --{odd[0]} is for fixed work")
        r = config.rollout
        group = given.get("group", r.group)
        queue = -(-4 * (r.slots or r.prompts * r.group) // group) * group
        setting = natural(config, given.get("rows", queue), group)
    else:
        setting = fixed(config, Work(**given), f.view_side)
    figures = measure(setting, f.runs, f.against)
    show(figures)
    if f.json:
        write_atomically(f.json, json.dumps(figures, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    define_flags()
    program.run(main, ("config",), memory=lambda: SHARED if "transformers" in flags.FLAGS.against else program.MEMORY)
