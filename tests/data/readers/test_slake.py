"""One test a quirk of SLAKE (reference §1.2)."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage
from mvg_jax.data.readers import slake
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

WIDTH, HEIGHT = 80, 40


def png(pixels, mode=None):
    out = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    image.convert(mode or image.mode).save(out, "PNG")
    return out.getvalue()


def row(**other):
    return {
        "img_id": 1,
        "img_name": "xmlab1/source.jpg",
        "question": "What modality is used to take this image?",
        "answer": "MRI",
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Modality",
        "triple": ["vhead", "_", "_"],
        "qid": 0,
    } | other


@pytest.fixture
def root(tmp_path):
    """A folder with the image xmlab1; `write` adds the questions."""
    put(tmp_path, "imgs/xmlab1/source.jpg", png(np.zeros((HEIGHT, WIDTH))))
    return tmp_path


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write(root, *rows, name="train.json"):
    put(root, name, json.dumps(list(rows), ensure_ascii=False))


def only(root, split="train"):
    data = readers.read("slake", root, split)
    assert len(data) == 1
    return data.records[0]


def test_a_row_becomes_a_record(root):
    write(root, row(qid=7))
    record = only(root)
    assert (record.id, record.dataset, record.split, record.kind) == ("slake/train/7", "slake", "train", "Modality")
    assert (record.answer, record.answer_type, record.modality, record.language) == (
        "MRI",
        AnswerType.OPEN,
        "MRI",
        "en",
    )
    assert record.task().images[0].pixels.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["validation.json", "validate.json"])
def test_the_validation_split_has_two_names(root, name):
    write(root, row(), name=name)
    assert only(root, "validation").split == "validation"


@pytest.mark.parametrize("member", ["imgs/xmlab1/source.jpg", "xmlab1/source.jpg"])
def test_images_still_zipped(tmp_path, member):
    write(tmp_path, row())
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        archive.writestr(member, png(np.ones((3, 5))))
        archive.writestr(member.replace("source.jpg", "detection.json"), '[{"Mass": [0, 0, 1, 1]}]')
    record = only(tmp_path)
    assert record.task().images[0].pixels.shape == (3, 5)
    assert [box.label for box in record.boxes] == ["Mass"]


def test_english_unless_asked_otherwise(root):
    write(root, row(qid=1), row(qid=2, q_lang="zh", question="这是什么模态？"))
    records = {split: readers.read("slake", root, split).records for split in ("train", "train_zh", "train_all")}
    assert {split: [r.language for r in rs] for split, rs in records.items()} == {
        "train": ["en"],
        "train_zh": ["zh"],
        "train_all": ["en", "zh"],
    }
    assert {r.split for rs in records.values() for r in rs} == {"train"}


@pytest.mark.parametrize(
    ("answer_type", "answer", "expected"),
    [
        ("CLOSED", "Yes", AnswerType.YES_NO),
        ("CLOSED", "no", AnswerType.YES_NO),
        ("CLOSED ", "Left", AnswerType.CLOSED),
        ("closed", "Coronal Plane", AnswerType.CLOSED),
        ("OPEN", "Lung, Heart", AnswerType.LIST),
        ("OPEN", "Right Lung, Lower Left", AnswerType.LIST),
        ("OPEN", "肺、心脏", AnswerType.LIST),
        ("OPEN", "肺，心脏", AnswerType.LIST),
        ("OPEN", "Heart,", AnswerType.OPEN),
        ("OPEN", "2", AnswerType.NUMBER),
        ("OPEN", "T2", AnswerType.OPEN),
        ("OPEN", "没有", AnswerType.OPEN),
    ],
)
def test_answer_types(root, answer_type, answer, expected):
    write(root, row(answer_type=answer_type, answer=answer))
    assert only(root).answer_type == expected


@pytest.mark.parametrize(
    ("answer", "same", "against"),
    [
        ("包含", "有", "没有"),
        ("不包含", "没有", "有"),
        ("是的", "是", "不是"),
        ("存在", "yes", "no"),
        ("不可以", "no", "yes"),
    ],
)
def test_chinese_yes_and_no_have_synonyms(root, answer, same, against):
    write(root, row(q_lang="zh", answer_type="CLOSED", answer=answer))
    record = only(root, "train_zh")
    assert (record.answer, record.answer_type) == (answer, AnswerType.YES_NO)
    assert same in record.accepted
    assert against not in record.accepted
    assert answer not in record.accepted


@pytest.mark.parametrize(
    ("question", "answer", "answer_type", "accepted"),
    [
        ("肺部看起来正常吗？", "正常", AnswerType.YES_NO, "是"),
        ("肺部看起来正常吗？", "不正常", AnswerType.YES_NO, "不是"),
        ("肺部正常还是不正常？", "正常", AnswerType.CLOSED, None),
        ("肺部有异常吗？", "正常", AnswerType.CLOSED, None),
    ],
)
def test_normal_says_yes_only_to_who_asks_for_normal(root, question, answer, answer_type, accepted):
    write(root, row(q_lang="zh", answer_type="CLOSED", question=question, answer=answer))
    record = only(root, "train_zh")
    assert record.answer_type == answer_type
    assert record.accepted == () if accepted is None else accepted in record.accepted


def test_english_yes_has_no_synonyms(root):
    write(root, row(answer_type="CLOSED", answer="Yes"))
    assert only(root).accepted == ()


def test_kvqa_is_a_question_of_knowledge(root):
    write(root, row(base_type="kvqa", content_type="Organ"))
    assert only(root).kind == "KG"


def test_casing_drifts_in_kinds_and_modalities_and_stays_in_answers(root):
    write(root, row(content_type="organ", modality="x-ray", answer="Small Bowel"))
    record = only(root)
    assert (record.kind, record.modality, record.answer) == ("Organ", "X-Ray", "Small Bowel")


def test_boxes_are_xywh_in_pixels(root):
    write(root, row())
    put(root, "imgs/xmlab1/detection.json", '[{"Atelectasis": [20.0, 10.0, 40.0, 5.0]}, {"Mass": [0, 0, 8, 40]}]')
    boxes = only(root).boxes
    assert [(box.label, box.xyxy) for box in boxes] == [
        ("Atelectasis", (250.0, 250.0, 750.0, 375.0)),
        ("Mass", (0.0, 0.0, 100.0, 1000.0)),
    ]


def test_boxes_end_at_the_image(root):
    write(root, row())
    put(root, "imgs/xmlab1/detection.json", '[{"Mass": [-8, 30, 16, 99]}, {"Off": [200, 0, 5, 5]}]')
    data = readers.read("slake", root, "train")
    assert [box.xyxy for box in data.records[0].boxes] == [(0.0, 750.0, 100.0, 1000.0)]
    assert "1 times: a box of detection.json without area in its image, left out" in str(data.report)


@pytest.mark.parametrize("content", ["[]", None])
def test_an_image_without_boxes(root, content):
    write(root, row())
    if content:
        put(root, "imgs/xmlab1/detection.json", content)
    assert only(root).boxes == ()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (
            '[{"Mass": [1, 2, 3]}, {"Mass": [1, 2, 3, NaN]}, 5]',
            "3 times: a box of detection.json that is not [x, y, w, h]",
        ),
        ("{", "1 times: a detection.json that is no list"),
    ],
)
def test_illegible_boxes_are_noted(root, content, note):
    write(root, row(qid=1), row(qid=2))  # one image: noted once
    put(root, "imgs/xmlab1/detection.json", content)
    data = readers.read("slake", root, "train")
    assert len(data) == 2
    assert data.records[0].boxes == ()
    assert note in str(data.report)


def test_bad_rows_are_dropped_with_reasons(root):
    put(root, "imgs/xmlab3/source.jpg", b"no image")
    write(
        root,
        row(qid=1),
        "no row",
        row(answer=""),
        row(question=None),
        row(img_name=5),
        row(q_lang="fr"),
        row(answer_type=""),
        row(img_name="xmlab2/source.jpg"),
        row(img_name="xmlab3/source.jpg"),
    )
    data = readers.read("slake", root, "train")
    assert (len(data), data.report.rows) == (1, 9)
    assert data.report.dropped == {
        "no dictionary": 1,
        "no answer": 1,
        "no question": 1,
        "no img_name": 1,
        "q_lang is neither en nor zh": 1,
        "answer_type is neither OPEN nor CLOSED": 1,
        "no such image, or an unreadable one": 2,
    }
    assert "row 7: xmlab2/source.jpg" in str(data.report)


def test_ids_stay_unique(root):
    write(root, row(qid=3), row(qid=3), row(qid=None))
    assert [r.id for r in readers.read("slake", root, "train").records] == [
        "slake/train/3",
        "slake/train/3#2",
        "slake/train/row2",
    ]


@pytest.mark.parametrize(("content", "told"), [("{}", "not a list"), ("[", "no JSON"), ("[" * 10**5, "no JSON")])
def test_a_broken_file_is_named(root, content, told):
    put(root, "train.json", content)
    with pytest.raises(RunError, match=rf"train\.json .*{told}"):
        readers.read("slake", root, "train")


def test_a_split_that_is_not_there(root):
    with pytest.raises(RunError, match=r"validation\.json or validate\.json"):
        readers.read("slake", root, "validation")


def test_a_split_without_usable_rows(root):
    write(root, row(answer=""))
    with pytest.raises(RunError, match=r"(?s)nothing usable for slake/train.*no answer \(row 0\)"):
        readers.read("slake", root, "train")


# Masks.

IDS = np.zeros((HEIGHT, WIDTH), np.uint8)
IDS[:10], IDS[10:20] = 3, 12


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize(
    "lines",
    [
        "0: background\n3: Left Lung\n12: Liver\n30: Mass\n",
        "Left Lung 3\nLiver 12\nMass 30\n",
        "id name\n3\tLeft Lung\r\n12\tLiver",
    ],
)
def test_masks_in_every_mode_and_order_of_lines(root, mode, lines):
    write(root, row())
    put(root, "mask.txt", lines)
    mask = Image.fromarray(IDS)
    if mode == "P":
        mask.putpalette([255, 0, 0] * 256)
    out = io.BytesIO()
    (mask if mode == "P" else mask.convert(mode)).save(out, "PNG")
    put(root, "imgs/xmlab1/mask.png", out.getvalue())
    masks = slake.masks(only(root))
    assert list(masks) == ["Left Lung", "Liver"]
    np.testing.assert_array_equal(masks["Left Lung"], IDS == 3)
    np.testing.assert_array_equal(masks["Liver"], IDS == 12)


@pytest.mark.parametrize("lines", ["3: 2 masses\n12: T1\n", "2 masses: 3\nT1: 12\n"])
def test_names_with_numbers_in_mask_txt(root, lines):
    write(root, row())
    put(root, "mask.txt", lines)
    put(root, "imgs/xmlab1/mask.png", png(IDS))
    assert list(slake.masks(only(root))) == ["2 masses", "T1"]


def test_an_image_without_a_mask(root):
    write(root, row())
    assert slake.masks(only(root)) == {}


def test_masks_that_cannot_be_used(root):
    write(root, row())
    put(root, "mask.txt", "3: Liver")
    for mask, told in (
        (png(np.dstack([IDS, IDS, IDS + 1])), "equal channels"),
        (png(IDS[:5]), f"80 x 5, its image {WIDTH} x {HEIGHT}"),
        (b"no image", "UnidentifiedImageError"),
    ):
        put(root, "imgs/xmlab1/mask.png", mask)
        with pytest.raises(BadImage, match=f"mask.png: .*{told}"):
            slake.masks(only(root))


def test_a_mask_txt_without_names(root):
    write(root, row())
    put(root, "mask.txt", "nothing here")
    put(root, "imgs/xmlab1/mask.png", png(IDS))
    with pytest.raises(RunError, match=r"mask\.txt"):
        slake.masks(only(root))


# Knowledge.


def test_knowledge_is_a_lookup(tmp_path):
    put(
        tmp_path,
        "KG/en_disease.csv",
        "disease#attribute#value\nPneumonia#symptom#cough, fever\nPneumonia#Symptom#chill\n",
    )
    put(tmp_path, "KG/en_organ.csv", "organ#attribute#value\nHeart#Function#pump blood\n\n")
    put(tmp_path, "KG/organ.csv", "器官#属性#值\n心脏#功能#泵血\n".encode("gb18030"))
    assert slake.knowledge(Files(tmp_path)) == {
        "pneumonia": {"symptom": "cough, fever, chill"},
        "heart": {"function": "pump blood"},
    }
    assert slake.knowledge(Files(tmp_path), "zh") == {"心脏": {"功能": "泵血"}}


def test_knowledge_with_commas_between_fields(tmp_path):
    put(tmp_path, "en_organ.csv", 'organ,attribute,value\nHeart,function,"pump, push"\n')
    assert slake.knowledge(Files(tmp_path)) == {"heart": {"function": "pump, push"}}


def test_a_line_that_is_no_triple(tmp_path):
    put(tmp_path, "KG/en_organ.csv", "organ#attribute#value\nHeart#function\n")
    with pytest.raises(RunError, match=r"en_organ\.csv .*line 2"):
        slake.knowledge(Files(tmp_path))


def test_a_table_that_is_none(tmp_path):
    put(tmp_path, "KG/en_organ.csv", "organ#attribute#value\nHeart#function#" + "x" * 200_000)
    with pytest.raises(RunError, match=r"en_organ\.csv .*is no table"):
        slake.knowledge(Files(tmp_path))


def test_no_knowledge(tmp_path):
    with pytest.raises(RunError, match=r"en_disease\.csv"):
        slake.knowledge(Files(tmp_path))
