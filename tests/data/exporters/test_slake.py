import json

import numpy as np
import pytest

from mvg_jax.data import readers
from mvg_jax.data.exporters import slake as exporter
from mvg_jax.data.files import Files
from mvg_jax.data.images import to_8bit
from mvg_jax.data.readers import slake
from mvg_jax.data.task import AnswerType, Box, NativeImage, Task
from mvg_jax.errors import RunError

SHAPE = (60, 120)


def task(number, **other):
    pixels = np.random.default_rng(number).integers(0, 4000, SHAPE).astype(np.uint16)
    image = NativeImage(pixels, (0.0, 4000.0))
    boxes = (Box("cyst", (250, 500, 500, 1000)), Box("bone lesion", (0, 0, 100, 200)))
    given = {
        "id": str(number),
        "dataset": "phantom",
        "kind": "side",
        "images": (image,),
        "question": "On which side?",
        "answer": "left",
        "options": ("left", "right"),
        "boxes": boxes[: number % 3],
    }
    return Task(**(given | other))


TASKS = [
    task(0),
    task(1, kind="structure", answer="no", options=("yes", "no"), answer_type=AnswerType.YES_NO),
    task(2, kind="organ", answer="B", options=("liver", "left kidney"), answer_type=AnswerType.CHOICE),
    task(3, modality="MRI", kind="size", answer="12 mm", options=(), answer_type=AnswerType.NUMBER),
]


@pytest.fixture(scope="module", params=exporter.LAYOUTS)
def root(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for split in exporter.SPLITS:
        exporter.export(TASKS, folder, split, request.param)
    return folder


@pytest.mark.parametrize("split", exporter.SPLITS)
def test_tasks_come_back(root, split):
    data = readers.read("slake", root, split)
    assert not data.report.dropped
    own = [r for r in data.records if r.question == "On which side?"]
    assert [r.kind for r in own] == ["Position", "Abnormality", "Organ", "Size"]
    assert [r.answer.lower() for r in own] == ["left", "no", "left kidney", "12 mm"]
    assert [r.answer_type for r in own] == [
        AnswerType.CLOSED,
        AnswerType.YES_NO,
        AnswerType.CLOSED,
        AnswerType.NUMBER,
    ]
    assert [r.modality for r in own] == ["CT", "CT", "CT", "MRI"]


def test_images_and_boxes_come_back(root):
    data = readers.read("slake", root, "test")
    own = [i for i, r in enumerate(data.records) if r.question == "On which side?"]
    for i, made in zip(own, TASKS, strict=True):
        read = data[i]
        expected = to_8bit(made.images[0]).astype(int)
        assert np.abs(read.images[0].pixels.astype(int) - expected).mean() < 8  # JPEG of noise
        assert [box.label for box in read.boxes] == [box.label for box in made.boxes]
        for ours, theirs in zip(read.boxes, made.boxes, strict=True):
            np.testing.assert_allclose(ours.xyxy, theirs.xyxy, atol=2)


def test_masks_fill_the_boxes(root):
    data = readers.read("slake", root, "train")
    record = next(r for r in data.records if len(r.boxes) == 2)
    masks = slake.masks(record)
    assert set(masks) == {"cyst", "bone lesion"}
    rows, columns = np.nonzero(masks["cyst"])
    assert masks["cyst"].shape == SHAPE
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (30, 60, 30, 60)


def test_masks_come_in_three_modes(root):
    data = readers.read("slake", root, "train")
    masked = {r.images[0].name: slake.masks(r) for r in data.records}
    assert len(masked) == 4
    assert [sorted(masks) for masks in masked.values()] == [[], ["cyst"], ["bone lesion", "cyst"], []]


def test_chinese_questions_lists_and_knowledge(root):
    english, chinese = (readers.read("slake", root, f"train{suffix}").records for suffix in ("", "_zh"))
    assert [(r.answer_type, "yes" in r.accepted) for r in chinese] == [
        *[(AnswerType.YES_NO, True)] * 3,
        (AnswerType.YES_NO, False),
    ]
    assert [r.answer for r in english if r.answer_type == AnswerType.LIST] == ["cyst, bone lesion"]
    assert [r.answer for r in english if r.kind == "KG"] == ["Digestive System"]
    assert slake.knowledge(Files(root))["liver"]["belong to"] == "Digestive System"
    assert slake.knowledge(Files(root), "zh")["肝脏"] == {"功能": "分泌胆汁", "属于": "消化系统"}


def test_casing_drifts(root):
    answers = {r.answer for r in readers.read("slake", root, "train").records} | {
        r.answer for r in readers.read("slake", root, "validation").records
    }
    assert answers & {"Left Kidney", "Left kidney"}


def test_the_published_names(root):
    original = (root / "imgs").is_dir()
    files = Files(root)
    assert (files.find("validate.json") is not None) == original
    assert (files.find("validation.json") is not None) == (not original)
    question = files.need("xmlab1/question.json")
    assert {row["img_name"] for row in json.loads(files.read(question))} == {"xmlab1/source.jpg"}


def test_qids_and_images_of_splits_differ(root):
    records = [r for split in exporter.SPLITS for r in readers.read("slake", root, f"{split}_all").records]
    assert len({r.id.split("/")[-1] for r in records}) == len(records)
    names = [{r.images[0].name for r in records if r.split == split} for split in exporter.SPLITS]
    assert not names[0] & names[1]
    assert not names[0] & names[2]


def test_one_image_of_several_tasks_is_one_folder(tmp_path):
    exporter.export([task(1), task(1, question="And now?")], tmp_path, "train", "original")
    assert [path.name for path in (tmp_path / "imgs").iterdir()] == ["xmlab1"]


def test_tasks_of_several_images_are_left_out(tmp_path):
    exporter.export([task(1), task(2, images=task(2).images * 2)], tmp_path, "train", "original")
    assert len({r.images[0].name for r in readers.read("slake", tmp_path, "train").records}) == 1


def test_a_split_is_written_once(tmp_path):
    exporter.export(TASKS, tmp_path, "train", "original")
    with pytest.raises(FileExistsError):
        exporter.export(TASKS, tmp_path, "train", "original")
    with pytest.raises(RunError, match="layouts original, hub"):
        exporter.export(TASKS, tmp_path, "train", "zip")
