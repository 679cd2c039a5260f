"""Questions from the headers of a folder of DICOM files."""

import shutil
import zipfile

import numpy as np
import pydicom.data
import pytest

from mvg_jax.data import readers
from mvg_jax.data.dicom import headers
from mvg_jax.data.readers import dicom
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError
from mvg_jax.scoring import strict
from tests.data.dicom_files import dicom_file

GREY = np.arange(12, dtype=np.uint16).reshape(3, 4)
AXIAL = [1, 0, 0, 0, 1, 0]


def studies(split, count=1):
    """Study ids whose files go to this split, by what headers say of them."""
    found = (f"1.2.{i}" for i in range(1000))
    fits = (s for s in found if dicom.split_of(headers(dicom_file(GREY, StudyInstanceUID=s), "x")["study"]) == split)
    return [next(fits) for _ in range(count)]


@pytest.fixture(scope="module")
def train():
    (study,) = studies("train")
    return study


def write(root, name, pixels=GREY, **attributes):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(dicom_file(pixels, **attributes))


def test_questions_and_answers(tmp_path, train):
    given = {"Modality": "MR", "BodyPartExamined": "HEAD", "ImageOrientationPatient": AXIAL}
    write(tmp_path, "a/IM1", StudyInstanceUID=train, **given)
    data = readers.read("dicom", tmp_path, "train")
    asked = {record.kind: record for record in data.records}
    assert {kind: record.answer for kind, record in asked.items()} == {
        "modality": "MRI",
        "plane": "axial",
        "body_part": "head",
    }
    assert asked["modality"].id == "dicom/a/IM1/modality"
    assert asked["plane"].options == ("axial", "coronal", "sagittal")
    assert {r.answer_type for r in asked.values()} == {AnswerType.CLOSED, AnswerType.OPEN}
    assert "magnetic resonance imaging" in asked["modality"].accepted
    np.testing.assert_array_equal(data[0].images[0].pixels, GREY)
    for record in data.records:
        assert strict.score(record.answer, record.answer, record.options) == 1.0


def test_what_headers_do_not_say_is_not_asked(tmp_path, train):
    write(tmp_path, "x.dcm", StudyInstanceUID=train, Modality="CT")
    assert [r.kind for r in readers.read("dicom", tmp_path, "train").records] == ["modality"]


def test_files_that_cannot_be_asked_about_are_named(tmp_path, train):
    write(tmp_path, "good.dcm", StudyInstanceUID=train, Modality="CT")
    write(tmp_path, "seg.dcm", StudyInstanceUID=train, Modality="SEG")
    write(tmp_path, "report.dcm", None, StudyInstanceUID=train, Modality="SR")
    shutil.copy(pydicom.data.get_testdata_file("badVR.dcm", download=False), tmp_path)
    (tmp_path / "notes.txt").write_text("no DICOM " * 100)
    report = readers.read("dicom", tmp_path, "train").report
    assert report.rows == 4
    assert report.named == {
        "unreadable DICOM": ["badVR.dcm"],
        "no pixel data": ["report.dcm"],
        "no modality that takes pictures of patients": ["seg.dcm"],
    }


def test_a_study_is_in_one_split(tmp_path):
    for split in dicom.SPLITS:
        for number, study in enumerate(studies(split, 2)):
            for file in range(2):
                write(tmp_path, f"{split}{number}/{file}.dcm", StudyInstanceUID=study, Modality="CT")
    for split in dicom.SPLITS:
        data = readers.read("dicom", tmp_path, split)
        assert [r.id for r in data.records] == [f"dicom/{split}{n}/{f}.dcm/modality" for n in (0, 1) for f in (0, 1)]
        assert data.report.rows == 4
        assert "8 times: a file of another split" in str(data.report)


def test_splits_have_their_shares():
    found = [dicom.split_of(str(i)) for i in range(2000)]
    assert [round(found.count(split) / 2000, 1) for split in dicom.SPLITS] == [0.8, 0.1, 0.1]


def test_files_in_a_zip(tmp_path, train):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.writestr("IM1", dicom_file(GREY, StudyInstanceUID=train, Modality="CT"))
        archive.writestr("readme", "x")
    np.testing.assert_array_equal(readers.read("dicom", tmp_path, "train")[0].images[0].pixels, GREY)


def test_real_files(tmp_path):
    for name in ("CT_small.dcm", "MR_small.dcm", "examples_ybr_color.dcm", "rtplan.dcm", "liver_1frame.dcm"):
        shutil.copy(pydicom.data.get_testdata_file(name, download=False), tmp_path)
    answers = {}
    for split in dicom.SPLITS:
        try:
            data = readers.read("dicom", tmp_path, split)
        except RunError:
            continue  # few studies: a split may be empty
        answers |= {(record.images[0].name, record.kind): record.answer for record in data.records}
        assert all(len(task.images) == 1 for task in data)
    assert answers == {
        ("CT_small.dcm", "modality"): "CT",
        ("CT_small.dcm", "plane"): "axial",
        ("MR_small.dcm", "modality"): "MRI",
        ("MR_small.dcm", "plane"): "axial",
        ("examples_ybr_color.dcm", "modality"): "Ultrasound",
    }


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(RunError, match="no DICOM file"):
        readers.read("dicom", tmp_path, "train")


def test_an_empty_split_is_an_error(tmp_path, train):
    write(tmp_path, "x.dcm", StudyInstanceUID=train, Modality="CT")
    with pytest.raises(RunError, match=r"(?s)nothing usable for dicom/test.*1 times: a file of another split"):
        readers.read("dicom", tmp_path, "test")
