"""MMMU's official evaluator (repository MMMU-Benchmark/MMMU, bb0b95a), its bugs included.

Choices: strip , . ! ? ; : ' once each, then look for "(X)", then for " X ", then, in more than five words, for the
option's text; of several the last one said. Otherwise it draws a letter at random. It seeds one generator for a whole
run; here each draw is seeded by the question, so that it does not depend on the other answers, and DRAWN says that it
happened. Open questions: the tails after "is ", "so ", "answer " and the like, and the numbers in them; right if one
contains a gold string or equals a gold number to two decimals. The score is the mean over questions, not over subjects.

Bugs as published:
- random letters earn points: "b", "B:", "B)", "\\boxed{B}", "<answer>B</answer>" and short option texts are all drawn;
- a capital letter is an answer wherever it stands alone ("VITAMIN A DEFICIENCY" says A);
- sentences were to be split before capital letters, but the text is lower case by then: only line breaks split;
- of an open question any listed tail or number counts: "between 3 and 5" answers 3 and 5 alike.
"""

import random
import re
from collections.abc import Iterable, Sequence

from mvg_jax.scoring.question import CHOICE, DRAWN, Protocol, Question, letters

# What may announce the answer to an open question; an equals sign only in the last line.
_ANNOUNCED = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def score(question: Question, response: str) -> dict[str, float]:
    """accuracy, and DRAWN where the letter was drawn."""
    if question.answer_type == CHOICE:
        return choice_score(question, choose(response, question.options))
    golds = (question.gold, *question.accepted)
    return {"accuracy": float(open_right(golds, predictions(response))), DRAWN: 0.0}


def choice_score(question: Question, letter: str | None) -> dict[str, float]:
    """The score of a letter; of None, the score of one drawn at random."""
    drawn = letter is None
    if drawn:
        seed = "\n".join((question.id, question.question, *question.options))
        letter = random.Random(seed).choice(letters(question))
    return {"accuracy": float(letter in (question.gold, *question.accepted)), DRAWN: float(drawn)}


def choose(response: str, options: Sequence[str], bare: Sequence[str] = (" {} ",)) -> str | None:
    """The letter that the response names, None where the published rule draws. bare: forms of a letter without brackets."""
    for mark in ",.!?;:'":
        response = response.strip(mark)
    response = f" {response} "
    texts = {chr(ord("A") + i): text.lower() for i, text in enumerate(options)}
    for form in ("({})", *bare):
        if named := [letter for letter in texts if form.format(letter) in response]:
            # Whatever form found bare letters, their order is looked up with blanks around them.
            where = form if form == "({})" else " {} "
            return max(named, key=lambda letter: response.rfind(where.format(letter)))
    said = response.lower()
    named = [letter for letter, text in texts.items() if text in said] if len(response.split()) > 5 else []
    return max(named, key=lambda letter: said.rfind(texts[letter])) if named else None


def predictions(response: str) -> list[str | float]:
    """What a response to an open question may be taken to say."""
    text = response.strip().strip(".").lower()
    *lines, last = text.split("\n")
    tails = [_shortest_tail(line, _ANNOUNCED) for line in lines] + [_shortest_tail(last, (*_ANNOUNCED, "="))]
    said = [tail for tail in tails if tail and tail not in tuple(":,.!?;'")] or [text]
    numbers = [number for tail in said for pattern in _NUMBERS for number in pattern.findall(tail)]
    return [form for prediction in (*said, *numbers) for form in _normalise(prediction)]


def open_right(golds: Sequence[str], said: Iterable[str | float]) -> bool:
    """Whether a prediction contains a gold string or equals a gold number."""
    wanted = [form for gold in golds for form in _normalise(gold)]
    strings = [form for form in wanted if isinstance(form, str)]
    return any(any(s in p for s in strings) if isinstance(p, str) else p in wanted for p in said)


def _shortest_tail(line: str, announced: Sequence[str]) -> str:
    """What follows the announcements, at its shortest; an empty tail gives way to the next one."""
    shortest = ""
    for words in announced:
        if words in line:
            tail = line.split(words)[-1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _normalise(text: str) -> list[str | float]:
    """A number to two decimals, or lower case; one character with a blank on either side, against trivial matches."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


PROTOCOL = Protocol("mmmu", "response", score, frozenset({"mmmu"}), stochastic=True)
