"""One test a quirk of OmniMedVQA (reference §1.7)."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

IMAGE = "Images/Chest CT Scan/test/normal/000143 (6).png"
OPEN, RESTRICTED = "QA_information/Open-access", "QA_information/Restricted-access"


def picture():
    out = io.BytesIO()
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(out, "PNG")
    return out.getvalue()


def row(**other):
    asked = {
        "dataset": "Chest CT Scan",
        "question_id": "Chest_0001",
        "question_type": "Disease Diagnosis",
        "question": "What is seen?",
        "gt_answer": "mass",
        "image_path": IMAGE,
        "option_A": "nodule",
        "option_B": "mass",
        "option_C": "cyst",
        "option_D": "nothing",
        "modality_type": "CT(Computed Tomography)",
    }
    return {key: value for key, value in (asked | other).items() if value is not ...}


@pytest.fixture
def root(tmp_path):
    """A folder with the image; `write` adds the questions."""
    (tmp_path / IMAGE).parent.mkdir(parents=True)
    (tmp_path / IMAGE).write_bytes(picture())
    return tmp_path


def write(root, *rows, source="Chest CT Scan", folder=OPEN):
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{source}.json").write_text(json.dumps(list(rows)))


def only(root):
    (record,) = readers.read("omnimedvqa", root, "open_access").records
    return record


def test_a_row_becomes_a_record(root):
    write(root, row())
    record = only(root)
    assert record.id == "omnimedvqa/Chest CT Scan/Chest_0001"
    assert (record.kind, record.modality) == ("Disease Diagnosis", "CT")
    assert (record.answer_type, record.answer) == (AnswerType.CHOICE, "B")
    assert record.options == ("nodule", "mass", "cyst", "nothing")
    assert record.accepted == ()


def test_image_paths_with_blanks_and_brackets(root):
    write(root, row())
    assert only(root).task().images[0].pixels.shape == (4, 6)


def test_the_published_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "OmniMedVQA.zip", "w") as archive:
        archive.writestr(f"OmniMedVQA/{IMAGE}", picture())
        archive.writestr(f"OmniMedVQA/{OPEN}/Chest CT Scan.json", json.dumps([row()]))
    for root in (tmp_path, tmp_path / "OmniMedVQA.zip"):
        assert only(root).task().images[0].pixels.shape == (4, 6)


@pytest.mark.parametrize("absent", [..., None, ""])
def test_options_c_and_d_may_be_missing(root, absent):
    write(root, row(option_C=absent, option_D=absent))
    assert only(root).options == ("nodule", "mass")


def test_of_options_with_the_same_text_the_last_is_gold(root):
    write(root, row(option_D="mass"))
    record = only(root)
    assert (record.answer, record.accepted) == ("D", ("B",))
    assert record.options == ("nodule", "mass", "cyst", "mass")


def test_gold_in_another_case(root):
    write(root, row(gt_answer=" Mass "))
    data = readers.read("omnimedvqa", root, "open_access")
    assert data.records[0].answer == "B"
    assert "1 times: gt_answer in another case than its option" in str(data.report)


def test_modality_stands_in_another_field(root):
    write(root, row(modality_type=..., modality="CT(Computed Tomography)"))
    assert only(root).modality == "CT"


@pytest.mark.parametrize(
    ("spelling", "modality"),
    [
        ("MR (Mag-netic Resonance Imaging)", "MRI"),
        ("OCT (Optical Coherence Tomography", "OCT"),
        ("ultrasound", "Ultrasound"),
        ("X-Ray", "X-Ray"),
        ("Microscopy Images", "Microscopy"),
        ("Fundus Photography", "Fundus photography"),
        ("Thermal  Camera (hot)", "Thermal Camera (hot)"),
    ],
)
def test_dirty_modalities(root, spelling, modality):
    write(root, row(modality_type=spelling))
    assert only(root).modality == modality


def test_bad_rows_are_dropped_with_reasons(root):
    write(
        root,
        row(),
        row(gt_answer="tumour"),
        row(option_B=..., gt_answer="nodule"),
        row(option_B=None, option_C="", option_D=None, gt_answer="nodule"),
        row(image_path="Images/none.png"),
        row(question=""),
        row(image_path=3),
        [1],
    )
    data = readers.read("omnimedvqa", root, "open_access")
    assert (len(data), data.report.rows) == (1, 8)
    assert data.report.dropped == {
        "gt_answer is none of the options": 1,
        "an option is missing between others": 1,
        "fewer than two options": 1,
        "no such image": 1,
        "no question, gt_answer or image_path": 2,
        "no dictionary": 1,
    }
    assert data.report.named["gt_answer is none of the options"] == ["Chest CT Scan row 1"]


def test_open_and_restricted(root):
    write(root, row())
    write(root, row(question_id="r"), source="Other", folder=RESTRICTED)
    splits = {
        split: readers.read("omnimedvqa", root, split).records for split in ("open_access", "restricted_access", "all")
    }
    assert [r.split for r in splits["open_access"]] == ["open_access"]
    assert [r.id for r in splits["restricted_access"]] == ["omnimedvqa/Other/r"]
    assert {r.split for r in splits["all"]} == {"open_access", "restricted_access"}


def test_repeated_ids_are_told_apart(root):
    write(root, row(), row())
    assert [r.id for r in readers.read("omnimedvqa", root, "open_access").records] == [
        "omnimedvqa/Chest CT Scan/Chest_0001",
        "omnimedvqa/Chest CT Scan/Chest_0001#2",
    ]


def test_a_folder_without_questions(root):
    with pytest.raises(RunError, match=r"QA_information/open-access/\*\.json"):
        readers.read("omnimedvqa", root, "open_access")
