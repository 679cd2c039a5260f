"""SLAKE: 642 CT, MR and X-ray images with questions in English and Chinese, boxes, masks and a knowledge graph. CC-BY-4.0.

Expects `train.json`, `validation.json` (originally `validate.json`) and `test.json`, and beside them `imgs/xmlab<N>/` or
`imgs.zip` with `source.jpg`, `mask.png` and `detection.json` of each image, `mask.txt`, and `KG/*.csv` or `KG.zip`.

A split is English: "train". "train_zh" is its Chinese part, "train_all" both. The published splits share no image within a
language, but 72 of the 96 English test images are in the Chinese train split: train on "train_zh" or "train_all" and you
train on test images.

Boxes are everything that detection.json marks in the image, whatever is asked.
"""

import csv
import io
import math
import re

import numpy as np
from PIL import Image

from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, FileImage
from mvg_jax.data.modality import spelt
from mvg_jax.data.readers.text import field, json_list, squeeze
from mvg_jax.data.records import DataSet, ReadReport, Record, unique_id
from mvg_jax.data.task import AnswerType, Box
from mvg_jax.errors import RunError

_FILES = {"train": ("train.json",), "validation": ("validation.json", "validate.json"), "test": ("test.json",)}
_LANGUAGES = {"": ("en",), "zh": ("zh",), "all": ("en", "zh")}
SPLITS = tuple(f"{split}{suffix}" for suffix in ("", "_zh", "_all") for split in _FILES)

KINDS = ("Organ", "Position", "Abnormality", "KG", "Modality", "Size", "Plane", "Quantity", "Color", "Shape")
_KINDS = {kind.lower(): kind for kind in KINDS}

_YES = ("yes", "是", "是的", "对", "有", "包含", "存在", "可以", "能", "会")
_NO = ("no", "否", "不", "不是", "不对", "没有", "无", "不包含", "不存在", "不可以", "不能", "不会")
# These say yes or no only to a question that asks for the normal, so they are yes or no only there.
_NORMAL = {"正常": _YES, "不正常": _NO, "异常": _NO}
_ASKS_NORMAL = re.compile("(?<!不)正常")
_NUMBER = re.compile(r"\d+(\.\d+)?( ?(mm|cm))?")
# Orders of a line of mask.txt. Names may begin or end with a number too: the order that fits more lines is the file's.
_NUMBER_FIRST = re.compile(r"\s*(?P<id>\d+)\W+(?P<label>\w.*?)\s*")
_NUMBER_LAST = re.compile(r"\s*(?P<label>\w.*?)\W+(?P<id>\d+)\W*")
_COMMAS = re.compile("[,，、]")


def read(files: Files, split: str) -> DataSet:
    """The records of a split. RunError when its file is missing or is no list."""
    published, _, suffix = split.partition("_")
    name = files.need(*_FILES[published])
    report, records, ids, seen = ReadReport(f"slake/{split}"), [], set(), {}
    for number, row in enumerate(json_list(files, name)):
        language = field(row, "q_lang").lower() if isinstance(row, dict) else ""
        if language in ("en", "zh") and language not in _LANGUAGES[suffix]:
            report.note("a question in another language, not asked for")
            continue
        report.rows += 1
        if reason := _fault(row, language):
            report.drop(f"row {number}", reason)
            continue
        path = row["img_name"]
        if path not in seen:
            seen[path] = _image(files, path, report)
        image, boxes = seen[path]
        if image is None:
            report.drop(f"row {number}: {path}", "no such image, or an unreadable one")
            continue
        qid = field(row, "qid") or f"row{number}"
        name = unique_id(f"slake/{published}/{qid}", ids, report)
        records.append(_record(name, published, row, language, image, boxes))
    return DataSet("slake", split, tuple(records), report)


def masks(record: Record) -> dict[str, np.ndarray]:
    """Label -> bool [H, W] of what mask.png marks in the image of a SLAKE record, in its pixels; {} where there is no mask.

    Names are those of mask.txt, whose lines may say "1: Liver" or "Liver: 1". BadImage for a mask that is not one of ids,
    or not of the image's size; RunError for a mask.txt without a legible line.
    """
    image = record.images[0]
    name = _beside(image.files, image.name, "mask.png")
    if name is None:
        return {}
    try:
        picture = Image.open(io.BytesIO(image.files.read(name)))
        if picture.size != (size := _size(image)):
            raise BadImage(
                f"{name}: the mask is {picture.size[0]} x {picture.size[1]}, its image {size[0]} x {size[1]}"
            )
        ids = np.asarray(picture)
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise whatever comes over them on hostile bytes
        raise BadImage(f"{name}: {type(error).__name__}: {error}") from error
    if ids.ndim == 3:
        colours = ids[..., : 1 if ids.shape[2] == 2 else 3]  # what follows is transparency
        if (colours != colours[..., :1]).any():
            raise BadImage(f"{name}: a mask of ids has equal channels")
        ids = colours[..., 0]
    found = {label: np.isin(ids, list(numbers)) for label, numbers in _labels(image.files).items()}
    return {label: mask for label, mask in found.items() if mask.any()}


def knowledge(files: Files, language: str = "en") -> dict[str, dict[str, str]]:
    """The knowledge graph: entity -> relation -> value, as {"heart": {"function": "pump blood"}}; keys are in lower case.

    Several values of one relation are joined by commas. RunError when there is no graph, or a line is no triple.
    """
    start = "en_" if language == "en" else ""
    tables = [
        files.find(f"KG/{start}{table}.csv", f"{start}{table}.csv") for table in ("disease", "organ", "organ_rel")
    ]
    if not any(tables):
        raise RunError(f"{files.root} holds no KG/{start}disease.csv, KG/{start}organ.csv or KG/{start}organ_rel.csv")
    graph: dict[str, dict[str, list[str]]] = {}
    for name in filter(None, tables):
        for entity, relation, value in _triples(files, name):
            values = graph.setdefault(entity.lower(), {}).setdefault(relation.lower(), [])
            if value not in values:
                values.append(value)
    return {entity: {key: ", ".join(values) for key, values in facts.items()} for entity, facts in graph.items()}


def _fault(row, language: str) -> str | None:
    """Why a row cannot be used; None if it can."""
    if not isinstance(row, dict):
        return "no dictionary"
    if not language:
        return "no q_lang"
    if language not in ("en", "zh"):
        return "q_lang is neither en nor zh"
    for key in ("question", "answer"):
        if not field(row, key):
            return f"no {key}"
    if not isinstance(row.get("img_name"), str):
        return "no img_name"
    if field(row, "answer_type").upper() not in ("OPEN", "CLOSED"):
        return "answer_type is neither OPEN nor CLOSED"
    return None


def _record(name: str, split: str, row: dict, language: str, image: FileImage, boxes: tuple[Box, ...]) -> Record:
    """The record of a row without faults."""
    question, answer, kind = (field(row, key) for key in ("question", "answer", "content_type"))
    answer_type, accepted = _answer_type(row["answer_type"].strip().upper() == "CLOSED", question, answer)
    return Record(
        id=name,
        dataset="slake",
        split=split,
        kind="KG" if row.get("base_type") == "kvqa" else _KINDS.get(kind.lower(), kind),
        images=(image,),
        question=question,
        answer=answer,
        answer_type=answer_type,
        accepted=accepted,
        modality=spelt(field(row, "modality")),
        language=language,
        boxes=boxes,
    )


def _answer_type(closed: bool, question: str, answer: str) -> tuple[AnswerType, tuple[str, ...]]:
    """(type, other answers that are as right)."""
    said = answer.lower().rstrip(".。")
    if closed:
        if said in _NORMAL and not (
            _ASKS_NORMAL.search(question) and "不正常" not in question and "异常" not in question
        ):
            return AnswerType.CLOSED, ()
        same = _NORMAL.get(said) or next((words for words in (_YES, _NO) if said in words), ())
        accepted = () if said in ("yes", "no") else tuple(word for word in same if word != said)
        return (AnswerType.YES_NO if same else AnswerType.CLOSED), accepted
    if len([item for item in _COMMAS.split(answer) if item.strip()]) > 1:
        return AnswerType.LIST, ()
    return (AnswerType.NUMBER if _NUMBER.fullmatch(said) else AnswerType.OPEN), ()


def _image(files: Files, path: str, report: ReadReport) -> tuple[FileImage | None, tuple[Box, ...]]:
    """The image and its boxes; None when there is no such file, or none with a size."""
    name = files.find(path)
    if name is None:
        return None, ()
    image = FileImage(files, name)
    try:
        return image, _boxes(image, report)
    except BadImage:
        return None, ()


def _boxes(image: FileImage, report: ReadReport) -> tuple[Box, ...]:
    """What detection.json marks, [x, y, w, h] in pixels, as xyxy in 0..1000. Illegible entries are noted and left out."""
    width, height = _size(image)
    name = _beside(image.files, image.name, "detection.json")
    if name is None:
        return ()
    try:
        entries = json_list(image.files, name)
    except RunError:
        report.note("a detection.json that is no list of boxes, left out")
        return ()
    boxes = []
    for entry in entries:
        for label, xywh in entry.items() if isinstance(entry, dict) else ((None, None),):
            if not (isinstance(xywh, list) and len(xywh) == 4 and all(_finite(v) for v in xywh)):
                report.note("a box of detection.json that is not [x, y, w, h], left out")
                continue
            x, y, w, h = xywh
            (x1, x2), (y1, y2) = ((max(a, 0), min(a + d, side)) for a, d, side in ((x, w, width), (y, h, height)))
            if x1 >= x2 or y1 >= y2:
                report.note("a box of detection.json without area in its image, left out")
                continue
            xyxy = (1000 * x1 / width, 1000 * y1 / height, 1000 * x2 / width, 1000 * y2 / height)
            boxes.append(Box(squeeze(label), xyxy))
    return tuple(boxes)


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _size(image: FileImage) -> tuple[int, int]:
    """(width, height), from the file's header. BadImage when it is no image."""
    try:
        return Image.open(io.BytesIO(image.files.read(image.name))).size
    except Exception as error:  # as above
        raise BadImage(f"{image.name}: {type(error).__name__}: {error}") from error


def _beside(files: Files, name: str, other: str) -> str | None:
    return files.find("/".join([*name.split("/")[:-1], other]))


def _labels(files: Files) -> dict[str, set[int]]:
    """Label -> its ids, by mask.txt. A line without a number is a heading; the background, 0, is no label."""
    name = files.need("mask.txt")
    lines = _decoded(files, name).splitlines()
    first, last = ([m for m in map(order.fullmatch, lines) if m] for order in (_NUMBER_FIRST, _NUMBER_LAST))
    labels: dict[str, set[int]] = {}
    for match in first if len(first) >= len(last) else last:
        if number := int(match["id"]):
            labels.setdefault(squeeze(match["label"]), set()).add(number)
    if not labels:
        raise RunError(f'{name} of {files.root}: no line reads "<number>: <name>" or "<name>: <number>"')
    return labels


def _triples(files: Files, name: str):
    """(entity, relation, value) of each line. The published tables have a heading and "#" between fields."""
    lines = _decoded(files, name).splitlines()
    separator = next((s for s in "#\t" if lines and s in lines[0]), ",")
    quoting = csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE
    try:
        rows = list(csv.reader(lines, delimiter=separator, quoting=quoting))
    except csv.Error as error:
        raise RunError(f"{name} of {files.root} is no table: {error}") from error
    for number, row in enumerate(rows, start=1):
        fields = [squeeze(cell) for cell in row]
        if number == 1 or not any(fields):
            continue
        if len(fields) < 3 or not all(fields[:3]):
            raise RunError(f"{name} of {files.root}, line {number}: needs entity, relation and value")
        yield fields[0], fields[1], ", ".join(filter(None, fields[2:]))


def _decoded(files: Files, name: str) -> str:
    """Text in UTF-8 or, as old Chinese files are, GB 18030."""
    content = files.read(name)
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise RunError(f"{name} of {files.root} is neither UTF-8 nor GB 18030")
