"""The scripted experts: whoever knows a data set's answers and can show a way to them, good or bad."""

from collections.abc import Mapping

import numpy as np

from mvg_jax.data import phantom, volume_expert
from mvg_jax.data.task import Task, Turn
from mvg_jax.errors import RunError

_MIXTURES = {"phantom": phantom.mixture, "phantom_atlas": phantom.mixture, "volume": volume_expert.mixture}


def mixture(task: Task, rng: np.random.Generator, weights: Mapping[str, float]) -> tuple[Turn, ...]:
    """A trajectory of a random decision (see phantom.expert and volume_expert), of the expert for the task's data set.

    RunError where there is none.
    """
    if task.dataset not in _MIXTURES:
        raise RunError(
            f"task {task.id}: there is no scripted expert for {task.dataset}, only for {', '.join(_MIXTURES)}"
        )
    return _MIXTURES[task.dataset](task, rng, weights)
