"""Stage `grpo`: sample groups of episodes, reward them, update the policy. One step is one on-policy batch."""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx

from mvg_jax.data.task import Task
from mvg_jax.env.episode import Episodes, Stop
from mvg_jax.env.rewards import compute_rewards, tool_statistics
from mvg_jax.rl.learner import Learner, LearnerShapes, TrainState, make_batch
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.scheduler import Phases, SampledPolicy, World, rollout
from mvg_jax.trajectory import Trajectories


@dataclasses.dataclass(frozen=True, eq=False)
class GRPOStage:
    """rewards: term -> weight (env.rewards). reference: weights of the KL penalty's policy, None without one."""

    world: World
    engine: Engine
    learner: Learner
    shapes: LearnerShapes
    rewards: Mapping[str, float]
    temperature: float
    seed: int
    reference: nnx.State | None

    def start(self, params: nnx.State) -> TrainState:
        return self.learner.init(params)

    def step(self, state: TrainState, number: int, tasks: Sequence[Task]) -> tuple[TrainState, dict]:
        start = time.perf_counter()
        phases, shapes = Phases(), self.world.shapes
        temperature_B = np.full(shapes.rows, self.temperature, np.float32)
        policy = SampledPolicy(
            self.engine,
            state.params,
            seed=self.seed,
            step=number,
            sample_B=sample_index(tasks, shapes.group),
            temperature_B=temperature_B,
        )
        trajectories, episodes = rollout(self.world, policy, self.world.prepare(tasks, tools_on=True), phases)
        rewards_B, terms = compute_rewards(self.rewards, episodes)
        rolled_out = time.perf_counter()
        batch = make_batch(trajectories, rewards_B, temperature_B, self.shapes)
        if self.reference is not None:
            reference = self.learner.score(self.reference, batch)
            batch = batch._replace(reference=reference)
        state, metrics = self.learner.update(state, batch)
        times = {f"time/{name}": seconds for name, seconds in phases.seconds.items()}
        times |= {"time/rollout": rolled_out - start, "time/step": time.perf_counter() - start}
        return state, metrics | rollout_metrics(trajectories, episodes, rewards_B, terms) | times

    def params(self, state: TrainState) -> nnx.State:
        return state.params


def sample_index(tasks: Sequence[Task], group: int) -> np.ndarray:
    """int32 [P·G]: counts a task's rows within the step, so that a task drawn twice does not repeat its noise."""
    seen: Counter[str] = Counter()
    index = []
    for task in tasks:
        index += [seen[task.id] * group + g for g in range(group)]
        seen[task.id] += 1
    return np.array(index, np.int32)


def rollout_metrics(
    trajectories: Trajectories, episodes: Episodes, rewards_B: np.ndarray, terms: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """What a step's episodes were like: means over rows, split by whether a task needs a tool where that is known."""
    statistics = tool_statistics(episodes)
    needed_B = np.array([task.needs_tool is True for task in episodes.tasks])
    needless_B = np.array([task.needs_tool is False for task in episodes.tasks])
    group_std = rewards_B.reshape(-1, trajectories.group_size).std(axis=1)
    metrics = {
        "reward": rewards_B.mean(),
        "groups_without_signal": (group_std < 1e-6).mean(),
        "tokens_sampled": trajectories.loss_mask_BxL.sum(),
        "views": trajectories.view_count_B.mean(),
        "turn_errors": np.nanmean(statistics["error"]),
    }
    metrics |= {f"reward/{name}": values.mean() for name, values in terms.items()}
    metrics |= {f"stop/{stop.name.lower()}": (episodes.stop_B == stop).mean() for stop in Stop if stop != Stop.RUNNING}
    for name, rows in (("needed", needed_B), ("not_needed", needless_B)):
        if rows.any():
            metrics[f"tool_rate/{name}"] = statistics["call"][rows].mean()
            metrics[f"tool_choice/{name}"] = np.nanmean(statistics["tool_choice"][rows])
            if np.isfinite(statistics["box_hit"][rows]).any():
                metrics[f"box_hit/{name}"] = np.nanmean(statistics["box_hit"][rows])
            if "accuracy" in terms:
                metrics[f"accuracy/{name}"] = terms["accuracy"][rows].mean()
    return {name: float(value) for name, value in metrics.items()}
