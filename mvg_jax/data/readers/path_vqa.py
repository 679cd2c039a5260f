"""PathVQA: generated questions on pathology images from textbooks (He et al. 2020), in the two layouts it is found in.

hf        Parquet with embedded images and `image, question, answer` (flaviagiammarino/path-vqa: 19654 + 6259 + 6719 rows).
original  `qas/<split>/<split>_qa.pkl`, a pickled list of {image, question, answer}, and `images/<split>/<image>.jpg`, its
          validation split called "val". A `<split>_qa.json` of the same rows is read instead where it lies there. The pickle
          is read without being run: one that holds more than plain values is refused.

Duplicate triplets are dropped; the hf layout was freed of them by its makers. `kind` is what the paper sorts questions by:
"yes/no", else the word they begin with. Answers are as noisy as they were generated.
"""

from collections.abc import Iterator
from typing import Any

from mvg_jax.data import plain_pickle
from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage
from mvg_jax.data.readers import hf_parquet
from mvg_jax.data.readers.text import object_rows, objects
from mvg_jax.data.readers.triplets import derived_type, distinct, fold, is_yes_no, text
from mvg_jax.data.records import DataSet, ReadReport, Record
from mvg_jax.errors import RunError

SPLITS = ("train", "validation", "test")

_SHORT = {"train": "train", "validation": "val", "test": "test"}
_BEGINNINGS = ("how much", "how many", "what", "where", "when", "whose", "how")  # the paper's table of question types


def read(files: Files, split: str) -> DataSet:
    """The records of a split. RunError if no layout is there or a file is broken."""
    report = ReadReport(f"path_vqa {split}")
    shards = hf_parquet.shards(files, split)
    rows = hf_parquet.rows(files, shards) if shards else _original(files, split)
    return DataSet("path_vqa", split, distinct(_records(rows, split, report), (), report), report)


def _records(rows: Iterator[tuple[str, dict[str, Any]]], split: str, report: ReadReport) -> Iterator[Record]:
    for row_id, row in rows:
        report.rows += 1
        question, answer, image = text(row.get("question")), text(row.get("answer")), row.get("image")
        if not question or not answer:
            report.drop(row_id, "no question or no answer")
        elif not image or isinstance(image, str):
            report.drop(f"{row_id}: {image or 'no name'}", "image missing")
        else:
            yield Record(
                id=f"path_vqa/{split}/{row_id}",
                dataset="path_vqa",
                split=split,
                kind=_kind(question, answer),
                images=(image,),
                question=question,
                answer=answer,
                answer_type=derived_type(answer),
            )


def _kind(question: str, answer: str) -> str:
    if is_yes_no(answer):
        return "yes/no"
    return next((words for words in _BEGINNINGS if fold(question).startswith(f"{words} ")), "other")


def _original(files: Files, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, row) as `hf_parquet.rows` gives them, but where an image is missing its name is in its place."""
    short = _SHORT[split]
    name = files.find(f"{short}_qa.json", f"{short}_qa.pkl")
    if name is None:
        raise RunError(f"{files.root} holds no {split}-*.parquet, {short}_qa.json or {short}_qa.pkl of PathVQA")
    if name.lower().endswith(".json"):
        rows = object_rows(files, name)
    else:
        what = f"{name} of {files.root}"
        rows = objects(plain_pickle.loads(files.read(name), what), what)
    for number, row in enumerate(rows):
        image = text(row.get("image"))
        found = image and files.find(
            *(f"{at}{image}{end}" for at in (f"images/{short}/", f"{short}/", "") for end in (".jpg", ""))
        )
        yield str(number), row | {"image": FileImage(files, found) if found else image}
