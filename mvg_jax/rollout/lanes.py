"""A lane: some of a rollout's prompts with all of their rows, a cache of their own, and what is known of both on the host."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np

from mvg_jax.mesh import put_rows
from mvg_jax.packed import pack
from mvg_jax.rollout.engine import Drawn, Engine, Going, Opening, Told
from mvg_jax.rollout.scheduler import Phases
from mvg_jax.rollout.slots import Slots


class Flight(NamedTuple):
    """A call of decode under way. fetched: what it draws, on the host; None where nobody waits for it before the lane is landed."""

    row_S: np.ndarray
    queued: bool
    fetched: Future | None


class Lane:
    """slots: of each shard.

    over: rows of each shard whose turn is over; reading: those with something to read; held: the lengths of which some wait for more.
    begun: whether a prompt was ever run.

    On the device are the cache, the views [S, V, H, W, 3] uint8 that the rows in the slots were shown, and features of those encoded
    last. What a lane is asked for is done in that order; after an error nothing is, and `land` or `close` raises it.

    own_thread: whether a thread of the lane's does it. On the CPU, programs that one thread starts run one after the other, so lanes
    that are to run side by side start theirs from several. Only on one device: on more, programs that talk to each other must start
    in the same order everywhere.
    """

    def __init__(
        self, slots: Sequence[Slots], engine: Engine, params: list[jax.Array], phases: Phases, *, own_thread: bool
    ):
        self.slots, self.begun = slots, False
        self.over: list[list[int]] = [[] for _ in slots]
        self.reading: list[list[int]] = [[] for _ in slots]
        self.held: set[int] = set()
        self.flight: Flight | None = None
        self._engine, self._params, self._phases = engine, params, phases
        self._thread = ThreadPoolExecutor(1) if own_thread else None
        self._working = False
        self._error: Exception | None = None
        self._ask("start", self._start, model=False)

    def see(self, views: jax.Array, slot_n: np.ndarray, place_nxR: np.ndarray) -> None:
        """Keeps new views [n, R, H, W, 3] of slots (S: none) at their places (V: none)."""
        self._ask("tools", self._see, views, slot_n, place_nxR, model=False)

    def encode(self, index_n: np.ndarray, views: jax.Array | None = None) -> None:
        """Features of those of `views`, or else of the lane's own, that index_n names, until the next call."""
        self.begun = True
        self._ask("encode", self._encode, index_n, views)

    def prefill(self, opening: Opening) -> None:
        self._ask("prefill", self._change, self._engine.prefill, opening)

    def extend(self, told: Told) -> None:
        self._ask("extend", self._change, self._engine.extend, told)

    def move(self, from_n: np.ndarray, to_n: np.ndarray) -> None:
        """Rows [n] change their slots (S: none)."""
        self._ask("move", self._move, from_n, to_n)

    def launch(self, row_S: np.ndarray, going: Going, count_M: np.ndarray, length: int, queued: bool) -> None:
        """Starts decode; `land` takes in what it draws. row_S: whose slots they are, NONE where nobody draws. queued: whether rows
        wait for a slot."""
        self._ask("decode", self._decode, going, count_M, length)
        self.flight = Flight(row_S, queued, self._thread and self._thread.submit(self._fetch))

    def land(self) -> tuple[np.ndarray, bool, Drawn] | None:
        """row_S and queued as they were given to `launch`, and what decode has drawn, on the host; None if it was not started."""
        flight, self.flight = self.flight, None
        if flight is None:
            return None
        with self._phases("decode"):
            return flight.row_S, flight.queued, flight.fetched.result() if flight.fetched else self._fetch()

    def close(self) -> None:
        """Waits for what was asked for, and ends the lane's thread."""
        if self._thread:
            self._thread.shutdown()
        self._check()

    def _ask(self, phase: str, do: Callable, *arguments: Any, model: bool = True) -> None:
        with self._phases(phase):
            if not self._thread:
                self._do(do, model, *arguments)
            else:
                asked = self._thread.submit(self._do, do, model, *arguments)
                if self._phases.block:
                    asked.result()

    # ---- from here on in the lane's thread, where it has one ------------------------------------------------------------

    def _do(self, do: Callable, model: bool, *arguments: Any) -> None:
        if self._error:
            return
        if model and not self._working:
            self._working = True
            self._phases.resume()
        try:
            made = do(*arguments)
            if self._phases.block:
                jax.block_until_ready(made)
        except Exception as error:
            self._error = error

    def _check(self) -> None:
        if self._error:
            raise self._error

    def _start(self) -> Any:
        self._state, self._views = self._engine.start(self._params), self._engine.blank(self._params)
        return self._state, self._views

    def _see(self, views: jax.Array, slot_n: np.ndarray, place_nxR: np.ndarray) -> jax.Array:
        self._views = self._engine.see(self._views, views, *put_rows((slot_n, place_nxR)))
        return self._views

    def _encode(self, index_n: np.ndarray, views: jax.Array | None) -> jax.Array:
        self._features = self._engine.encode(self._params, self._views if views is None else views, put_rows(index_n))
        return self._features

    def _change(self, program: Callable, what: Opening | Told) -> Any:
        self._state = program(self._params, self._state, put_rows(pack(what)), self._features)
        return self._state

    def _move(self, from_n: np.ndarray, to_n: np.ndarray) -> Any:
        self._state = self._engine.move(self._state, *put_rows((from_n, to_n)))
        return self._state

    def _decode(self, going: Going, count_M: np.ndarray, length: int) -> Drawn:
        inputs = (self._params, self._state, *put_rows((pack(going), count_M)), self._engine.banned_V)
        self._state, self._drawn = self._engine.decode(*inputs, length=length)
        return self._drawn

    def _fetch(self) -> Drawn:
        self._check()
        drawn = self._phases.to_host(self._drawn)
        self._working = False
        self._phases.rest()
        return drawn


def first_to_land(lanes: Sequence[Lane]) -> Lane:
    """Of lanes that are all in flight, the one whose decode is over first, if each has a thread of its own; else the first."""
    fetched = [lane.flight.fetched for lane in lanes]
    if None in fetched:
        return lanes[0]
    done, _ = wait(fetched, return_when=FIRST_COMPLETED)
    return next(lane for lane, one in zip(lanes, fetched, strict=True) if one in done)
