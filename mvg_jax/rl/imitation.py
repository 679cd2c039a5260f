"""Stage `sft`: imitation of demonstrated trajectories, played through the same environment and learnt by the same learner."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mvg_jax.data.task import Demonstration, Task, Turn
from mvg_jax.env.episode import Episodes, Stop
from mvg_jax.errors import RunError
from mvg_jax.mesh import gather
from mvg_jax.rl.learner import Learner, LearnerShapes, TrainState, make_batch
from mvg_jax.rl.packing import KINDS, PackShapes, pack
from mvg_jax.rollout.policies import ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, World, rollout
from mvg_jax.trajectory import Trajectories

Demonstrate = Callable[[Task, np.random.Generator, Mapping[str, float]], tuple[Turn, ...]]


class Lesson(NamedTuple):
    """P tasks, the turns of each of their P·G rows, and whether each prompt [P] offers tools."""

    tasks: Sequence[Task]
    turns: Sequence[Sequence[Turn]]
    tools_on: Sequence[bool]


# (number of the step, what the data pipeline handed out) -> what to imitate
Teach = Callable[[int, Sequence[Any]], Lesson]


def stored(number: int, demonstrations: Sequence[Demonstration]) -> Lesson:
    """What was collected beforehand."""
    return Lesson(*zip(*((d.task, d.turns, d.tools_on) for d in demonstrations), strict=True))


@dataclasses.dataclass(frozen=True)
class Scripted:
    """An expert's trajectories, made on the spot; `group` for each task.

    mixture: decision -> weight, handed to `demonstrate`. tools_off: share of batches without tools, answered directly.
    right_first: steps at the beginning that show right trajectories only: while the model cannot read views yet, answers that
    were guessed drown what the others teach."""

    demonstrate: Demonstrate
    mixture: Mapping[str, float]
    tools_off: float
    right_first: int
    group: int
    seed: int

    def __call__(self, number: int, tasks: Sequence[Task]) -> Lesson:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, number))))
        right_only = number <= self.right_first
        tools_on = right_only or bool(rng.random() >= self.tools_off)
        mixture = {"right": 1.0} if right_only else self.mixture if tools_on else {"direct": 1.0}
        if jax.process_count() > 1:  # what all processes decide alike is decided; demonstrations are each one's own
            rng = np.random.Generator(
                np.random.Philox(np.random.SeedSequence((self.seed, number, jax.process_index())))
            )
        turns = [self.demonstrate(task, rng, mixture) for task in tasks for _ in range(self.group)]
        return Lesson(tasks, turns, [tools_on] * len(tasks))


@dataclasses.dataclass(frozen=True, eq=False)
class SFTStage:
    """pack: shapes of packed rows; None: a row a trajectory, behind its group's prompt, in the buckets of `shapes`."""

    world: World
    learner: Learner
    shapes: LearnerShapes
    teach: Teach
    pack: PackShapes | None = None

    def start(self, params: nnx.State) -> TrainState:
        return self.learner.init(params)

    def step(self, state: TrainState, number: int, batch: Sequence[Any]) -> tuple[TrainState, dict]:
        trajectories, episodes = self._play(self.teach(number, batch))
        if self.pack is None:
            nothing = np.zeros(len(trajectories.tokens_BxL), np.float32)
            state, metrics = self.learner.update(state, make_batch(trajectories, nothing, nothing + 1.0, self.shapes))
            names = ("loss", "gradient_norm", "entropy", "tokens", "token_accuracy")
            return state, {name: metrics[name] for name in names}
        packed = pack(trajectories, turn_kinds(trajectories, episodes), self.pack)
        state, metrics = self.learner.update(state, packed)
        del metrics["logprob_gap"]  # nobody drew these tokens
        real = gather(trajectories.length_B + np.repeat(trajectories.prompt_length_P, trajectories.group_size)).sum()
        return state, metrics | {"goodput": float(real / packed.tokens.size)}

    def validate(self, state: TrainState, demonstrations: Sequence[Demonstration]) -> dict[str, float]:
        """Loss and token accuracy of held-out demonstrations, in all and by the kind of turn.

        Every process is given all of them, a multiple of world.shapes.prompts, and plays its share. ValueError for another number.
        """
        if not demonstrations or len(demonstrations) % self.world.shapes.prompts:
            raise ValueError(f"{len(demonstrations)} demonstrations are no batches of {self.world.shapes.prompts}")
        own = demonstrations[jax.process_index() :: jax.process_count()]
        size = self.world.shapes.prompts // jax.process_count()
        sums: dict[str, float] = {}
        for first in range(0, len(own), size):
            trajectories, episodes = self._play(stored(0, own[first : first + size]))
            packed = pack(trajectories, turn_kinds(trajectories, episodes), self.pack)
            for name, value in self.learner.imitation_sums(state.params, packed).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return imitation_means(sums)

    def _play(self, lesson: Lesson) -> tuple[Trajectories, Episodes]:
        policy = ScriptedPolicy(self.world.protocol, lesson.turns, self.world.shapes.turn_tokens)
        trajectories, episodes = rollout(
            self.world, policy, self.world.prepare(lesson.tasks, lesson.tools_on), Phases()
        )
        for task, stop in zip(episodes.tasks, episodes.stop_B, strict=True):
            if stop != Stop.ANSWER:
                raise RunError(
                    f"the demonstration of task {task.id} ends with {Stop(stop).name} before its answer; it needs more of "
                    "config.rollout.suffix_length, or of config.env's turns and images"
                )
        return trajectories, episodes


def turn_kinds(trajectories: Trajectories, episodes: Episodes) -> np.ndarray:
    """int8 [B, L]: for each token of the model the index in KINDS of what its turn is."""
    kinds_BxT = np.full((len(episodes.records), max(map(len, episodes.records))), KINDS.index("answer"), np.int8)
    for b, records in enumerate(episodes.records):
        calls = [i for i, record in enumerate(records) if record.call is not None]
        kinds_BxT[b, calls] = KINDS.index("call")
    return np.take_along_axis(kinds_BxT, np.minimum(trajectories.turn_BxL, kinds_BxT.shape[1] - 1).astype(int), axis=1)


def imitation_means(sums: Mapping[str, float]) -> dict[str, float]:
    """From sums over tokens to means, of all kinds of turns together and of each that occurs."""
    means = {}
    for end in ("", *(f"/{kind}" for kind in KINDS)):
        if count := sums[f"tokens{end}"]:
            means |= {f"{name}{end}": sums[f"{name}{end}"] / count for name in ("loss", "token_accuracy")}
    return means | {"tokens": sums["tokens"]}
