"""Held-out evaluation: one episode a task through the training environment and engine, and the figures of it."""

import dataclasses
import sys
from collections.abc import Sequence

import jax
import numpy as np
import tqdm
from flax import nnx

from mvg_jax.data.task import Task, Turn
from mvg_jax.env.episode import Episodes, Stop
from mvg_jax.env.rewards import compute_rewards, tool_statistics
from mvg_jax.experiment import Experiment
from mvg_jax.mesh import gather
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.scheduler import GuidedPolicy, Phases, SampledPolicy, ScriptedPolicy, World, rollout
from mvg_jax.trajectory import Trajectories


@dataclasses.dataclass(frozen=True)
class Results:
    """One entry a task. correct, called: bool. choice, box: tool_choice and box_hit (NaN where undefined). stop: Stop."""

    kinds: np.ndarray
    needed: np.ndarray
    chance: np.ndarray
    correct: np.ndarray
    called: np.ndarray
    choice: np.ndarray
    box: np.ndarray
    stop: np.ndarray
    tokens: np.ndarray
    views: np.ndarray

    def accuracy(self, rows: np.ndarray | None = None) -> float:
        """Share of right answers, of all or of the given rows."""
        return float(np.mean(self.correct if rows is None else self.correct[rows]))

    def summary(self) -> dict[str, float | None]:
        """The figures a run reports; None where no task says anything about one."""
        figures = {
            "accuracy": self.accuracy(),
            "answered": float(np.mean(self.stop == Stop.ANSWER)),
            "tokens": float(self.tokens.mean()),
            "views": float(self.views.mean()),
            "tool_choice": _mean(self.choice[self.needed]),
            "box_hit": _mean(self.box[self.needed]),
        }
        for name, rows in (("needed", self.needed), ("not_needed", ~self.needed)):
            figures |= {
                f"accuracy/{name}": _mean(self.correct[rows]),
                f"chance/{name}": _mean(self.chance[rows]),
                f"tool_rate/{name}": _mean(self.called[rows]),
                f"items/{name}": int(rows.sum()),
            }
        return figures

    def table(self) -> str:
        """Accuracy, tool use and box hits by question kind."""
        lines = [
            f"{'kind':<12}{'items':>6}{'chance':>8}{'accuracy':>10}{'tool rate':>11}{'tool choice':>13}{'box hit':>9}"
        ]
        for kind in [*dict.fromkeys(self.kinds.tolist()), "all"]:
            rows = np.ones(len(self.kinds), bool) if kind == "all" else self.kinds == kind
            box = self.box[rows][np.isfinite(self.box[rows])]
            lines.append(
                f"{kind:<12}{rows.sum():>6}{self.chance[rows].mean():>8.2f}{self.accuracy(rows):>10.3f}"
                f"{self.called[rows].mean():>11.3f}{np.nanmean(self.choice[rows]):>13.3f}"
                f"{f'{box.mean():.3f}' if len(box) else '-':>9}"
            )
        return "\n".join(lines)


def _mean(values: np.ndarray) -> float | None:
    """The mean of the values that are not NaN, None if there are none."""
    there = values[~np.isnan(values.astype(np.float32))]
    return float(there.mean(dtype=np.float64)) if len(there) else None  # equal also after a way through JSON


def evaluate(
    world: World,
    engine: Engine,
    params: nnx.State,
    tasks: Sequence[Task],
    *,
    temperature: float,
    seed: int,
    tools_on: bool,
    guided: bool = False,
    title: str = "evaluate",
) -> Results:
    """One episode a task, in batches of world.shapes.prompts (the last is filled up with repeats, which are not counted).

    params: in the learner's layout. Every process is given all tasks and plays its share of each batch.
    guided: tasks that need a tool get the views of their minimal chain first; the others answer as usual.
    """
    P, processes = world.shapes.prompts, jax.process_count()
    own = P // processes
    first = own * jax.process_index()
    temperature_B = np.full(own, temperature, np.float32)
    params = engine.weights(params)
    parts = []
    for start in tqdm.trange(0, len(tasks), P, desc=title, unit="batch", disable=not sys.stderr.isatty()):
        chunk = list(tasks[start : start + P])
        filled = ((chunk * P)[:P] if len(chunk) < P else chunk)[first : first + own]
        policy = SampledPolicy(
            engine, params, seed=seed, step=0, sample_B=np.zeros(own, np.int32), temperature_B=temperature_B
        )
        if guided:
            script = [[Turn("", call) for call in task.chain] for task in filled]
            scripted = ScriptedPolicy(world.protocol, script, world.shapes.turn_tokens)
            policy = GuidedPolicy(scripted, policy, max(map(len, script)))
        trajectories, episodes = rollout(world, policy, world.prepare(filled, tools_on), Phases())
        columns = jax.tree.map(gather, _columns(trajectories, episodes))
        parts.append(_facts(chunk) | {name: column[: len(chunk)] for name, column in columns.items()})
    return Results(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _columns(trajectories: Trajectories, episodes: Episodes) -> dict[str, np.ndarray]:
    """What the episodes came to."""
    _, terms = compute_rewards({"accuracy": 1.0}, episodes)
    statistics = tool_statistics(episodes)
    return {
        "correct": terms["accuracy"] > 0,
        "called": statistics["call"] > 0,
        "choice": statistics["tool_choice"],
        "box": statistics["box_hit"],
        "stop": episodes.stop_B,
        "tokens": trajectories.loss_mask_BxL.sum(axis=1),
        "views": trajectories.view_count_B,
    }


def _facts(tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """What was known of the tasks before."""
    return {
        "kinds": np.array([task.kind for task in tasks]),
        "needed": np.array([task.needs_tool is True for task in tasks]),
        "chance": np.array([task.chance for task in tasks]),
    }


def evaluation_parts(experiment: Experiment) -> tuple[World, Engine]:
    """The environment and engine of an evaluation: many prompts, one row each."""
    world = experiment.world(experiment.config.eval.prompts, 1)
    return world, experiment.engine(world)
