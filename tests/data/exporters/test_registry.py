"""What is written in the layout of a data set is read back by its reader."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from mvg_jax.data import exporters, readers
from mvg_jax.data.exporters.common import answer_text
from mvg_jax.data.images import to_8bit
from mvg_jax.data.phantom import PhantomSource
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

SIZE = 12
# Data set, layout, split, and rows that the layout's quirks add.
WRITTEN = [
    ("pmc_vqa", "v1", "train", 1),
    ("pmc_vqa", "v1", "test_clean", 1),
    ("pmc_vqa", "v2", "test_2", 1),
    ("mmmu", "hub", "validation", 0),
    ("mmmu", "hub", "test", 0),
    ("mmmu", "lmms", "dev", 0),
    ("medxpertqa", "hub", "test", 0),
    ("medxpertqa", "hub", "dev", 0),
    ("medxpertqa", "github", "test", 0),
]


@pytest.fixture(scope="module")
def tasks():
    """Phantoms with every eighth pixel: encoding whole ones is all that would take time here."""
    source = PhantomSource("train", SIZE)
    return [
        dataclasses.replace(task, images=tuple(map(small, task.images)))
        for task in map(source.__getitem__, range(SIZE))
    ]


def small(image):
    return dataclasses.replace(image, pixels=image.pixels[::8, ::8])


def said(record):
    """The text of a record's answer."""
    return answer_text(record)


@pytest.mark.parametrize(("name", "layout", "split", "more"), WRITTEN)
def test_round_trip(tmp_path, tasks, name, layout, split, more):
    exporters.export(name, tasks, tmp_path, split, layout)
    data = readers.read(name, tmp_path, split)
    assert len(data) == SIZE + more
    kept = [record for record in data.records if record.question != "Who is named in the image?"]
    for record, task in zip(in_order(name, kept), tasks, strict=True):
        assert task.question in record.question
        assert said(record) == task.answer
        assert set(record.options) >= set(task.options) or record.answer_type == AnswerType.OPEN
        pictures = [image.pixels for image in record.task().images]
        whole = max(pictures, key=np.size)
        assert np.abs(whole.astype(int) - to_8bit(task.images[0])).mean() < 6  # grey levels lost to JPEG


def in_order(name, records):
    """MMMU's rows lie by subject: the order in which they were dealt."""
    if name != "mmmu":
        return records
    by_subject = [list(group) for _, group in itertools.groupby(records, lambda record: record.kind)]
    if len(by_subject) > 5:  # all in one file
        return records
    return [group[k] for k in range(SIZE) for group in by_subject if k < len(group)]


SPLITS = {"omnimedvqa": "open_access"}  # the others have a test split


@pytest.mark.parametrize("name", exporters.EXPORTERS)
def test_every_exporter_is_read_back(tmp_path, tasks, name):
    for layout in exporters.layouts(name):
        split = f"test{'_2' * (layout == 'v2')}"
        split = SPLITS.get(name, split)
        exporters.export(name, tasks, tmp_path / layout, split, layout)
        records = readers.read(name, tmp_path / layout, split).records
        for (question, answer), times in Counter((task.question, task.answer) for task in tasks).items():
            fits = [record for record in records if question.casefold() in record.question.casefold()]
            assert [said(record).casefold() for record in fits].count(answer.casefold()) >= times, (layout, question)


def test_every_layout_is_tried():
    owned = ("pmc_vqa", "mmmu", "medxpertqa")
    assert {row[:2] for row in WRITTEN} == {(name, layout) for name in owned for layout in exporters.layouts(name)}


def test_splits_share_a_folder(tmp_path, tasks):
    for name, splits in {
        "pmc_vqa": ("train", "test"),
        "medxpertqa": ("dev", "test"),
        "mmmu": ("dev", "validation"),
    }.items():
        for split in splits:
            exporters.export(name, tasks[:3], tmp_path, split)
        for split in splits:
            assert len(readers.read(name, tmp_path, split)) >= 3
    assert len(readers.read("mmmu", tmp_path, "val_dev_choice")) == 4


def test_pmc_vqa_has_its_quirks(tmp_path, tasks):
    exporters.export("pmc_vqa", tasks, tmp_path, "train")
    data = readers.read("pmc_vqa", tmp_path, "train")
    assert sum(data.report.dropped.values()) == 2
    assert "N/A" in [said(record) for record in data.records]
    text = (tmp_path / "train.csv").read_text(encoding="utf-8")
    assert " A:" in text
    assert ":\xa0" in text


def test_mmmu_has_its_quirks(tmp_path, tasks):
    exporters.export("mmmu", tasks, tmp_path, "test")
    records = in_order("mmmu", readers.read("mmmu", tmp_path, "test").records)
    assert [record.answer_type for record in records] == [AnswerType.OPEN] + [AnswerType.CHOICE] * (SIZE - 1)
    assert records[0].accepted
    assert [len(record.images) for record in records[:3]] == [1, 2, 1]
    (tmp_path / "answer.json").unlink()
    with pytest.raises(RunError, match=r"answer\.json"):
        readers.read("mmmu", tmp_path, "test")


def test_medxpertqa_has_its_quirks(tmp_path, tasks):
    exporters.export("medxpertqa", tasks, tmp_path, "test")
    records = readers.read("medxpertqa", tmp_path, "test").records
    assert records[0].images[0].name.endswith(".JPG")
    assert [len(record.images) for record in records[:3]] == [1, 2, 1]
    assert {len(record.options) for record in records} == {5}


def test_every_letter_is_right_as_often(tmp_path, tasks):
    exporters.export("pmc_vqa", tasks, tmp_path, "test")
    letters = [record.answer for record in readers.read("pmc_vqa", tmp_path, "test").records]
    assert {letter: letters.count(letter) for letter in "ABD"} == dict.fromkeys("ABD", SIZE // 4)


def test_a_lettered_task_keeps_its_answer(tmp_path, tasks):
    task = dataclasses.replace(tasks[0], answer_type=AnswerType.CHOICE, options=("red", "green"), answer="B")
    exporters.export("medxpertqa", [task], tmp_path, "test")
    assert said(readers.read("medxpertqa", tmp_path, "test").records[0]) == "green"


def test_tasks_of_several_images(tmp_path, tasks):
    two = dataclasses.replace(tasks[0], images=tasks[0].images + tasks[2].images)
    for name in ("mmmu", "medxpertqa"):
        exporters.export(name, [tasks[0], tasks[1], two], tmp_path / name, "test")
        records = in_order(name, readers.read(name, tmp_path / name, "test").records)
        assert [len(record.images) for record in records] == [1, 2, 2]
    with pytest.raises(RunError, match="one image a question"):
        exporters.export("pmc_vqa", [two], tmp_path, "test")


def test_tasks_without_options_are_left_out(tmp_path, tasks):
    free = dataclasses.replace(tasks[1], answer_type=AnswerType.OPEN, options=())
    for name in ("pmc_vqa", "mmmu", "medxpertqa"):
        exporters.export(name, [tasks[0], free, tasks[2]], tmp_path / name, "test")
        questions = [record.question for record in readers.read(name, tmp_path / name, "test").records]
        assert len([text for text in questions if text != "Who is named in the image?"]) == 2


@pytest.mark.parametrize(
    ("name", "split", "layout", "message"),
    [
        ("imagenet", "test", None, "use one of vqa_rad"),
        ("mmmu", "train", None, "has the splits dev"),
        ("mmmu", "val_dev_choice", None, "can be written as"),
        ("mmmu", "dev", "v1", "has the layouts hub, lmms"),
        ("pmc_vqa", "test_2", "v1", "layout v1 of pmc_vqa has the splits train, test, test_clean"),
        ("medxpertqa", "dev", "github", "layout github of medxpertqa has the splits test"),
    ],
)
def test_what_there_is_not(tmp_path, tasks, name, split, layout, message):
    with pytest.raises(RunError, match=message):
        exporters.export(name, tasks, tmp_path, split, layout)


@pytest.mark.parametrize(("name", "layout", "split", "more"), WRITTEN)
def test_nothing_is_written_over(tmp_path, tasks, name, layout, split, more):
    exporters.export(name, tasks[:2], tmp_path, split, layout)
    with pytest.raises(RunError, match="is there already"):
        exporters.export(name, tasks[:2], tmp_path, split, layout)


def test_a_folder_that_cannot_be_made(tmp_path, tasks):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        exporters.export("mmmu", tasks, tmp_path / "file" / "folder", "dev")
