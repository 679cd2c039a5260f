"""Tasks in the layouts of PMC-VQA: `<split>.csv` beside a zip of images. Tasks without options are left out.

    v1    splits train, test, test_clean; images.zip
    v2    splits train_2, test_2; images_2.zip

Beside the tasks, for what real files have: a row whose answer is "N/A" and, in v1, two dirty rows that readers must drop.
"""

import csv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mvg_jax.data.exporters.common import encode_image, only_image
from mvg_jax.data.exporters.multiple_choice import lettered
from mvg_jax.data.images import to_8bit
from mvg_jax.data.readers.pmc_vqa import LETTERS
from mvg_jax.data.task import Task
from mvg_jax.errors import RunError

LAYOUTS = ("v1", "v2")
SPLITS = {"v1": ("train", "test", "test_clean"), "v2": ("train_2", "test_2")}

_CHOICES = tuple(f"Choice {letter}" for letter in LETTERS)
_COLUMNS = {
    "v1": ("Figure_path", "Question", "Answer", *_CHOICES, "Answer_label"),
    "v2": ("index", "Figure_path", "Caption", "Question", *_CHOICES, "Answer", "split"),
}
_ZIPS = {"v1": ("images.zip", "images"), "v2": ("images_2.zip", "figures")}
_PERSON = "Who is named in the image?"


def export(tasks: Sequence[Task], folder: Path, split: str, layout: str) -> None:
    """Writes the csv and adds to the zip. RunError for no such split or several images, FileExistsError for a csv in the way."""
    if split not in SPLITS[layout]:
        raise RunError(f"layout {layout} of pmc_vqa has the splits {', '.join(SPLITS[layout])}, not {split!r}")
    archive, inside = _ZIPS[layout]
    with (
        open(folder / f"{split}.csv", "x", newline="", encoding="utf-8") as file,
        zipfile.ZipFile(folder / archive, "a") as images,
    ):
        rows = csv.DictWriter(file, _COLUMNS[layout])
        rows.writeheader()
        for index, task in enumerate(task for task in tasks if task.options):
            figure = f"PMC{SPLITS[layout].index(split) + 1}{index:06d}_F1.jpg"
            images.writestr(f"{inside}/{figure}", encode_image(to_8bit(only_image(task)), "JPEG"))
            row = _row(layout, split, index, figure, task.question, *lettered(task, index, 4))
            rows.writerow(row)
            if index == 0:
                rows.writerows(_odd_rows(layout, split, figure, row))


def _row(
    layout: str, split: str, index: int, figure: str, question: str, options: Sequence[str], letter: str
) -> dict[str, str]:
    gap = {"v1": ("", "\xa0")[index % 2], "v2": " "}[layout]
    cells = {column: f" {name}:{gap}{text} " for column, name, text in zip(_CHOICES, LETTERS, options, strict=False)}
    cells |= {"Figure_path": figure, "Question": f"{question} "}
    if layout == "v1":
        return cells | {"Answer": options[LETTERS.index(letter)], "Answer_label": letter}
    return cells | {"index": str(index), "Caption": "A phantom.", "Answer": letter, "split": split.removesuffix("_2")}


def _odd_rows(layout: str, split: str, figure: str, row: dict[str, str]) -> list[dict[str, str]]:
    nobody = _row(layout, split, 10**6, figure, _PERSON, ("The patient", "The physician", "N/A", "None"), "C")
    if layout == "v2":
        return [nobody]
    return [nobody, row | {"Answer_label": "'"}, row | {"Choice B": row["Choice B"].replace("B:", "C:", 1)}]
