"""VLMEvalKit (repository open-compass/VLMEvalKit, e8e78f0) with model=exact_matching: choices, without a judge.

The one option letter among the words (after brackets and punctuation became blanks), if it is among the last four; else
the letter after "answer is", with or without asterisks; else the one option whose text the answer contains, if the
answer is at most twice as long as all options together; else Z, which is wrong. Where a judge model is set, VLMEvalKit
asks it before it gives up; that part is not here. Open questions of MMMU become choices: A is gold, B "Other Answers".

Bugs as published:
- one letter among many words is found near the end only, and only A to D are read after "answer is";
- the article "A" and the vitamin "A" are letters;
- "not the Kupffer cell" contains an option's text: right;
- an open MMMU question whose gold is one capital letter keeps that letter as its option: "B" is then "Other Answers",
  and from C on nothing is right.
"""

import re
import string
from collections.abc import Mapping

from mvg_jax.scoring.question import CHOICE, Protocol, Question, letters

NONE = "Z"
_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_FAILED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def score(question: Question, response: str) -> dict[str, float]:
    """accuracy."""
    if question.answer_type == CHOICE:
        choices = dict(zip(letters(question), question.options, strict=True))
        return {"accuracy": float(infer(response, choices) == question.gold)}
    gold = str([question.gold, *question.accepted]) if question.accepted else question.gold
    right = gold if gold in tuple(string.ascii_uppercase) else "A"
    return {"accuracy": float(infer(response, {"A": gold, "B": "Other Answers"}) == right)}


def infer(answer: str, choices: Mapping[str, str]) -> str:
    """The letter that an answer names, or NONE."""
    return _infer_letter(answer, choices) or _infer_text(answer.lower(), choices) or NONE


def _infer_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    if _FAILED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NONE
    words = answer.translate(_BLANKS).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and NONE in words:
        return NONE
    announced = _ANSWER_IS.search(answer)
    return announced[1].upper() if announced and announced[1].upper() in choices else None


def _infer_text(answer: str, choices: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    contained = [letter for letter, text in choices.items() if text.lower() in answer]
    return contained[0] if len(contained) == 1 else None


PROTOCOL = Protocol("vlmevalkit", "response", score, frozenset({"mmmu", "medxpertqa", "omnimedvqa"}))
