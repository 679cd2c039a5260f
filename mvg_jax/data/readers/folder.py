"""Your own data: images in a folder and questions about them, one JSON object a line.

A folder (or a zip of one) holds `train.jsonl`, `validation.jsonl` and `test.jsonl`, as many of them as you have, or one
`questions.jsonl` whose lines say their `split`. If there is a `<split>.jsonl`, it alone is read for this split.

    {"id": "p7-1", "images": ["p7/chest.dcm"], "question": "Is there an effusion?", "answer": "yes"}
    {"id": "p7-2", "images": ["p7/chest.dcm"], "question": "Which side?", "answer": "left", "options": ["left", "right"],
     "boxes": [{"label": "effusion", "xyxy_1000": [520, 610, 880, 930]}], "modality": "X-Ray", "split": "train"}

(each on one line). Fields; those with a star are needed:

id *            text or a whole number, each used once
images *        list of one or more paths, relative to the jsonl file, with "/": DICOM, PNG, JPEG, TIFF (8 and 16 bits) and whatever
                else Pillow reads. A file inside a zip that lies there is "images.zip/p7/chest.png"
question *      text
answer *        text; for a number, box or letter as `answer_type` says
split           "train", "validation" or "test"; needed in questions.jsonl, and elsewhere nothing but the file's own
options         list of two or more different texts, at most 26: the answers to choose from, the right one spelt as in `answer`;
                not with list and box
answer_type     yes_no    "yes" or "no" in English, the words of the language otherwise
                closed    one of few answers
                open      free words
                choice    a letter of `options`, which are shown with letters: "B"
                number    2, "2.5" or "12 mm"
                list      items between commas, in any order
                box       [x1, y1, x2, y2] in 0..1000 of the first image, as a list or a text
                Left out: with `options`, "closed" where the answer is one of their texts, "choice" where it is a letter of them;
                without, "yes_no" for yes and no, otherwise "open"
tolerance       only with answer_type number: the largest relative error that is right, 0.1 = 10 %; from 0 to below 1. 0 if left out:
                then counts must be equal, and measurements round to `answer`
accepted        list of other answers that are as right
kind            what is asked about, for tables: "organ", "size", ...; "question" if left out
modality        "CT", "MRI", "X-Ray", ... (common spellings are made one)
language        "en" if left out, "zh", ...
boxes           list of {"label": text, "xyxy_1000": [x1, y1, x2, y2], "image": number}: what is to be seen where. In thousandths of
                the image's width and height from its top left corner, x1 < x2, y1 < y2. `image` counts from 0 and may be left out.
                Pixels are not taken: from width w and height h, x * 1000 / w and y * 1000 / h
chain           list of {"name": tool, "arguments": {...}}: the shortest tool calls that make the question answerable; [] = none
                needed; left out = not known

Any other field is an error, so that a slip of the pen is not passed over. A line with an error is left out and named with its
number and reason; a split without one good line is an error. Images are opened when they are needed: one that cannot be read is
skipped, counted and named then.
"""

import json
import math
import posixpath
import re
import string

from mvg_jax.data.files import Files
from mvg_jax.data.images import FileImage
from mvg_jax.data.modality import spelt
from mvg_jax.data.readers.text import field, lines, parse_json
from mvg_jax.data.records import BadRow, DataSet, ReadReport, Record
from mvg_jax.data.task import AnswerType, Box
from mvg_jax.errors import RunError
from mvg_jax.tools.spec import ToolCall

SPLITS = ("train", "validation", "test")
FIELDS = (
    "id", "images", "question", "answer", "split", "options", "answer_type", "tolerance", "accepted", "kind", "modality",
    "language", "boxes", "chain",
)  # fmt: skip
_NUMBER = re.compile(r"-?\d+(\.\d+)?( ?\S+)?")
_TYPES = ", ".join(AnswerType)


def read(files: Files, split: str) -> DataSet:
    """The records of a split. RunError when its file is missing or has no good line for it, with the lines' faults."""
    name = files.need(f"{split}.jsonl", "questions.jsonl")
    whole_file = name.lower().endswith(f"{split}.jsonl")
    names, report, records, ids = set(files.names), ReadReport(f"folder/{split}"), [], set()
    for number, line in lines(files, name):
        report.rows += 1
        try:
            row = _row(line)
            said = row.get("split", split if whole_file else None)
            if said not in SPLITS:
                raise BadRow(f"split: use one of {', '.join(SPLITS)}")
            if said != split and whole_file:
                raise BadRow(f"split: a line of another split in {name}")
            if said != split:
                report.rows -= 1
                continue
            record = _record(files, names, posixpath.dirname(name), row, split)
            if record.id in ids:
                raise BadRow("id: used before")
        except BadRow as fault:
            report.drop(f"line {number}", str(fault))
            continue
        ids.add(record.id)
        records.append(record)
    if not records:
        raise RunError(f"{name} of {files.root} has no good line for {split}: {report}")
    return DataSet("folder", split, tuple(records), report)


def _row(line: str) -> dict:
    try:
        row = parse_json(line, "the line")
    except RunError as error:
        raise BadRow("no JSON") from error
    if not isinstance(row, dict):
        raise BadRow("no JSON object")
    if unknown := sorted(set(row) - set(FIELDS)):
        raise BadRow(f"unknown field {unknown[0]!r}")
    return row


def _record(files: Files, names: set[str], folder: str, row: dict, split: str) -> Record:
    """The record of a line. Raises BadRow."""
    paths = [posixpath.normpath(posixpath.join(folder, path)) for path in _texts(row, "images", least=1)]
    if missing := [path for path in paths if path not in names]:
        raise BadRow(f"images: no file {missing[0]}")
    options = _texts(row, "options")
    if len(options) == 1 or len(options) > 26 or len({option.lower() for option in options}) < len(options):
        raise BadRow("options: two or more different ones, at most 26")
    answer_type, answer = _answer(row, options)
    return Record(
        id=f"folder/{_needed(row, 'id')}",
        dataset="folder",
        split=split,
        kind=_optional(row, "kind", "question"),
        images=tuple(FileImage(files, path) for path in paths),
        question=_needed(row, "question"),
        answer=answer,
        answer_type=answer_type,
        options=options,
        accepted=_texts(row, "accepted"),
        modality=spelt(_optional(row, "modality", "")),
        language=_optional(row, "language", "en"),
        boxes=tuple(_box(box, len(paths)) for box in _items(row, "boxes")),
        chain=tuple(_call(call) for call in _items(row, "chain")) if "chain" in row else None,
        tolerance=_tolerance(row, answer_type),
    )


def _needed(row: dict, key: str) -> str:
    if not (value := field(row, key)):
        raise BadRow(f"{key}: needs text")
    return value


def _optional(row: dict, key: str, default: str) -> str:
    if key not in row:
        return default
    if not isinstance(row[key], str):
        raise BadRow(f"{key}: needs text")
    return row[key].strip() or default


def _items(row: dict, key: str) -> list:
    if not isinstance(row.get(key, []), list):
        raise BadRow(f"{key}: needs a list")
    return row.get(key, [])


def _texts(row: dict, key: str, least: int = 0) -> tuple[str, ...]:
    values = _items(row, key)
    if len(values) < least or not all(isinstance(value, str) and value.strip() for value in values):
        raise BadRow(f"{key}: needs a list of texts")
    return tuple(values)


def _answer(row: dict, options: tuple[str, ...]) -> tuple[AnswerType, str]:
    """(type, answer as text), by the rules of the format."""
    given = row.get("answer_type")
    if given is not None and given not in tuple(AnswerType):
        raise BadRow(f"answer_type: use one of {_TYPES}")
    value = row.get("answer")
    if given == AnswerType.BOX:
        if options:
            raise BadRow("options: not with answer_type box")
        return AnswerType.BOX, _box_answer(value)
    if given == AnswerType.NUMBER and isinstance(value, float) and math.isfinite(value):
        return AnswerType.NUMBER, repr(value)
    answer = _needed(row, "answer")
    letters = string.ascii_uppercase[: len(options)]
    is_text, is_letter = answer in options, len(answer) == 1 and answer in letters
    if given is None:
        if options and is_text == is_letter:
            raise BadRow(
                "answer: both an option's text and a letter"
                if is_text
                else "answer: none of the options, nor its letter"
            )
        if options:
            return (AnswerType.CLOSED if is_text else AnswerType.CHOICE), answer
        return (AnswerType.YES_NO if answer.lower() in ("yes", "no") else AnswerType.OPEN), answer
    match AnswerType(given):
        case AnswerType.CHOICE if not is_letter:
            raise BadRow("answer: no letter of the options")
        case AnswerType.LIST if options:
            raise BadRow("options: not with answer_type list")
        case AnswerType.YES_NO if row.get("language", "en") == "en" and answer.lower() not in ("yes", "no"):
            raise BadRow("answer: neither yes nor no")
        case AnswerType.NUMBER if not _NUMBER.fullmatch(answer):
            raise BadRow("answer: no number")
        case AnswerType.YES_NO | AnswerType.CLOSED | AnswerType.OPEN | AnswerType.NUMBER if options and not is_text:
            raise BadRow("answer: none of the options")
    return AnswerType(given), answer


def _tolerance(row: dict, answer_type: AnswerType) -> float:
    if "tolerance" not in row:
        return 0.0
    if answer_type != AnswerType.NUMBER:
        raise BadRow("tolerance: only with answer_type number")
    if type(row["tolerance"]) not in (int, float) or not 0 <= row["tolerance"] < 1:
        raise BadRow("tolerance: needs a number from 0 to below 1, 0.1 = 10 %")
    return float(row["tolerance"])


def _box_answer(value) -> str:
    if isinstance(value, str):
        try:
            value = parse_json(value, "the answer")
        except RunError as error:
            raise BadRow("answer: no box") from error
    return json.dumps(_xyxy(value, "answer"))


def _box(box, images: int) -> Box:
    if not isinstance(box, dict) or set(box) - {"label", "xyxy_1000", "image"}:
        raise BadRow("boxes: each has label, xyxy_1000 and, if you like, image")
    label, image = box.get("label"), box.get("image", 0)
    if not (isinstance(label, str) and label.strip()):
        raise BadRow("boxes: label needs text")
    if type(image) is not int or not 0 <= image < images:
        raise BadRow("boxes: image counts the images from 0")
    return Box(label, tuple(map(float, _xyxy(box.get("xyxy_1000"), "boxes"))), image)


def _xyxy(value, key: str) -> list:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    if not (numbers and 0 <= value[0] < value[2] <= 1000 and 0 <= value[1] < value[3] <= 1000):
        raise BadRow(f"{key}: needs [x1, y1, x2, y2] in thousandths of the image, x1 < x2, y1 < y2")
    return value


def _call(call) -> ToolCall:
    if not (
        isinstance(call, dict)
        and set(call) == {"name", "arguments"}
        and isinstance(call["name"], str)
        and isinstance(call["arguments"], dict)
    ):
        raise BadRow("chain: each call has a name and arguments")
    return ToolCall(call["name"], call["arguments"])
