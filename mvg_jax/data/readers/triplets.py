"""What data sets of (image, question, answer) triplets share: text as it was typed in, triplets that occur twice."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mvg_jax.data.images import BadImage, EncodedRef, ImageRef
from mvg_jax.data.records import ReadReport, Record
from mvg_jax.data.task import AnswerType

_YES_NO = ("yes", "no")


def text(value: Any) -> str:
    """A cell as text on one line: numbers are written out, tabs become blanks, None and "NULL" become ""."""
    words = "" if value is None else " ".join(str(value).split())
    return "" if words == "NULL" else words


def fold(words: str) -> str:
    """Text as triplets compare it: whatever the case."""
    return words.casefold()


def is_yes_no(answer: str) -> bool:
    """Whether the answer is yes or no, and nothing more."""
    return fold(answer) in _YES_NO


def derived_type(answer: str) -> AnswerType:
    """The answer type where the data set says none: yes and no are closed, all else is open."""
    return AnswerType.YES_NO if is_yes_no(answer) else AnswerType.OPEN


def distinct(records: Iterable[Record], others: Iterable[Record], report: ReadReport) -> tuple[Record, ...]:
    """Drops records whose (image, question, answer) came before, or is among `others`, which is the test split.

    Images are compared by their encoded bytes, and read only where question and answer are not enough to tell.
    """
    records, others = list(records), list(others)
    texts = Counter(_text_key(record) for record in (*records, *others))
    there = {_triplet(record) for record in others if texts[_text_key(record)] > 1}
    seen, kept = set(), []
    for record in records:
        if texts[_text_key(record)] > 1:
            key = _triplet(record)
            if key in there or key in seen:
                report.drop(record.id, "also in the test split" if key in there else "duplicate of an earlier row")
                continue
            seen.add(key)
        kept.append(record)
    return tuple(kept)


def _text_key(record: Record) -> tuple[str, str]:
    return fold(record.question), fold(record.answer)


def _triplet(record: Record) -> tuple:
    return *_text_key(record), *(_content(image) for image in record.images)


def _content(image: ImageRef) -> object:
    """Something that is equal for equal images: a digest, or the reference itself where there is nothing to read."""
    if not isinstance(image, EncodedRef):
        return image
    try:
        return hashlib.blake2b(image.read(), digest_size=16).digest()
    except BadImage:
        return image  # it is named when it is loaded
