"""What PMC-VQA's files are like, one test each."""

import csv
import io
import zipfile

import numpy as np
import pytest

from mvg_jax.data import readers
from mvg_jax.data.exporters.common import encode_image
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

JPEG = encode_image(np.zeros((4, 6), np.uint8), "JPEG")
CHOICES = {"Choice A": " A:Diffuse ", "Choice B": " B:Focal ", "Choice C": " C:None ", "Choice D": " D:N/A "}
V1 = {"Figure_path": "PMC1_F1.jpg", "Question": "What is it? ", "Answer": "Focal", **CHOICES, "Answer_label": "B"}
V2 = {
    "index": "35",
    "Figure_path": "PMC1_F1.jpg",
    "Caption": "A, B",
    "Question": "What is it?",
    **CHOICES,
    "Answer": "B",
    "split": "train",
}


def write(folder, name, rows, image="images/PMC1_F1.jpg"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    (folder / name).write_text(text.getvalue(), encoding="utf-8")
    if image:
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)


def test_first_version(tmp_path):
    write(tmp_path, "test_clean.csv", [V1])
    data = readers.read("pmc_vqa", tmp_path, "test_clean")
    (record,) = data.records
    assert (record.question, record.answer, record.answer_type) == ("What is it?", "B", AnswerType.CHOICE)
    assert record.options == ("Diffuse", "Focal", "None", "N/A")
    assert data[0].images[0].pixels.shape == (4, 6)


@pytest.mark.parametrize("name", ["train_2.csv", "train2.csv"])
def test_second_version_has_the_letter_under_answer(tmp_path, name):
    write(tmp_path, name, [V2])
    (record,) = readers.read("pmc_vqa", tmp_path, "train_2").records
    assert (record.answer, record.options[1], record.split) == ("B", "Focal", "train_2")


def test_splits_do_not_mix(tmp_path):
    write(tmp_path, "test_clean.csv", [V1])
    write(tmp_path, "test_2.csv", [V2])
    with pytest.raises(RunError, match=r"holds no test\.csv"):
        readers.read("pmc_vqa", tmp_path, "test")


def test_misspelt_columns(tmp_path):
    write(tmp_path, "train.csv", [{key.replace("Answer", "Anwser"): value for key, value in V1.items()}])
    (record,) = readers.read("pmc_vqa", tmp_path, "train").records
    assert record.answer == "B"


@pytest.mark.parametrize("answer", ["N/A", "None", "NA", "nan"])
def test_answers_that_look_like_nothing_are_answers(tmp_path, answer):
    write(tmp_path, "train.csv", [V1 | {"Choice D": f" D:{answer} ", "Answer": answer, "Answer_label": "D"}])
    (record,) = readers.read("pmc_vqa", tmp_path, "train").records
    assert record.options[3] == answer
    assert record.answer == "D"


def test_only_the_first_colon_splits(tmp_path):
    write(tmp_path, "train.csv", [V1 | {"Choice A": "A: T: testes, A: ovaries"}])
    assert readers.read("pmc_vqa", tmp_path, "train").records[0].options[0] == "T: testes, A: ovaries"


def test_blanks_and_quotes_around_texts(tmp_path):
    write(
        tmp_path, "train.csv", [V1 | {"Choice B": " B:\xa0'Focal\u200a' ", "Answer": '"Focal" ', "Answer_label": " B'"}]
    )
    (record,) = readers.read("pmc_vqa", tmp_path, "train").records
    assert (record.options[1], record.answer) == ("Focal", "B")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Answer_label": "'"}, "no letter"),
        ({"Answer_label": "E"}, "no letter"),
        ({"Choice B": " C:Focal "}, "without its own letter"),
        ({"Choice B": "Focal"}, "without its own letter"),
        ({"Answer": "Diffuse"}, "not the choice of its label"),
        ({"Answer": "", "Choice B": "B:"}, "empty"),
        ({"Question": "\xa0"}, "empty"),
        ({"Figure_path": "PMC2_F1.jpg"}, "image is not there"),
        ({"Figure_path": ""}, "image is not there"),
        ({"Figure_path": "../train.csv/.."}, "image is not there"),
    ],
)
def test_dirty_rows_are_dropped(tmp_path, change, reason):
    write(tmp_path, "train.csv", [V1, V1 | change])
    data = readers.read("pmc_vqa", tmp_path, "train")
    assert [record.id for record in data.records] == ["pmc_vqa/train/000000"]
    assert data.report.rows == 2
    assert reason in str(data.report)
    assert "000001" in str(data.report)


def test_a_row_with_too_few_cells(tmp_path):
    write(tmp_path, "train.csv", [V1])
    with open(tmp_path / "train.csv", "a") as file:
        file.write("PMC1_F1.jpg,What?\n")
    assert "too many or too few cells" in str(readers.read("pmc_vqa", tmp_path, "train").report)


@pytest.mark.parametrize(
    "path",
    [
        "PMC1_F1.jpg",
        "images/PMC1_F1.jpg",
        "images/images/PMC1_F1.jpg",
        "figures/PMC1_F1.jpg",
        "images_2/figures/PMC1_F1.jpg",
    ],
)
def test_image_folders(tmp_path, path):
    write(tmp_path, "train.csv", [V1], path)
    assert readers.read("pmc_vqa", tmp_path, "train").records[0].images[0].name == path


def test_images_in_a_zip(tmp_path):
    write(tmp_path, "test_2.csv", [V2], image=None)
    with zipfile.ZipFile(tmp_path / "images_2.zip", "w") as archive:
        archive.writestr("figures/PMC1_F1.jpg", JPEG)
    assert readers.read("pmc_vqa", tmp_path, "test_2")[0].images[0].pixels.shape == (4, 6)


def test_each_version_has_its_own_images(tmp_path):
    write(tmp_path, "test.csv", [V1], "images/PMC1_F1.jpg")
    write(tmp_path, "test_2.csv", [V2], "images_2/figures/PMC1_F1.jpg")
    names = [readers.read("pmc_vqa", tmp_path, split).records[0].images[0].name for split in ("test", "test_2")]
    assert names == ["images/PMC1_F1.jpg", "images_2/figures/PMC1_F1.jpg"]


def test_a_missing_column_is_named(tmp_path):
    write(tmp_path, "train.csv", [{key: value for key, value in V1.items() if key != "Choice C"}])
    with pytest.raises(RunError, match=r"train\.csv.*no column choice c"):
        readers.read("pmc_vqa", tmp_path, "train")


def test_without_any_image_there_is_no_data_set(tmp_path):
    write(tmp_path, "train.csv", [V1], image=None)
    with pytest.raises(RunError, match=r"(?s)nothing usable.*the image is not there"):
        readers.read("pmc_vqa", tmp_path, "train")
