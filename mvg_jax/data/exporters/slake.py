"""Tasks in the layouts of SLAKE. Tasks of several images are left out; several splits may be written into one folder.

    original    imgs/xmlab<N>/, KG/, mask.txt with "1: name" lines; the validation split is validate.json
    hub         imgs.zip, KG.zip, mask.txt with "name 1" lines; validation.json

Beside the tasks, for what real files have: of each image a Chinese question whose yes has a synonym; of images with several
labels an English one whose answer is a list; a question about the knowledge graph; masks in three colour modes; names of
answers in drifting case. Boxes become detection.json and, as ellipses, mask.png.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvg_jax.data.exporters.common import encode_image, to_8bit
from mvg_jax.data.readers.slake import KINDS
from mvg_jax.data.task import AnswerType, Box, Task
from mvg_jax.errors import RunError

LAYOUTS = ("original", "hub")
SPLITS = ("train", "validation", "test")

_IMAGES_OF_A_SPLIT, _QUESTIONS_OF_A_SPLIT = 10**5, 10**6
_MASK_MODES = ("L", "RGB", "RGBA")
# Our kinds of question in SLAKE's words.
_KINDS = {"side": "Position", "compare": "Position", "count": "Quantity"} | {kind.lower(): kind for kind in KINDS}
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
    tasks = [task for task in tasks if len(task.images) == 1]
    ids = _mask_ids(folder / "mask.txt", [box.label for task in tasks for box in task.boxes], layout)
    by_image: dict[str, list[Task]] = {}
    for task in tasks:
        by_image.setdefault(hashlib.sha256(task.images[0].pixels.tobytes()).hexdigest(), []).append(task)
    rows: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    for number, group in enumerate(by_image.values(), start=1 + _IMAGES_OF_A_SPLIT * SPLITS.index(split)):
        asked = [_row(number, task, _answer(task, number)) for task in group] + _extra_rows(number, group[0])
        first = _QUESTIONS_OF_A_SPLIT * SPLITS.index(split) + len(rows)
        asked = [row | {"qid": first + i} for i, row in enumerate(asked)]
        files |= {
            f"imgs/xmlab{number}/{name}": content for name, content in _files(number, group[0], ids, asked).items()
        }
        rows += asked
    name = "validate" if (split, layout) == ("validation", "original") else split
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.json", "x", encoding="utf-8") as file:
        json.dump(rows, file, ensure_ascii=False, indent=1)
    _add(folder, "imgs", files, layout)
    _add(folder, "KG", {f"KG/{name}.csv": "\n".join(lines).encode() for name, lines in _TABLES.items()}, layout)


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


def _files(number: int, task: Task, ids: dict[str, int], rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """What lies beside an image, and the image."""
    pixels = to_8bit(task.images[0])
    height, width = pixels.shape[:2]
    detection = [{box.label: _xywh(box, height, width)} for box in task.boxes]
    mask = np.zeros((height, width), np.uint8)
    for box in task.boxes:
        mask[_ellipse(box, height, width)] = ids[box.label]
    return {
        "source.jpg": encode_image(pixels, "JPEG"),
        "mask.png": encode_image(mask, "PNG", _MASK_MODES[number % len(_MASK_MODES)]),
        "detection.json": json.dumps(detection).encode(),
        "question.json": json.dumps(rows, ensure_ascii=False).encode(),
    }


def _xywh(box: Box, height: int, width: int) -> list[float]:
    x1, y1, x2, y2 = np.array(box.xyxy) / 1000 * [width, height, width, height]
    return [round(float(v), 1) for v in (x1, y1, x2 - x1, y2 - y1)]


def _ellipse(box: Box, height: int, width: int) -> np.ndarray:
    """bool [height, width]: the pixels whose centre lies in the ellipse that fits the box."""
    x1, y1, x2, y2 = np.array(box.xyxy) / 1000 * [width, height, width, height]
    y, x = np.ogrid[0.5 : height + 0.5, 0.5 : width + 0.5]
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1


def _mask_ids(path: Path, labels: Sequence[str], layout: str) -> dict[str, int]:
    """Label -> id; new labels are added to mask.txt, which need not be there."""
    pattern = re.compile(r"(?P<id>\d+): (?P<label>.+)" if layout == "original" else r"(?P<label>.+) (?P<id>\d+)")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    ids = {match["label"]: int(match["id"]) for match in map(pattern.fullmatch, lines)}
    for label in labels:
        ids.setdefault(label, len(ids) + 1)
    if max(ids.values(), default=0) > 255:
        raise RunError(f"mask.png holds 255 labels, not {len(ids)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    line = "{id}: {label}\n" if layout == "original" else "{label} {id}\n"
    path.write_text("".join(line.format(id=id, label=label) for label, id in ids.items()), encoding="utf-8")
    return ids


def _add(folder: Path, archive: str, files: dict[str, bytes], layout: str) -> None:
    """Writes files, or adds those that are not there yet to a zip."""
    if layout == "original":
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return
    with zipfile.ZipFile(folder / f"{archive}.zip", "a") as file:
        there = set(file.namelist())
        for name, content in files.items():
            if name not in there:
                file.writestr(name, content)
