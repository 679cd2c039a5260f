"""What every scorer is given, and how a protocol is declared."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# Answer types, spelled as mvg_jax.data.task.AnswerType spells them. CLOSED_TYPES are asked with few answers to choose from.
YES_NO, CLOSED, OPEN, CHOICE, NUMBER, LIST, BOX = "yes_no", "closed", "open", "choice", "number", "list", "box"
ANSWER_TYPES = (YES_NO, CLOSED, OPEN, CHOICE, NUMBER, LIST, BOX)
CLOSED_TYPES = (YES_NO, CLOSED, CHOICE)

# Figures beside a score: 1.0 where the published rule drew the answer at random, or would have raised an error.
DRAWN, RAISED = "drawn", "raised"


class Question(NamedTuple):
    """One question as a scorer sees it.

    dataset: the reader's name (vqa_rad, slake, ...). answer_type: one of ANSWER_TYPES. kind: what is asked about, in the
    data set's words. gold: the right answer; of `choice` its letter. options: bare texts, without letters; of an open
    question the answers it may be compared with (LLaVA-Med). accepted: other answers that are as right. language:
    "en", "zh". id: seeds what a published rule draws at random. tolerance: largest relative error of a number, 0.1 = 10 %.
    """

    dataset: str
    answer_type: str
    kind: str
    question: str
    gold: str
    options: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    language: str = "en"
    id: str = ""
    tolerance: float = 0.0


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the questions that have it; a metric of closed questions says nothing about open ones."""
    names = dict.fromkeys(name for row in scores for name in row)
    columns = {name: [row[name] for row in scores if name in row] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


class Protocol(NamedTuple):
    """A named way of scoring.

    score(question, text) -> metrics; the headline is "accuracy", further ones go by their names, and DRAWN and RAISED
    stand beside them where the published rule can do so. It raises ValueError only for a question it cannot score.
    text: which text it is given: "answer", the parsed final answer ("" if there is none), or "response", the model's
    whole last turn: the public evaluators find the answer in it themselves.
    datasets: what it was published for; None = any. stochastic: whether the published rule ever draws at random.
    aggregate(scores of all questions) -> metrics of the data set.
    """

    name: str
    text: str
    score: Callable[[Question, str], dict[str, float]]
    datasets: frozenset[str] | None = None
    stochastic: bool = False
    aggregate: Callable[[Sequence[Mapping[str, float]]], dict[str, float]] = mean_scores


def letters(question: Question) -> list[str]:
    """The letters of the question's options, from A. ValueError if it has none, or more than there are letters."""
    if not 0 < len(question.options) <= 26:
        raise ValueError(f"question {question.id!r} of {question.dataset} has {len(question.options)} options")
    return [chr(ord("A") + i) for i in range(len(question.options))]
