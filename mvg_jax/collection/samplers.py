"""Who makes candidates: our own model or a scripted expert, in batches through the turn loop, or a speaker of text."""

import concurrent.futures
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from mvg_jax.collection.converse import Speaker, Table, play
from mvg_jax.collection.select import Candidate, keyed
from mvg_jax.collection.store import Played
from mvg_jax.config import Rollout
from mvg_jax.data import experts
from mvg_jax.data.task import Task, Turn
from mvg_jax.env.episode import Episodes, StepResult, Stop
from mvg_jax.env.protocol import Protocol
from mvg_jax.env.rewards import TERMS, row_facts
from mvg_jax.frames import Frame
from mvg_jax.rollout.engine import Engine
from mvg_jax.rollout.policies import SampledPolicy, ScriptedPolicy
from mvg_jax.rollout.scheduler import Phases, Policy, Prompts, Turns, World, rollout
from mvg_jax.rollout.slots import NONE


class Sampler(typing.Protocol):
    """Whoever makes candidates."""

    name: str

    def sample(self, tasks: Sequence[Task], tools_on: bool) -> Iterator[list[Candidate]]:
        """The candidates of each task, in the order of their sample index; the same whatever is sampled beside them."""

    def close(self) -> None:
        """Lets go of what it holds."""


class Speak(typing.Protocol):
    """Who speaks for the rows of a batch: P tasks, G rows each; sample_B: which try at its task each row [P·G] is."""

    def __call__(self, tasks: Sequence[Task], sample_B: np.ndarray, tools_on: bool) -> Policy: ...


class RolloutSampler:
    """Whole batches through the turn loop. world: of prompts x samples rows."""

    def __init__(self, world: World, name: str, speak: Speak):
        self.name = name
        self._world, self._speak = world, speak

    def sample(self, tasks: Sequence[Task], tools_on: bool) -> Iterator[list[Candidate]]:
        P = self._world.shapes.prompts
        for start in range(0, len(tasks), P):
            yield from self._batch(list(tasks[start : start + P]), tools_on)

    def close(self) -> None:
        pass

    def _batch(self, tasks: list[Task], tools_on: bool) -> list[list[Candidate]]:
        P, G = self._world.shapes.prompts, self._world.shapes.group
        filled = (tasks * P)[:P]  # up with repeats, which nobody looks at
        sample_B = np.tile(np.arange(G, dtype=np.int32), P)
        policy = _Listening(self._speak(filled, sample_B, tools_on))
        trajectories, episodes = rollout(self._world, policy, self._world.prepare(filled, tools_on), Phases())
        tokens_B = trajectories.loss_mask_BxL.sum(axis=1)
        fits_B = episodes.stop_B != Stop.MAX_TOKENS
        rows = [
            _candidate(
                episodes.row(b),
                policy.lines(b),
                int(tokens_B[b]),
                self.name,
                int(sample_B[b]),
                tools_on,
                bool(fits_B[b]),
            )
            for b in range(len(tasks) * G)
        ]
        return [rows[p * G : (p + 1) * G] for p in range(len(tasks))]


def model_speaks(
    engine: Engine, params: nnx.State, *, temperature: float, seed: int, top_k: int = 0, top_p: float = 1.0
) -> Speak:
    """Our model draws."""
    weights = engine.weights(params)

    def speak(tasks: Sequence[Task], sample_B: np.ndarray, tools_on: bool) -> Policy:
        return SampledPolicy(
            engine,
            weights,
            seed=seed,
            step=0 if tools_on else 1,
            sample_B=sample_B,
            temperature_B=np.full(len(sample_B), temperature, np.float32),
            top_k=top_k,
            top_p=top_p,
        )

    return speak


def expert_speaks(protocol: Protocol, turn_tokens: int, decisions: Mapping[str, float], seed: int) -> Speak:
    """The scripted expert of the task's data set. decisions: what it does, by weight (see data.experts); without tools it answers.

    An episode with a turn of more than turn_tokens is cut off before its first turn.
    """

    def script(task: Task, sample: int, tools_on: bool) -> list[Turn]:
        rng = np.random.default_rng(keyed(seed, task.id, sample))
        turns = experts.mixture(task, rng, decisions if tools_on else {"direct": 1.0})
        return turns if all(len(protocol.turn_ids(turn)) < turn_tokens for turn in turns) else []

    def speak(tasks: Sequence[Task], sample_B: np.ndarray, tools_on: bool) -> Policy:
        rows = np.repeat(np.arange(len(tasks)), len(sample_B) // len(tasks)).tolist()
        scripts = [script(tasks[p], sample, tools_on) for p, sample in zip(rows, sample_B.tolist(), strict=True)]
        return ScriptedPolicy(protocol, scripts, turn_tokens)

    return speak


class TextSampler:
    """A speaker of text, `threads` conversations at a time. protocol, room: of the model that is to learn, to see what fits it."""

    def __init__(self, speaker: Speaker, table: Table, protocol: Protocol, room: Rollout, samples: int, threads: int):
        self.name = speaker.name
        self._speaker, self._table, self._samples = speaker, table, samples
        self._protocol, self._room = protocol, room
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)

    def sample(self, tasks: Sequence[Task], tools_on: bool) -> Iterator[list[Candidate]]:
        submit, samples = self._pool.submit, range(self._samples)
        under_way = [[submit(self._one, task, sample, tools_on) for sample in samples] for task in tasks]
        for rows in under_way:
            yield [row.result() for row in rows]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, task: Task, sample: int, tools_on: bool) -> Candidate:
        episodes, texts = play(self._table, self._speaker, task, sample, tools_on)
        tokens, fits = measure(self._protocol, self._room, episodes, texts, tools_on)
        return _candidate(episodes, texts, tokens, self._speaker.name, sample, tools_on, fits)


def measure(
    protocol: Protocol, room: Rollout, episodes: Episodes, texts: Sequence[str], tools_on: bool
) -> tuple[int, bool]:
    """(tokens that a model of ours would have written for the turns of one row, whether its rollouts have room for the episode).

    The rule of the turn loop: a turn fits `turn_tokens`, and an observation leaves room for one more turn.
    """
    (records,), (task,) = episodes.records, episodes.tasks
    written, length = 0, 0
    fits = len(protocol.prompt_ids(task, tools_on)) <= room.prompt_length
    for record, text in zip(records, texts, strict=True):
        if not isinstance(record.turn, Turn):
            continue
        said = len(protocol.turn_ids(record.turn)) + 1
        written, length = written + said, length + said
        fits = fits and said <= room.turn_tokens
        if text:
            length += len(protocol.observation_ids(record.views, text))
            fits = fits and length <= room.suffix_length - room.turn_tokens
    return written, fits


class _Listening:
    """A policy, and the lines of text that its turns got."""

    def __init__(self, policy: Policy):
        self._policy = policy
        self._texts: defaultdict[int, list[str]] = defaultdict(list)

    def begin(self, world: World, prompts: Prompts, phases: Phases) -> None:
        self._policy.begin(world, prompts, phases)

    def turns(self, phases: Phases) -> Turns | None:
        return self._policy.turns(phases)

    def observe(self, row_n: np.ndarray, step: StepResult, running_n: np.ndarray, phases: Phases) -> None:
        for b, text in zip(row_n.tolist(), step.texts, strict=True):
            if b != NONE:
                self._texts[b].append(text)
        self._policy.observe(row_n, step, running_n, phases)

    def lines(self, b: int) -> tuple[str, ...]:
        """Of row b, turn by turn."""
        return tuple(self._texts[b])


def _candidate(
    episodes: Episodes, texts: Sequence[str], tokens: int, source: str, sample: int, tools_on: bool, fits: bool = True
) -> Candidate:
    """Of a batch of one row."""
    (facts,) = row_facts(episodes)
    terms = {name: float(term(facts)) for name, term in TERMS.items()}
    played = Played(facts.task, facts.records, texts, facts.stop, tokens, source, sample, tools_on, terms)
    return Candidate(played, jax.tree.map(lambda x: np.array(x[0]), Frame(*episodes.frames)), fits)
