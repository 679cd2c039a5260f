import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, FileImage
from mvg_jax.data.records import NAMED, DataSet, ReadReport, Record
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
