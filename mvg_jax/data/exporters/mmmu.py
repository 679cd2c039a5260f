"""Tasks in the layouts of MMMU: parquet with embedded images. Tasks without options are left out.

    hub     a folder a subject, as MMMU/MMMU
    lmms    all subjects in one file, as lmms-lab/MMMU

The tasks are dealt out to the five Health & Medicine subjects. For what real files have: the first task is made an open question
with two right spellings, the second is about two images that are named in reverse order, and the test split has no answers; they
lie in answer.json.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mvg_jax.data.exporters.common import answer_text, encode_image
from mvg_jax.data.exporters.multiple_choice import detail, lettered
from mvg_jax.data.images import to_8bit
from mvg_jax.data.readers.mmmu import KEY, MAX_IMAGES, SUBJECTS
from mvg_jax.data.task import Task
from mvg_jax.errors import RunError

LAYOUTS = ("hub", "lmms")
SPLITS = ("dev", "validation", "test")

_IMAGES = tuple(f"image_{number}" for number in range(1, MAX_IMAGES + 1))
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "question", "options", "explanation")]
    + [(name, _IMAGE) for name in _IMAGES]
    + [(name, pa.string()) for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield")]
)
_BATCH = 50  # rows held in memory, and rows of a row group


def export(tasks: Sequence[Task], folder: Path, split: str, layout: str) -> None:
    """Writes the shards of a split. RunError for no such split or too many images, FileExistsError for a shard in the way."""
    if split not in SPLITS:
        raise RunError(f"mmmu can be written as {', '.join(SPLITS)}, not as {split!r}")
    key: dict[str, Any] = {}
    shard = f"{split}-00000-of-00001.parquet"
    if layout == "lmms":
        _write(folder / "data" / shard, _rows(tasks, split, range(len(tasks)), key))
    else:
        for first, subject in enumerate(SUBJECTS):
            dealt = range(first, len(tasks), len(SUBJECTS))
            _write(folder / subject / shard, _rows(tasks, split, dealt, key))
    if split == "test":
        (folder / KEY).write_text(json.dumps(key), encoding="utf-8")


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file, pq.ParquetWriter(file, _SCHEMA) as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, _SCHEMA))


def _rows(tasks: Sequence[Task], split: str, indices: range, key: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the tasks at `indices`. Adds to the key what the test split hides."""
    for index in indices:
        task, open_question = tasks[index], index == 0
        if not (task.options or open_question):
            continue
        if open_question:
            options, gold = (), [answer_text(task), answer_text(task).title()]
        else:
            options, gold = lettered(task, index, len(task.options))
        pictures = [to_8bit(image) for image in task.images]
        tokens = [f"<image {number}>" for number in range(1, len(pictures) + 1)]
        question = f"{' '.join(tokens)} {task.question}"
        if index == 1:
            pictures.append(detail(pictures[0]))
            question = f"<image {len(pictures)}> is the middle of {question}"
        if len(pictures) > MAX_IMAGES:
            raise RunError(f"{task.id}: mmmu has room for {MAX_IMAGES} images, not {len(pictures)}")
        name = f"{split}_{SUBJECTS[index % len(SUBJECTS)]}_{index // len(SUBJECTS) + 1}"
        if split == "test":
            key[name] = {"question_type": "short-answer" if open_question else "multiple-choice", "ground_truth": gold}
        yield {
            "id": name,
            "question": question,
            "options": str(list(options)),
            "explanation": "",
            **dict.fromkeys(_IMAGES),
            **{
                column: {"bytes": encode_image(pixels, "PNG")}
                for column, pixels in zip(_IMAGES, pictures, strict=False)
            },
            "img_type": "['Body Scans: MRI, CT scans, and X-rays']",
            "answer": "?" if split == "test" else str(gold),
            "topic_difficulty": "Medium",
            "question_type": "open" if open_question else "multiple-choice",
            "subfield": "Radiology",
        }
