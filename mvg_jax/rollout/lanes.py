"""A lane: some of a rollout's prompts with all of their rows, a cache of their own, and what is known of both on the host."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from mvg_jax.rollout.engine import Drawn, State
from mvg_jax.rollout.slots import Slots


class Flight(NamedTuple):
    """A call of decode that nobody has waited for. row_S: whose slots they are, NONE where nobody draws. queued: do rows wait?"""

    row_S: np.ndarray
    drawn: Drawn
    queued: bool


class Lane:
    """slots: of each shard. On the device: the cache (state), views [S, V, H, W, 3] uint8 that the rows in the slots were shown, and
    features of those that were encoded last. alone: there is no other lane.

    over: rows of each shard whose turn is over; reading: those with something to read; held: the lengths of which some wait for more.
    """

    def __init__(self, slots: Sequence[Slots], state: State, views: jax.Array, *, alone: bool):
        self.slots, self.state, self.views = slots, state, views
        self.features: jax.Array | None = None
        self.over: list[list[int]] = [[] for _ in slots]
        self.reading: list[list[int]] = [[] for _ in slots]
        self.held: set[int] = set()
        self.flight: Flight | None = None
        # On the CPU, programs that one thread starts run one after the other: lanes start theirs from a thread each. One is started
        # after the other all the same, in the same order in every process. Of JAX's settings of a thread only the mesh is handed on.
        self._thread = None if alone else ThreadPoolExecutor(1, initializer=_enter, initargs=(jax.sharding.get_mesh(),))

    def send(self, program: Callable, *arguments: Any, **static: Any) -> Any:
        """Starts a program of this lane; what comes of it is on its way."""
        if self._thread is None:
            return program(*arguments, **static)
        return self._thread.submit(program, *arguments, **static).result()

    def close(self) -> None:
        """Ends the lane's thread."""
        if self._thread is not None:
            self._thread.shutdown()


def _enter(mesh: jax.sharding.Mesh) -> None:
    if not mesh.empty:
        jax.set_mesh(mesh)
