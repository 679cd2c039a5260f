"""Episodes: a partially observed decision process over a batch of rows, as pure functions.

    episodes = reset(tasks, limits)
    until every row has stopped:
        plan = plan_step(offered_B, episodes, turns)        host: parsed turns -> calls as arrays, errors, stops
        result = apply_tools(..., plan.frames, plan.args)   device: all rows at once, those with no call masked
        episodes, step = finish_step(protocol, plan, ...)   host: counts, codes and frames -> observation tokens

A row is its task, its images' frames and its turns; everything else (answer, errors, rewards) follows from these.
Pixels stay on the device: an image is named by its frame, and frames are a few numbers, kept here.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mvg_jax.data.task import Task, Turn
from mvg_jax.env.protocol import Malformed, Protocol, error_text, parse_turn
from mvg_jax.frames import Frame, extent, full_frame
from mvg_jax.tools.render import Sources, ViewFormat, render_views, stack_sources
from mvg_jax.tools.spec import NO_ARGS, ImageInfo, Registry, ToolArgs, ToolCall, ToolError, ToolResult, observation_text


class Stop(enum.IntEnum):
    """Why a row ended.

    ANSWER: it answered. MAX_TURNS: its last allowed turn was not an answer. MAX_IMAGES: it asked for more views than
    it may hold. MAX_TOKENS: a turn, or the observation that was due, did not fit. VOID: it ended without a usable
    answer, for a reason outside the model (the caller says so) or after limits.max_errors malformed turns in a row.
    """

    RUNNING = 0
    ANSWER = 1
    MAX_TURNS = 2
    MAX_TOKENS = 3
    MAX_IMAGES = 4
    VOID = 5


# The stops that only the caller can know of.
OUTSIDE_STOPS = (Stop.MAX_TOKENS, Stop.VOID)


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_turns: turns a row may take. max_images: N, images a row may hold, the prompt's too. max_errors: see VOID."""

    max_turns: int
    max_images: int
    max_errors: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} {value}: at least 1")


@dataclasses.dataclass(frozen=True)
class TurnRecord:
    """One turn of one row and what came of it.

    turn: as parsed; None if it was cut off. error: E1..E4 or None. first_image, views: the images that its call added.
    """

    turn: Turn | Malformed | None
    error: str | None
    first_image: int
    views: int

    @property
    def call(self) -> ToolCall | None:
        """The call, well-formed but perhaps illegal (see error), or None."""
        return self.turn.action if isinstance(self.turn, Turn) and isinstance(self.turn.action, ToolCall) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """B rows. stop_B: int32, a Stop. images_B: int32, images held. frames: numpy Frame [B, N], valid up to images_B."""

    tasks: tuple[Task, ...]
    limits: Limits
    stop_B: np.ndarray
    images_B: np.ndarray
    frames: Frame
    records: tuple[tuple[TurnRecord, ...], ...]

    @property
    def running_B(self) -> np.ndarray:
        """bool [B]."""
        return self.stop_B == Stop.RUNNING

    @property
    def answers(self) -> tuple[str | None, ...]:
        """Each row's final answer as written, None where there is none."""
        return tuple(
            records[-1].turn.action if stop == Stop.ANSWER else None
            for stop, records in zip(self.stop_B, self.records, strict=True)
        )

    def row(self, b: int) -> "Episodes":
        """Row b as a batch of one."""
        return self.take([b])

    def take(self, row_n: Sequence[int]) -> "Episodes":
        """These rows as a batch of their own. A negative one stands for none: a row that has stopped."""
        row_n = np.asarray(row_n)
        stop_n = np.where(row_n < 0, Stop.VOID, self.stop_B[row_n]).astype(np.int32)
        of = lambda rows: tuple(rows[b] for b in row_n.tolist())
        frames = jax.tree.map(lambda x: x[row_n], self.frames)
        return Episodes(of(self.tasks), self.limits, stop_n, self.images_B[row_n], frames, of(self.records))

    def put(self, row_n: Sequence[int], taken: "Episodes") -> "Episodes":
        """What became of rows that were taken."""
        row_n = np.asarray(row_n)
        there = row_n >= 0

        def written(old_B: np.ndarray, new_n: np.ndarray) -> np.ndarray:
            new_B = old_B.copy()
            new_B[row_n[there]] = new_n[there]
            return new_B

        records = list(self.records)
        for b, record in zip(row_n.tolist(), taken.records, strict=True):
            if b >= 0:
                records[b] = record
        return Episodes(
            self.tasks,
            self.limits,
            written(self.stop_B, taken.stop_B),
            written(self.images_B, taken.images_B),
            jax.tree.map(written, self.frames, taken.frames),
            tuple(records),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What the turns ask for.

    args: numpy ToolArgs [B], kind -1 in rows without a call. errors: (code, text) of each bad turn, else None.
    """

    before: Episodes
    turns: tuple[Turn | Malformed | None, ...]
    stop_B: np.ndarray
    args: ToolArgs
    errors: tuple[tuple[str, str] | None, ...]

    @property
    def frames(self) -> Frame:
        """numpy Frame [B, N], the images that the calls may name."""
        return self.before.frames


@dataclasses.dataclass(frozen=True, eq=False)
class StepResult:
    """What to append to each row.

    observation_ids: int32 [B, T_obs], padded on the right; length_B: int32, 0 in rows that do not go on.
    views: uint8 [B, R, H, W, 3] on the device, of which the first count_B (int32) of a row belong to its observation.
    texts: the observations' lines, "" in rows that do not go on. stop_B: int32.
    """

    observation_ids: np.ndarray
    length_B: np.ndarray
    views: jax.Array
    count_B: np.ndarray
    texts: tuple[str, ...]
    stop_B: np.ndarray


def reset(tasks: Sequence[Task], limits: Limits) -> Episodes:
    """One row a task, showing its images whole. ValueError unless a task has 1 to limits.max_images images."""
    rows = []
    for task in tasks:
        if not 1 <= len(task.images) <= limits.max_images:
            raise ValueError(f"task {task.id} has {len(task.images)} images, not 1 to {limits.max_images}")
        frames = [full_frame(*image.pixels.shape[:2], image.window, i) for i, image in enumerate(task.images)]
        # Never read; a legal frame keeps all arithmetic finite.
        frames += frames[:1] * (limits.max_images - len(frames))
        rows.append(_stack(frames))
    return Episodes(
        tasks=tuple(tasks),
        limits=limits,
        stop_B=np.full(len(rows), Stop.RUNNING, np.int32),
        images_B=np.array([len(task.images) for task in tasks], np.int32),
        frames=_stack(rows),
        records=((),) * len(rows),
    )


def plan_step(
    offered_B: Sequence[Registry],
    episodes: Episodes,
    turns: Sequence[Turn | Malformed | None],
    outside_B: np.ndarray | None = None,
) -> Plan:
    """Judges one turn a row on the host. Rows that have stopped are left alone, whatever their turn.

    offered_B: the tools that each row may call.
    outside_B: int32 [B], MAX_TOKENS or VOID in rows whose turn was cut off (turn None), RUNNING elsewhere.
    """
    if outside_B is None:
        outside_B = np.full(len(episodes.tasks), Stop.RUNNING, np.int32)
    if not len(offered_B) == len(turns) == len(outside_B) == len(episodes.tasks):
        counts = f"{len(turns)} turns, {len(offered_B)} lists of tools, {len(outside_B)} stops"
        raise ValueError(f"{counts} for {len(episodes.tasks)} rows")
    stop_B = episodes.stop_B.copy()
    args = ToolArgs(*(np.repeat(np.asarray(x)[None], len(turns), axis=0) for x in NO_ARGS))
    errors: list[tuple[str, str] | None] = [None] * len(turns)
    for b in np.flatnonzero(episodes.running_B).tolist():
        turn, outside = turns[b], Stop(outside_B[b])
        if (turn is None) != (outside in OUTSIDE_STOPS):
            raise ValueError(f"row {b}: turn {turn} with outside stop {outside.name}")
        stop_B[b], row_args, errors[b] = _judge(offered_B[b], episodes, b, turn, outside)
        if row_args is not NO_ARGS:
            for all_rows, own in zip(args, row_args, strict=True):
                all_rows[b] = own
    return Plan(episodes, tuple(turns), stop_B, args, tuple(errors))


def _judge(
    registry: Registry, episodes: Episodes, b: int, turn: Turn | Malformed | None, outside: Stop
) -> tuple[Stop, ToolArgs, tuple[str, str] | None]:
    """(stop, args, error code and text) of one running row's turn."""
    limits, past = episodes.limits, episodes.records[b]
    args, error = NO_ARGS, None
    if turn is None:
        return outside, args, None
    if isinstance(turn, Turn) and isinstance(turn.action, str):
        return Stop.ANSWER, args, None
    if isinstance(turn, Malformed):
        error = (turn.code, turn.text)
        streak = [record.error == turn.code for record in past[len(past) - limits.max_errors + 1 :]]
        if len(streak) == limits.max_errors - 1 and all(streak):
            return Stop.VOID, args, error
    else:
        try:
            args = registry.parse(turn.action, _image_infos(episodes, b))
        except ToolError as bad:
            error = (bad.code, bad.text)
    if len(past) + 1 == limits.max_turns:
        return Stop.MAX_TURNS, NO_ARGS, error
    if episodes.images_B[b] + args.count > limits.max_images:
        return Stop.MAX_IMAGES, NO_ARGS, error
    return Stop.RUNNING, args, error


def finish_step(
    protocol: Protocol,
    plan: Plan,
    result: ToolResult,
    width: int,
    room_B: np.ndarray | None = None,
) -> tuple[Episodes, StepResult]:
    """Takes in what the tools returned: result.frames, count and code as numpy (fetch them first); views pass through.

    width: T_obs; ValueError for a longer observation (see Protocol.observation_width).
    room_B: int [B], tokens that each row still has room for; a row whose observation does not fit ends with MAX_TOKENS.
    """
    size = len(plan.before.tasks)
    ids_BxT, length_B = np.full((size, width), protocol.vocabulary.pad, np.int32), np.zeros(size, np.int32)

    def admit(b: int, count: int, text: str) -> bool:
        ids = protocol.observation_ids(count, text)
        if room_B is not None and len(ids) > room_B[b]:
            return False
        if len(ids) > width:
            raise ValueError(f"observation of {len(ids)} tokens in a bucket of {width}: {text!r}")
        ids_BxT[b, : len(ids)], length_B[b] = ids, len(ids)
        return True

    episodes, texts, count_B = _observe(plan, result, admit)
    return episodes, StepResult(ids_BxT, length_B, result.views, count_B, texts, episodes.stop_B)


def finish_text_step(plan: Plan, result: ToolResult) -> tuple[Episodes, tuple[str, ...], np.ndarray]:
    """Like `finish_step`, for who needs no tokens: (episodes, the observations' lines, views of each row [B] int32)."""
    return _observe(plan, result, lambda b, count, text: True)


def _observe(
    plan: Plan, result: ToolResult, admit: Callable[[int, int, str], bool]
) -> tuple[Episodes, tuple[str, ...], np.ndarray]:
    """admit(row, views, text): takes an observation in; False when the row has no room for it and ends with MAX_TOKENS."""
    before, stop_B = plan.before, plan.stop_B.copy()
    size = len(before.tasks)
    count_B = np.zeros(size, np.int32)
    frames = Frame(*(x.copy() for x in before.frames))
    texts, records = [""] * size, list(before.records)
    goes_on_B = (stop_B == Stop.RUNNING).tolist()
    for b in np.flatnonzero(before.running_B).tolist():
        first = int(before.images_B[b])
        if goes_on_B[b]:
            error, count = plan.errors[b], int(result.count[b])
            text = error_text(*error) if error else observation_text(int(result.code[b]), count)
            if admit(b, count, text):
                count_B[b], texts[b] = count, text
                for held, new in zip(frames, result.frames, strict=True):
                    held[b, first : first + count] = new[b, :count]
            else:
                stop_B[b] = Stop.MAX_TOKENS
        code = plan.errors[b][0] if plan.errors[b] else None
        records[b] += (TurnRecord(plan.turns[b], code, first, int(count_B[b])),)
    episodes = dataclasses.replace(
        before, stop_B=stop_B, images_B=before.images_B + count_B, frames=frames, records=tuple(records)
    )
    return episodes, tuple(texts), count_B


def step(
    protocol: Protocol,
    act: Callable[[Frame, ToolArgs], ToolResult],
    episodes: Episodes,
    texts: Sequence[str],
    width: int,
) -> tuple[Episodes, StepResult]:
    """One whole step from the turns' texts ("" in stopped rows). act: apply_tools, bound to the rows' sources."""
    turns = [parse_turn(text) if running else None for text, running in zip(texts, episodes.running_B, strict=True)]
    plan = plan_step([protocol.registry] * len(turns), episodes, turns)
    result = act(plan.frames, plan.args)
    frames, count, code = jax.device_get((result.frames, result.count, result.code))
    return finish_step(protocol, plan, ToolResult(result.views, frames, count, code), width)


def task_sources(tasks: Sequence[Task], height: int, width: int, many: int | None = None) -> Sources:
    """Numpy Sources of the tasks' native images, one prompt a task, in the bucket (height, width); many: see `stack_sources`."""
    return stack_sources(
        [[image.pixels for image in task.images] for task in tasks],
        [[(image.slope, image.intercept) for image in task.images] for task in tasks],
        height,
        width,
        many,
    )


def shown_at_first(sources: Sources, episodes: Episodes, view: ViewFormat) -> jax.Array:
    """Views [N, H, W, 3] uint8 of the question's images, of a batch of one row that has not begun; black where it has fewer than N.

    All N, so that tasks with more or fewer images share a program.
    """
    row_N = np.where(np.arange(episodes.frames.source.shape[1]) < episodes.images_B[0], 0, -1).astype(np.int32)
    return render_views(sources, row_N, Frame(*(x[0] for x in episodes.frames)), view)


def _image_infos(episodes: Episodes, b: int) -> list[ImageInfo]:
    images, held = episodes.tasks[b].images, episodes.images_B[b]
    frames = Frame(*(x[b, :held] for x in episodes.frames))
    values = (*extent(frames), frames.source, frames.window)
    return [
        ImageInfo(h, w, images[i].unit, tuple(window))
        for h, w, i, window in zip(*(x.tolist() for x in values), strict=True)
    ]


def _stack(rows):
    """Numpy pytrees -> one with a leading dimension."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
