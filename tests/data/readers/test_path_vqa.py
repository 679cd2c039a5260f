import io
import json
import pathlib
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError


def jpeg(value, mode="RGB"):
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (value, 20, 20)).convert(mode).save(out, "JPEG")
    return out.getvalue()


def row(image, question="what is present?", answer="in the canals of hering"):
    return {"image": image, "question": question, "answer": answer}


def write_hf(root, split, rows, shard="-00000-of-00001-0a1b"):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("question", pa.string()), ("answer", pa.string())])
    (root / "data").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), root / "data" / f"{split}{shard}.parquet")


@pytest.fixture
def original(tmp_path):
    def write(rows, split="train", images=("train_0001", "train_0002"), root=tmp_path / "pvqa"):
        (root / "qas" / split).mkdir(parents=True)
        (root / "images" / split).mkdir(parents=True)
        for number, name in enumerate(images):
            (root / "images" / split / f"{name}.jpg").write_bytes(jpeg(30 * number))
        (root / "qas" / split / f"{split}_qa.pkl").write_bytes(pickle.dumps(list(rows), 4))
        return tmp_path

    return write


def read(root, split="train"):
    return readers.read("path_vqa", root, split)


def test_parquet_shards_are_read_in_order(tmp_path):
    rows = [row({"bytes": jpeg(i), "path": f"train_{i}.jpg"}, f"what is {i}?") for i in range(3)]
    write_hf(tmp_path, "train", rows[:2], "-00000-of-00002-0a1b")
    write_hf(tmp_path, "train", rows[2:], "-00001-of-00002-0c1d")
    data = read(tmp_path)
    assert [record.id for record in data.records] == [f"path_vqa/train/{at}" for at in ("0:0", "0:1", "1:0")]
    assert [record.question for record in data.records] == ["what is 0?", "what is 1?", "what is 2?"]
    assert data[2].images[0].pixels.shape == (12, 16, 3)


def test_cmyk_images_become_rgb(tmp_path):
    write_hf(tmp_path, "test", [row({"bytes": jpeg(200, "CMYK"), "path": "a.jpg"})])
    pixels = read(tmp_path, "test")[0].images[0].pixels
    assert pixels.shape == (12, 16, 3)
    assert pixels[0, 0, 0] > 150


def test_duplicates_are_dropped_and_absent_images_named(tmp_path):
    image = {"bytes": jpeg(0), "path": "a.jpg"}
    write_hf(tmp_path, "train", [row(image), row(image), row({"bytes": jpeg(9), "path": "b.jpg"}), row(None)])
    data = read(tmp_path)
    assert len(data) == 2
    assert data.report.named == {
        "duplicate of an earlier row": ["path_vqa/train/0:1"],
        "image missing": ["0:3: no name"],
    }


@pytest.mark.parametrize(
    ("question", "answer", "kind", "answer_type"),
    [
        ("is it normal?", "Yes ", "yes/no", AnswerType.YES_NO),
        ("What is it?", "no", "yes/no", AnswerType.YES_NO),
        ("What is it?", "bile duct", "what", AnswerType.OPEN),
        ("how many cells are there?", "4", "how many", AnswerType.OPEN),
        ("how does it look?", "dark", "how", AnswerType.OPEN),
        ("the cell is what?", "no nucleus", "other", AnswerType.OPEN),
    ],
)
def test_questions_are_sorted_as_in_the_paper(original, question, answer, kind, answer_type):
    (record,) = read(original([row("train_0001", question, answer)])).records
    assert (record.kind, record.answer_type) == (kind, answer_type)


def test_the_original_layout_names_its_images_without_suffix(original):
    data = read(original([row("train_0002"), row("train_0001.jpg", "where is it?")]))
    assert [record.images[0].name for record in data.records] == [
        "pvqa/images/train/train_0002.jpg",
        "pvqa/images/train/train_0001.jpg",
    ]
    assert data[0].answer == "in the canals of hering"


def test_the_original_validation_split_is_called_val(original):
    data = read(original([row("val_0001")], "val", ["val_0001"]), "validation")
    assert data.records[0].id == "path_vqa/validation/0"
    assert data.split == "validation"


def test_images_of_one_name_are_those_of_the_split(original):
    original([row("a")], "train", ["a"])
    root = original([row("a")], "test", ["other", "a"])
    assert read(root, "test").records[0].images[0].name == "pvqa/images/test/a.jpg"


def test_missing_images_and_duplicates_of_the_original_are_named(original):
    data = read(original([row("train_0001"), row("train_0009"), row("train_0001"), row("train_0002", answer=None)]))
    assert len(data) == 1
    assert data.report.named == {
        "image missing": ["1: train_0009"],
        "duplicate of an earlier row": ["path_vqa/train/2"],
        "no question or no answer": ["3"],
    }


def test_json_of_the_same_rows_is_read_instead_of_the_pickle(original):
    root = original([row("train_0001")])
    (root / "pvqa" / "qas" / "train" / "train_qa.json").write_text(json.dumps([row("train_0002", "whose?", "hers")]))
    assert read(root).records[0].question == "whose?"


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.PosixPath(self.path),)


def test_a_malicious_pickle_is_refused_and_does_nothing(original, tmp_path):
    mark = tmp_path / "was_here"
    root = original([row("train_0001", Malicious(mark))])
    with pytest.raises(RunError, match=r"train_qa\.pkl of .* could run any code"):
        read(root)
    assert not mark.exists()


def test_a_pickle_of_something_else_is_named(original):
    with pytest.raises(RunError, match=r"row 0 of .*train_qa\.pkl of .* is no object"):
        read(original(["train_0001"]))


def test_a_folder_of_something_else_says_what_is_wanted(tmp_path):
    with pytest.raises(RunError, match=r"holds no validation-\*\.parquet, val_qa\.json or val_qa\.pkl"):
        read(tmp_path, "validation")
