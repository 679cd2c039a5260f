"""The format of a user's own data, field by field, and every way to get it wrong."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.readers import folder
from mvg_jax.data.task import AnswerType, Box
from mvg_jax.errors import RunError
from mvg_jax.tools.spec import ToolCall


def image_file(pixels, format):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


DEEP = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
FLAT = (np.arange(60, dtype=np.uint8) * 4).reshape(6, 10)


@pytest.fixture
def root(tmp_path):
    """A folder with images; `write` adds the questions."""
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "a.png").write_bytes(image_file(FLAT, "PNG"))
    (tmp_path / "im" / "deep.png").write_bytes(image_file(DEEP, "PNG"))
    (tmp_path / "im" / "deep.tiff").write_bytes(image_file(DEEP, "TIFF"))
    (tmp_path / "im" / "b.jpg").write_bytes(image_file(np.dstack([FLAT] * 3), "JPEG"))
    return tmp_path


def line(**other):
    row = {"id": "1", "images": ["im/a.png"], "question": "Is it big?", "answer": "yes"} | other
    return {key: value for key, value in row.items() if value is not ...}


def write(root, *lines, name="train.jsonl"):
    text = "\n".join(entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in lines)
    (root / name).write_text(text, encoding="utf-8")


def only(root, **other):
    write(root, line(**other))
    (record,) = readers.read("folder", root, "train").records
    return record


def fault(root, *bad):
    """The reason given for a bad line, which stands after a good one."""
    write(root, line(id="good"), "", *bad)
    data = readers.read("folder", root, "train")
    assert [r.id for r in data.records] == ["folder/good"]
    ((reason, lines),) = data.report.named.items()
    assert lines == ["line 3"]
    return reason


def test_the_least_a_line_must_say(root):
    record = only(root)
    assert (record.id, record.dataset, record.split, record.kind) == ("folder/1", "folder", "train", "question")
    assert (record.answer_type, record.options, record.accepted) == (AnswerType.YES_NO, (), ())
    assert (record.modality, record.language, record.boxes, record.chain) == ("", "en", (), None)
    np.testing.assert_array_equal(record.task().images[0].pixels, FLAT)


def test_all_a_line_can_say(root):
    record = only(
        root,
        id=7,
        images=["im/b.jpg", "im/a.png"],
        answer="left",
        options=["left", "right"],
        answer_type="closed",
        accepted=["on the left"],
        kind="side",
        modality="mr",
        language="en",
        split="train",
        boxes=[{"label": "cyst", "xyxy_1000": [0, 10.5, 500, 1000], "image": 1}],
        chain=[{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 9, 9], "img_idx": 1}}],
    )
    assert (record.id, record.kind, record.modality) == ("folder/7", "side", "MRI")
    assert (record.options, record.accepted) == (("left", "right"), ("on the left",))
    assert record.boxes == (Box("cyst", (0.0, 10.5, 500.0, 1000.0), 1),)
    assert record.chain == (ToolCall("image_zoom_in_tool", {"bbox_2d": [0, 0, 9, 9], "img_idx": 1}),)
    task = record.task()
    assert [image.pixels.ndim for image in task.images] == [3, 2]
    assert task.needs_tool is True


def test_an_empty_chain_means_no_tool_is_needed(root):
    assert only(root, chain=[]).task().needs_tool is False
    assert only(root).task().needs_tool is None


@pytest.mark.parametrize("path", ["im/deep.png", "im/deep.tiff", "im/../im/deep.png"])
def test_sixteen_bits_are_kept(root, path):
    (image,) = only(root, images=[path]).task().images
    np.testing.assert_array_equal(image.pixels, DEEP)
    assert image.pixels.dtype == np.uint16


@pytest.mark.parametrize(
    ("answer", "other", "expected"),
    [
        ("No", {}, AnswerType.YES_NO),
        ("a cyst", {}, AnswerType.OPEN),
        ("left", {"options": ["left", "right"]}, AnswerType.CLOSED),
        ("B", {"options": ["left", "right"]}, AnswerType.CHOICE),
        ("yes", {"options": ["yes", "no"], "answer_type": "yes_no"}, AnswerType.YES_NO),
        ("包含", {"answer_type": "yes_no", "language": "zh"}, AnswerType.YES_NO),
        ("A", {"options": ["B", "A"], "answer_type": "choice"}, AnswerType.CHOICE),
        ("A", {"options": ["B", "A"], "answer_type": "closed"}, AnswerType.CLOSED),
        ("liver, spleen", {"answer_type": "list"}, AnswerType.LIST),
        ("12 mm", {"answer_type": "number"}, AnswerType.NUMBER),
    ],
)
def test_answer_types(root, answer, other, expected):
    record = only(root, answer=answer, **other)
    assert (record.answer_type, record.answer) == (expected, answer)


@pytest.mark.parametrize(("answer", "text"), [(2, "2"), (2.5, "2.5"), ("-3.5 HU", "-3.5 HU")])
def test_numbers_may_be_numbers(root, answer, text):
    assert only(root, answer=answer, answer_type="number").answer == text


@pytest.mark.parametrize(("given", "tolerance"), [({}, 0.0), ({"tolerance": 0}, 0.0), ({"tolerance": 0.1}, 0.1)])
def test_a_number_may_be_off_by_its_tolerance(root, given, tolerance):
    assert only(root, answer="12 mm", answer_type="number", **given).task().tolerance == tolerance


@pytest.mark.parametrize("answer", [[0, 10, 20.5, 1000], "[0, 10, 20.5, 1000]"])
def test_boxes_as_answers(root, answer):
    record = only(root, answer=answer, answer_type="box")
    assert (record.answer_type, record.answer) == (AnswerType.BOX, "[0, 10, 20.5, 1000]")


BOX = {"label": "x", "xyxy_1000": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"id": ...}, "id: needs text"),
        ({"id": True}, "id: needs text"),
        ({"id": "good"}, "id: used before"),
        ({"images": []}, "images: needs a list of texts"),
        ({"images": "im/a.png"}, "images: needs a list"),
        ({"images": ["a.png"]}, "images: no file a.png"),
        ({"images": ["../x.png"]}, "images: no file ../x.png"),
        ({"images": ["/etc/passwd"]}, "images: no file /etc/passwd"),
        ({"question": " "}, "question: needs text"),
        ({"answer": ...}, "answer: needs text"),
        ({"answer": 0.5}, "answer: needs text"),
        ({"split": "test"}, "split: a line of another split in train.jsonl"),
        ({"split": "val"}, "split: use one of train, validation, test"),
        ({"option": ["a", "b"]}, "unknown field 'option'"),
        ({"options": ["yes"]}, "options: two or more different ones, at most 26"),
        ({"options": ["yes", "Yes"]}, "options: two or more different ones, at most 26"),
        ({"options": [str(i) for i in range(27)]}, "options: two or more different ones, at most 26"),
        ({"options": ["a", 3]}, "options: needs a list of texts"),
        ({"options": ["a", "b"]}, "answer: none of the options, nor its letter"),
        ({"options": ["B", "A"], "answer": "A"}, "answer: both an option's text and a letter"),
        ({"options": ["a", "b"], "answer_type": "closed"}, "answer: none of the options"),
        ({"options": ["a", "b"], "answer_type": "list"}, "options: not with answer_type list"),
        ({"options": ["a", "b"], "answer_type": "choice", "answer": "C"}, "answer: no letter of the options"),
        ({"options": ["a", "b"], "answer_type": "choice", "answer": "AB"}, "answer: no letter of the options"),
        ({"answer_type": "choice", "answer": "A"}, "answer: no letter of the options"),
        ({"answer_type": "yes_no", "answer": "maybe"}, "answer: neither yes nor no"),
        ({"answer_type": "number"}, "answer: no number"),
        ({"tolerance": 0.1}, "tolerance: only with answer_type number"),
        *(
            (
                {"answer_type": "number", "answer": "2 mm", "tolerance": bad},
                "tolerance: needs a number from 0 to below 1, 0.1 = 10 %",
            )
            for bad in (-0.1, 1, 10, True, "0.1", None, float("nan"), [])
        ),
        ({"answer_type": "number", "answer": float("inf")}, "answer: needs text"),
        ({"answer_type": "word"}, "answer_type: use one of yes_no, closed, open, choice, number, list, box"),
        ({"answer_type": "box"}, "answer: no box"),
        (
            {"answer_type": "box", "answer": [5, 0, 5, 9]},
            "answer: needs [x1, y1, x2, y2] in thousandths of the image, x1 < x2, y1 < y2",
        ),
        ({"accepted": "yes"}, "accepted: needs a list"),
        ({"kind": 3}, "kind: needs text"),
        ({"language": ["en"]}, "language: needs text"),
        ({"boxes": [BOX | {"label": ""}]}, "boxes: label needs text"),
        ({"boxes": [BOX | {"image": 1}]}, "boxes: image counts the images from 0"),
        ({"boxes": [BOX | {"image": True}]}, "boxes: image counts the images from 0"),
        ({"boxes": [[0, 0, 1, 1]]}, "boxes: each has label, xyxy_1000 and, if you like, image"),
        ({"chain": [{"name": "zoom"}]}, "chain: each call has a name and arguments"),
        ({"chain": {}}, "chain: needs a list"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(root, other, reason):
    assert fault(root, line(**({"id": "2"} | other))) == reason


@pytest.mark.parametrize(
    "xyxy", [[0, 0, 1200, 800], [5, 0, 5, 9], [0, 0, 1], [0, 0, True, 1], [0, 0, float("nan"), 1], "0 0 1 1"]
)
def test_boxes_are_thousandths_and_nothing_else(root, xyxy):
    told = "boxes: needs [x1, y1, x2, y2] in thousandths of the image, x1 < x2, y1 < y2"
    assert fault(root, line(id="2", boxes=[BOX | {"xyxy_1000": xyxy}])) == told


@pytest.mark.parametrize("field", ["xyxy", "bbox", "xyxy_pixels"])
def test_pixels_are_refused_by_name(root, field):
    bad = line(id="2", boxes=[{"label": "x", field: [0, 0, 10, 10]}])
    assert fault(root, bad) == "boxes: each has label, xyxy_1000 and, if you like, image"


@pytest.mark.parametrize(("text", "reason"), [("{", "no JSON"), ("[" * 10**5, "no JSON"), ("3", "no JSON object")])
def test_a_line_that_is_no_object(root, text, reason):
    assert fault(root, text) == reason


def test_one_file_for_all_splits(root):
    lines = [line(id=split, split=split) for split in folder.SPLITS]
    write(root, *lines, line(id="nowhere"), name="questions.jsonl")
    for split in folder.SPLITS:
        data = readers.read("folder", root, split)
        assert [(r.id, r.split) for r in data.records] == [(f"folder/{split}", split)]
        assert data.report.rows == 2
        assert data.report.named == {"split: use one of train, validation, test": ["line 4"]}


def test_the_splits_own_file_goes_first(root):
    write(root, line(id="own"))
    write(root, line(id="shared", split="train"), line(id="other", split="test"), name="questions.jsonl")
    assert [r.id for r in readers.read("folder", root, "train").records] == ["folder/own"]
    assert [r.id for r in readers.read("folder", root, "test").records] == ["folder/other"]


def test_paths_are_relative_to_the_lines_file(root, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("mine/train.jsonl", json.dumps(line()))
        archive.writestr("mine/im/a.png", image_file(FLAT, "PNG"))
    (record,) = readers.read("folder", tmp_path / "data.zip", "train").records
    np.testing.assert_array_equal(record.task().images[0].pixels, FLAT)


def test_images_in_a_zip_beside_the_lines(root):
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.writestr("p/b.png", image_file(FLAT, "PNG"))
    assert only(root, images=["more.zip/p/b.png"]).task().images[0].pixels.shape == FLAT.shape


def test_a_file_without_a_good_line(root):
    write(root, line(id=""), "{")
    with pytest.raises(RunError, match=r"(?s)train\.jsonl .* no good line for train: .*no JSON \(line 2\)"):
        readers.read("folder", root, "train")


def test_a_file_that_is_no_text(root):
    (root / "train.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"train\.jsonl .*not UTF-8"):
        readers.read("folder", root, "train")


def test_a_split_that_is_not_there(root):
    with pytest.raises(RunError, match=r"train\.jsonl or questions\.jsonl"):
        readers.read("folder", root, "train")


def test_the_documented_example_is_legal(root):
    lines = list(_objects(folder.__doc__))
    assert len(lines) == 2
    for entry in lines:
        entry["images"] = ["im/a.png"]
    write(root, *lines)
    data = readers.read("folder", root, "train")
    assert [r.id for r in data.records] == ["folder/p7-1", "folder/p7-2"]


def _objects(text):
    """The JSON objects that begin an indented line of a text."""
    decoder, start = json.JSONDecoder(), 0
    while (start := text.find("\n    {", start)) >= 0:
        value, end = decoder.raw_decode(text, text.index("{", start))
        yield value
        start = end


def test_every_field_is_documented():
    for field in folder.FIELDS:
        assert f"\n{field} " in folder.__doc__
    for answer_type in AnswerType:
        assert f" {answer_type} " in folder.__doc__
