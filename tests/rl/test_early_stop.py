import json
import math

import pytest

from mvg_jax.rl.early_stop import EarlyStop


def test_it_is_over_when_the_loss_has_not_fallen_for_long_enough():
    stop = EarlyStop(patience=2)
    lowest, over = [], []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.9, 1.9, math.nan], start=1):
        lowest.append(stop.see(10 * step, loss))
        over.append(stop.over)
    assert lowest == [True, True, False, True, False, False]
    assert over == [False, False, False, False, False, True]
    assert (stop.best, stop.best_step) == (1.9, 40)


def test_without_patience_it_is_never_over():
    stop = EarlyStop(patience=0)
    for step in range(9):
        stop.see(step, 1.0)
    assert not stop.over


@pytest.mark.parametrize("losses", [[], [1.0, 2.0]])
def test_it_goes_on_from_its_state(losses):
    stop = EarlyStop(patience=3)
    for step, loss in enumerate(losses):
        stop.see(step, loss)
    again = EarlyStop.of(3, json.loads(json.dumps(stop.state())))
    for step, loss in enumerate([1.5, 1.4], start=5):
        assert again.see(step, loss) == stop.see(step, loss)
        assert (again.over, again.best_step) == (stop.over, stop.best_step)
