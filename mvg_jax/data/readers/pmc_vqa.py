"""PMC-VQA: four choices about a figure of a paper, as csv files beside zips of images.

    train, test, test_clean    the first version. test_clean (2,000 rows) is the "PMC-VQA" of HuatuoGPT-Vision and MedVLThinker.
    train_2, test_2            the second, without compound figures. test_2 (33,430 rows) is the "PMC-VQA" of MedEvalKit.

The versions name their columns differently (and old dumps misspell them): the first has the answer's text and its letter, the
second has the letter under the name of the text. Choices carry their letters, " A:text "; rows whose letters or answers do not
fit together are dropped.
"""

from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage
from mvg_jax.data.readers.text import csv_rows, squeeze
from mvg_jax.data.records import BadRow, DataSet, ReadReport, Record, collect
from mvg_jax.data.task import AnswerType

SPLITS = ("train", "test", "test_clean", "train_2", "test_2")
LETTERS = "ABCD"
KIND = "multiple choice"  # the data set names no kinds

# Of the second version's images. Other folders are met as well, but names do not say which of the two is meant.
_FOLDERS_2 = ("images_2/figures", "images_2.zip/figures", "images_2", "images_2.zip")
_NEEDED = ("figure_path", "question", "answer", *(f"choice {letter.lower()}" for letter in LETTERS))


def read(files: Files, split: str) -> DataSet:
    """The questions of `<split>.csv`. RunError when it is not there or lacks a column."""
    name = files.need(f"{split}.csv", f"{split.replace('_2', '2')}.csv")
    report = ReadReport(f"pmc_vqa {split}")
    numbered = ((f"{number:06d}", row) for number, row in enumerate(csv_rows(files, name, _NEEDED, _column)))
    records = collect(report, numbered, lambda number, row: _record(files, split, number, row))
    return DataSet("pmc_vqa", split, records, report)


def _column(name: str) -> str:
    """A column's name in lower case, rightly spelt."""
    return squeeze(name).lower().replace("anwser", "answer")


def _record(files: Files, split: str, number: str, row: dict[str, str] | None) -> Record:
    if row is None:
        raise BadRow("too many or too few cells")
    choices = {letter: _choice(letter, row[f"choice {letter.lower()}"]) for letter in LETTERS}
    first_version = "answer_label" in row
    label = _clean(row["answer_label" if first_version else "answer"]).upper()
    if label not in choices:
        raise BadRow("the answer's label is no letter of A to D")
    if first_version and choices[label] != _clean(row["answer"]):
        raise BadRow("the answer is not the choice of its label")
    question, figure = squeeze(row["question"]), row["figure_path"].strip()
    if not (question and choices[label]):
        raise BadRow("an empty question or answer")
    folders = _FOLDERS_2 if split.endswith("_2") else ()
    image = figure and files.find(*(f"{folder}/{figure}" for folder in folders), figure)
    if not image:
        raise BadRow("the image is not there")
    return Record(
        id=f"pmc_vqa/{split}/{number}",
        dataset="pmc_vqa",
        split=split,
        kind=KIND,
        images=(FileImage(files, image),),
        question=question,
        answer=label,
        answer_type=AnswerType.CHOICE,
        options=tuple(choices.values()),
    )


def _choice(letter: str, cell: str) -> str:
    """The text behind the first colon; texts may have colons of their own ("A: T: testes, A: ovaries")."""
    prefix, colon, text = cell.partition(":")
    if not colon or _clean(prefix).upper() != letter:
        raise BadRow("a choice without its own letter")
    return _clean(text)


def _clean(cell: str) -> str:
    return squeeze(cell).strip("'\" ")
