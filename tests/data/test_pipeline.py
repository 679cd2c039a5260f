import json

import pytest

from mvg_jax.data.pipeline import TaskBatches
from mvg_jax.errors import RunError


class Numbers:
    """A random-access source whose items are their own index."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: int) -> int:
        return int(i)


def batches(size: int = 10, *, batch: int = 3, shuffle: bool = True, seed: int = 0) -> TaskBatches:
    return TaskBatches(Numbers(size), batch=batch, shuffle=shuffle, seed=seed, threads=2, prefetch=2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_each_batch(shuffle):
    """Task p of process i is the batch's p*processes + i-th; their state is one and the same."""
    whole, *shares = (
        TaskBatches(
            Numbers(10), batch=4, shuffle=shuffle, seed=3, threads=1, prefetch=1, process=process, processes=processes
        )
        for process, processes in ((0, 1), (0, 2), (1, 2))
    )
    for _ in range(7):
        batch = next(whole)
        assert [next(share) for share in shares] == [batch[0::2], batch[1::2]]
        assert shares[0].get_state() == shares[1].get_state()


def take(stream: TaskBatches, count: int) -> list[tuple[int, ...]]:
    return [next(stream) for _ in range(count)]


def test_batches_run_through_the_source_and_begin_again():
    assert take(batches(7, shuffle=False), 4) == [(0, 1, 2), (3, 4, 5), (6, 0, 1), (2, 3, 4)]
    assert next(iter(batches(7, shuffle=False))) == (0, 1, 2)


def test_every_epoch_is_a_new_order_of_everything():
    epochs = [sum(take(stream, 4), ()) for stream in [batches(12)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(range(12)), *epochs}) == 4


def test_order_follows_from_the_seed():
    assert take(batches(100, seed=5), 9) == take(batches(100, seed=5), 9)
    assert take(batches(100, seed=5), 9) != take(batches(100, seed=6), 9)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stream_goes_on_exactly_where_its_state_was_taken(shuffle):
    """At every step, through JSON, in a fresh stream, and whatever had been read ahead; epochs end within batches."""
    stream, states, seen = batches(shuffle=shuffle), [], []
    for _ in range(9):
        states.append(json.dumps(stream.get_state()))
        seen.append(next(stream))
    for step, state in enumerate(states):
        resumed = batches(shuffle=shuffle)
        resumed.set_state(json.loads(state))
        assert take(resumed, 9 - step) == seen[step:]


def test_going_back_in_a_running_stream():
    stream = batches()
    first = take(stream, 2)
    state = stream.get_state()
    then = take(stream, 3)
    stream.set_state(state)
    assert take(stream, 3) == then
    assert then[:2] != first


@pytest.mark.parametrize("size", [0, 2])
def test_sources_smaller_than_a_batch_are_refused(size):
    with pytest.raises(RunError, match=f"holds {size} tasks, fewer than the 3 prompts"):
        batches(size)
