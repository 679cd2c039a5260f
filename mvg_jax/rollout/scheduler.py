"""The turn loop: whoever speaks for the model, the environment answers, and the ledger keeps both.

prompts ──► policy.begin
┌────────► policy.turns       those that are over: sampled by the engine, or read from a script
│          parse, judge       host
│          apply_packed       device, all of these turns' tools at once
│          ledger.append      model turn, observation, views
└───────── policy.observe     what their rows read before they speak again
"""

import collections
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

from mvg_jax.data.task import Task
from mvg_jax.env.episode import Episodes, Limits, StepResult, Stop, finish_step, plan_step, reset, task_sources
from mvg_jax.env.protocol import Protocol, parse_turn
from mvg_jax.errors import RunError
from mvg_jax.frames import Frame, full_frame
from mvg_jax.mesh import abstract, by_shard, local_shards, put_rows, to_host
from mvg_jax.packed import abstract_packed, pack
from mvg_jax.positions import token_positions
from mvg_jax.rollout.engine import Shapes
from mvg_jax.tools import Registry, Sources, ToolResult, ViewFormat, apply_packed, render_views
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Ledger, Trajectories

NO_TOOLS = Registry(())


class Phases:
    """Seconds of a rollout by phase, and counts. A phase inside another takes its time from it, so that phases add up.

    block: a phase waits for its own device work (for benchmarks).
    alone: seconds in which the host or the tools worked and no program of the model did. An estimate: the host looks when it has
    waited for the model and when it starts something, and takes the time before as it finds it.
    """

    def __init__(self, block: bool = False):
        self.alone = 0.0
        self.seconds: dict[str, float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.host_reads = 0
        self._block = block
        self._inside = 0.0  # seconds of the phases inside of the one under way
        self._resting = None  # since when the model may have nothing to do

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[list]:
        """Times the body; device arrays put into the yielded list are waited for."""
        work, start, outer = [], time.perf_counter(), self._inside
        self._inside = 0.0
        yield work
        if self._block:
            jax.block_until_ready(work)
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inside
        self._inside = outer + seconds

    def rest(self) -> None:
        """The host has waited for the model, which from now on may have nothing to do."""
        self._resting = time.perf_counter()

    def resume(self, under_way: bool = False) -> None:
        """The model works, or is about to. under_way: it has worked since it was rested, for others."""
        if self._resting is not None and not under_way:
            self.alone += time.perf_counter() - self._resting
        self._resting = None

    def to_host(self, tree):
        """The one way from the device to the host, counted."""
        self.host_reads += 1
        return to_host(tree)


class Prompts(NamedTuple):
    """P prompts ready to roll out. On the host tokens [P, L] int32, length [P], last_position [P] (of the last token); on the device
    native images and first views [P, N0, H, W, 3] uint8. tools_on: whether each offers tools; where not, every call is an unknown
    tool."""

    tasks: tuple[Task, ...]
    tokens: np.ndarray
    length: np.ndarray
    last_position: np.ndarray
    sources: Sources
    views: jax.Array
    tools_on: tuple[bool, ...]


class Turns(NamedTuple):
    """Turns that are over, of n rows of this process, as many of each of its shards. row_n: int32, NONE where there is no row.
    tokens [n, T] int32, logprobs [n, T] float32, count [n] int32, ended [n] bool: whether it closed its turn."""

    row_n: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    count: np.ndarray
    ended: np.ndarray


class Policy(typing.Protocol):
    """Whoever speaks for the model. Rows are numbered as in the batch, those of a prompt side by side."""

    def begin(self, world: "World", prompts: Prompts, phases: Phases) -> None:
        """Takes the prompts in."""

    def turns(self, phases: Phases) -> Turns | None:
        """The next turns that are over, in whatever order; None when all rows are over. The same n in every process."""

    def observe(self, row_n: np.ndarray, step: StepResult, running_n: np.ndarray, phases: Phases) -> None:
        """Takes in what came of them; running_n: which rows go on."""


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """The environment side of rollouts: wire format, limits and static shapes. image_size: (H, W, C) bucket of native images.

    shapes count all processes' prompts; each process prepares and plays its share.
    position_grids: of a model with M-RoPE, the grid of its views; see `token_positions`.
    """

    protocol: Protocol
    limits: Limits
    shapes: Shapes
    view: ViewFormat
    image_size: tuple[int, int, int]
    dtype: type = np.uint16
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
        sources = put_rows(task_sources(tasks, *self.image_size[:2], shapes.prompt_images))
        frames = reset(tasks, self.limits).frames
        first = put_rows(jax.tree.map(lambda x: x[:, : shapes.prompt_images], frames))
        last = self.next_position(tokens, length - 1, np.zeros_like(length))
        return Prompts(tuple(tasks), tokens, length, last, sources, _first_views(sources, first, self.view), offered)

    def lower(self) -> list[tuple[str, jax.stages.Lowered]]:
        """The tools' program for every batch of turns, by name, for `compiles.compile_all`."""
        P, M, N = self.shapes.prompts, self.shapes.prompt_images, self.limits.max_images
        sources = Sources(
            abstract((P, M, *self.image_size), self.dtype, "batch"),
            abstract((P, M, 2), np.float32, "batch"),
            abstract((P, M, 2), np.int32, "batch"),
        )
        registry = self.protocol.registry

        def lowered(n: int) -> jax.stages.Lowered:
            of = lambda x, *lengths: jax.ShapeDtypeStruct((n, *lengths, *np.shape(x)), np.asarray(x).dtype)
            frames = jax.tree.map(lambda x: of(x, N), full_frame(1, 1, (0.0, 1.0), 0))
            calls = abstract_packed((of(np.int32(0)), frames, jax.tree.map(of, registry.no_call())))
            return apply_packed.lower(registry, sources, calls, self.view)

        return [(f"tools {n}", lowered(n)) for n in dict.fromkeys(self.shapes.turn_batches)]

    def next_position(self, tokens_nxT: np.ndarray, count_n: np.ndarray, start_n: np.ndarray) -> np.ndarray:
        """Rotary position [n] after the first count_n of tokens that go on at start_n."""
        image = self.protocol.vocabulary.image
        return token_positions(tokens_nxT, count_n, start_n, image, self.position_grids)[1].astype(np.int32)


@functools.partial(jax.jit, static_argnames="view")
def _first_views(sources: Sources, frames: Frame, view: ViewFormat) -> jax.Array:
    def render(sources: Sources, frames: Frame) -> jax.Array:
        P, N = frames.source.shape
        row = jnp.repeat(jnp.arange(P), N)
        flat = jax.tree.map(lambda x: x.reshape(P * N, *x.shape[2:]), frames)
        return render_views(sources, row, flat, view).reshape(P, N, *view.shape)

    return by_shard(render)(sources, frames)


def rollout(world: World, policy: Policy, prompts: Prompts, phases: Phases) -> tuple[Trajectories, Episodes]:
    """Plays this process's P·G episodes to their end, in step with the other processes. Phase "host": all that is in no other."""
    phases.rest()
    with phases("host"):
        result = _play(world, policy, prompts, phases)
    phases.resume()
    return result


def _play(world: World, policy: Policy, prompts: Prompts, phases: Phases) -> tuple[Trajectories, Episodes]:
    protocol, shapes = world.protocol, world.shapes
    P, G = len(prompts.tasks), shapes.group
    B = P * G
    vocabulary = protocol.vocabulary
    episodes = reset(prompts.tasks, world.limits).take(np.repeat(np.arange(P), G))
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
    width = max(shapes.observation_lengths)
    policy.begin(world, prompts, phases)
    seen = []
    while (turns := policy.turns(phases)) is not None:
        row_n, there_n = turns.row_n, turns.row_n >= 0
        number_n = np.array([len(episodes.records[b]) for b in row_n])
        rows, numbers = row_n[there_n], number_n[there_n]
        ledger.append(rows, turns.tokens[there_n], turns.count[there_n], MODEL, numbers, turns.logprobs[there_n])
        some = episodes.take(row_n)
        parsed = [
            parse_turn(protocol.decode(tokens[:count])) if ended else None
            for tokens, count, ended in zip(turns.tokens, turns.count, turns.ended & there_n, strict=True)
        ]
        cut_off_n = np.where(some.running_B & ~turns.ended, Stop.MAX_TOKENS, Stop.RUNNING)
        offered_n = [protocol.registry if prompts.tools_on[b // G] else NO_TOOLS for b in row_n]
        plan = plan_step(offered_n, some, parsed, cut_off_n)
        with phases("tools") as work:
            prompt_n = np.where(there_n, row_n // G, 0) % (P // local_shards())
            calls = put_rows(pack((prompt_n.astype(np.int32), plan.frames, plan.args)))
            views, facts = apply_packed(protocol.registry, prompts.sources, calls, world.view)
            work.append(views)
            result = ToolResult(views, *phases.to_host(facts).unpack())
        room_n = shapes.suffix_length - shapes.turn_tokens - ledger.length_B[row_n]
        some, step = finish_step(protocol, plan, result, width, room_n)
        episodes = episodes.put(row_n, some)
        ledger.append(rows, step.observation_ids[there_n], step.length_B[there_n], ENVIRONMENT, numbers)
        if step.count_B.any():
            seen.append((rows, there_n, step))
        policy.observe(row_n, step, some.running_B, phases)
    for rows, there_n, step in seen:
        ledger.append_views(rows, phases.to_host(step.views)[there_n], step.count_B[there_n])
    return ledger.close(), episodes
