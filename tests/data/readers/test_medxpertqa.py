"""What MedXpertQA's files are like, one test each."""

import json
import zipfile

import numpy as np
import pytest

from mvg_jax.data import readers
from mvg_jax.data.exporters.common import encode_image
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

ROW = {
    "id": "MM-0",
    "question": "Which one?\nLook.\nAnswer Choices: (A) one (B) two (C) three",
    "options": {"A": "one", "B": "two", "C": "three"},
    "label": "B",
    "images": ["MM-0-a.jpeg"],
    "medical_task": "Diagnosis",
    "body_system": "Skeletal",
    "question_type": "Reasoning",
}


def write(folder, rows, name="MM/test.jsonl", images=("images/MM-0-a.jpeg",)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)))
    for number, image in enumerate(images, 1):
        path = folder / image
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_image(np.zeros((3, number), np.uint8), "PNG"))


def read(folder, split="test"):
    return readers.read("medxpertqa", folder, split)


@pytest.mark.parametrize(
    ("name", "split"), [("MM/test.jsonl", "test"), ("MM/dev.jsonl", "dev"), ("MM/test.json", "test")]
)
def test_as_the_hub_has_it(tmp_path, name, split):
    write(tmp_path, [ROW], name)
    (record,) = read(tmp_path, split).records
    assert (record.id, record.kind, record.split) == ("medxpertqa/MM-0", "Diagnosis", split)
    assert (record.answer, record.answer_type, record.options) == ("B", AnswerType.CHOICE, ("one", "two", "three"))


def test_the_options_behind_the_question_are_stripped(tmp_path):
    write(tmp_path, [ROW])
    assert read(tmp_path).records[0].question == "Which one?\nLook."


def test_a_question_without_that_tail_stays(tmp_path):
    write(tmp_path, [ROW | {"question": "Answer Choices: how many?"}])
    assert read(tmp_path).records[0].question == "Answer Choices: how many?"


def test_as_the_evaluation_code_has_it(tmp_path):
    row = ROW | {
        "options": [{"letter": "B", "content": "two"}, {"letter": "A", "content": "one"}],
        "label": ["B"],
        "images": [{"image_path": "MM-0-a.jpeg"}],
    }
    write(tmp_path, [row], "input/medxpertqa_mm_input.jsonl")
    (record,) = read(tmp_path).records
    assert (record.answer, record.options) == ("B", ("one", "two"))
    assert record.images[0].name == "images/MM-0-a.jpeg"


def test_several_images_in_their_order(tmp_path):
    names = ["MM-0-b.png", "MM-0-a.jpeg"]
    write(tmp_path, [ROW | {"images": names}], images=[f"images/{name}" for name in names])
    assert [image.pixels.shape[1] for image in read(tmp_path)[0].images] == [1, 2]


@pytest.mark.parametrize(
    ("named", "there"), [("MM-0-a.JPG", "MM-0-a.JPG"), ("MM-0-a.JPG", "MM-0-a.jpg"), ("MM-0-a.jpg", "MM-0-a.JPG")]
)
def test_upper_case_suffixes(tmp_path, named, there):
    write(tmp_path, [ROW | {"images": [named]}], images=[f"images/{there}"])
    assert read(tmp_path).records[0].images[0].name == f"images/{there}"


def test_images_in_a_zip(tmp_path):
    write(tmp_path, [ROW], images=())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images/MM-0-a.jpeg", encode_image(np.zeros((3, 5), np.uint8), "JPEG"))
    assert read(tmp_path)[0].images[0].pixels.shape == (3, 5)


def test_the_text_only_part_is_not_read(tmp_path):
    text = {key: value for key, value in ROW.items() if key != "images"} | {"id": "Text-0"}
    write(tmp_path, [text], "Text/test.jsonl")
    with pytest.raises(RunError, match="text-only"):
        read(tmp_path)
    write(tmp_path, [ROW])
    assert [record.id for record in read(tmp_path).records] == ["medxpertqa/MM-0"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": "D"}, "a label"),
        ({"label": "AB"}, "a label"),
        ({"label": []}, "a label"),
        ({"label": None}, "a label"),
        ({"label": {"A": 1}}, "a label"),
        ({"options": {"A": "one", "C": "two"}}, "letters are not A, B, C"),
        ({"options": {}}, "letters are not A, B, C"),
        ({"options": "one, two"}, "unknown form"),
        ({"options": {"A": 1, "B": 2}}, "no texts"),
        ({"options": [{"letter": "A"}]}, "no texts"),
        ({"question": "\nAnswer Choices: (A) one"}, "no question"),
        ({"question": 3}, "no question"),
        ({"images": []}, "no image"),
        ({"images": ["MM-0-a.jpeg", "MM-0-b.jpeg"]}, "an image is not there"),
        ({"images": ["../../../../../../etc/passwd"]}, "an image is not there"),
        ({"images": ["/etc/passwd"]}, "an image is not there"),
        ({"images": [{"path": "MM-0-a.jpeg"}]}, "without a name"),
        ({"id": "MM-0"}, "the id of an earlier row"),
    ],
)
def test_dirty_rows_are_dropped(tmp_path, change, reason):
    write(tmp_path, [ROW, ROW | {"id": "MM-1"} | change])
    data = read(tmp_path)
    assert [record.id for record in data.records] == ["medxpertqa/MM-0"]
    assert reason in str(data.report)


def test_several_right_letters(tmp_path):
    write(tmp_path, [ROW | {"label": ["C", "A"]}])
    (record,) = read(tmp_path).records
    assert (record.answer, record.accepted) == ("C", ("A",))


@pytest.mark.parametrize(
    "change", [{"id": "\ud800"}, {"question": "Wh\ud800?"}, {"options": {"A": "\udfff", "B": "two"}}]
)
def test_halves_of_characters_are_no_text(tmp_path, change):
    write(tmp_path, [ROW, ROW | {"id": "MM-1"} | change])
    data = read(tmp_path)
    assert [record.id for record in data.records] == ["medxpertqa/MM-0"]
    str(data.report).encode()
    assert "text that is no Unicode" in str(data.report)
