"""The turn loop: whoever speaks for the model, the environment answers, and the ledger keeps both.

prompts ──► policy.begin
┌────────► policy.turn        sampled by the engine, or read from a script
│          parse, judge       host
│          apply_tools        device, all rows at once
│          ledger.append      model turn, observation, views
└───────── policy.observe     views encoded, observation appended to the KV cache
"""

import contextlib
import dataclasses
import functools
import time
import typing
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvg_jax.data.task import Task, Turn
from mvg_jax.env.episode import Episodes, Limits, StepResult, Stop, finish_step, plan_step, reset, task_sources
from mvg_jax.env.protocol import Protocol, parse_turn
from mvg_jax.errors import RunError
from mvg_jax.frames import Frame
from mvg_jax.mesh import agree, by_shard, local_shards, put_rows, shard_count, to_host
from mvg_jax.rollout.engine import Drawn, Engine, Shapes, State, bucket
from mvg_jax.rollout.sampling import Sampling, row_keys
from mvg_jax.tools import Registry, Sources, ToolResult, ViewFormat, apply_tools, render_views
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Ledger, Trajectories


class Phases:
    """Seconds of a rollout by phase. With `block`, a phase waits for its own device work (for benchmarks)."""

    def __init__(self, block: bool = False):
        self.seconds: dict[str, float] = {}
        self.host_reads = 0
        self._block = block

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[list]:
        """Times the body; device arrays put into the yielded list are waited for."""
        work, start = [], time.perf_counter()
        yield work
        if self._block:
            jax.block_until_ready(work)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def to_host(self, tree):
        """The one way from the device to the host, counted."""
        self.host_reads += 1
        return to_host(tree)


class Prompts(NamedTuple):
    """P prompts ready to roll out. tokens [P, L] int32 and length [P] on the host; native images and first views
    [P, N0, H, W, 3] uint8 on the device. tools_on: whether each offers tools; where not, every call is an unknown tool."""

    tasks: tuple[Task, ...]
    tokens: np.ndarray
    length: np.ndarray
    sources: Sources
    views: jax.Array
    tools_on: tuple[bool, ...]


class Policy(typing.Protocol):
    """Whoever speaks for the model, one turn of all rows at a time."""

    def begin(self, prompts: Prompts, phases: Phases) -> None:
        """Takes the prompts in."""

    def turn(self, number: int, running_B: np.ndarray, phases: Phases) -> Drawn:
        """A turn of the running rows, on the host."""

    def observe(self, step: StepResult, running_B: np.ndarray, phases: Phases) -> None:
        """Takes in what came of it; running_B are the rows that go on."""


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """The environment side of rollouts: wire format, limits and static shapes. image_size: (H, W) bucket of native images.

    shapes count all processes' prompts; each process prepares and plays its share.
    position_grids: of a model with M-RoPE, the grid of its views; see `token_positions`.
    """

    protocol: Protocol
    limits: Limits
    shapes: Shapes
    view: ViewFormat
    image_size: tuple[int, int]
    position_grids: np.ndarray | None = None

    def prepare(self, tasks: Sequence[Task], tools_on: bool | Sequence[bool]) -> Prompts:
        """Prompt tokens and first views of this process's P tasks. tools_on: of all, or of each. RunError when they do not fit
        the shapes."""
        shapes = self.shapes
        P = shapes.prompts // jax.process_count()
        if len(tasks) != P:
            raise ValueError(f"{len(tasks)} tasks for {P} prompts")
        tokens = np.full((P, shapes.prompt_length), self.protocol.vocabulary.pad, np.int32)
        length = np.zeros(P, np.int32)
        offered = (tools_on,) * P if isinstance(tools_on, bool) else tuple(tools_on)
        for p, (task, on) in enumerate(zip(tasks, offered, strict=True)):
            ids = self.protocol.prompt_ids(task, on)
            if len(ids) > shapes.prompt_length or len(task.images) > shapes.prompt_images:
                raise RunError(
                    f"task {task.id}: {len(ids)} prompt tokens and {len(task.images)} images do not fit "
                    f"{shapes.prompt_length} and {shapes.prompt_images}; enlarge config.rollout.prompt_length or config.data.images"
                )
            tokens[p, : len(ids)], length[p] = ids, len(ids)
        sources = put_rows(task_sources(tasks, *self.image_size, shapes.prompt_images))
        frames = reset(tasks, self.limits).frames
        first = put_rows(jax.tree.map(lambda x: x[:, : shapes.prompt_images], frames))
        return Prompts(tuple(tasks), tokens, length, sources, _first_views(sources, first, self.view), offered)


@functools.partial(jax.jit, static_argnames="view")
def _first_views(sources: Sources, frames: Frame, view: ViewFormat) -> jax.Array:
    def render(sources: Sources, frames: Frame) -> jax.Array:
        P, N = frames.source.shape
        row = jnp.repeat(jnp.arange(P), N)
        flat = jax.tree.map(lambda x: x.reshape(P * N, *x.shape[2:]), frames)
        return render_views(sources, row, flat, view).reshape(P, N, *view.shape)

    return by_shard(render)(sources, frames)


def rollout(world: World, policy: Policy, prompts: Prompts, phases: Phases) -> tuple[Trajectories, Episodes]:
    """Plays this process's P·G episodes to their end, in step with the other processes."""
    protocol, shapes = world.protocol, world.shapes
    P, G = len(prompts.tasks), shapes.group
    B = P * G
    vocabulary = protocol.vocabulary
    episodes = reset([task for task in prompts.tasks for _ in range(G)], world.limits)
    ledger = Ledger(
        prompts.tokens,
        prompts.length,
        phases.to_host(prompts.views),
        B,
        shapes.suffix_length,
        shapes.views,
        vocabulary.image,
        protocol.tokens_per_image,
        world.position_grids,
    )
    offered_B = [protocol.registry if on else Registry(()) for on in prompts.tools_on for _ in range(G)]
    source_row_B = put_rows(np.tile(np.repeat(np.arange(P // local_shards(), dtype=np.int32), G), local_shards()))
    policy.begin(prompts, phases)
    pending_views = []
    for number in range(world.limits.max_turns):
        before_B = episodes.running_B
        drawn = policy.turn(number, before_B, phases)
        with phases("host"):
            ledger.append(drawn.tokens, drawn.count, MODEL, number, drawn.logprobs)
            texts = [
                protocol.decode(drawn.tokens[b, : drawn.count[b]]) if before_B[b] and drawn.ended[b] else None
                for b in range(B)
            ]
            turns = [None if text is None else parse_turn(text) for text in texts]
            cut_off_B = np.where(before_B & ~drawn.ended, Stop.MAX_TOKENS, Stop.RUNNING)
            plan = plan_step(offered_B, episodes, turns, cut_off_B)
        with phases("tools") as work:
            frames, args = put_rows((plan.frames, plan.args))
            result = apply_tools(protocol.registry, prompts.sources, source_row_B, frames, args, world.view)
            work.append(result)
            frames, count, code = phases.to_host((result.frames, result.count, result.code))
        with phases("host"):
            room_B = shapes.suffix_length - shapes.turn_tokens - ledger.length_B
            width = max(shapes.observation_lengths)
            episodes, step = finish_step(protocol, plan, ToolResult(result.views, frames, count, code), width, room_B)
            ledger.append(step.observation_ids, step.length_B, ENVIRONMENT, number)
            pending_views.append((step.views, step.count_B))
        if not any(agree(episodes.running_B.any())):
            break
        policy.observe(step, episodes.running_B, phases)
    with phases("host"):
        for views, count_B in pending_views:
            ledger.append_views(phases.to_host(views), count_B)
        return ledger.close(), episodes


class SampledPolicy:
    """The model itself: turns are drawn by the engine. seed and step name the noise, with each row's task and sample.

    top_k, top_p: of all rows; see `sampling.Sampling`. Not for training, whose learner scores what was drawn without them.
    """

    def __init__(
        self,
        engine: Engine,
        params: nnx.State,
        *,
        seed: int,
        step: int,
        sample_B: np.ndarray,
        temperature_B: np.ndarray,
        top_k: int = 0,
        top_p: float = 1.0,
    ):
        self._engine, self._params = engine, params
        self._noise = (seed, step, sample_B)
        self._sampling = put_rows(Sampling.of(temperature_B, top_k, top_p))
        self._state: State | None = None

    def begin(self, prompts: Prompts, phases: Phases) -> None:
        shapes = self._engine.shapes
        seed, step, sample_B = self._noise
        task_ids = [t.id for t in prompts.tasks for _ in range(shapes.group)]
        self._name_Bx4 = put_rows(row_keys(seed, step, task_ids, sample_B))
        with phases("encode") as work:
            views = prompts.views.reshape(-1, *prompts.views.shape[2:])
            own = len(prompts.tasks) * shapes.prompt_images
            index = put_rows(np.arange(own, dtype=np.int32) % (own // local_shards()))
            features = self._engine.encode(self._params, views, index)
            work.append(features)
        with phases("prefill") as work:
            features = features.reshape(shapes.prompts, shapes.prompt_images, *features.shape[1:])
            tokens, length = put_rows((prompts.tokens, prompts.length))
            self._state = self._engine.prefill(self._params, tokens, length, features)
            work.append(self._state)

    def turn(self, number: int, running_B: np.ndarray, phases: Phases) -> Drawn:
        with phases("decode"):
            active_B = put_rows(running_B)
            self._state, drawn = self._engine.decode(
                self._params, self._state, active_B, self._name_Bx4, self._sampling, self._engine.banned_V
            )
            return Drawn(*phases.to_host(drawn))

    def observe(self, step: StepResult, running_B: np.ndarray, phases: Phases, spoken: Drawn | None = None) -> None:
        """spoken: the turn before in rows where it was not drawn here (count 0 elsewhere): it has no keys and values yet."""
        shapes, shards = self._engine.shapes, local_shards()
        R = step.views.shape[1]
        has_SxN = ((np.arange(R)[None] < step.count_B[:, None]) & running_B[:, None]).reshape(shards, -1)
        most, longest = agree(has_SxN.sum(axis=1).max(), step.length_B.max())
        with phases("encode") as work:
            n = bucket(shapes.encode_batches, most * shard_count(), "rollout.encode_batches") // shard_count()
            # Each shard's views that are there come first, in order; the rest of the bucket names none.
            order_SxN = np.argsort(~has_SxN, axis=1, kind="stable")
            there_SxN = np.take_along_axis(has_SxN, order_SxN, axis=1)
            N = has_SxN.shape[1]
            index_Sxn = np.full((shards, n), N, np.int32)
            index_Sxn[:, :N] = np.where(there_SxN, order_SxN, N)[:, :n]
            views = step.views.reshape(-1, *step.views.shape[2:])
            features = self._engine.encode(self._params, views, put_rows(index_Sxn.reshape(-1)))
            work.append(features)
        with phases("extend") as work:
            tokens_BxT, count_B = step.observation_ids, step.length_B
            if spoken is None:
                T = bucket(shapes.observation_lengths, longest, "rollout.observation_lengths")
                tokens_BxT = tokens_BxT[:, :T]
            else:
                pending_B, spoken_B = put_rows((spoken.tokens[:, 0], spoken.count > 0))
                self._state = self._state._replace(pending_B=jnp.where(spoken_B, pending_B, self._state.pending_B))
                tokens_BxT, count_B = _join(spoken.tokens[:, 1:], spoken.count - 1, tokens_BxT, count_B)
            active_B, tokens_BxT, count_B = put_rows((running_B, tokens_BxT, count_B))
            features = features.reshape(-1, R, *features.shape[1:])
            self._state = self._engine.extend(self._params, self._state, active_B, tokens_BxT, count_B, features)
            work.append(self._state)


def _join(
    a_BxS: np.ndarray, count_a: np.ndarray, b_BxT: np.ndarray, count_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's first count_a tokens of a, then its first count_b of b: [B, S+T], [B]."""
    B, S, T = *a_BxS.shape, b_BxT.shape[1]
    count_a = np.maximum(count_a, 0)
    joined = np.zeros((B, S + T), np.int32)
    joined[:, :S] = a_BxS
    joined[np.arange(B)[:, None], count_a[:, None] + np.arange(T)[None]] = b_BxT
    return joined, (count_a + count_b).astype(np.int32)


class ScriptedPolicy:
    """Turns written beforehand, as token ids: how demonstrations get their observations and become trajectories.

    script: the turns of each row. A row whose script is over although it is still running is cut off.
    """

    def __init__(self, protocol: Protocol, script: Sequence[Sequence[Turn]], turn_tokens: int):
        self._T = turn_tokens
        self._script = [
            [[*protocol.turn_ids(turn), protocol.vocabulary.end_of_turn] for turn in turns] for turns in script
        ]

    def begin(self, prompts: Prompts, phases: Phases) -> None:
        pass

    def turn(self, number: int, running_B: np.ndarray, phases: Phases) -> Drawn:
        B, T = len(running_B), self._T
        tokens, count = np.zeros((B, T), np.int32), np.zeros(B, np.int32)
        for b in np.flatnonzero(running_B):
            ids = self._script[b][number] if number < len(self._script[b]) else []
            if len(ids) > T:
                raise ValueError(f"a scripted turn of {len(ids)} tokens does not fit rollout.turn_tokens={T}")
            tokens[b, : len(ids)], count[b] = ids, len(ids)
        return Drawn(tokens, np.zeros((B, T), np.float32), count, count > 0)

    def observe(self, step: StepResult, running_B: np.ndarray, phases: Phases) -> None:
        pass


class GuidedPolicy:
    """Opens each row with scripted turns and lets the model go on: what it makes of views that someone else asked for.

    turns: how many are scripted. A row whose script is shorter, or empty, speaks for itself from there on.
    """

    def __init__(self, scripted: ScriptedPolicy, sampled: SampledPolicy, turns: int):
        self._scripted, self._sampled, self._turns = scripted, sampled, turns
        self._spoken: Drawn | None = None

    def begin(self, prompts: Prompts, phases: Phases) -> None:
        self._sampled.begin(prompts, phases)

    def turn(self, number: int, running_B: np.ndarray, phases: Phases) -> Drawn:
        if number >= self._turns:
            self._spoken = None
            return self._sampled.turn(number, running_B, phases)
        self._spoken = self._scripted.turn(number, running_B, phases)
        own_B = running_B & (self._spoken.count == 0)
        if not any(agree(own_B.any())):
            return self._spoken
        drawn = self._sampled.turn(number, own_B, phases)
        return jax.tree.map(np.add, self._spoken, drawn)  # each row is 0 in one of the two

    def observe(self, step: StepResult, running_B: np.ndarray, phases: Phases) -> None:
        self._sampled.observe(step, running_B, phases, spoken=self._spoken)
