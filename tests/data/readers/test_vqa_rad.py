"""One test for each oddity of the published VQA-RAD; the rows here are written by hand, exported ones in tests/data/exporters."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

OSF = "VQA_RAD Dataset Public.json"


def jpeg(value):
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (value, value, value)).save(out, "JPEG")
    return out.getvalue()


def row(qid, **changes):
    return {
        "qid": qid,
        "phrase_type": "freeform",
        "image_name": "synpic1.jpg",
        "image_organ": "CHEST",
        "question": f"Is there a finding {qid}?",
        "question_type": "PRES",
        "answer": "Yes",
        "answer_type": "CLOSED",
    } | changes


@pytest.fixture
def mevf(tmp_path):
    def write(train, test=(), images=("synpic1.jpg", "synpic2.jpg")):
        (tmp_path / "images").mkdir(exist_ok=True)
        for number, name in enumerate(images):
            (tmp_path / "images" / name).write_bytes(jpeg(20 * number))
        for split, rows in (("train", train), ("test", test)):
            (tmp_path / f"{split}set.json").write_text(json.dumps(list(rows)))
        return tmp_path

    return write


@pytest.fixture
def osf(tmp_path):
    def write(rows):
        (tmp_path / "VQA_RAD Image Folder").mkdir()
        (tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg").write_bytes(jpeg(0))
        (tmp_path / OSF).write_text(json.dumps(list(rows)))
        return tmp_path

    return write


def write_hf(root, split, rows):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("question", pa.string()), ("answer", pa.string())])
    cells = [{"image": i if i is None else {"bytes": i, "path": None}, "question": q, "answer": a} for i, q, a in rows]
    (root / "data").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(cells, schema), root / "data" / f"{split}-00000-of-00001-0a1b.parquet")


def read(root, split="train"):
    return readers.read("vqa_rad", root, split)


def only(data):
    (record,) = data.records
    return record


def test_a_record_says_what_its_row_says(mevf):
    record = only(read(mevf([row(17)])))
    assert record.id == "vqa_rad/train/17"
    assert (record.dataset, record.split, record.kind, record.modality) == ("vqa_rad", "train", "PRES", "X-Ray")
    assert (record.question, record.answer, record.answer_type) == ("Is there a finding 17?", "Yes", AnswerType.YES_NO)
    assert record.task().images[0].pixels.shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("answer", "kind", "expected"),
    [
        ("No", "CLOSED", AnswerType.YES_NO),
        ("yes ", "CLOSED", AnswerType.YES_NO),
        ("Right side", "CLOSED", AnswerType.CLOSED),
        ("Right side", "CLOSED ", AnswerType.CLOSED),
        ("Right side", "OPEN", AnswerType.OPEN),
        ("Right side", None, AnswerType.OPEN),
    ],
)
def test_answer_types_come_with_trailing_blanks(mevf, answer, kind, expected):
    assert only(read(mevf([row(1, answer=answer, answer_type=kind)]))).answer_type is expected


def test_answers_that_are_numbers_become_text(mevf):
    data = read(mevf([row(1, answer=4, answer_type="OPEN")]))
    assert only(data).answer == "4"
    assert data.report.notes["answer is a number in the file"] == 1


def test_tabs_in_answers_become_blanks(mevf):
    assert only(read(mevf([row(1, answer="respiratory \tcardia c\tbones ")]))).answer == "respiratory cardia c bones"


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ("PRES, POS", "POS, PRES"),
        ("POS, PRES", "POS, PRES"),
        ("PRSE", "PRES"),
        ("ATRIB", "ATTRIB"),
        ("Other", "OTHER"),
        ("NULL", "unknown"),
        (None, "unknown"),
    ],
)
def test_question_types_are_spelt_one_way(mevf, labels, kind):
    assert only(read(mevf([row(1, question_type=labels)]))).kind == kind


@pytest.mark.parametrize(("organ", "modality"), [("CHEST", "X-Ray"), ("ABD", "CT"), ("HEAD", ""), ("NULL", "")])
def test_the_region_says_the_modality_where_it_can(mevf, organ, modality):
    assert only(read(mevf([row(1, image_organ=organ)]))).modality == modality


def test_frame_questions_are_left_out_and_counted(mevf):
    root = mevf([row(1), row(2, phrase_type="frame"), row(3, phrase_type="para")])
    data = read(root)
    assert [record.id for record in data.records] == ["vqa_rad/train/1", "vqa_rad/train/3"]
    assert (data.report.rows, data.report.dropped["frame question"]) == (3, 1)
    assert [r.id.split("/")[-1] for r in read(root, "train_and_frames").records] == ["1", "2", "3"]


def test_frame_questions_are_in_the_mevf_layout_only(osf):
    with pytest.raises(RunError, match=r"holds no trainset\.json of VQA-RAD"):
        read(osf([row(1)]), "train_and_frames")


def test_duplicate_triplets_are_dropped_and_named(mevf):
    again = {"question": "Is there a finding 1?"}
    data = read(
        mevf([row(1), row(2, **again), row(3, **again, answer="no"), row(4, **again, image_name="synpic2.jpg")])
    )
    assert [record.id for record in data.records] == [f"vqa_rad/train/{i}" for i in (1, 3, 4)]
    assert data.report.named == {"duplicate of an earlier row": ["vqa_rad/train/2"]}


def test_a_triplet_of_the_test_split_is_no_training_row(mevf):
    root = mevf([row(1), row(2)], [row(11, question="is there  a finding 2?", answer="yes")])
    data = read(root)
    assert [record.id for record in data.records] == ["vqa_rad/train/1"]
    assert data.report.named == {"also in the test split": ["vqa_rad/train/2"]}
    assert len(read(root, "test")) == 1


def test_a_missing_image_drops_its_rows_and_is_named(mevf):
    data = read(mevf([row(1), row(2, image_name="synpic9.jpg"), row(3, image_name=None)]))
    assert len(data) == 1
    assert data.report.named["image missing"] == ["2: synpic9.jpg", "3: no name"]


@pytest.mark.parametrize("missing", ["question", "answer"])
@pytest.mark.parametrize("value", [None, "", "NULL"])
def test_rows_without_a_question_or_an_answer_are_dropped(mevf, missing, value):
    data = read(mevf([row(1), row(2, **{missing: value})]))
    assert len(data) == 1
    assert data.report.dropped["no question or no answer"] == 1


def test_phrase_types_make_the_splits_of_the_raw_file(osf):
    phrases = ("freeform", "para", "test_freeform", "test_para", "test_frame")
    root = osf(row(i, phrase_type=phrase, question_rephrase="NULL") for i, phrase in enumerate(phrases))
    train, test = read(root), read(root, "test")
    assert [record.id for record in train.records] == ["vqa_rad/train/0", "vqa_rad/train/1"]
    assert [record.id for record in test.records] == ["vqa_rad/test/2", "vqa_rad/test/3"]
    assert train.report.rows == 3
    (reason,) = train.report.dropped
    assert reason.startswith("phrase_type is none of freeform, ")


def test_hf_rows_are_typed_by_their_answer(tmp_path):
    rows = [(jpeg(0), "is it there?", "yes"), (jpeg(0), "which side?", "left"), (None, "lost?", "no")]
    write_hf(tmp_path, "train", rows)
    data = read(tmp_path)
    assert [record.answer_type for record in data.records] == [AnswerType.YES_NO, AnswerType.OPEN]
    assert [record.kind for record in data.records] == ["unknown", "unknown"]
    assert data.report.named == {"no image": ["0:2"]}


def test_hf_duplicates_are_found_by_their_bytes(tmp_path):
    write_hf(
        tmp_path,
        "train",
        [(jpeg(0), "a?", "yes"), (jpeg(90), "a?", "yes"), (jpeg(0), "A?", "Yes"), (jpeg(5), "b?", "no")],
    )
    write_hf(tmp_path, "test", [(jpeg(5), "b?", "no")])
    data = read(tmp_path)
    assert len(data) == 2
    assert data.report.dropped == {"duplicate of an earlier row": 1, "also in the test split": 1}


@pytest.mark.parametrize("layout", ["osf", "mevf"])
def test_a_raw_file_beside_the_parquet_types_its_rows(tmp_path, layout):
    side = [
        row(1, question="Which side?", answer="Left", question_type="POS"),
        row(2, question="Where is it?", answer="White matter", question_type="POS"),
        row(3, question="Where is it?", answer="White matter", question_type="POS", answer_type="OPEN"),
    ]
    (tmp_path / (OSF if layout == "osf" else "trainset.json")).write_text(json.dumps(side))
    write_hf(tmp_path, "train", [(jpeg(0), "which side?", "left"), (jpeg(0), "where is it?", "white matter")])
    first, second = read(tmp_path).records
    assert (first.answer_type, first.kind, first.modality) == (AnswerType.CLOSED, "POS", "X-Ray")
    assert second.answer_type is AnswerType.OPEN, "the side file contradicts itself"
    assert second.kind == "POS"


def test_a_zip_is_read_like_its_folder(mevf, tmp_path_factory):
    root = mevf([row(1)], [row(2)])
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("zip") / "rad"), "zip", root)
    np.testing.assert_array_equal(read(archive)[0].images[0].pixels, read(root)[0].images[0].pixels)


def test_a_byte_order_mark_does_no_harm(mevf):
    root = mevf([row(1)])
    (root / "trainset.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([row(5)]).encode())
    assert only(read(root)).id == "vqa_rad/train/5"


@pytest.mark.parametrize("content", ["[{", '{"a": 1}', "[1, 2]", "[" * 100_000, "\udcff"])
def test_a_file_that_is_no_list_of_rows_is_named(mevf, content):
    root = mevf([row(1)])
    (root / "trainset.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"trainset\.json"):
        read(root)


def test_a_folder_of_something_else_says_what_is_wanted(tmp_path):
    with pytest.raises(
        RunError, match=r"holds no train-\*\.parquet, test-\*\.parquet, VQA_RAD Dataset Public\.json or"
    ):
        read(tmp_path)


def test_a_split_of_which_nothing_is_left_is_an_error_with_the_report(mevf):
    with pytest.raises(
        RunError, match=r"(?s)holds nothing usable for vqa_rad/train: vqa_rad train: 1 rows read.*image missing"
    ):
        read(mevf([row(1)], images=()))


def test_a_split_that_is_not_in_the_parquet_files_is_an_error(tmp_path):
    write_hf(tmp_path, "test", [(jpeg(0), "is it there?", "yes")])
    with pytest.raises(RunError, match="holds nothing usable for vqa_rad/train"):
        read(tmp_path)
