"""Stage `grpo`: sample groups of episodes, reward them, update the policy. One step is one on-policy batch."""

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from mvg_jax.data.task import Task
from mvg_jax.env.episode import Episodes, Stop
from mvg_jax.env.rewards import compute_rewards, tool_statistics
from mvg_jax.mesh import gather
from mvg_jax.rl.learner import Learner, LearnerShapes, TrainState, make_batch
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.policies import SampledPolicy
from mvg_jax.rollout.sampling import task_name
from mvg_jax.rollout.scheduler import Phases, World, rollout
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
        phases = Phases()
        temperature_B = np.full(len(tasks) * self.world.shapes.group, self.temperature, np.float32)
        trajectories, episodes = self._sample(state.params, number, tasks, temperature_B, phases)
        rewards_B, terms = compute_rewards(self.rewards, episodes)
        rolled_out = time.perf_counter()
        batch = make_batch(trajectories, rewards_B, temperature_B, self.shapes)
        if self.reference is not None:
            reference = self.learner.score(self.reference, batch)
            batch = batch._replace(reference=reference)
        state, metrics = self.learner.update(state, batch)
        times = {f"time/{name}": seconds for name, seconds in phases.seconds.items()}
        times |= {
            "time/rollout": rolled_out - start,
            "time/step": time.perf_counter() - start,
            "time/alone": phases.alone,
        }
        return state, metrics | rollout_metrics(trajectories, episodes, rewards_B, terms) | times

    def _sample(
        self, params: nnx.State, number: int, tasks: Sequence[Task], temperature_B: np.ndarray, phases: Phases
    ) -> tuple[Trajectories, Episodes]:
        """A rollout; the sampler's weights and cache are gone when it is over, before the update wants the memory."""
        with phases("prompts"):
            prompts = self.world.prepare(tasks, tools_on=True)
        with phases("wait"):  # for the update before, which is none of the rollout's time
            jax.block_until_ready(params)
        with phases("reshard"):
            params = self.engine.weights(params)
        policy = SampledPolicy(
            self.engine,
            params,
            seed=self.seed,
            step=number,
            sample_B=sample_index(tasks, self.world.shapes.group),
            temperature_B=temperature_B,
        )
        return rollout(self.world, policy, prompts, phases)


def sample_index(tasks: Sequence[Task], group: int) -> np.ndarray:
    """int32 [P·G]: counts a task's rows within the step, so that a task drawn twice does not repeat its noise.

    With several processes, over the tasks of all: task p of process i is the step's p·processes + i-th.
    """
    own, count = jax.process_index(), jax.process_count()
    names = gather(np.array([task_name(task.id) for task in tasks], np.uint32))
    seen: Counter[int] = Counter()
    before = []
    for name in names.reshape(count, -1).T.reshape(-1).tolist():
        before.append(seen[name])
        seen[name] += 1
    return (np.array(before, np.int32)[own::count, None] * group + np.arange(group, dtype=np.int32)).reshape(-1)


def rollout_metrics(
    trajectories: Trajectories, episodes: Episodes, rewards_B: np.ndarray, terms: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """What a step's episodes were like: means over all processes' rows, split by whether a task needs a tool where that is known."""
    statistics = tool_statistics(episodes)
    G = trajectories.group_size
    rows = {
        "needed": np.array([task.needs_tool is True for task in episodes.tasks]),
        "needless": np.array([task.needs_tool is False for task in episodes.tasks]),
        "reward": rewards_B,
        "tokens": trajectories.loss_mask_BxL.sum(axis=1),
        "views": trajectories.view_count_B,
        "stop": episodes.stop_B,
    }
    rows, statistics, terms = jax.tree.map(gather, (rows, dict(statistics), dict(terms)))
    needed_B, needless_B, stop_B = rows["needed"], rows["needless"], rows["stop"]
    group_std = rows["reward"].reshape(-1, G).std(axis=1)
    metrics = {
        "reward": rows["reward"].mean(),
        "groups_without_signal": (group_std < 1e-6).mean(),
        "tokens_sampled": rows["tokens"].sum(),
        "views": rows["views"].mean(),
        "turn_errors": np.nanmean(statistics["error"]),
    }
    metrics |= {f"reward/{name}": values.mean() for name, values in terms.items()}
    metrics |= {f"stop/{stop.name.lower()}": (stop_B == stop).mean() for stop in Stop if stop != Stop.RUNNING}
    for name, rows in (("needed", needed_B), ("not_needed", needless_B)):
        if rows.any():
            metrics[f"tool_rate/{name}"] = statistics["call"][rows].mean()
            metrics[f"tool_choice/{name}"] = np.nanmean(statistics["tool_choice"][rows])
            if np.isfinite(statistics["box_hit"][rows]).any():
                metrics[f"box_hit/{name}"] = np.nanmean(statistics["box_hit"][rows])
            if "accuracy" in terms:
                metrics[f"accuracy/{name}"] = terms["accuracy"][rows].mean()
    return {name: float(value) for name, value in metrics.items()}
