"""When to stop imitating: held-out loss that no longer falls."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass
class EarlyStop:
    """patience: looks in a row without a new lowest loss after which it is over; 0: never. A NaN is no new lowest loss."""

    patience: int
    best: float = math.inf
    best_step: int = 0
    since: int = 0

    @property
    def over(self) -> bool:
        return 0 < self.patience <= self.since

    def see(self, step: int, loss: float) -> bool:
        """Takes in the held-out loss after `step`; whether it is the lowest yet."""
        lowest = loss < self.best
        if lowest:
            self.best, self.best_step, self.since = loss, step, 0
        else:
            self.since += 1
        return lowest

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"best": None if math.isinf(self.best) else self.best, "best_step": self.best_step, "since": self.since}

    @classmethod
    def of(cls, patience: int, state: dict[str, Any]) -> "EarlyStop":
        """Goes on from `state`."""
        best = math.inf if state["best"] is None else state["best"]
        return cls(patience, best, state["best_step"], state["since"])
