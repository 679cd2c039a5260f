"""OmniMedVQA: multiple-choice questions on images of 73 other data sets, made from their labels. For evaluation.

Expects the folder or zip as published: `QA_information/{Open-access,Restricted-access}/<source>.json` and `Images/<source>/...`.
It has no train and test: "open_access" is what comes with images and what papers report on, "restricted_access" needs images
from their owners, "all" is both.

The gold is text. Its letter is that of the last option with this text, as the public evaluators have it; where several options
read the same, the others are accepted too.
"""

import string
from typing import Any

from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage
from mvg_jax.data.modality import spelt
from mvg_jax.data.readers.text import field, json_list
from mvg_jax.data.records import BadRow, DataSet, ReadReport, Record, collect, unique_id
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

_FOLDERS = {
    "open_access": ("open-access",),
    "restricted_access": ("restricted-access",),
    "all": ("open-access", "restricted-access"),
}
SPLITS = tuple(_FOLDERS)


def read(files: Files, split: str) -> DataSet:
    """The records of a split. RunError when there is no such folder, or one of its files is no list."""
    sources = [
        name
        for name in files.names
        if name.lower().endswith(".json") and set(_FOLDERS[split]) & set(name.lower().split("/")[:-1])
    ]
    if not sources:
        raise RunError(f"{files.root} holds no QA_information/{' or '.join(_FOLDERS[split])}/*.json")
    report, ids = ReadReport(f"omnimedvqa/{split}"), set()
    rows = (
        (f"{_source(name)} row {number}", (name, number, row))
        for name in sources
        for number, row in enumerate(json_list(files, name))
    )
    records = collect(report, rows, lambda _, row: _record(files, *row, ids, report))
    return DataSet("omnimedvqa", split, records, report)


def _source(name: str) -> str:
    return name.rpartition("/")[2][: -len(".json")]


def _record(files: Files, name: str, number: int, row: Any, ids: set[str], report: ReadReport) -> Record:
    """The record of row `number` of the file `name`."""
    if not isinstance(row, dict):
        raise BadRow("no dictionary")
    question, gold, path = field(row, "question"), field(row, "gt_answer"), row.get("image_path")
    if not (question and gold and isinstance(path, str)):
        raise BadRow("no question, gt_answer or image_path")
    options = [field(row, f"option_{letter}") for letter in "ABCD"]
    if "" in options[: sum(map(bool, options))]:
        raise BadRow("an option is missing between others")
    options = [option for option in options if option]
    if len(options) < 2:
        raise BadRow("fewer than two options")
    right = [i for i, option in enumerate(options) if option == gold]
    if not right:
        right = [i for i, option in enumerate(options) if option.lower() == gold.lower()]
        if not right:
            raise BadRow("gt_answer is none of the options")
        report.note("gt_answer in another case than its option")
    image = files.find(path)
    if image is None:
        raise BadRow("no such image")
    letters = [string.ascii_uppercase[i] for i in right]
    if len(letters) > 1:
        report.note("options with the same text, the last taken")
    return Record(
        id=unique_id(f"omnimedvqa/{_source(name)}/{field(row, 'question_id') or number}", ids, report),
        dataset="omnimedvqa",
        split="open_access" if "open-access" in name.lower().split("/") else "restricted_access",
        kind=field(row, "question_type"),
        images=(FileImage(files, image),),
        question=question,
        answer=letters[-1],
        answer_type=AnswerType.CHOICE,
        options=tuple(options),
        accepted=tuple(letters[:-1]),
        modality=spelt(field(row, "modality_type") or field(row, "modality")),
    )
