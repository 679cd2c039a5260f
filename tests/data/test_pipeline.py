import json

import pytest

from mvg_jax.data.images import BadImage
from mvg_jax.data.pipeline import Phase, TaskBatches
from mvg_jax.errors import RunError


class Numbers:
    """A random-access source whose items are their own index."""

    def __init__(self, size: int):
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: int) -> int:
        return int(i)


class Shifted(Numbers):
    """Numbers that begin at `start`."""

    def __init__(self, size: int, start: int):
        super().__init__(size)
        self._start = start

    def __getitem__(self, i: int) -> int:
        return self._start + int(i)


class Holed(Numbers):
    """Numbers, some of which cannot be had."""

    def __init__(self, size: int, holes: set[int]):
        super().__init__(size)
        self._holes = holes

    def __getitem__(self, i: int) -> int:
        if int(i) in self._holes:
            raise BadImage(f"item {int(i)}")
        return int(i)


def only(source) -> list[Phase]:
    return [Phase(0, (source,), (1.0,))]


def batches(size: int = 10, *, batch: int = 3, shuffle: bool = True, seed: int = 0) -> TaskBatches:
    return TaskBatches(only(Numbers(size)), batch=batch, shuffle=shuffle, seed=seed, threads=2, prefetch=2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_processes_share_each_batch(shuffle):
    """Task p of process i is the batch's p*processes + i-th; their state is one and the same."""
    whole, *shares = (
        TaskBatches(
            only(Numbers(10)),
            batch=4,
            shuffle=shuffle,
            seed=3,
            threads=1,
            prefetch=1,
            process=process,
            processes=processes,
        )
        for process, processes in ((0, 1), (0, 2), (1, 2))
    )
    for _ in range(7):
        batch = next(whole)
        assert [next(share) for share in shares] == [batch[0::2], batch[1::2]]
        assert shares[0].get_state() == shares[1].get_state()


def test_a_stream_goes_on_with_another_number_of_processes():
    """Its state says which batch is next, whoever reads how much of it."""

    def stream(processes: int) -> TaskBatches:
        share = {"process": processes - 1, "processes": processes}
        return TaskBatches(only(Numbers(10)), batch=4, shuffle=True, seed=3, threads=1, prefetch=1, **share)

    expected = take(stream(1), 6)
    for before, after in ((1, 2), (2, 1)):
        first, second = stream(before), stream(after)
        take(first, 3)
        second.set_state(json.loads(json.dumps(first.get_state())))
        assert take(second, 3) == [batch[after - 1 :: after] for batch in expected[3:]]


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


def test_phases_begin_where_they_say_and_resume_exactly():
    phases = [
        Phase(0, (Numbers(10),), (1.0,)),
        Phase(2, (Shifted(10, 100), Shifted(10, 200)), (1.0, 3.0)),
        Phase(5, (Shifted(10, 300),), (1.0,)),
    ]
    make = lambda: TaskBatches(phases, batch=4, shuffle=True, seed=1, threads=1, prefetch=1)
    stream, seen, states = make(), [], []
    for _ in range(8):
        states.append(json.dumps(stream.get_state()))
        seen.append(next(stream))
    hundreds = [[item // 100 for item in batch] for batch in seen]
    assert hundreds[:2] == [[0] * 4] * 2
    assert [sorted(batch) for batch in hundreds[2:5]] == [[1, 2, 2, 2]] * 3
    assert hundreds[5:] == [[3] * 4] * 3
    for step, state in enumerate(states):
        resumed = make()
        resumed.set_state(json.loads(state))
        assert take(resumed, 8 - step) == seen[step:]


@pytest.mark.parametrize("firsts", [(1,), (0, 3, 3), (0, 4, 2)])
def test_phases_out_of_order_are_refused(firsts):
    with pytest.raises(RunError, match="the first at 0, each later"):
        TaskBatches(
            [Phase(first, (Numbers(10),), (1.0,)) for first in firsts],
            batch=4,
            shuffle=True,
            seed=1,
            threads=1,
            prefetch=1,
        )


def test_an_unusable_item_is_named_and_the_next_stands_in():
    """Items keep their place, so that shares of several processes stay in step."""
    holed = lambda **share: TaskBatches(
        only(Holed(10, {2, 3, 7})), batch=5, shuffle=False, seed=0, threads=1, prefetch=1, **share
    )
    stream = holed()
    assert next(stream) == (0, 1, 4, 4, 4)
    assert list(stream.bad) == ["item 2", "item 3"]
    assert next(stream) == (5, 6, 8, 8, 9)
    assert list(stream.bad) == ["item 2", "item 3", "item 7"]
    take(stream, 2)
    assert len(stream.bad) == 3
    shares = [
        TaskBatches(
            only(Holed(10, {2, 3, 7})), batch=4, shuffle=False, seed=0, threads=1, prefetch=1, process=i, processes=2
        )
        for i in range(2)
    ]
    assert [next(share) for share in shares] == [(0, 4), (1, 4)]
    assert shares[0].get_state() == shares[1].get_state()


def test_a_source_of_nothing_but_unusable_items_is_broken():
    with pytest.raises(RunError, match="4 unusable items in a row, the last one item 3"):
        next(TaskBatches(only(Holed(4, {0, 1, 2, 3})), batch=2, shuffle=False, seed=0, threads=1, prefetch=1))


def test_worker_processes_hand_out_the_same_stream():
    make = lambda workers: TaskBatches(
        only(Holed(12, {5})), batch=4, shuffle=True, seed=2, threads=1, prefetch=1, workers=workers
    )
    plain, spread = make(0), make(2)
    first = take(spread, 2)
    state = json.dumps(spread.get_state())
    assert first + take(spread, 3) == take(plain, 5)
    resumed = make(2)
    resumed.set_state(json.loads(state))
    plain = make(0)
    take(plain, 2)
    assert take(resumed, 3) == take(plain, 3)
