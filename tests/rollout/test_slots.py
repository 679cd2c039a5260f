import numpy as np

from mvg_jax.rollout.slots import NONE, Slots


def test_rows_begin_singly_in_their_order_and_prompts_go_with_the_last_of_theirs():
    slots = Slots(range(6), group=2, slots=3, pool=2)
    assert slots.fill() == []
    assert slots.load(1) == [(0, 0)]
    assert slots.fill() == [0, 1]
    assert slots.load(1) == [(1, 1)]
    assert slots.fill() == [2]
    assert (slots.row_S.tolist(), slots.prompt_M.tolist(), slots.queued) == ([0, 1, 2], [0, 1], 3)
    assert slots.load(1) == []  # no place in the pool
    slots.leave(1)
    assert slots.fill() == [3]
    assert slots.slot(3) == 1
    assert slots.entry(3) == 1
    slots.leave(2)
    assert slots.fill() == []  # row 4 waits for its prompt, and that for row 0
    assert slots.load(1) == []
    slots.leave(0)
    assert slots.prompt_M.tolist() == [NONE, 1]
    assert slots.load(1) == [(2, 0)]
    assert slots.fill() == [4, 5]
    for row in (3, 4, 5):
        slots.leave(row)
    assert (slots.row_S == NONE).all()
    assert (slots.prompt_M == NONE).all()
    assert slots.queued == 0


def test_prompts_enter_in_full_batches_unless_a_slot_waits():
    slots = Slots(range(20), group=2, slots=4, pool=6)
    assert slots.load(4) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert slots.load(4) == []  # two places would do for half a batch
    slots.fill()
    assert slots.load(4) == []  # and nobody needs it yet: rows 4 to 7 are ready
    for row in range(4):
        slots.leave(row)
    assert slots.load(4) == [(4, 0), (5, 1), (6, 4), (7, 5)]
    slots = Slots(range(20), group=2, slots=4, pool=3)
    assert slots.load(4) == [(0, 0), (1, 1), (2, 2)]  # a slot waits


def test_rows_that_do_not_play_are_not_waited_for():
    slots = Slots([1, 4, 5], group=2, slots=2, pool=2)
    assert slots.load(2) == [(0, 0), (2, 1)]
    assert slots.fill() == [1, 4]
    slots.leave(1)
    assert slots.prompt_M.tolist() == [NONE, 2]
    assert slots.fill() == [5]


def test_random_play_seats_every_row_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        group, prompts = rng.integers(1, 5), rng.integers(1, 9)
        slots = Slots(range(group * prompts), int(group), int(rng.integers(1, 9)), int(rng.integers(1, 5)))
        seen = []
        while slots.queued or (slots.row_S != NONE).any():
            begun = slots.fill()
            seen += begun
            entered = slots.load(int(rng.integers(1, 4)))
            seated = slots.row_S[slots.row_S != NONE].tolist()
            assert all(slots.row_S[slots.slot(row)] == row for row in seated)
            assert all(slots.prompt_M[slots.entry(row)] == row // group for row in seated)
            if not entered and seated:
                slots.leave(int(rng.choice(seated)))
        assert seen == list(range(group * prompts))
