"""MedXpertQA, its multimodal part (MM): choices about one image or several, as json lines beside a zip of images.

dev has 5 questions, test 2,000. Read as the hub publishes it (`MM/test.jsonl`: options {"A": text}, a letter, image names) and as
the evaluation code does (`medxpertqa_mm_input.jsonl`, the test split: options [{"letter", "content"}], ["A"], [{"image_path"}]).
The text-only part has no images: it is not looked for, and its rows are dropped where they are met.
"""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage
from mvg_jax.data.readers.text import object_rows
from mvg_jax.data.records import BadRow, DataSet, ReadReport, Record, collect
from mvg_jax.data.task import AnswerType

SPLITS = ("dev", "test")
TAIL = "\nAnswer Choices:"  # after it a question repeats its options

_FILES = {
    "dev": ("MM/dev.jsonl", "MM/dev.json", "dev.jsonl", "dev.json"),
    "test": ("MM/test.jsonl", "MM/test.json", "medxpertqa_mm_input.jsonl", "test.jsonl", "test.json"),
}


def read(files: Files, split: str) -> DataSet:
    """The questions of a split. RunError when its file is not there or holds no JSON objects. kind: the medical task."""
    name = files.need(*_FILES[split])
    report = ReadReport(f"medxpertqa {split}")
    rows = ((str(row.get("id") or f"row {number}"), row) for number, row in enumerate(object_rows(files, name)))
    records = collect(report, rows, lambda row_name, row: _record(files, split, row_name, row))
    return DataSet("medxpertqa", split, records, report)


def _record(files: Files, split: str, name: str, row: dict[str, Any]) -> Record:
    question, options = _question(row.get("question")), _options(row.get("options"))
    label = row.get("label")
    answer, *accepted = label if isinstance(label, list) and label else [label]
    if any(letter not in tuple(ascii_uppercase[: len(options)]) for letter in (answer, *accepted)):
        raise BadRow("a label that is no letter of its options")
    return Record(
        id=f"medxpertqa/{name}",
        dataset="medxpertqa",
        split=split,
        kind=str(row.get("medical_task") or ""),
        images=_images(files, row.get("images")),
        question=question,
        answer=answer,
        answer_type=AnswerType.CHOICE,
        options=options,
        accepted=tuple(accepted),
    )


def _question(value: Any) -> str:
    """The question without its options, which the prompt shows in its own way."""
    if not isinstance(value, str):
        raise BadRow("no question")
    before, found, _ = value.rpartition(TAIL)
    question = (before if found else value).strip()
    if not question:
        raise BadRow("no question")
    return question


def _options(value: Any) -> tuple[str, ...]:
    """The texts in the order of their letters, which must be A, B, C, ..."""
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
        pairs = [(one.get("letter"), one.get("content")) for one in value]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise BadRow("options of an unknown form")
    if not all(isinstance(letter, str) and isinstance(text, str) for letter, text in pairs):
        raise BadRow("options that are no texts")
    pairs.sort()
    if not pairs or [letter for letter, _ in pairs] != list(ascii_uppercase[: len(pairs)]):
        raise BadRow("options whose letters are not A, B, C, ...")
    return tuple(text.strip() for _, text in pairs)


def _images(files: Files, value: Any) -> tuple[FileImage, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow("no image (a row of the text-only part)")
    paths = [one.get("image_path") if isinstance(one, Mapping) else one for one in value]
    if not all(isinstance(path, str) and path for path in paths):
        raise BadRow("an image without a name")
    found = [files.find(f"images/{path}", path) for path in paths]
    if None in found:
        raise BadRow("an image is not there")
    return tuple(FileImage(files, name) for name in found)
