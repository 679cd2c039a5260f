"""Stage `sft`: imitation of demonstrated trajectories, played through the same environment and learnt by the same learner."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from mvg_jax.data.task import Demonstration, Task, Turn
from mvg_jax.rl.learner import Learner, LearnerShapes, TrainState, make_batch
from mvg_jax.rollout.scheduler import Phases, ScriptedPolicy, World, rollout

Demonstrate = Callable[[Task, np.random.Generator, Mapping[str, float]], tuple[Turn, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class SFTStage:
    """demonstrate: turns for a task; None: the stage is given demonstrations instead of tasks, and what follows does not count.
    mixture: decision -> weight, handed to `demonstrate`. tools_off: share of batches without tools, answered directly.
    right_first: steps at the beginning that show right trajectories only: while the model cannot read views yet, answers that
    were guessed drown what the others teach."""

    world: World
    learner: Learner
    shapes: LearnerShapes
    demonstrate: Demonstrate | None
    mixture: Mapping[str, float]
    tools_off: float
    right_first: int
    seed: int

    def start(self, params: nnx.State) -> TrainState:
        return self.learner.init(params)

    def step(
        self, state: TrainState, number: int, tasks: Sequence[Task] | Sequence[Demonstration]
    ) -> tuple[TrainState, dict]:
        shapes, phases = self.world.shapes, Phases()
        if self.demonstrate is None:
            tools_on, script = True, [d.turns for d in tasks for _ in range(shapes.group)]
            tasks = [d.task for d in tasks]
        else:
            tools_on, script = self._script(number, tasks)
        policy = ScriptedPolicy(self.world.protocol, script, shapes.turn_tokens)
        trajectories, _ = rollout(self.world, policy, self.world.prepare(tasks, tools_on), phases)
        nothing = np.zeros(len(script), np.float32)
        batch = make_batch(trajectories, nothing, nothing + 1.0, self.shapes)
        state, metrics = self.learner.update(state, batch)
        return state, {name: metrics[name] for name in ("loss", "gradient_norm", "entropy", "tokens", "token_accuracy")}

    def _script(self, number: int, tasks: Sequence[Task]) -> tuple[bool, list[tuple[Turn, ...]]]:
        """(whether tools are offered, the turns of each row) of a step of scripted demonstrations."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        right_only = number <= self.right_first
        tools_on = right_only or bool(rng.random() >= self.tools_off)
        mixture = {"right": 1.0} if right_only else self.mixture if tools_on else {"direct": 1.0}
        if jax.process_count() > 1:  # what all processes decide alike is decided; demonstrations are each one's own
            rng = np.random.Generator(
                np.random.Philox(np.random.SeedSequence((self.seed, number, jax.process_index())))
            )
        return tools_on, [
            self.demonstrate(task, rng, mixture) for task in tasks for _ in range(self.world.shapes.group)
        ]

    def kept(self, state: TrainState) -> TrainState:
        """What a checkpoint holds: all but the frozen weights, with which the stage starts."""
        return state._replace(frozen=None)

    def regained(self, kept: TrainState, state: TrainState) -> TrainState:
        """The state of a checkpoint, with the frozen weights of one at hand."""
        return kept._replace(frozen=state.frozen)

    def params(self, state: TrainState) -> nnx.State:
        return state.params
