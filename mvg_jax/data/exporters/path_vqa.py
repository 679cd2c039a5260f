"""Tasks in the layouts of PathVQA; see `mvg_jax.data.readers.path_vqa`, which reads them back.

hf        `data/<split>-0000k-of-0000n-<hash>.parquet`, two shards where there are two rows or more.
original  `qas/<split>/<split>_qa.pkl` and `images/<split>/`; the validation split is called "val".

What is odd about the published files is odd here too: answers in lower case, the first image CMYK; in the original layout the
first row once more at the end, and images named without ".jpg".
"""

import pathlib
import pickle
from collections.abc import Sequence

from mvg_jax.data.exporters.common import answer_text, encode_image, only_image
from mvg_jax.data.exporters.hf_parquet import write_parquet
from mvg_jax.data.images import to_8bit
from mvg_jax.data.task import Task
from mvg_jax.errors import RunError

LAYOUTS = ("hf", "original")
SPLITS = ("train", "validation", "test")
_SHORT = {"train": "train", "validation": "val", "test": "test"}


def export(tasks: Sequence[Task], folder: pathlib.Path, split: str, layout: str) -> None:
    """Writes the tasks below `folder` as a split of one of LAYOUTS. RunError for another, or a task of several images."""
    if layout not in LAYOUTS or split not in SPLITS:
        raise RunError(
            f"PathVQA has the layouts {', '.join(LAYOUTS)} and the splits {', '.join(SPLITS)}, not {layout}, {split}"
        )
    short = _SHORT[split]
    names = [f"{short}_{i:04d}" for i in range(len(tasks))]
    texts = [{"question": task.question, "answer": answer_text(task).lower()} for task in tasks]
    files = [encode_image(to_8bit(only_image(task)), "JPEG", "RGB" if i else "CMYK") for i, task in enumerate(tasks)]
    if layout == "hf":
        rows = [
            {"image": {"bytes": content, "path": f"{name}.jpg"}} | words
            for name, content, words in zip(names, files, texts, strict=True)
        ]
        shards = min(2, len(rows))
        for k in range(shards):
            share = rows[k * len(rows) // shards : (k + 1) * len(rows) // shards]
            write_parquet(folder / "data" / f"{split}-{k:05d}-of-{shards:05d}-0123456789abcdef.parquet", share)
        return
    images, questions = folder / "images" / short, folder / "qas" / short
    images.mkdir(parents=True, exist_ok=True)
    questions.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, files, strict=True):
        (images / f"{name}.jpg").write_bytes(content)
    rows = [{"image": name} | words for name, words in zip(names, texts, strict=True)]
    (questions / f"{short}_qa.pkl").write_bytes(pickle.dumps([*rows, *rows[:1]]))
