import dataclasses
import json

import numpy as np
import pytest

from mvg_jax.data import readers
from mvg_jax.data.exporters import omnimedvqa as exporter
from mvg_jax.data.files import Files
from mvg_jax.data.images import to_8bit
from mvg_jax.data.task import AnswerType, NativeImage, Task
from mvg_jax.errors import RunError


def task(number, options=("cyst", "mass", "nothing"), answer="mass", **other):
    pixels = np.random.default_rng(number).integers(0, 4000, (5, 7)).astype(np.uint16)
    image = NativeImage(pixels, (0.0, 4000.0))
    return Task(str(number), "phantom", "structure", (image,), f"What is {number}?", answer, options, **other)


TASKS = [
    task(0),
    task(1),
    task(2, modality="OCT"),
    task(3, modality="MRI"),
    task(4, ("yes", "no"), "no"),
    task(5, ("a", "b", "c", "d"), "D", answer_type=AnswerType.CHOICE, modality="Ultrasound"),
]


@pytest.fixture(scope="module", params=exporter.LAYOUTS)
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for split in exporter.SPLITS:
        exporter.export(TASKS, folder, split, request.param)
    return folder


@pytest.mark.parametrize("split", exporter.SPLITS)
def test_tasks_come_back(root, split):
    data = readers.read("omnimedvqa", root, split)
    assert data.report.dropped == {"gt_answer is none of the options": 1}
    by_question = {record.question: record for record in data.records}
    assert len(by_question) == len(TASKS)
    for made in TASKS[1:]:
        record = by_question[made.question]
        gold = made.options[3] if made.answer == "D" else made.answer
        assert record.options == made.options
        assert record.options[ord(record.answer) - ord("A")] == gold
        assert record.modality == (made.modality or "CT")
        np.testing.assert_array_equal(record.task().images[0].pixels, to_8bit(made.images[0]))


def test_the_first_gold_stands_twice(root):
    records = readers.read("omnimedvqa", root, "open_access").records
    (record,) = [r for r in records if r.question == "What is 0?"]
    assert (record.options, record.answer, record.accepted) == (("cyst", "mass", "mass"), "C", ("B",))


def test_one_file_says_modality(root):
    files = Files(root)
    chest = json.loads(files.read(files.need("Open-access/Chest CT Scan.json")))
    other = json.loads(files.read(files.need("Open-access/Phantoms.json")))
    assert all("modality" in row and "modality_type" not in row for row in chest)
    assert all("modality_type" in row and "modality" not in row for row in other)
    assert all(" (" in row["image_path"] for row in chest)
    assert {row.get("option_C") for row in other if row["question"] == "What is 4?"} == {None}


def test_what_has_no_place_is_left_out(tmp_path):
    odd = [task(6, ()), task(7, ("a", "b", "c", "d", "mass")), _two_images(task(8))]
    exporter.export([TASKS[1], *odd], tmp_path, "open_access", "folder")
    (record,) = readers.read("omnimedvqa", tmp_path, "open_access").records
    assert record.question == "What is 1?"


def _two_images(made):
    return dataclasses.replace(made, images=made.images * 2)


@pytest.mark.parametrize("layout", exporter.LAYOUTS)
def test_nothing_is_overwritten(tmp_path, layout):
    exporter.export(TASKS, tmp_path, "open_access", layout)
    with pytest.raises(RunError, match="already"):
        exporter.export(TASKS, tmp_path, "open_access", layout)
