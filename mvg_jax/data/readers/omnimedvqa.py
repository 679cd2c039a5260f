"""OmniMedVQA: multiple-choice questions on images of 73 other data sets, made from their labels. For evaluation.

Expects the folder or zip as published: `QA_information/{Open-access,Restricted-access}/<source>.json` and `Images/<source>/...`.
It has no train and test: "open_access" is what comes with images and what papers report on, "restricted_access" needs images
from their owners, "all" is both.

The gold is text. Its letter is that of the last option with this text, as the public evaluators have it; where several options
read the same, the others are accepted too.
"""

import string

from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage
from mvg_jax.data.modality import spelt
from mvg_jax.data.readers import json_rows
from mvg_jax.data.records import DataSet, ReadReport, Record
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
    report, records, ids = ReadReport(f"omnimedvqa/{split}"), [], set()
    for name in sources:
        source = name.split("/")[-1][: -len(".json")]
        access = "open_access" if "open-access" in name.lower().split("/") else "restricted_access"
        for number, row in enumerate(json_rows.load_list(files, name)):
            report.rows += 1
            made = _record(files, row, f"omnimedvqa/{source}", number, access, ids, report)
            if isinstance(made, str):
                report.drop(f"{source} row {number}", made)
            else:
                records.append(made)
    return DataSet("omnimedvqa", split, tuple(records), report)


def _record(
    files: Files, row, prefix: str, number: int, access: str, ids: set[str], report: ReadReport
) -> Record | str:
    """The record of a row, or why there is none."""
    if not isinstance(row, dict):
        return "no dictionary"
    question, gold, path = json_rows.text(row, "question"), json_rows.text(row, "gt_answer"), row.get("image_path")
    if not (question and gold and isinstance(path, str)):
        return "no question, gt_answer or image_path"
    options = [json_rows.text(row, f"option_{letter}") for letter in "ABCD"]
    if "" in options[: sum(map(bool, options))]:
        return "an option is missing between others"
    options = [option for option in options if option]
    if len(options) < 2:
        return "fewer than two options"
    right = [i for i, option in enumerate(options) if option == gold]
    if not right:
        right = [i for i, option in enumerate(options) if option.lower() == gold.lower()]
        if not right:
            return "gt_answer is none of the options"
        report.note("gt_answer in another case than its option")
    image = files.find(path)
    if image is None:
        return "no such image"
    letters = [string.ascii_uppercase[i] for i in right]
    if len(letters) > 1:
        report.note("options with the same text, the last taken")
    return Record(
        id=json_rows.unique(f"{prefix}/{json_rows.text(row, 'question_id') or number}", ids, report),
        dataset="omnimedvqa",
        split=access,
        kind=json_rows.text(row, "question_type"),
        images=(FileImage(files, image),),
        question=question,
        answer=letters[-1],
        answer_type=AnswerType.CHOICE,
        options=tuple(options),
        accepted=tuple(letters[:-1]),
        modality=spelt(json_rows.text(row, "modality_type") or json_rows.text(row, "modality")),
    )
