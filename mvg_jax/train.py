"""Trains a model: the stages of a config, one after the other.

    python -m mvg_jax.train --config=configs/tiny.py --workdir=workdir/tiny
    python -m mvg_jax.train --config=configs/tiny.py --workdir=workdir/tiny --resume
    python -m mvg_jax.train --config=configs/tiny.py --workdir=workdir/seed1 --config.seed=1 --config.grpo.steps=50

Several processes: the same command in each, with --coordinator=HOST:PORT --processes=N --process=I, a config.mesh that covers all
devices, and a workdir on a file system that all of them see. Process 0 writes and prints.

The workdir holds config.json, versions.json, one folder a stage (metrics.jsonl, checkpoints/), evaluations, the final model
as a Hugging Face folder (model/) and summary.json. Ctrl-C ends the step or evaluation under way, saves, and says how to go on; so
does a second start after a crash.
"""

import dataclasses
import importlib.metadata
import json
import math
import pathlib
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import config_flags

from mvg_jax import config as configs
from mvg_jax import program
from mvg_jax.checkpoint import Checkpoints
from mvg_jax.compiles import CompileCount, compile_all, use_cache
from mvg_jax.config import Config
from mvg_jax.data.pipeline import Phase, TaskBatches
from mvg_jax.data.records import DataSet
from mvg_jax.data.task import Demonstration
from mvg_jax.errors import RunError
from mvg_jax.evaluation import Results, evaluate, evaluation_parts
from mvg_jax.experiment import Experiment, build, enter_mesh, export
from mvg_jax.mesh import agree, gather
from mvg_jax.metrics import MetricsLog, read_metrics, write_atomically, write_summary
from mvg_jax.rl.early_stop import EarlyStop
from mvg_jax.tools.spec import MAX_VIEWS

SHOWN = {
    "vision": ("loss", "accuracy", "found", "read", "place_within_one_bin"),
    "sft": ("loss", "token_accuracy", "gradient_norm", "validation/loss"),
    "grpo": (
        "reward",
        "accuracy/needed",
        "tool_rate/needed",
        "tool_rate/not_needed",
        "tool_choice/needed",
        "entropy",
        "logprob_gap",
        "time/rollout",
        "time/step",
    ),
}
VERSIONS = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
    "mvg-jax",
)


class Interrupted(Exception):
    """Ctrl-C came; says what has been saved."""


def train(config: Config, workdir: pathlib.Path, resume: bool) -> dict:
    """Runs every stage of the config and returns the summary."""
    # ---- workdir: one config, one run ---------------------------------------------------------------------------
    enter_mesh(config)
    check_stages(config)
    only_first(lambda: claim(config, workdir, resume))
    try:
        experiment, params = build(config)
        stop = catch_interrupt()
        compiles = CompileCount()

        # ---- stages ----------------------------------------------------------------------------------------------
        summary = {}
        for name in config.stages:
            params, summary = run_stage(experiment, name, params, workdir, stop, compiles)
    except RunError:
        release(workdir)
        raise

    # ---- what comes out ------------------------------------------------------------------------------------------
    export(experiment, params, workdir / "model")
    write_summary(workdir / "summary.json", summary)
    return summary


def run_stage(
    experiment: Experiment, name: str, params: nnx.State, workdir: pathlib.Path, stop: list, compiles: CompileCount
) -> tuple[nnx.State, dict]:
    """One stage from its last checkpoint (or its beginning) to its end: its final weights, and its summary."""
    config = experiment.config
    folder = workdir / name
    stage, steps, prompts = make_stage(experiment, name, params)
    phases, fit, held_out = what_to_learn(experiment, name)
    batches = TaskBatches(
        phases,
        fit=fit,
        batch=prompts,
        shuffle=config.data.shuffle,
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        workers=config.data.workers,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
    judge = Judge(experiment, folder, stop) if name == "grpo" else None
    before = judge and judge.results("before", params)

    # ---- resume --------------------------------------------------------------------------------------------------
    state = stage.start(params)
    first, seconds, early = 0, 0.0, EarlyStop(config.sft.patience)
    if checkpoints.latest() is not None:
        begun = state.kept()
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), begun)
        for array in jax.tree.leaves(begun):
            array.delete()  # as a step would; or the memory would have to hold what is read twice
        kept, meta = checkpoints.restore(None, like)
        state = state.regained(kept)
        first, seconds, early = meta["step"], meta["seconds"], EarlyStop.of(config.sft.patience, meta["early_stop"])
        batches.set_state(meta["data"])
        program.say(f"{name}: going on after step {first} of {steps}")

    # ---- warm-up -------------------------------------------------------------------------------------------------
    start = time.perf_counter()
    if name == "grpo" and first < steps:
        program.say("grpo: compiling")
        warm_up(stage, state, experiment)
        end_if(stop, f"nothing new to save before step {first + 1} of stage {name}")
    log = MetricsLog(folder, resume_step=first, total_steps=steps, show=SHOWN[name])

    # ---- steps ---------------------------------------------------------------------------------------------------
    warm, done = None, first
    best = Checkpoints(folder / "best", keep=1) if held_out else None
    for step in () if early.over else range(first + 1, steps + 1):
        state, metrics = stage.step(state, step, next(batches))
        done = step
        log.log(step, metrics | compiles.metrics())
        if held_out and (step % config.sft.validate_every == 0 or step == steps):
            means = stage.validate(state, held_out)
            log.log(step, {f"validation/{key}": value for key, value in means.items()})
            if early.see(step, means["loss"]) and step > (best.latest() or 0):  # a resumed run may have kept it already
                best.save(step, state.kept(), {"step": step})
        stopping = any(agree(len(stop)))
        if warm is None:
            warm = compiles.count  # the first step also compiles what little runs outside of the warmed programs
        if step % config.checkpoint.every == 0 or step == steps or stopping or early.over:
            check_sound(name, log.flush())
            elapsed = seconds + time.perf_counter() - start
            before_save = compiles.count
            meta = {"step": step, "seconds": elapsed, "data": batches.get_state(), "early_stop": early.state()}
            checkpoints.save(step, state.kept(), meta)
            # Of an array on several devices Orbax lets each write a piece, and compiles the slicing: none of the steps' doing.
            warm += compiles.count - before_save
        if stopping:
            raise Interrupted(f"saved after step {step} of stage {name}")
        if early.over:
            program.say(f"{name}: held-out loss has not fallen since step {early.best_step}")
            break
    log.close()
    checkpoints.close()
    if held_out:
        if not early.best_step:
            raise RunError(f"{name}: the held-out loss was no number at any look; see {folder / 'metrics.jsonl'}")
        kept, _ = best.restore(early.best_step, state.kept())
        state = state.regained(kept)
        best.close()
    for line in batches.bad:
        program.say(f"{name}: passed over {line}")
    seconds += time.perf_counter() - start
    params = state.params
    summary = {
        "stage": name,
        "seconds": seconds,
        "steps": done,
        "compiles": compiles.count,  # with the next two: of this process, from its beginning
        "compiles_from_cache": compiles.cached,
        "compile_seconds": compiles.seconds,
        "compiles_after_warmup": 0 if warm is None else compiles.count - warm,
    }

    # ---- after ---------------------------------------------------------------------------------------------------
    if judge:
        after, off = judge.results("after", params), judge.results("after_no_tools", params, tools_on=False)
        summary |= compare(before, after, off)
        summary["logprob_gap_max"] = max(record["logprob_gap"] for record in read_metrics(folder / "metrics.jsonl"))
        program.say(f"\nbefore\n{before.table()}\n\nafter\n{after.table()}\n\nafter, tools off\n{off.table()}\n")
    return params, summary


def what_to_learn(experiment: Experiment, name: str) -> tuple[list[Phase], Callable | None, list[Demonstration]]:
    """What a stage draws its batches from, what is done with each item, and demonstrations to validate on (stage sft only)."""
    if name == "vision":
        return [Phase(0, (experiment.tasks.lessons(),), (1.0,))], None, []
    if name == "sft" and experiment.config.sft.trajectories:
        train, held_out = experiment.tasks.demonstrations()
        program.say(f"sft: {len(train)} trajectories to imitate, {len(held_out)} held out")
        return [Phase(0, (train,), (1.0,))], experiment.tasks.bucket.fit_demonstration, held_out
    phases, overlap = experiment.tasks.training_phases()
    if overlap:
        program.say(str(overlap))
    for source in dict.fromkeys(source for phase in phases for source in phase.sources):
        if isinstance(source, DataSet):
            program.say(str(source.report))
    return phases, experiment.tasks.bucket.fit, []


def make_stage(experiment: Experiment, name: str, params: nnx.State):
    """(stage, steps, prompts a step)."""
    c = experiment.config
    if name == "vision":
        return experiment.vision_stage(), c.vision.steps, c.vision.prompts
    if name == "sft":
        return experiment.sft_stage(), c.sft.steps, c.sft.prompts
    return experiment.grpo_stage(params), c.grpo.steps, c.rollout.prompts


def warm_up(stage, state, experiment: Experiment) -> None:
    """Compiles the sampler and the learner for all buckets."""
    size = experiment.model.view_size
    programs = stage.learner.lower(state, stage.shapes, stage.world.shapes, size, stage.reference is not None)
    weights = stage.engine.weights(state.params)  # runs the reshard once, which compiles it
    compile_all(programs + stage.engine.lower(weights, size, MAX_VIEWS) + stage.world.lower(), "compile")


class Judge:
    """Evaluates weights on the held-out tasks, once: results are kept in the stage's folder, so a resumed run repeats nothing.

    stop: of `catch_interrupt`; Interrupted when the results are kept.
    """

    def __init__(self, experiment: Experiment, folder: pathlib.Path, stop: list):
        self._experiment, self._folder, self._stop = experiment, folder, stop
        self._parts, self._tasks = None, None

    def results(self, name: str, params: nnx.State, tools_on: bool = True) -> Results:
        path = self._folder / f"evaluation_{name}.json"
        if all(gather(np.array([path.exists()]))):  # a process may see a file late; what one evaluates, all do
            return Results(**{key: np.array(value) for key, value in json.loads(path.read_text()).items()})
        if self._parts is None:
            self._parts, self._tasks = evaluation_parts(self._experiment), self._experiment.tasks.held_out()
        c = self._experiment.config
        predictions = evaluate(
            *self._parts,
            params,
            self._tasks,
            temperature=c.eval.temperature,
            top_k=c.eval.top_k,
            top_p=c.eval.top_p,
            seed=c.seed,
            tools_on=tools_on,
            title=f"evaluate {name}",
        )
        results = Results.of(predictions)
        columns = {key: value.tolist() for key, value in dataclasses.asdict(results).items()}
        write_atomically(path, json.dumps(columns))
        end_if(self._stop, f"saved: evaluation {name}")
        return results


def compare(before: Results, after: Results, off: Results) -> dict:
    """The figures that say whether the tool is what did it."""
    was, now, without = before.summary(), after.summary(), off.summary()
    return {
        "accuracy/before": was["accuracy/needed"],
        "accuracy/after": now["accuracy/needed"],
        "accuracy/after_no_tools": without["accuracy/needed"],
        "accuracy/chance": now["chance/needed"],
        "accuracy/before_all": was["accuracy"],
        "accuracy/after_all": now["accuracy"],
        "tool_rate/needed": now["tool_rate/needed"],
        "tool_rate/not_needed": now["tool_rate/not_needed"],
        "tool_rate/needed_before": was["tool_rate/needed"],
        "tool_rate/not_needed_before": was["tool_rate/not_needed"],
        "tool_choice/before": was["tool_choice"],
        "tool_choice/after": now["tool_choice"],
        "box_hit/before": was["box_hit"],
        "box_hit/after": now["box_hit"],
        "items/needed": now["items/needed"],
        "items/all": len(after.kinds),
    }


def only_first(work: Callable[[], None]) -> None:
    """Process 0 does the work; RunError everywhere when it failed there, so that nobody waits for it."""
    failed = None
    if jax.process_index() == 0:
        try:
            work()
        except RunError as error:
            failed = error
    if any(agree(failed is not None)):
        raise failed or RunError("process 0 failed; see its output")


def check_stages(config: Config) -> None:
    """RunError when a stage has nothing to do, or could not learn."""
    for name in config.stages:
        if getattr(config, name).steps < 1:
            raise RunError(
                f"config.{name}.steps {getattr(config, name).steps}: a stage of config.stages takes at least 1"
            )
    if "grpo" in config.stages and not config.rollout.temperature:
        raise RunError(
            "config.rollout.temperature 0: all rows of a group would be the same, with nothing to learn from"
        )


def check_sound(name: str, record: Mapping[str, Any]) -> None:
    """RunError when a step's weights are no numbers any more: they must not take the place of a checkpoint."""
    for key in ("loss", "gradient_norm"):
        if not math.isfinite(record.get(key, 0.0)):
            raise RunError(
                f"{name}: {key} of step {record['step']} is {record[key]}, the run has diverged; earlier checkpoints are untouched. "
                f"Start again in another --workdir, with a lower config.{name}.optimizer.learning_rate"
            )


def claim(config: Config, workdir: pathlib.Path, resume: bool) -> None:
    """Makes the workdir this config's, or refuses. A run may go on on another mesh."""
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held = path.read_text() if path.exists() else None
    except OSError as error:
        raise RunError(f"cannot use workdir {workdir}: {error.strerror}") from error
    anywhere = lambda values: {key: value for key, value in values.items() if key not in ("mesh", "compile_cache")}
    if held is not None and anywhere(json.loads(held)) != anywhere(json.loads(configs.to_json(config))):
        raise RunError(f"{workdir} holds a run of another config (see {path}); choose another --workdir")
    if held is not None and not resume:
        raise RunError(f"{workdir} holds this run already; go on with --resume, or choose another --workdir")
    if held is None and resume:
        raise RunError(f"nothing to resume in {workdir}: it holds no config.json")
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    versions = {name: installed.get(name, "not installed") for name in VERSIONS} | {"python": platform.python_version()}
    write_atomically(path, configs.to_json(config))
    write_atomically(workdir / "versions.json", json.dumps(versions, indent=2) + "\n")


def release(workdir: pathlib.Path) -> None:
    """Gives up a workdir in which nothing was made: the next start, perhaps with what was wrong put right, may have it."""
    stages = [workdir / name for name in SHOWN]
    if jax.process_index() == 0 and not any(path.is_file() for stage in stages for path in stage.rglob("*")):
        for name in ("config.json", "versions.json"):
            (workdir / name).unlink(missing_ok=True)


def end_if(stop: list, saved: str) -> None:
    """Interrupted, in all processes, when one of them was told to stop."""
    if any(agree(len(stop))):
        raise Interrupted(saved)


def catch_interrupt() -> list:
    """A list that the first Ctrl-C (or SIGTERM) makes non-empty; the second one ends the process at once."""
    stop: list = []

    def handle(number, _):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping after this step or evaluation; once more to stop at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on from the last checkpoint in the workdir.")


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value)
    config = configs.from_dict(_CONFIG.value.to_dict())
    use_cache(config.compile_cache)
    try:
        summary = train(config, workdir, _RESUME.value)
    except Interrupted as event:
        program.say(f"{event}; go on with --resume and the same --config and --workdir")
        sys.exit(130)
    program.say(json.dumps(summary, indent=2, sort_keys=True))
    program.say(
        f"\n{workdir}: model/ (Hugging Face layout), summary.json, config.json, and a folder for each stage with "
        "metrics.jsonl and checkpoints/"
    )


if __name__ == "__main__":
    program.run(main, required=("config", "workdir"))
