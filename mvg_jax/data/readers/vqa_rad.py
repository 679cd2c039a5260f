"""VQA-RAD: questions of clinicians on radiographs, CT and MR slices (Lau et al. 2018), in the three layouts it is found in.

hf      Parquet with embedded images and `image, question, answer` (flaviagiammarino/vqa-rad: 1793 + 451 rows).
osf     The authors' `VQA_RAD Dataset Public.json` with an image folder: both splits in one file, told apart by `phrase_type`
        (freeform and para are train, test_freeform and test_para are test: 1797 + 451 rows).
mevf    `trainset.json` and `testset.json` with `images/` (3064 + 451 rows, 1267 of the former reworded to a "frame").

All three become the same 1793 + 451 records: of the training rows, frame questions, three duplicates and one triplet of the
test split are dropped, each with its reason. The split "train_and_frames" keeps the frame questions of the mevf layout. Where
several layouts lie in one folder the first of the list is read; the others tell the hf layout what its rows lack (answer
type, question type, organ), found by question and answer. Without them an answer is closed if it is yes or no, else open.

All images of the test split occur in train: this is no benchmark of unseen images.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage
from mvg_jax.data.readers import hf_parquet
from mvg_jax.data.readers.text import object_rows
from mvg_jax.data.readers.triplets import derived_type, distinct, fold, is_yes_no, text
from mvg_jax.data.records import DataSet, ReadReport, Record
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

SPLITS = ("train", "test", "train_and_frames")
UNKNOWN = "unknown"  # kind of a question that nobody has sorted

_OSF = "VQA_RAD Dataset Public.json"
_MEVF = {"train": "trainset.json", "test": "testset.json"}
_PHRASES = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
_MISSPELT = {"PRSE": "PRES", "ATRIB": "ATTRIB"}
# The authors took chest radiographs, abdominal CT, and CT or MR of the head; the rows say the region only.
_MODALITIES = {"CHEST": "X-Ray", "ABD": "CT"}


def read(files: Files, split: str) -> DataSet:
    """The records of a split. RunError if no layout is there or a file is broken."""
    report = ReadReport(f"vqa_rad {split}")
    records = _read(files, split, report)
    others = [] if split == "test" else _read(files, "test", ReadReport("vqa_rad test"))
    return DataSet("vqa_rad", split, distinct(records, others, report), report)


def _read(files: Files, split: str, report: ReadReport) -> list[Record]:
    """The records of a split with their repetitions; [] if the layout is there but this split is not."""
    if split != "train_and_frames" and any(hf_parquet.shards(files, s) for s in ("train", "test")):
        return list(_hf(files, split, report))
    osf = files.find(_OSF)
    if split != "train_and_frames" and osf:
        return list(_raw(files, split, _osf_rows(files, osf, split, report), report))
    if files.find(*_MEVF.values()):
        return list(_raw(files, split, _mevf_rows(files, split, report), report))
    wanted = (
        _MEVF["train"]
        if split == "train_and_frames"
        else f"train-*.parquet, test-*.parquet, {_OSF} or {_MEVF['train']}"
    )
    raise RunError(f"{files.root} holds no {wanted} of VQA-RAD")


class _Said(NamedTuple):
    """What the raw layouts say of a question; "" where they do not."""

    answer_type: str
    kind: str
    organ: str


def _said(row: dict[str, Any]) -> _Said:
    return _Said(
        text(row.get("answer_type")).upper(), _kind(text(row.get("question_type"))), text(row.get("image_organ"))
    )


def _kind(labels: str) -> str:
    """Labels in one spelling and order: "pos, PRSE " -> "POS, PRES"."""
    names = {label.strip().upper() for label in labels.split(",")} - {""}
    return ", ".join(sorted(_MISSPELT.get(name, name) for name in names))


def _answer_type(said: _Said, answer: str) -> AnswerType:
    closed = said.answer_type == "CLOSED" and not is_yes_no(answer)
    return AnswerType.CLOSED if closed else derived_type(answer)


def _record(split: str, row_id: str, image, question: str, answer: str, said: _Said) -> Record:
    return Record(
        id=f"vqa_rad/{split}/{row_id}",
        dataset="vqa_rad",
        split=split,
        kind=said.kind or UNKNOWN,
        images=(image,),
        question=question,
        answer=answer,
        answer_type=_answer_type(said, answer),
        modality=_MODALITIES.get(said.organ, ""),
    )


def _hf(files: Files, split: str, report: ReadReport) -> Iterator[Record]:
    side = _side(files)
    for row_id, row in hf_parquet.rows(files, hf_parquet.shards(files, split)):
        report.rows += 1
        question, answer = text(row.get("question")), text(row.get("answer"))
        said = side.get((fold(question), fold(answer)))
        if not question or not answer:
            report.drop(row_id, "no question or no answer")
        elif row.get("image") is None:
            report.drop(row_id, "no image")
        else:
            if said and said.answer_type:
                report.note("answer type from the raw layout beside it")
            yield _record(split, row_id, row["image"], question, answer, said or _Said("", "", ""))


def _side(files: Files) -> dict[tuple[str, str], _Said]:
    """(question, answer) -> what the raw layouts beside the parquet files say, where they do not contradict themselves."""
    found = defaultdict(set)
    for name in (files.find(_OSF), *(files.find(name) for name in _MEVF.values())):
        for row in object_rows(files, name) if name else ():
            found[fold(text(row.get("question"))), fold(text(row.get("answer")))].add(_said(row))
    agreed = lambda values: values.pop() if len(values) == 1 else ""
    return {
        key: _Said(*(agreed(set(values)) for values in zip(*sayings, strict=True))) for key, sayings in found.items()
    }


def _osf_rows(files: Files, name: str, split: str, report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(object_rows(files, name)):
        row_id, phrase = text(row.get("qid")) or f"row {number}", text(row.get("phrase_type"))
        if phrase not in _PHRASES:
            report.rows += 1
            report.drop(row_id, "phrase_type is none of " + ", ".join(_PHRASES))
        elif _PHRASES[phrase] == split:
            report.rows += 1
            yield row_id, row


def _mevf_rows(files: Files, split: str, report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    name = files.find(_MEVF["test" if split == "test" else "train"])
    for number, row in enumerate(object_rows(files, name) if name else ()):
        report.rows += 1
        row_id = text(row.get("qid")) or f"row {number}"
        if text(row.get("phrase_type")) == "frame" and split == "train":
            report.drop(row_id, "frame question")
        else:
            yield row_id, row


def _raw(files: Files, split: str, rows: Iterable[tuple[str, dict[str, Any]]], report: ReadReport) -> Iterator[Record]:
    for row_id, row in rows:
        question, answer, image = (text(row.get(field)) for field in ("question", "answer", "image_name"))
        found = image and files.find(f"VQA_RAD Image Folder/{image}", f"images/{image}", image)
        if not question or not answer:
            report.drop(row_id, "no question or no answer")
        elif not found:
            report.drop(f"{row_id}: {image or 'no name'}", "image missing")
        else:
            if isinstance(row["answer"], int):
                report.note("answer is a number in the file")
            yield _record(split, row_id, FileImage(files, found), question, answer, _said(row))
