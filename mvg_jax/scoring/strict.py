"""The strict scorer: our reward and headline metric. An answer is right (1.0) or wrong (0.0); nothing is guessed.

The rules, in order, after NFKC, lower case, and blanks for punctuation:
1. No answer, or one longer than MAX_CHARS and than twice any option, is wrong.
2. Gold is yes or no: the answer must begin with that word, alone or followed by punctuation and a few words that do not
   take it back. "normal", "no evidence of ..." or "yes, no effusion" answer nothing.
3. There are options: the answer must be one of them, by its text, its letter (A is the first), or both in agreement.
4. Gold is a number: counts must be equal, measurements must round to gold, and a unit must be there. A question may
   carry a tolerance: then so large a relative error is right too.
5. Gold is a list (commas, "and"): the same items in any order.
6. Otherwise the words must be equal.
A short lead-in ("the answer is", "it is") is allowed. There is no partial credit, no synonym table and no judge, so
naming both sides, two options or a whole vocabulary never pays.

`score` goes by the form of gold, `score_question` by the question's answer type, which adds: any of several accepted
answers is right; options shown with letters (`choice`), where a letter is a letter even if some option reads like one;
boxes in 0..1000 by intersection over union; and the few Chinese words that say nothing but yes or no.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TypeVar

from mvg_jax.scoring import question as kinds
from mvg_jax.scoring.question import Protocol, Question

T = TypeVar("T")
Box = tuple[float, float, float, float]

MAX_CHARS = 200
MAX_YES_NO_WORDS = 12
# A box is right from this intersection over union on.
MIN_IOU = 0.5
MAX_COORDINATE = 1000.0

_DASHES = re.compile("[\u2010-\u2015\u2212]")
# Numbers keep their sign, point and separators; signs that change a finding (<5, 50%, T2+) are words of their own.
_WORD = re.compile(r"(?<![^\s(<>])-?[0-9]+(?:[.,][0-9]+)*|[0-9]+(?:[.,][0-9]+)*|[^\W_]+|[+%°<>]")
_LEAD_IN = re.compile(
    r"(?:the\s+)?(?:(?:final|correct)\s+)?(?:answer\s*(?:is\b|:)|it\s+is\b|this\s+is\b|option\b)[\s:]*"
)
_LETTER = re.compile(r"\(?([a-z])\s*[).:]*")
_LETTER_AND_TEXT = re.compile(r"\(?([a-z])\s*[).:]+\s*(\S.*)", re.DOTALL)
_YES_NO = re.compile(r"(yes|no)(?:\s*[.,;:!]+\s*(.*))?", re.DOTALL)
_AGAINST = {"yes": {"no", "not", "none", "without"}, "no": {"yes"}}
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_BOX = re.compile(r"[\[(]?\s*" + r"\s*,\s*".join([r"([0-9]+(?:\.[0-9]+)?)"] * 4) + r"\s*[\])]?\.?")
# Whole answers only. "正常" (normal) is not among them: whether it is a yes depends on the question.
_CHINESE_MEANING = (
    {"yes": "yes", "no": "no"}
    | dict.fromkeys(("是", "是的", "有", "存在", "包含", "可以", "能", "会"), "yes")
    | dict.fromkeys(("不是", "否", "没有", "无", "不存在", "不包含", "不可以", "不能", "不会"), "no")
)
_NUMBER = re.compile(r"(-?[0-9]+(?:,[0-9]{3})*)(\.[0-9]+)?(?: (.+))?")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
# Unit -> (base unit, how many of it). Only measurements in these units are compared with a tolerance.
_UNITS = {
    "mm": ("mm", 1), "cm": ("mm", 10), "m": ("mm", 1000), "ml": ("ml", 1), "l": ("ml", 1000),
    "millimeters": ("mm", 1), "millimetres": ("mm", 1), "centimeters": ("mm", 10), "centimetres": ("mm", 10),
    "hu": ("hu", 1), "hounsfield units": ("hu", 1), "%": ("%", 1), "percent": ("%", 1),
}  # fmt: skip


def score_question(question: Question, answer: str | None) -> float:
    """1.0 if the answer is right for a question of its type, else 0.0. ValueError for a gold answer that is none."""
    if question.answer_type not in kinds.ANSWER_TYPES:
        raise ValueError(f"answer type {question.answer_type!r}; there are {kinds.ANSWER_TYPES}")
    # The options of an open question are candidates of other scorers: they are not shown.
    options = () if question.answer_type in (kinds.OPEN, kinds.LIST, kinds.BOX) else question.options
    golds = (question.gold, *question.accepted)
    if right := {kinds.CHOICE: _right_choice, kinds.LIST: _right_list, kinds.BOX: _right_box}.get(question.answer_type):
        return float(any(right(answer, gold, options) for gold in golds))
    meant = _CHINESE_MEANING.get(normalise(answer or "")) if question.language == "zh" else None
    if meant and meant in [_CHINESE_MEANING.get(normalise(gold)) for gold in golds]:
        return 1.0
    # An accepted answer need not be one of the options, gold must.
    shown = [i == 0 or _option_index(gold, options) is not None for i, gold in enumerate(golds)]
    return max(
        score(answer, gold, options if one_of_them else (), question.tolerance)
        for gold, one_of_them in zip(golds, shown, strict=True)
    )


def score(answer: str | None, gold: str, options: Sequence[str] = (), tolerance: float = 0.0) -> float:
    """1.0 if the answer is right by the rules above, else 0.0. tolerance: largest relative error of a number.

    ValueError if gold is none of the options.
    """
    if options:
        gold_index = _option_index(gold, options)
        if gold_index is None:
            raise ValueError(f"gold answer {gold!r} is none of the options {tuple(options)}")
        gold = options[gold_index]
    readings = _readings(answer, (gold, *options))
    closed = normalise(gold) in _AGAINST
    if closed and (said := _first(_yes_no, readings)) is not None:
        return float(said == normalise(gold))
    if options:
        return float(_first(lambda reading: _option_index(reading, options), readings) == gold_index)
    if closed:
        return 0.0
    if (wanted := _number(gold)) is not None:
        return float(any(_same_number(_number(reading), wanted, tolerance) for reading in readings))
    return float(_right_list(answer, gold))


def _right_list(answer: str | None, gold: str, options: Sequence[str] = ()) -> bool:
    """The same items in any order, or gold to the letter."""
    items = _items(gold)
    return any(reading == _fold(gold) or (items and _items(reading) == items) for reading in _readings(answer, (gold,)))


def _right_choice(answer: str | None, gold: str, options: Sequence[str]) -> bool:
    """Options shown with letters: a letter is a letter, even if the text of some option is that letter."""
    letters = [chr(ord("A") + i) for i in range(len(options))]
    if gold not in letters:
        raise ValueError(f"gold answer {gold!r} is none of the letters of the options {tuple(options)}")
    text = options[letters.index(gold)]
    readings = _readings(answer, options)
    if normalise(text) in _AGAINST and (said := _first(_yes_no, readings)) is not None:
        return said == normalise(text)
    named = _first(lambda reading: _option_index(reading, options, letters_first=True), readings)
    return named == letters.index(gold)


def _right_box(answer: str | None, gold: str, options: Sequence[str] = ()) -> bool:
    """One box [x1, y1, x2, y2] in 0..1000 that overlaps gold by at least MIN_IOU."""
    wanted = _box(_fold(gold))
    if wanted is None:
        raise ValueError(f"gold answer {gold!r} is no box [x1, y1, x2, y2] in 0..{MAX_COORDINATE:g}")
    said = _first(_box, _readings(answer, (gold,)))
    return said is not None and _iou(said, wanted) >= MIN_IOU


def _readings(answer: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """The folded answer as it stands and without its lead-in; nothing if it is empty or rambles beyond what is known."""
    if answer is None or len(answer) > max(MAX_CHARS, *(2 * len(text) for text in known)):
        return ()
    said = _fold(answer)
    if boxed := _BOXED.fullmatch(said):
        said = boxed[1].strip()
    lead_in = _LEAD_IN.match(said)
    readings = (said, said[lead_in.end() :]) if lead_in else (said,)
    return tuple(filter(None, readings))


def _first(read: Callable[[str], T | None], readings: Sequence[str]) -> T | None:
    """What the first reading says that says something."""
    return next((said for said in map(read, readings) if said is not None), None)


def normalise(text: str) -> str:
    """Lower-case words with single blanks: no punctuation, no articles, number words as digits.

    "a" is an article only in front: it also names hepatitis A.
    """
    words = [_DIGITS.get(word, word) for word in _WORD.findall(_fold(text))]
    if len(words) > 1 and words[0] == "a":
        words = words[1:]
    return " ".join(word for word in words if word not in ("an", "the"))


def _fold(text: str) -> str:
    """NFKC, lower case, plain dashes, no invisible characters."""
    text = _DASHES.sub("-", unicodedata.normalize("NFKC", text).lower())
    return "".join(c for c in text if unicodedata.category(c) != "Cf").strip()


def _yes_no(raw: str) -> str | None:
    """What a folded answer says, or None where it does not say yes or no and nothing against it."""
    match = _YES_NO.fullmatch(raw)
    if match is None:
        return None
    rest = normalise(match[2] or "").split()
    return None if len(rest) > MAX_YES_NO_WORDS or _AGAINST[match[1]] & set(rest) else match[1]


def _option_index(text: str, options: Sequence[str], letters_first: bool = False) -> int | None:
    """The one option that the text names, or None."""
    folded = _fold(text)
    texts = [normalise(option) or _fold(option) for option in options]
    letters = [chr(ord("a") + i) for i in range(min(len(options), 26))]
    said = normalise(text) or folded
    by_text = texts.index(said) if texts.count(said) == 1 else None
    if (match := _LETTER.fullmatch(folded)) and match[1] in letters:
        by_letter = letters.index(match[1])
        return by_letter if letters_first or by_text is None else by_text
    if by_text is None and (match := _LETTER_AND_TEXT.fullmatch(folded)) and match[1] in letters:
        index = letters.index(match[1])
        return index if normalise(match[2]) == texts[index] else None
    return by_text


def _box(text: str) -> Box | None:
    match = _BOX.fullmatch(text)
    if match is None:
        return None
    x1, y1, x2, y2 = (float(number) for number in match.groups())
    return (x1, y1, x2, y2) if x1 < x2 <= MAX_COORDINATE and y1 < y2 <= MAX_COORDINATE else None


def _iou(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    return overlap / (sum(areas) - overlap)


def _number(text: str) -> tuple[float, str, float] | None:
    """(value, unit, half a unit of the last digit given), lengths in mm and volumes in ml; None if it is no number."""
    match = _NUMBER.fullmatch(normalise(text))
    if match is None:
        return None
    whole, decimals, unit = match[1].replace(",", ""), match[2] or "", match[3] or ""
    base, factor = _UNITS.get(unit, (unit, 1))
    measured = unit in _UNITS or decimals
    half_digit = 0.5 * factor * 10.0 ** -len(decimals[1:]) if measured else 0.0
    return float(whole + decimals) * factor, base, half_digit


def _same_number(got: tuple[float, str, float] | None, wanted: tuple[float, str, float], tolerance: float) -> bool:
    error = max(wanted[2], tolerance * abs(wanted[0])) * (1 + 1e-9)
    return got is not None and got[1] == wanted[1] and abs(got[0] - wanted[0]) <= error


def _items(text: str) -> frozenset[str]:
    return frozenset(filter(None, map(normalise, re.split(r"[,;、]|\band\b", _fold(text)))))


def _score(question: Question, answer: str) -> dict[str, float]:
    return {"accuracy": score_question(question, answer)}


PROTOCOL = Protocol("strict", "answer", _score)
