"""The turn loop: whoever speaks for the model, the environment answers, and the ledger keeps both.

prompts ──► policy.begin
┌────────► policy.turns       those that are over: sampled by the engine, or read from a script
│          parse, judge       host
│          reframe, render    device, all of these turns' tools at once
│          ledger.append      model turn, observation, views
└───────── policy.observe     what their rows read before they speak again
"""

import collections
import contextlib
import dataclasses
import functools
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvg_jax.data.task import Task
from mvg_jax.env.episode import Episodes, Limits, StepResult, Stop, finish_step, plan_step, reset, task_sources
from mvg_jax.env.protocol import Protocol, parse_turn
from mvg_jax.errors import RunError
from mvg_jax.frames import full_frame
from mvg_jax.mesh import abstract, agree, by_shard, local_shards, put_rows, to_host
from mvg_jax.packed import Packed, abstract_packed, pack
from mvg_jax.positions import token_positions
from mvg_jax.rollout.engine import Shapes
from mvg_jax.rollout.slots import NONE
from mvg_jax.tools import (
    MAX_VIEWS,
    Registry,
    Sources,
    ToolResult,
    ViewFormat,
    reframe_packed,
    render_packed,
    render_views,
)
from mvg_jax.trajectory import ENVIRONMENT, MODEL, Ledger, Trajectories

NO_TOOLS = Registry(())


class Phases:
    """Seconds of a rollout by phase, and counts. A phase inside another takes its time from it, so that phases add up.

    block: a phase waits for its own device work (for benchmarks).
    alone: seconds in which the host or the tools worked and no lane's model did. A lane's works from the first program that it is
    given until what decode drew has come back; in between it may wait for the next program, if only briefly. A lane without a
    thread of its own is asked what it drew when its turn comes: with several of those, `alone` is the least it can be.
    """

    def __init__(self, block: bool = False):
        self.alone = 0.0
        self.seconds: dict[str, float] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.host_reads = 0
        self.block = block
        self._inside = 0.0  # seconds of the phases inside of the one under way
        self._working, self._since = 0, 0.0  # lanes whose model works, and since when none does
        self._lock = threading.Lock()  # lanes tell of it from their own threads

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[list]:
        """Times the body; device arrays put into the yielded list are waited for."""
        work, start, outer = [], time.perf_counter(), self._inside
        self._inside = 0.0
        yield work
        if self.block:
            jax.block_until_ready(work)
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inside
        self._inside = outer + seconds

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """The time that is looked at; what no lane's model works in is `alone`."""
        self._since = time.perf_counter()
        with self("host"):
            yield
        if not self._working:
            self.alone += time.perf_counter() - self._since

    def resume(self) -> None:
        """A lane's model begins to work."""
        with self._lock:
            if not self._working:
                self.alone += time.perf_counter() - self._since
            self._working += 1

    def rest(self) -> None:
        """A lane's model has worked."""
        with self._lock:
            self._working -= 1
            if not self._working:
                self._since = time.perf_counter()

    def to_host(self, tree):
        """The one way from the device to the host, counted."""
        with self._lock:
            self.host_reads += 1
        return to_host(tree)


class Prompts(NamedTuple):
    """P prompts ready to roll out. On the host tokens [P, L] int32, length [P], last_position [P] (of the last token), and episodes
    of one row each that have not begun; on the device native images and, once they are asked for, first views. tools_on: whether each
    offers tools; where not, every call is an unknown tool."""

    tasks: tuple[Task, ...]
    tokens: np.ndarray
    length: np.ndarray
    last_position: np.ndarray
    sources: Sources
    views: "FirstViews"
    episodes: Episodes
    tools_on: tuple[bool, ...]


class FirstViews:
    """What P prompts show before anybody has asked for more, N0 views each, made when they are needed.

    make: views [n, N0, H, W, 3] uint8 on the device of prompts prompt_n (NONE: none), as many of each shard. batch: n of one call.
    """

    def __init__(self, make: Callable[[np.ndarray], jax.Array], prompts: int, batch: int):
        self._make, self._prompts, self._batch = make, prompts, batch
        self._made: list[tuple[np.ndarray, jax.Array]] = []  # and not yet fetched
        self._views: dict[int, np.ndarray] = {}

    def of(self, prompt_n: np.ndarray) -> jax.Array:
        """Those of n = batch prompts."""
        views = self._make(prompt_n)
        self._made.append((prompt_n, views))
        return views

    def fetch(self, phases: Phases) -> None:
        """To the host, all that are made: the device need not hold them."""
        if not self._made:
            return
        fetched = phases.to_host([views for _, views in self._made])
        for (prompt_n, _), views in zip(self._made, fetched, strict=True):
            self._views |= {p: view for p, view in zip(prompt_n.tolist(), views, strict=True) if p != NONE}
        self._made = []

    def to_host(self, phases: Phases) -> np.ndarray:
        """Of all prompts, [P, N0, H, W, 3] uint8; made for those that nobody has asked for."""
        self.fetch(phases)
        shards = local_shards()
        own, n = self._prompts // shards, self._batch // shards
        missing = [
            [p for p in range(shard * own, (shard + 1) * own) if p not in self._views] for shard in range(shards)
        ]
        for first in range(0, agree(max(map(len, missing)))[0], n):
            cuts = [mine[first : first + n] for mine in missing]
            self.of(np.array([p for cut in cuts for p in cut + [NONE] * (n - len(cut))], np.int32))
        self.fetch(phases)
        return np.stack([self._views[p] for p in range(self._prompts)])


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
        """This process's P tasks as prompts. tools_on: of all, or of each. RunError when they do not fit the shapes."""
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
        episodes = reset(tasks, self.limits)
        frames = jax.tree.map(lambda x: x[:, : shapes.prompt_images], episodes.frames)
        last = self.next_position(tokens, length - 1, np.zeros_like(length))
        sources = put_rows(task_sources(tasks, *self.image_size[:2], shapes.prompt_images))
        own = P // local_shards()

        def first_views(prompt_n: np.ndarray) -> jax.Array:
            row_n = np.where(prompt_n == NONE, NONE, prompt_n % own).astype(np.int32)
            which = put_rows(pack((row_n, jax.tree.map(lambda x: x[prompt_n], frames))))
            return _first_views(sources, which, self.view)

        views = FirstViews(first_views, P, shapes.prefill_prompts // jax.process_count())
        return Prompts(tuple(tasks), tokens, length, last, sources, views, episodes, offered)

    def lower(self) -> list[tuple[str, jax.stages.Lowered]]:
        """The tools' programs for every batch of turns, and the one for first views, by name, for `compiles.compile_all`."""
        P, M, N = self.shapes.prompts, self.shapes.prompt_images, self.limits.max_images
        sources = Sources(
            abstract((P, M, *self.image_size), self.dtype, "batch"),
            abstract((P, M, 2), np.float32, "batch"),
            abstract((P, M, 2), np.int32, "batch"),
        )
        registry, frame = self.protocol.registry, full_frame(1, 1, (0.0, 1.0), 0)
        of = lambda x, *lengths: jax.ShapeDtypeStruct((*lengths, *np.shape(x)), np.asarray(x).dtype)
        framed = lambda *lengths: jax.tree.map(lambda x: of(x, *lengths), frame)
        number = np.int32(0)

        def tools(n: int) -> Iterator[tuple[str, jax.stages.Lowered]]:
            args = jax.tree.map(lambda x: of(x, n), registry.no_call())
            calls = abstract_packed((of(number, n), framed(n, N), args))
            facts = abstract_packed((framed(n, MAX_VIEWS), of(number, n), of(number, n)))
            yield f"reframe {n}", reframe_packed.lower(registry, calls)
            yield f"render {n}", render_packed.lower(sources, calls, facts, self.view)

        p = self.shapes.prefill_prompts
        first = _first_views.lower(sources, abstract_packed((of(number, p), framed(p, M))), self.view)
        batches = dict.fromkeys(self.shapes.turn_batches)
        return [(f"first views {p}", first), *(program for n in batches for program in tools(n))]

    def next_position(self, tokens_nxT: np.ndarray, count_n: np.ndarray, start_n: np.ndarray) -> np.ndarray:
        """Rotary position [n] after the first count_n of tokens that go on at start_n."""
        image = self.protocol.vocabulary.image
        return token_positions(tokens_nxT, count_n, start_n, image, self.position_grids)[1].astype(np.int32)


@functools.partial(jax.jit, static_argnames="view")
def _first_views(sources: Sources, which: Packed, view: ViewFormat) -> jax.Array:
    """[n, N, H, W, 3] uint8. which: pack((row of sources [n], NONE for none, frames [n, N]))."""

    def render(sources: Sources, which: Packed) -> jax.Array:
        row_n, frames = which.unpack()
        n, N = frames.source.shape
        flat = jax.tree.map(lambda x: x.reshape(n * N, *x.shape[2:]), frames)
        return render_views(sources, jnp.repeat(row_n, N), flat, view).reshape(n, N, *view.shape)

    return by_shard(render)(sources, which)


def rollout(world: World, policy: Policy, prompts: Prompts, phases: Phases) -> tuple[Trajectories, Episodes]:
    """Plays this process's P·G episodes to their end, in step with the other processes. Phase "host": all that is in no other."""
    with phases.whole():
        return _play(world, policy, prompts, phases)


def _play(world: World, policy: Policy, prompts: Prompts, phases: Phases) -> tuple[Trajectories, Episodes]:
    protocol, shapes = world.protocol, world.shapes
    P, G = len(prompts.tasks), shapes.group
    B = P * G
    vocabulary = protocol.vocabulary
    episodes = prompts.episodes.take(np.repeat(np.arange(P), G))
    ledger = Ledger(
        prompts.tokens,
        prompts.length,
        B,
        shapes.suffix_length,
        (shapes.views, *world.view.shape),
        vocabulary.image,
        protocol.tokens_per_image,
        world.position_grids,
    )
    width = max(shapes.observation_lengths)
    policy.begin(world, prompts, phases)
    seen = None  # the views of the turns before: fetched when nobody has to wait for them any more
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
            facts = reframe_packed(protocol.registry, calls)
            views = render_packed(prompts.sources, calls, facts, world.view)
            work.append(views)
            result = ToolResult(views, *phases.to_host(facts).unpack())
        room_n = shapes.suffix_length - shapes.turn_tokens - ledger.length_B[row_n]
        some, step = finish_step(protocol, plan, result, width, room_n)
        episodes = episodes.put(row_n, some)
        ledger.append(rows, step.observation_ids[there_n], step.length_B[there_n], ENVIRONMENT, numbers)
        policy.observe(row_n, step, some.running_B, phases)
        prompts.views.fetch(phases)
        if seen is not None:
            _keep_views(ledger, *seen, phases)
        seen = (rows, there_n, step) if step.count_B.any() else None
    if seen is not None:
        _keep_views(ledger, *seen, phases)
    return ledger.close(prompts.views.to_host(phases)), episodes


def _keep_views(ledger: Ledger, rows: np.ndarray, there_n: np.ndarray, step: StepResult, phases: Phases) -> None:
    ledger.append_views(rows, phases.to_host(step.views)[there_n], step.count_B[there_n])
