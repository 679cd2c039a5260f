"""Tasks into training: a Grain iterator over batches whose state is exact, so that a resumed run sees what it would have seen."""

from collections.abc import Iterator
from typing import Any

from mvg_jax.data.task import Task
from mvg_jax.errors import RunError


class TaskBatches:
    """Endless batches of `batch` tasks from a random-access source, read ahead by threads.

    shuffle: a new order each epoch, from `seed`. The state names the next batch to be handed out, not the next to be read; it is
    the same in all processes.
    process, processes: this one hands out every `processes`-th task of the stream, batch / processes at a time.
    RunError for an empty source.
    """

    def __init__(
        self,
        source: Any,
        *,
        batch: int,
        shuffle: bool,
        seed: int,
        threads: int,
        prefetch: int,
        process: int = 0,
        processes: int = 1,
    ):
        import grain  # here, so that the loop runs where grain is not installed

        if len(source) < batch:
            raise RunError(f"the data set holds {len(source)} tasks, fewer than the {batch} prompts of one step")
        tasks = grain.MapDataset.source(source).seed(seed)
        tasks = tasks.shuffle() if shuffle else tasks
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=batch * prefetch)
        tasks, own = tasks.repeat(None), batch // processes
        tasks = tasks[process::processes] if processes > 1 else tasks
        self._iterator = iter(tasks.to_iter_dataset(read).batch(own, batch_fn=tuple))

    def __iter__(self) -> Iterator[tuple[Task, ...]]:
        return self

    def __next__(self) -> tuple[Task, ...]:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """JSON-able position in the stream."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a position."""
        self._iterator.set_state(state)
