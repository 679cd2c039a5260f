import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, FileImage
from mvg_jax.data.records import NAMED, BadRow, DataSet, ReadReport, Record, collect, unique_id
from mvg_jax.data.task import AnswerType, Box
from mvg_jax.errors import RunError


@pytest.fixture
def data(tmp_path):
    Image.fromarray(np.full((4, 6), 9, np.uint8)).save(tmp_path / "a.png")
    files = Files(tmp_path)
    records = tuple(
        Record(
            id=f"set/{name}",
            dataset="set",
            split="test",
            kind="organ",
            images=(FileImage(files, name),),
            question="Which organ?",
            answer="Liver",
            answer_type=AnswerType.OPEN,
            accepted=("the liver",),
            modality="CT",
            boxes=(Box("liver", (0, 0, 500, 500)),),
        )
        for name in ("a.png", "gone.png")
    )
    return DataSet("set", "test", records, ReadReport("set test"))


def test_a_task_is_its_record_with_the_images_loaded(data):
    task = data[0]
    assert task.images[0].pixels.shape == (4, 6)
    for field in (
        "id",
        "dataset",
        "kind",
        "question",
        "answer",
        "answer_type",
        "accepted",
        "modality",
        "boxes",
        "chain",
    ):
        assert getattr(task, field) == getattr(data.records[0], field), field


def test_a_bad_image_is_met_only_when_its_task_is_asked_for(data):
    assert len(data) == 2
    with pytest.raises(BadImage, match=r"gone\.png"):
        data[1]


def test_a_slice_is_a_data_set(data):
    part = data[1:]
    assert isinstance(part, DataSet)
    assert [record.id for record in part.records] == ["set/gone.png"]
    assert part.split == "test"


def test_records_pickle(data):
    again = pickle.loads(pickle.dumps(data.records))  # noqa: S301
    assert again == data.records
    assert again[0].task().answer == "Liver"


def test_records_are_frozen(data):
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.records[0].answer = "Spleen"


def test_a_report_counts_and_names_what_was_dropped():
    report = ReadReport("set train")
    report.rows = 10
    for row in range(NAMED + 2):
        report.drop(f"row {row}", "image missing")
    report.drop("row 9", "no answer")
    report.note("answer is a number")
    text = str(report)
    assert text.startswith(f"set train: 10 rows read, {10 - NAMED - 3} kept, {NAMED + 3} dropped")
    assert f"dropped {NAMED + 2}: image missing (row 0, row 1, row 2, row 3, row 4 ...)" in text
    assert "dropped 1: no answer (row 9)" in text
    assert "1 times: answer is a number" in text


def test_a_data_set_or_split_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    with pytest.raises(RunError, match=r"'vqarad': use one of vqa_rad, "):
        readers.read("vqarad", tmp_path, "train")
    with pytest.raises(RunError, match=r"path_vqa has the splits train, validation, test, not 'dev'"):
        readers.read("path_vqa", tmp_path, "dev")


def record(name):
    return Record(name, "set", "test", "kind", (), "What?", "A", AnswerType.CHOICE, options=("x", "y"))


def make(name, row):
    if row is None:
        raise BadRow("nothing in it")
    return record(row)


def test_rows_are_made_or_dropped_with_a_reason():
    report = ReadReport("set test")
    records = collect(report, [("1", "a"), ("2", None), ("3", "a"), ("4", "b")], make)
    assert [record.id for record in records] == ["a", "b"]
    assert (report.rows, report.dropped) == (4, {"nothing in it": 1, "the id of an earlier row": 1})
    assert str(report).splitlines()[0] == "set test: 4 rows read, 2 kept, 2 dropped"


def test_other_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        collect(ReadReport("x"), [("1", 0)], lambda name, row: 1 / row)


def test_a_report_names_few_rows_and_no_control_characters():
    report = ReadReport("set")
    for number in range(NAMED + 3):
        report.drop(f"{number}\x1b[2J" + "long" * 1000, "why")
    line = str(report).splitlines()[1]
    assert line.isprintable()
    assert len(line) < 600
    assert line.startswith(f"  dropped {NAMED + 3}: why (0?[2J")
    assert line.endswith(" ...)")


def test_ids_stay_unique():
    seen, report = set(), ReadReport("set")
    assert [unique_id(name, seen, report) for name in ("a", "a", "a#2", "b", "a")] == ["a", "a#2", "a#2#2", "b", "a#3"]
    assert report.notes == {"an id used before, numbered": 3}
