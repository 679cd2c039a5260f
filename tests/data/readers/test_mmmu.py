"""What MMMU's files are like, one test each."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mvg_jax.data import readers
from mvg_jax.data.exporters.common import encode_image
from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage
from mvg_jax.data.readers import mmmu
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = (
    "id",
    "question",
    "options",
    "explanation",
    "img_type",
    "answer",
    "topic_difficulty",
    "question_type",
    "subfield",
)
SCHEMA = pa.schema([(name, pa.string()) for name in TEXTS] + [(f"image_{n}", IMAGE) for n in range(1, 8)])


def image(width):
    """An image that is known by its width."""
    return {"bytes": encode_image(np.zeros((3, width), np.uint8), "PNG"), "path": "x.png"}


def row(**changes):
    base = {
        "id": "validation_Pharmacy_1",
        "question": "What is in <image 1>?",
        "options": "['a dose', \"a patient's dose\"]",
        "explanation": "",
        "image_1": image(1),
        "img_type": "['Diagrams', 'Medical Images']",
        "answer": "B",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Dosing",
    }
    return base | changes


def write(folder, rows, subject="Pharmacy", name="validation-00000-of-00001.parquet"):
    path = folder / subject / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)


def only(tmp_path, split="validation", **changes):
    write(tmp_path, [row(**changes)])
    (record,) = readers.read("mmmu", tmp_path, split).records
    return record


def widths(record):
    return [native.pixels.shape[1] for native in record.task().images]


def test_a_row(tmp_path):
    record = only(tmp_path)
    assert (record.id, record.kind, record.split) == ("mmmu/validation_Pharmacy_1", "Pharmacy", "validation")
    assert record.options == ("a dose", "a patient's dose")
    assert (record.answer, record.answer_type) == ("B", AnswerType.CHOICE)
    assert record.modality == "Diagrams; Medical Images"
    assert widths(record) == [1]


def test_images_in_order_of_first_appearance_in_question_and_options(tmp_path):
    record = only(
        tmp_path,
        question="<image 3> or <image 1>, then <image 3>?",
        options="['<image 2>', 'neither']",
        image_2=image(2),
        image_3=image(3),
        image_5=image(5),
    )
    assert widths(record) == [3, 1, 2]
    assert record.question == "<image 1> or <image 2>, then <image 1>?"
    assert record.options == ("<image 3>", "neither")


def test_images_that_do_not_exist_are_left_out(tmp_path):
    write(tmp_path, [row(question="<image 2> and <image 1> and <image 99>")])
    data = readers.read("mmmu", tmp_path, "validation")
    assert widths(data.records[0]) == [1]
    assert "names an image that is not there" in str(data.report)


def test_without_tokens_all_images_are_shown(tmp_path):
    assert widths(only(tmp_path, question="What is it?", image_4=image(4))) == [1, 4]


def test_absent_images_are_null_structs(tmp_path):
    write(tmp_path, [row(image_1=None), row(id="validation_Pharmacy_2")])
    data = readers.read("mmmu", tmp_path, "validation")
    assert [record.id for record in data.records] == ["mmmu/validation_Pharmacy_2"]
    assert "no image (validation_Pharmacy_1)" in str(data.report)


@pytest.mark.parametrize("spelling", ["open", "short-answer", "Short Answer", "short_answer"])
def test_open_questions(tmp_path, spelling):
    record = only(tmp_path, question_type=spelling, options="[]", answer="2")
    assert (record.answer, record.answer_type, record.options, record.accepted) == ("2", AnswerType.OPEN, (), ())


def test_open_questions_with_several_answers(tmp_path):
    record = only(tmp_path, question_type="open", options="[]", answer="['Transformation', 'transforming', '2']")
    assert (record.answer, record.accepted) == ("Transformation", ("transforming", "2"))


def test_an_answer_that_only_looks_like_a_list(tmp_path):
    assert only(tmp_path, question_type="open", options="[]", answer="[Ca2+]").answer == "[Ca2+]"


@pytest.mark.parametrize("spelling", ["multiple-choice", "Multiple Choice", "multiple_choice"])
def test_spellings_of_multiple_choice(tmp_path, spelling):
    assert only(tmp_path, question_type=spelling).answer_type == AnswerType.CHOICE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": "__import__('os').getcwd()"}, "options that are no list"),
        ({"options": "['a'" + ", 'a'" * 10_000 + "]"}, "options that are no list"),
        ({"options": None}, "options that are no list"),
        ({"answer": "C"}, "no letter of its options"),
        ({"answer": "AB"}, "no letter of its options"),
        ({"answer": "?"}, "no answer"),
        ({"answer": None}, "no answer"),
        ({"question": None}, "no question"),
        ({"question_type": "essay"}, "unknown question type"),
        ({"id": "validation_Art_1"}, "another subject"),
        ({"id": "../Pharmacy"}, "no id"),
        ({}, "the id of an earlier row"),
    ],
)
def test_dirty_rows_are_dropped(tmp_path, change, reason):
    write(tmp_path, [row(), row(**({"id": "validation_Pharmacy_2"} if change else {}) | change)])
    data = readers.read("mmmu", tmp_path, "validation")
    assert len(data) == 1
    assert reason in str(data.report)


def test_answers_up_to_f(tmp_path):
    assert only(tmp_path, options="['a', 'b', 'c', 'd', 'e', 'f']", answer="F").answer == "F"


def test_the_test_splits_answers_lie_apart(tmp_path):
    rows = [
        row(id="test_Pharmacy_1", answer="?"),
        row(id="test_Pharmacy_2", answer="?", question_type="open", options="[]"),
        row(id="test_Pharmacy_3", answer="?"),
    ]
    write(tmp_path, rows, name="test-00000-of-00001.parquet")
    with pytest.raises(RunError, match="no answer"):
        readers.read("mmmu", tmp_path, "test")
    key = {
        "test_Pharmacy_1": {"question_type": "multiple-choice", "ground_truth": "A"},
        "test_Pharmacy_2": {"question_type": "short-answer", "ground_truth": ["2", "two"]},
    }
    (tmp_path / "answer.json").write_text(json.dumps(key))
    data = readers.read("mmmu", tmp_path, "test")
    assert [(record.answer, record.accepted) for record in data.records] == [("A", ()), ("2", ("two",))]
    assert "answer.json) (test_Pharmacy_3)" in str(data.report)


@pytest.mark.parametrize("content", ["[]", "{"])
def test_an_answer_file_that_is_none(tmp_path, content):
    write(tmp_path, [row()])
    (tmp_path / "answer.json").write_text(content)
    with pytest.raises(RunError, match=r"answer\.json"):
        readers.read("mmmu", tmp_path, "validation")


def write_all(folder):
    for subject in mmmu.SUBJECTS:
        write(folder, [row(id=f"validation_{subject}_{n}") for n in (1, 2)], subject)
        write(folder, [row(id=f"dev_{subject}_1")], subject, "dev-00000-of-00001.parquet")
    write(folder, [row(id="validation_Art_1")], "Art")


def test_five_subjects_and_no_others(tmp_path):
    write_all(tmp_path)
    data = readers.read("mmmu", tmp_path, "validation")
    assert [record.kind for record in data.records] == [subject for subject in mmmu.SUBJECTS for _ in (1, 2)]
    assert data.report.rows == 10


def test_one_subject_can_be_asked_for(tmp_path):
    write_all(tmp_path)
    data = mmmu.read(Files(tmp_path), "validation", subjects=("Art",))
    assert [record.id for record in data.records] == ["mmmu/validation_Art_1"]


def test_validation_and_dev_with_choices_only(tmp_path):
    write_all(tmp_path)
    write(tmp_path, [row(), row(id="validation_Pharmacy_2", question_type="open", options="[]")])
    data = readers.read("mmmu", tmp_path, "val_dev_choice")
    assert [record.split for record in data.records] == ["validation"] * 9 + ["dev"] * 5
    assert "an open question (validation_Pharmacy_2)" in str(data.report)


def test_missing_subjects_are_noted(tmp_path):
    write(tmp_path, [row()])
    assert "no question of Public_Health" in str(readers.read("mmmu", tmp_path, "validation").report)


@pytest.mark.parametrize("folder", ["data", "."])
def test_all_subjects_in_one_file(tmp_path, folder):
    write(tmp_path, [row(), row(id="validation_Art_1"), row(id="validation_Public_Health_1")], folder)
    data = readers.read("mmmu", tmp_path, "validation")
    assert [record.kind for record in data.records] == ["Pharmacy", "Public_Health"]


def test_converted_copies(tmp_path):
    write(tmp_path, [row()], "Pharmacy/validation", "0000.parquet")
    assert len(readers.read("mmmu", tmp_path, "validation")) == 1


def test_no_shards(tmp_path):
    with pytest.raises(RunError, match="holds no validation"):
        readers.read("mmmu", tmp_path, "validation")


def test_reading_leaves_images_where_they_are(tmp_path, monkeypatch):
    write(tmp_path, [row(), row(id="validation_Pharmacy_2", image_2=image(2))])
    columns, read_row_group = [], pq.ParquetFile.read_row_group

    def spy(table, group, columns_read):
        columns.extend(columns_read)
        return read_row_group(table, group, columns=columns_read)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda table, group, columns: spy(table, group, columns))
    data = readers.read("mmmu", tmp_path, "validation")
    assert [name for name in columns if name in ("image_1", "image_2", "image_3")] == [
        "image_2"
    ]  # there in one of two rows
    assert "image_1.path" in columns
    assert [widths(record) for record in data.records] == [[1], [1]]


@pytest.mark.parametrize("statistics", [True, False])
def test_images_are_found_without_statistics_too(tmp_path, statistics):
    rows = [row(image_2=image(2), question="?"), row(id="validation_Pharmacy_2")]
    (tmp_path / "Pharmacy").mkdir()
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, tmp_path / "Pharmacy" / "validation.parquet", write_statistics=statistics)
    assert [widths(record) for record in readers.read("mmmu", tmp_path, "validation").records] == [[1, 2], [1]]


def test_images_beside_the_shard(tmp_path):
    beside = {"bytes": None, "path": "a.png"}
    write(
        tmp_path, [row(image_1=beside), row(id="validation_Pharmacy_2", image_1={"bytes": None, "path": "../../b.png"})]
    )
    (tmp_path / "a.png").write_bytes(image(7)["bytes"])
    records = readers.read("mmmu", tmp_path, "validation").records
    assert widths(records[0]) == [7]
    with pytest.raises(BadImage, match="holds no"):
        records[1].task()
