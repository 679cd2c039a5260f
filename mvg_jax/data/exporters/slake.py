"""Tasks in the layouts of SLAKE. Tasks of several images are left out; several splits may be written into one folder.

    original    imgs/xmlab<N>/, KG/, mask.txt with "1: name" lines; the validation split is validate.json
    hub         imgs.zip, KG.zip, mask.txt with "name 1" lines; validation.json

Beside the tasks, for what real files have: of each image a Chinese question whose yes has a synonym; of images with several
labels an English one whose answer is a list; a question about the knowledge graph; masks in three colour modes; names of
answers in drifting case. Boxes become detection.json and, as ellipses, mask.png.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvg_jax.data.exporters.common import encode_image, writer
from mvg_jax.data.images import to_8bit
from mvg_jax.data.readers.slake import KINDS
from mvg_jax.data.task import AnswerType, Box, Task
from mvg_jax.errors import RunError

LAYOUTS = ("original", "hub")
SPLITS = ("train", "validation", "test")

_IMAGES_OF_A_SPLIT, _QUESTIONS_OF_A_SPLIT = 10**5, 10**6
_MASK_MODES = ("L", "RGB", "RGBA")
# Our kinds of question in SLAKE's words.
_KINDS = {"side": "Position", "compare": "Position", "count": "Quantity"} | {kind.lower(): kind for kind in KINDS}
_MASK_LINES = {"original": "{1}: {0}\n", "hub": "{0} {1}\n"}
_TABLES_THERE = {"original": "KG", "hub": "KG.zip"}
_SYNONYMS = {True: ("是的", "是", "包含"), False: ("不是", "不包含", "没有")}
_TABLES = {
    "en_disease": ("disease#attribute#value", "Simple Cyst#location#Liver, Kidney"),
    "en_organ": (
        "organ#attribute#value",
        "Liver#Function#Store nutrients, Produce bile",
        "Spleen#Function#Filter blood",
    ),
    "en_organ_rel": ("organ#attribute#value", "Liver#Belong to#Digestive System"),
    "disease": ("疾病#属性#值", "囊肿#部位#肝脏"),
    "organ": ("器官#属性#值", "肝脏#功能#分泌胆汁"),
    "organ_rel": ("器官#属性#值", "肝脏#属于#消化系统"),
}


def export(tasks: Sequence[Task], folder: Path, split: str, layout: str) -> None:
    """Writes questions and images. RunError for an unknown split or layout; FileExistsError for a split that is there."""
    if layout not in LAYOUTS or split not in SPLITS:
        raise RunError(f"slake has the layouts {', '.join(LAYOUTS)} and the splits {', '.join(SPLITS)}")
    folder.mkdir(parents=True, exist_ok=True)
    name = "validate" if (split, layout) == ("validation", "original") else split
    zips = ("imgs.zip", "KG.zip") if layout == "hub" else (None, None)
    first = 1 + _IMAGES_OF_A_SPLIT * SPLITS.index(split)
    ids, asked = _mask_ids(folder / "mask.txt", layout), {}
    with open(folder / f"{name}.json", "x", encoding="utf-8") as file:
        with writer(folder, zips[0]) as put:
            for task in tasks:
                if len(task.images) != 1:
                    continue
                key = hashlib.sha256(task.images[0].pixels.tobytes()).hexdigest()
                number = first + len(asked)
                if key in asked:
                    number = asked[key][0]["img_id"]
                else:
                    asked[key] = _extra_rows(number, task)
                    for beside, content in _files(task, number, ids).items():
                        put(f"imgs/xmlab{number}/{beside}", content)
                asked[key].append(_row(number, task, _answer(task, number)))
            rows = [row for rows_of_image in asked.values() for row in rows_of_image]
            for qid, row in enumerate(rows, start=_QUESTIONS_OF_A_SPLIT * SPLITS.index(split)):
                row["qid"] = qid
            for rows_of_image in asked.values():
                content = json.dumps(rows_of_image, ensure_ascii=False).encode()
                put(f"imgs/xmlab{rows_of_image[0]['img_id']}/question.json", content)
        json.dump(rows, file, ensure_ascii=False, indent=1)
    (folder / "mask.txt").write_text("".join(_MASK_LINES[layout].format(*item) for item in ids.items()), "utf-8")
    if not (folder / _TABLES_THERE[layout]).exists():
        with writer(folder, zips[1]) as put:
            for table, lines in _TABLES.items():
                put(f"KG/{table}.csv", "\n".join(lines).encode())


def _row(number: int, task: Task, answer: str, **other: Any) -> dict[str, Any]:
    closed = bool(task.options) or task.answer_type in (AnswerType.YES_NO, AnswerType.CLOSED)
    return {
        "img_id": number,
        "img_name": f"xmlab{number}/source.jpg",
        "question": task.question,
        "answer": answer,
        "q_lang": "en",
        "location": "Abdomen",
        "modality": task.modality or "CT",
        "answer_type": "CLOSED" if closed else "OPEN",
        "base_type": "vqa",
        "content_type": _KINDS.get(task.kind.lower(), "Abnormality"),
        "triple": ["vhead", "_", "_"],
    } | other


def _answer(task: Task, number: int) -> str:
    """The answer's text, its words capitalised for images of odd number."""
    text = task.options[ord(task.answer) - ord("A")] if task.answer_type == AnswerType.CHOICE else task.answer
    return text.title() if number % 2 else text.capitalize()


def _extra_rows(number: int, task: Task) -> list[dict[str, Any]]:
    """Questions about the task's image that need no certificate: Chinese, a list, knowledge."""
    is_ct = (task.modality or "CT") == "CT"
    chinese = {"question": "这是CT图像吗？", "q_lang": "zh", "answer_type": "CLOSED", "content_type": "Modality"}
    rows = [_row(number, task, _SYNONYMS[is_ct][number % 3]) | chinese]
    labels = list(dict.fromkeys(box.label for box in task.boxes))
    if len(labels) > 1:
        listed = {"question": "What is marked in this image?", "answer_type": "OPEN", "content_type": "Abnormality"}
        rows.append(_row(number, task, ", ".join(labels)) | listed)
    if number % 5 == 1:
        known = {
            "question": "Which organ system does the liver belong to?",
            "answer_type": "OPEN",
            "content_type": "KG",
        }
        triple = {"base_type": "kvqa", "triple": ["Liver", "Belong to", "_"]}
        rows.append(_row(number, task, "Digestive System") | known | triple)
    return rows


def _files(task: Task, number: int, ids: dict[str, int]) -> dict[str, bytes]:
    """The image and what lies beside it. New labels get their ids."""
    pixels = to_8bit(task.images[0])
    height, width = pixels.shape[:2]
    detection = [{box.label: _xywh(box, height, width)} for box in task.boxes]
    mask = np.zeros((height, width), np.uint8)
    for box in task.boxes:
        number_of_label = ids.setdefault(box.label, len(ids) + 1)
        if number_of_label > 255:
            raise RunError("mask.png holds 255 labels, and there are more")
        mask[_ellipse(box, height, width)] = number_of_label
    return {
        "source.jpg": encode_image(pixels, "JPEG"),
        "mask.png": encode_image(mask, "PNG", _MASK_MODES[number % len(_MASK_MODES)]),
        "detection.json": json.dumps(detection).encode(),
    }


def _xywh(box: Box, height: int, width: int) -> list[float]:
    x1, y1, x2, y2 = np.array(box.xyxy) / 1000 * [width, height, width, height]
    return [round(float(v), 1) for v in (x1, y1, x2 - x1, y2 - y1)]


def _ellipse(box: Box, height: int, width: int) -> np.ndarray:
    """bool [height, width]: the pixels whose centre lies in the ellipse that fits the box."""
    x1, y1, x2, y2 = np.array(box.xyxy) / 1000 * [width, height, width, height]
    y, x = np.ogrid[0.5 : height + 0.5, 0.5 : width + 0.5]
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1


def _mask_ids(path: Path, layout: str) -> dict[str, int]:
    """Label -> id, of the splits written before."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.split(": ", 1)[::-1] if layout == "original" else line.rsplit(" ", 1) for line in lines)
    return {label: int(number) for label, number in pairs}
