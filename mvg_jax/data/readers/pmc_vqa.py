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
from mvg_jax.errors import RunError

SPLITS = ("train", "test", "test_clean", "train_2", "test_2")
LETTERS = "ABCD"
KIND = "multiple choice"  # the data set names no kinds

_FOLDERS = ("images", "images/images", "images/figures", "images.zip", "figures")
_FOLDERS_2 = ("images_2/figures", "images_2", "images_2.zip", "images_2.zip/figures")
_NEEDED = ("figure_path", "question", "answer", *(f"choice {letter.lower()}" for letter in LETTERS))


def read(files: Files, split: str) -> DataSet:
    """The questions of `<split>.csv`. RunError when it is not there or lacks a column."""
    name = files.need(f"{split}.csv", f"{split.replace('_2', '2')}.csv")
    folders = _FOLDERS_2 + _FOLDERS if split.endswith("_2") else _FOLDERS + _FOLDERS_2
    report = ReadReport(f"pmc_vqa {split}")

    def record(number: str, cells: dict[str, str] | None) -> Record:
        if cells is None:
            raise BadRow("too many or too few cells")
        return _record(files, split, number, _columns(files, name, cells), folders)

    numbered = ((f"{number:06d}", cells) for number, cells in enumerate(csv_rows(files, name)))
    return DataSet("pmc_vqa", split, collect(report, numbered, record), report)


def _columns(files: Files, name: str, cells: dict[str, str]) -> dict[str, str]:
    """Cells by lower-case column name, rightly spelt."""
    row = {squeeze(column).lower().replace("anwser", "answer"): cell for column, cell in cells.items()}
    if missing := [column for column in _NEEDED if column not in row]:
        raise RunError(f"{name} of {files.root} has no column {', '.join(missing)}; it has {', '.join(row)}")
    return row


def _record(files: Files, split: str, number: str, row: dict[str, str], folders: tuple[str, ...]) -> Record:
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
