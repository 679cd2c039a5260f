"""MMMU, the Health & Medicine subjects: parquet by subject, up to seven images a question, named by <image N> in the text.

What is called "MMMU-H&M" differs between papers:

    validation        all 150 questions of the validation split (145 with choices, 5 open)
    val_dev_choice    those of validation and dev that have choices, 170 (MedVLThinker, MedVLSynther)
    test              1,752 questions (HuatuoGPT-Vision). Published without answers ("?"): they are taken from an answer.json
                      {id: {"question_type": ..., "ground_truth": ...}} (as MedEvalKit has one) in the same folder, if there is one.
    dev               5 questions a subject
"""

import re
from collections.abc import Iterator
from itertools import chain
from string import ascii_uppercase
from typing import Any

from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage, ImageRef
from mvg_jax.data.readers.hf_parquet import ParquetImage, rows, shards
from mvg_jax.data.readers.text import json_value, text_list
from mvg_jax.data.records import BadRow, DataSet, ReadReport, Record, collect
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

SPLITS = ("dev", "validation", "val_dev_choice", "test")
SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
MAX_IMAGES = 7
KEY = "answer.json"

_TYPES = {"multiple-choice": AnswerType.CHOICE, "open": AnswerType.OPEN, "short-answer": AnswerType.OPEN}
_ID = re.compile(r"(dev|validation|test)_(\w+)_\d+")
_TOKEN = re.compile(r"<image\s*(\d{1,2})>", re.IGNORECASE)
_UNKNOWN = ("", "?")


def read(files: Files, split: str, subjects: tuple[str, ...] = SUBJECTS) -> DataSet:
    """The questions of `subjects`; a subject that is not there is noted. RunError when the split has no shard. kind: the subject."""
    report, key = ReadReport(f"mmmu {split}"), _key(files)
    parts = ("validation", "dev") if split == "val_dev_choice" else (split,)

    def record(name: str, row: dict[str, Any]) -> Record:
        made = _record(row, subjects, key, report)
        if split == "val_dev_choice" and made.answer_type != AnswerType.CHOICE:
            raise BadRow("an open question")
        return made

    records = collect(report, chain.from_iterable(_rows(files, part, subjects) for part in parts), record)
    there = {record.kind for record in records}
    for subject in subjects:
        if subject not in there:
            report.note(f"no question of {subject}")
    return DataSet("mmmu", split, records, report)


def _rows(files: Files, split: str, subjects: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, values) of the subjects' own shards, or, where subjects have no folders, of all shards of the split."""
    names = [name for subject in subjects for name in shards(files, split, subject)] or shards(files, split)
    if not names:
        raise RunError(f"{files.root} holds no {split}-00000-of-00001.parquet in a folder of {', '.join(subjects)}")
    for number, row in rows(files, names):
        yield str(row.get("id") or number), row


def _key(files: Files) -> dict[str, Any]:
    """The answers published apart, by id; {} when there are none."""
    name = files.find(KEY)
    key = json_value(files, name) if name else {}
    if not isinstance(key, dict):
        raise RunError(f"{name} of {files.root}: needs an object of answers by id")
    return key


def _record(row: dict[str, Any], subjects: tuple[str, ...], key: dict[str, Any], report: ReadReport) -> Record:
    named = _ID.fullmatch(_text(row, "id"))
    if not named:
        raise BadRow("no id of the form split_Subject_number")
    split, subject = named.groups()
    if subject not in subjects:
        raise BadRow("another subject")
    kind = _TYPES.get(re.sub(r"[\s_]+", "-", _text(row, "question_type").lower()))
    if kind is None:
        raise BadRow("an unknown question type")
    question = _text(row, "question")
    if not question:
        raise BadRow("no question")
    options = text_list(row.get("options")) if kind == AnswerType.CHOICE else []
    if options is None:
        raise BadRow("options that are no list of texts")
    golds = _golds(row, key.get(named[0]))
    if kind == AnswerType.CHOICE and any(gold not in tuple(ascii_uppercase[: len(options)]) for gold in golds):
        raise BadRow("an answer that is no letter of its options")
    images, (question, *options) = _images(row, (question, *(option.strip() for option in options)), report)
    return Record(
        id=f"mmmu/{named[0]}",
        dataset="mmmu",
        split=split,
        kind=subject,
        images=images,
        question=question,
        answer=golds[0],
        answer_type=kind,
        options=tuple(options),
        accepted=tuple(golds[1:]),
        modality="; ".join(text_list(row.get("img_type")) or ()),
    )


def _golds(row: dict[str, Any], side: Any) -> list[str]:
    """The right answers: the row's own, else those of the key. Several are written as a list."""
    gold = _text(row, "answer")
    if gold in _UNKNOWN and isinstance(side, dict):
        gold = side.get("ground_truth")
    golds = text_list(gold) if not isinstance(gold, str) or gold.startswith("[") else None
    if golds is None:  # one; it may begin with a bracket too ("[Ca2+]")
        golds = [str(gold)] if isinstance(gold, str | int | float) else []
    golds = [one.strip() for one in golds if one.strip() not in _UNKNOWN]
    if not golds:
        raise BadRow(f"no answer (the test split needs its {KEY})")
    return list(dict.fromkeys(golds))


def _images(row: dict[str, Any], texts: tuple[str, ...], report: ReadReport) -> tuple[tuple[ImageRef, ...], list[str]]:
    """The images that the texts name, in order of first appearance, and the texts naming them <image 1>, <image 2>, ...

    Where the texts name none, all images there are.
    """
    cells = {number: row.get(f"image_{number}") for number in range(1, MAX_IMAGES + 1)}
    there = {number: cell for number, cell in cells.items() if isinstance(cell, ParquetImage | FileImage)}
    named = dict.fromkeys(int(token[1]) for text in texts for token in _TOKEN.finditer(text))
    shown = [number for number in named if number in there] if named else list(there)
    if not shown:
        raise BadRow("no image")
    if len(shown) < len(named):
        report.note("a text names an image that is not there")
    place = {number: k for k, number in enumerate(shown, 1)}
    renamed = lambda token: f"<image {place[int(token[1])]}>" if int(token[1]) in place else token[0]
    return tuple(there[number] for number in shown), [_TOKEN.sub(renamed, text) for text in texts]


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return value.strip() if isinstance(value, str) else ""
