"""Tasks in the layouts of MedXpertQA. Tasks without options are left out.

    hub       MM/<split>.jsonl with images.zip and, as there, a text-only part beside it
    github    medxpertqa_mm_input.jsonl (the test split), the input of the evaluation code, with a folder of images

For what real files have: the first task's image is named .JPG, and the second task has two images.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from mvg_jax.data.exporters.common import encode_image
from mvg_jax.data.exporters.multiple_choice import detail, lettered
from mvg_jax.data.images import to_8bit
from mvg_jax.data.task import Task
from mvg_jax.errors import RunError

LAYOUTS = ("hub", "github")
SPLITS = {"hub": ("dev", "test"), "github": ("test",)}
OPTIONS = 5

_NAMES = {"test": "MM-", "dev": "MM-dev-"}


def export(tasks: Sequence[Task], folder: Path, split: str, layout: str) -> None:
    """Writes the questions and adds the images. RunError for a split the layout lacks; FileExistsError for a file that is there."""
    if split not in SPLITS[layout]:
        raise RunError(f"layout {layout} of medxpertqa has the splits {', '.join(SPLITS[layout])}, not {split!r}")
    if layout == "github":
        (folder / "images").mkdir(exist_ok=True)
        with open(folder / "medxpertqa_mm_input.jsonl", "x", encoding="utf-8") as file:
            for row, images in _rows(tasks, split):
                file.write(json.dumps(_evaluation_form(row)) + "\n")
                for name, content in images.items():
                    (folder / "images" / name).write_bytes(content)
        return
    for part in ("MM", "Text"):
        (folder / part).mkdir(exist_ok=True)
    text_only = _row("Text-0", "Which organ makes insulin?", ("Pancreas", "Liver", "Spleen", "Kidney", "Stomach"), "A")
    with (
        open(folder / "MM" / f"{split}.jsonl", "x", encoding="utf-8") as file,
        open(folder / "Text" / f"{split}.jsonl", "x", encoding="utf-8") as text_file,
        zipfile.ZipFile(folder / "images.zip", "a") as archive,
    ):
        text_file.write(json.dumps(text_only) + "\n")
        for row, images in _rows(tasks, split):
            file.write(json.dumps(row) + "\n")
            for name, content in images.items():
                archive.writestr(f"images/{name}", content)


def _rows(tasks: Sequence[Task], split: str) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """(row as the hub has it, its image files) of each task with options."""
    for index, task in enumerate(task for task in tasks if task.options):
        pictures = [to_8bit(image) for image in task.images]
        name, suffix = f"{_NAMES[split]}{index}", "JPG" if index == 0 else "jpeg"
        images = {
            f"{name}-{place}.{suffix}": encode_image(p, "JPEG")
            for place, p in zip(ascii_lowercase, pictures, strict=False)
        }
        if index == 1:
            images[f"{name}-{ascii_lowercase[len(images)]}.png"] = encode_image(detail(pictures[0]), "PNG")
        yield _row(name, task.question, *lettered(task, index, OPTIONS)) | {"images": list(images)}, images


def _row(name: str, question: str, options: Sequence[str], letter: str) -> dict[str, Any]:
    choices = dict(zip(ascii_uppercase, options, strict=False))
    tail = " ".join(f"({key}) {text}" for key, text in choices.items())
    return {
        "id": name,
        "question": f"{question}\nAnswer Choices: {tail}",
        "options": choices,
        "label": letter,
        "medical_task": "Diagnosis",
        "body_system": "Digestive",
        "question_type": "Reasoning",
    }


def _evaluation_form(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "options": [{"letter": letter, "content": text} for letter, text in row["options"].items()],
        "label": [row["label"]],
        "images": [{"image_path": name} for name in row["images"]],
    }
