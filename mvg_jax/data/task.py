"""A task: native images, a question, and everything needed to judge the answer and the way to it; and a turn of the answer."""

import dataclasses
import enum

import numpy as np

from mvg_jax.scoring.question import Question
from mvg_jax.tools.spec import ToolCall


@dataclasses.dataclass(frozen=True)
class NativeImage:
    """An image at its native resolution, with what is needed to show it.

    pixels: [H, W] or [H, W, 3], uint8 or uint16. Physical value = pixels * slope + intercept, in `unit`.
    window: (low, high) physical values shown as black and white before any tool is used.
    """

    pixels: np.ndarray
    window: tuple[float, float] = (0.0, 255.0)
    slope: float = 1.0
    intercept: float = 0.0
    unit: str = "grey"
    spacing_mm: float | None = None


@dataclasses.dataclass(frozen=True)
class Box:
    """A labelled ground-truth box: xyxy in 0..1000 (pixel edges) of the task's image `image`."""

    label: str
    xyxy: tuple[float, float, float, float]
    image: int = 0


class AnswerType(enum.StrEnum):
    """What an answer looks like.

    YES_NO. CLOSED: one of few answers, listed in `options` or not ("Left", "MRI"). OPEN: free words. CHOICE: a letter of `options`,
    which are shown with letters. NUMBER: a number, with a unit or not. LIST: items in any order. BOX: [x1, y1, x2, y2] in 0..1000.
    """

    YES_NO = "yes_no"
    CLOSED = "closed"
    OPEN = "open"
    CHOICE = "choice"
    NUMBER = "number"
    LIST = "list"
    BOX = "box"


@dataclasses.dataclass(frozen=True)
class Task:
    """One question. `chain` is the shortest tool chain that makes it answerable: () = none needed, None = not known.

    kind: what is asked about, in the data set's own words (its content or question type). answer: the gold answer; of
    AnswerType.CHOICE its letter. accepted: other answers that are as right. modality: "CT", "MRI", ...; "" = not said.
    tolerance: largest relative error of a number, 0.1 = 10 %.
    """

    id: str
    dataset: str
    kind: str
    images: tuple[NativeImage, ...]
    question: str
    answer: str
    options: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    chain: tuple[ToolCall, ...] | None = None
    certificate: dict[str, float] = dataclasses.field(default_factory=dict)
    answer_type: AnswerType = AnswerType.CLOSED
    accepted: tuple[str, ...] = ()
    modality: str = ""
    language: str = "en"
    tolerance: float = 0.0

    @property
    def needs_tool(self) -> bool | None:
        """Whether the question cannot be answered from the overview; None when nobody has said."""
        return None if self.chain is None else len(self.chain) > 0

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the options (0 for an open question)."""
        return 1.0 / len(self.options) if self.options else 0.0


def question_of(task: Task) -> Question:
    """A task as scorers see it; a record will do, its images are not looked at."""
    return Question(
        dataset=task.dataset,
        answer_type=str(task.answer_type),
        kind=task.kind,
        question=task.question,
        gold=task.answer,
        options=task.options,
        accepted=task.accepted,
        language=task.language,
        id=task.id,
        tolerance=task.tolerance,
    )


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the model said in one turn. action: a ToolCall, or a str, which is the final answer."""

    think: str
    action: ToolCall | str


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A trajectory to imitate: a task, and the turns that solved it. The environment replays the turns and makes the observations.

    tools_on: whether the prompt offered tools. source: who spoke ("expert", a model's name); for statistics only.
    """

    task: Task
    turns: tuple[Turn, ...]
    tools_on: bool = True
    source: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image for eyes to learn from. labels: class of every pixel [H, W] uint8. boxes: its findings."""

    id: str
    image: NativeImage
    labels: np.ndarray
    boxes: tuple[Box, ...]
