"""Tasks into training: a Grain iterator over batches whose state is exact, so that a resumed run sees what it would have seen.

    sources of a phase -> shuffled each epoch -> mixed by weights -> this process's share -> loaded and fitted (threads or
    worker processes) -> batches

A phase is a mixture that begins at some batch: a curriculum is a list of them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags

from mvg_jax.data.images import BadImage
from mvg_jax.data.task import Task
from mvg_jax.errors import RunError

MAX_BAD = 100  # unusable items in a row that are passed over before the source is called broken


class Phase(NamedTuple):
    """Random-access sources and their weights, in force from batch `first` (counted from 0) on."""

    first: int
    sources: tuple[Any, ...]
    weights: tuple[float, ...]


class Loaded(NamedTuple):
    """A task, and what was wrong with those that it stands in for."""

    task: Task
    bad: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sound:
    """A source none of whose items fails: where one is unusable (BadImage), the next in line stands in for it.

    So every item keeps its place in the stream, and processes that read shares of it stay in step. fit: what is done with a task
    that was loaded; it may raise BadImage too.
    """

    source: Any
    fit: Callable[[Task], Task] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Loaded:
        bad = []
        for step in range(min(MAX_BAD, len(self))):
            try:
                task = self.source[(index + step) % len(self)]
                return Loaded(task if self.fit is None else self.fit(task), tuple(bad))
            except BadImage as error:
                bad.append(str(error))
        raise RunError(f"{len(bad)} unusable items in a row, the last one {bad[-1]}")


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some items of a random-access source."""

    source: Any
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.indices[index]]


class TaskBatches:
    """Endless batches of `batch` tasks, read ahead by `threads`, in `workers` processes of their own (0: in this one).

    shuffle: a new order each epoch, from `seed`. The state names the next batch to be handed out, not the next to be read; it is
    the same in all processes, and for any number of them. `bad` holds a line for every item that could not be used, among those
    handed out since the start.
    process, processes: this one hands out every `processes`-th task of the stream, batch / processes at a time.
    RunError for sources that are too small, and for phases that are out of order.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        *,
        batch: int,
        shuffle: bool,
        seed: int,
        threads: int,
        prefetch: int,
        fit: Callable[[Task], Task] | None = None,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        firsts = [phase.first for phase in phases]
        if firsts[:1] != [0] or any(a >= b for a, b in itertools.pairwise(firsts)):
            raise RunError(f"the phases of the data begin at {firsts}: the first at 0, each later than the one before")
        for source in {id(source): source for phase in phases for source in phase.sources}.values():
            if len(source) < batch:
                raise RunError(f"the data set holds {len(source)} tasks, fewer than the {batch} prompts of one step")
        self.bad: dict[str, None] = {}
        self._phases, self._number = tuple(phases), 0
        self._open = lambda phase, start: _stream(
            phase, start, batch, shuffle, seed, fit, threads, prefetch, workers, process, processes
        )
        self._current, self._iterator = 0, self._open(phases[0], 0)

    def __iter__(self) -> Iterator[tuple[Task, ...]]:
        return self

    def __next__(self) -> tuple[Task, ...]:
        if self._phase_at(self._number) != self._current:
            self._go_to(self._number)
        loaded = next(self._iterator)
        self._number += 1
        for item in loaded:
            self.bad.update(dict.fromkeys(item.bad))
        return tuple(item.task for item in loaded)

    def get_state(self) -> dict[str, Any]:
        """JSON-able position in the stream; the same however many processes read it."""
        return {"batch": self._number}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position."""
        self._go_to(state["batch"])

    def _phase_at(self, number: int) -> int:
        return max(i for i, phase in enumerate(self._phases) if phase.first <= number)

    def _go_to(self, number: int) -> None:
        self._number, self._current = number, self._phase_at(number)
        self._iterator = self._open(self._phases[self._current], number)


def _stream(phase, start, batch, shuffle, seed, fit, threads, prefetch, workers, process, processes) -> Iterator:
    """Batches of Loaded of this process's share, from batch `start` of the run on: every item can be had by its place."""
    import grain  # here, so that the loop runs where grain is not installed

    parts = []
    for number, source in enumerate(phase.sources):
        tasks = grain.MapDataset.source(Sound(source, fit)).seed(seed + number)
        parts.append((tasks.shuffle() if shuffle else tasks).repeat(None))
    tasks = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, phase.weights)
    tasks = tasks[start * batch :] if start else tasks
    tasks, own = tasks[process::processes] if processes > 1 else tasks, batch // processes
    ahead = batch * prefetch
    stream = tasks.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=-(-ahead // max(workers, 1)))
    )
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which only absl's programs have parsed
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=-(-ahead // workers))
        )
    return iter(stream.batch(own, batch_fn=tuple))
