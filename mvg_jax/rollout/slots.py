"""Who is in the cache: S slots for rows and a pool of M prompts, filled from a queue. Host-side bookkeeping of a lane on one shard.

Rows begin in their order, each by itself as soon as a slot is free and its prompt is in the pool; a prompt leaves the pool with the
last of its rows. Refilling by whole groups would leave slots empty until the last row of a group is over.
"""

import collections
from collections.abc import Collection, Sequence

import numpy as np

NONE = -1


class Slots:
    """rows: those that will play, in their order; row r belongs to prompt r // group.

    row_S: the row in each slot, prompt_M: the prompt at each place of the pool, NONE: nobody.
    """

    def __init__(self, rows: Sequence[int], group: int, slots: int, pool: int):
        self._group = group
        self.row_S = np.full(slots, NONE, np.int32)
        self.prompt_M = np.full(pool, NONE, np.int32)
        self._rows = collections.deque(rows)
        self._unfinished = collections.Counter(row // group for row in rows)
        self._prompts = collections.deque(self._unfinished)
        self._slot: dict[int, int] = {}  # of each row that is seated
        self._entry: dict[int, int] = {}  # of each prompt in the pool

    @property
    def queued(self) -> int:
        """Rows that have not begun."""
        return len(self._rows)

    def slot(self, row: int) -> int:
        return self._slot[row]

    def entry(self, row: int) -> int:
        """Where the pool has the row's prompt."""
        return self._entry[row // self._group]

    def load(self, most: int) -> list[tuple[int, int]]:
        """(prompt, place) of up to `most` that enter the pool now: a full batch, or what there is room for if a slot waits for it."""
        free = np.flatnonzero(self.prompt_M == NONE).tolist()
        number = min(len(free), len(self._prompts), most)
        needed = bool(self._rows) and not self._ready(self._rows[0]) and (self.row_S == NONE).any()
        if number < min(most, len(self._prompts)) and not needed:
            return []
        entered = [(self._prompts.popleft(), place) for place in free[:number]]
        for prompt, place in entered:
            self.prompt_M[place], self._entry[prompt] = prompt, place
        return entered

    def fill(self) -> list[int]:
        """The rows that begin now."""
        begun = []
        for slot in np.flatnonzero(self.row_S == NONE).tolist():
            if not self._rows or not self._ready(self._rows[0]):
                break
            row = self._rows.popleft()
            self.row_S[slot], self._slot[row] = row, slot
            begun.append(row)
        return begun

    def _ready(self, row: int) -> bool:
        return row // self._group in self._entry

    def gather(self, rows: Collection[int], slots: int) -> list[tuple[int, int]]:
        """(from, to): these rows are to sit in the first `slots`, as far as others leave room; they have moved when this returns."""
        free = [s for s in range(slots) if self.row_S[s] == NONE]
        moves = []
        for row in sorted(rows, key=self.slot, reverse=True):
            if not free or self._slot[row] < slots:
                break
            moves.append((self._slot[row], free.pop(0)))
            self.row_S[moves[-1][0]], self.row_S[moves[-1][1]] = NONE, row
            self._slot[row] = moves[-1][1]
        return moves

    def leave(self, row: int) -> None:
        """A row is over."""
        self.row_S[self._slot.pop(row)] = NONE
        prompt = row // self._group
        self._unfinished[prompt] -= 1
        if not self._unfinished[prompt]:
            self.prompt_M[self._entry.pop(prompt)] = NONE
