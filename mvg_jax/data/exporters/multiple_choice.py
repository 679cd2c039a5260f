"""What exporters into multiple-choice data sets share: lettered options, and a second image."""

from string import ascii_uppercase

import numpy as np

from mvg_jax.data.exporters.common import answer_text
from mvg_jax.data.task import Task

FILLERS = ("None of these", "Not visible", "Cannot be told")


def lettered(task: Task, index: int, count: int) -> tuple[tuple[str, ...], str]:
    """`count` options of a task that has options, filled up or cut, and the letter of the right one.

    It moves on by one with `index`, so that every letter is right as often.
    """
    gold = answer_text(task)
    texts = [gold, *(option for option in task.options if option != gold), *FILLERS][:count]
    place = index % len(texts)
    return tuple(texts[-place:] + texts[:-place]) if place else tuple(texts), ascii_uppercase[place]


def detail(pixels: np.ndarray) -> np.ndarray:
    """The middle of an image, half of each side: another image that contradicts nothing asked of the whole one."""
    height, width = pixels.shape[:2]
    return pixels[height // 4 : height - height // 4, width // 4 : width - width // 4]
