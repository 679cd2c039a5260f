"""MedVLThinker (repository UCSC-VLAA/MedVLThinker, a3163b1; MedVLSynther is the same): closed questions as choices.

The content of the first <answer>...</answer>, or else the whole response, must be "L. text", "L" or "text" of the right
option, but for case and outer blanks. A question without options is right by its text alone.

Published for CLOSED questions only; their options were extracted from the questions by a language model, and the three
yes/no sets' options are not in the sets themselves. Bugs as published: "(B)", "B) text", "B." and "the liver" are wrong.
"""

import re

from mvg_jax.scoring.question import CHOICE, Protocol, Question, letters

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LABELLED = re.compile(r"([A-Z])\. (.*)", re.DOTALL)


def score(question: Question, response: str) -> dict[str, float]:
    """accuracy."""
    said = match[1] if (match := _ANSWER.search(response)) else response
    return {"accuracy": float(_fold(said) in map(_fold, _right(question)))}


def _right(question: Question) -> tuple[str, ...]:
    gold = question.gold
    if question.answer_type == CHOICE and question.options and gold in letters(question):
        text = question.options[letters(question).index(gold)]
        return gold, text, f"{gold}. {text}"
    if labelled := _LABELLED.fullmatch(gold):
        return gold, *labelled.groups()
    return (gold,)


def _fold(text: str) -> str:
    return text.strip().lower()


PROTOCOL = Protocol(
    "medvlthinker",
    "response",
    score,
    frozenset({"vqa_rad", "slake", "path_vqa", "pmc_vqa", "mmmu", "medxpertqa"}),
)
