"""Tasks in the layouts of VQA-RAD; see `mvg_jax.data.readers.vqa_rad`, which reads them back.

hf      `data/<split>-00000-of-00001-<hash>.parquet`. Answers in lower case; no types, no names of images, no repeated rows.
osf     `VQA_RAD Dataset Public.json` and `VQA_RAD Image Folder/`. Both splits in one file: a second export adds its rows.
mevf    `trainset.json` or `testset.json`, and `images/`.

What is wrong with the published raw files is wrong here too. In osf and mevf: numbers as answers, question types misspelt, in
lower case and of two labels, phrases of two kinds, "NULL" for what is not known. In the training split besides: a blank after
an answer type, a tab in an answer of several words, the first row once more at the end, in mevf a frame question for every
third row. Tasks with one image in common share its file, so a task exported into both splits is the triplet they share.
"""

import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

from mvg_jax.data.exporters.common import answer_text, encode_image, only_image
from mvg_jax.data.exporters.hf_parquet import write_parquet
from mvg_jax.data.images import to_8bit
from mvg_jax.data.task import AnswerType, Task
from mvg_jax.errors import RunError

LAYOUTS = ("hf", "osf", "mevf")
SPLITS = ("train", "test")

_OSF = "VQA_RAD Dataset Public.json"
_ORGANS = {"": "ABD", "ct": "ABD", "x-ray": "CHEST", "mri": "HEAD"}
_KINDS = {
    "modality": "MODALITY", "sequence": "MODALITY", "plane": "PLANE", "organ": "ORGAN", "tissue": "ORGAN", "presence": "PRES",
    "structure": "PRES", "abnormality": "ABN", "window": "ABN", "side": "POS", "locate": "POS", "size": "SIZE", "count": "COUNT",
    "quantity": "COUNT", "attribute": "ATTRIB", "compare": "ATTRIB, POS", "colour": "COLOR",
}  # fmt: skip
_MISSPELT = {"ATTRIB": "ATRIB", "PRES": "PRSE", "OTHER": "Other"}
_FRAME_EVERY = 3


def export(tasks: Sequence[Task], folder: pathlib.Path, split: str, layout: str) -> None:
    """Writes the tasks below `folder` as a split of one of LAYOUTS. RunError for another, or a task of several images."""
    if layout not in LAYOUTS or split not in SPLITS:
        raise RunError(
            f"VQA-RAD has the layouts {', '.join(LAYOUTS)} and the splits {', '.join(SPLITS)}, not {layout}, {split}"
        )
    if layout == "hf":
        return _export_hf(tasks, folder, split)
    path = folder / (_OSF if layout == "osf" else f"{split}set.json")
    images = folder / ("VQA_RAD Image Folder" if layout == "osf" else "images")
    images.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8")) if layout == "osf" and path.exists() else []
    rows = [_row(task, i, images, split) for i, task in enumerate(tasks)]
    if split == "train":
        rows = _dirty(rows)
    if layout == "osf":
        rows = [_osf_row(row, split) for row in rows]
    elif split == "train":
        rows += [row | {"phrase_type": "frame"} for row in rows[::_FRAME_EVERY]]
    first = len(before) if layout == "osf" else 10**6 * SPLITS.index(split)
    numbered = [{"qid": first + i} | row for i, row in enumerate(rows)]
    path.write_text(json.dumps(before + numbered, indent=1), encoding="utf-8")


def _export_hf(tasks: Sequence[Task], folder: pathlib.Path, split: str) -> None:
    rows = [
        {
            "image": {"bytes": encode_image(to_8bit(only_image(task)), "JPEG", "RGB"), "path": None},
            "question": task.question,
            "answer": answer_text(task).lower(),
        }
        for task in tasks
    ]
    write_parquet(folder / "data" / f"{split}-00000-of-00001-0123456789abcdef.parquet", rows)


def _row(task: Task, number: int, images: pathlib.Path, split: str) -> dict[str, Any]:
    """What both raw layouts say of a task; its image is written."""
    pixels = to_8bit(only_image(task))
    name = f"synpic{zlib.crc32(pixels.tobytes())}.jpg"
    (images / name).write_bytes(encode_image(pixels, "JPEG", "RGB"))
    kind, answer = _KINDS.get(task.kind, "OTHER"), answer_text(task)
    open_ended = not task.options and task.answer_type in (AnswerType.OPEN, AnswerType.NUMBER, AnswerType.LIST)
    return {
        "phrase_type": ("freeform", "para")[number % 2],
        "image_name": name,
        "image_organ": _ORGANS.get(task.modality.lower(), "NULL"),
        "question": task.question,
        "question_type": _MISSPELT.get(kind, kind.lower()) if number % 5 == 4 else kind,
        "answer": int(answer) if answer.isascii() and answer.isdigit() else answer,
        "answer_type": "OPEN" if open_ended else "CLOSED",
    }


def _dirty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training rows with the blemishes that the published training split has."""
    dirty = [dict(row) for row in rows]
    for row in dirty:
        if isinstance(row["answer"], str):
            row["answer"] = row["answer"].replace(" ", " \t")
    for row in dirty[3::7]:
        row["answer_type"] += " "
    return [*dirty, *dirty[:1]]


def _osf_row(row: dict[str, Any], split: str) -> dict[str, Any]:
    missing = (
        "question_rephrase",
        "question_relation",
        "question_frame",
        "qid_linked_id",
        "image_case_url",
        "evaluation",
    )
    phrase = f"test_{row['phrase_type']}" if split == "test" else row["phrase_type"]
    return row | dict.fromkeys(missing, "NULL") | {"phrase_type": phrase}
