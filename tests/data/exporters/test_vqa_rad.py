import dataclasses
import json

import numpy as np
import pytest

from mvg_jax.data import readers
from mvg_jax.data.exporters import vqa_rad
from mvg_jax.data.images import to_8bit
from mvg_jax.data.phantom import PhantomSource
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError

TRAIN = 12
ASKED = (
    ("attribute", "What is the structure of the lesion?", "striped", ("striped", "homogeneous")),
    ("count", "How many specks are in the lesion?", "3", ("2", "3")),
    ("compare", "Which lesion is larger, left or right?", "left", ("left", "right")),
    ("structure", "Is there a large cyst?", "Yes", ("yes", "no")),
    ("place", "Where is the lesion?", "left lung", ()),
    ("organ", "Which organ holds the lesion?", "Liver", ("Liver", "Spleen")),
)
RAW = {"osf": "VQA_RAD Dataset Public.json", "mevf": "trainset.json"}


@pytest.fixture(scope="module")
def tasks():
    return [asked("train", i) for i in range(TRAIN)], [asked("test", i) for i in range(6)]


def asked(split, number):
    """An image of PhantomVQA with a question of ours."""
    kind, question, answer, options = ASKED[number % len(ASKED)]
    task = PhantomSource(split, TRAIN)[number]
    answer_type = AnswerType.CLOSED if options else AnswerType.OPEN
    return dataclasses.replace(
        task, kind=kind, question=question, answer=answer, options=options, answer_type=answer_type
    )


@pytest.fixture(scope="module")
def folders(tasks, tmp_path_factory):
    train, test = tasks
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in vqa_rad.LAYOUTS}
    for layout, folder in folders.items():
        vqa_rad.export(train, folder, "train", layout)
        vqa_rad.export([*test, train[7]], folder, "test", layout)
    return folders


@pytest.mark.parametrize("layout", vqa_rad.LAYOUTS)
def test_what_is_exported_is_read_back(tasks, folders, layout):
    train, test = tasks
    for split, wanted in (("train", [*train[:7], *train[8:]]), ("test", [*test, train[7]])):
        data = readers.read("vqa_rad", folders[layout], split)
        assert [r.question for r in data.records] == [task.question for task in wanted]
        assert [r.answer.lower() for r in data.records] == [task.answer.lower() for task in wanted]
        pixels = data[0].images[0].pixels.astype(int)
        shown = np.atleast_3d(to_8bit(wanted[0].images[0]))
        assert pixels.shape == (*shown.shape[:2], 3)
        assert np.abs(pixels - shown).mean() < 3, "JPEG of the default window"


@pytest.mark.parametrize(("layout", "repeated"), [("hf", 0), ("osf", 1), ("mevf", 1)])
def test_the_leaked_triplet_and_the_duplicate_are_dropped(folders, layout, repeated):
    dropped = readers.read("vqa_rad", folders[layout], "train").report.dropped
    assert dropped["also in the test split"] == 1
    assert dropped["duplicate of an earlier row"] == repeated


@pytest.mark.parametrize("layout", RAW)
def test_the_raw_layouts_are_as_dirty_as_the_published_ones(folders, layout):
    rows = json.loads((folders[layout] / RAW[layout]).read_text())
    assert any(isinstance(row["answer"], int) for row in rows)
    assert any(row["answer_type"] == "CLOSED " for row in rows)
    assert {"PRSE", "Other", "ATTRIB", "ATTRIB, POS"} <= {row["question_type"] for row in rows}
    phrases = {row["phrase_type"] for row in rows}
    assert phrases == {"freeform", "para"} | ({"test_freeform", "test_para"} if layout == "osf" else {"frame"})
    assert len({row["qid"] for row in rows}) == len(rows)


def test_tabs_and_types_are_mended_on_the_way_back(folders):
    rows = json.loads((folders["mevf"] / "trainset.json").read_text())
    assert rows[4]["answer"] == "left \tlung"
    records = {r.id: r for r in readers.read("vqa_rad", folders["mevf"], "train").records}
    mended = [records[f"vqa_rad/train/{i}"] for i in range(6)]
    assert [r.answer for r in mended] == ["striped", "3", "left", "Yes", "left lung", "Liver"]
    assert [r.kind for r in mended] == ["ATTRIB", "COUNT", "ATTRIB, POS", "PRES", "OTHER", "ORGAN"]
    assert [r.answer_type.value for r in mended] == ["closed", "closed", "closed", "yes_no", "open", "closed"]


def test_tasks_of_one_image_share_its_file(tasks, tmp_path):
    same = [tasks[0][0], dataclasses.replace(tasks[0][0], question="Is it?", answer="yes")]
    vqa_rad.export(same, tmp_path, "test", "osf")
    assert len(list((tmp_path / "VQA_RAD Image Folder").iterdir())) == 1


def test_a_parquet_beside_the_raw_file_gets_its_types(tasks, tmp_path):
    vqa_rad.export(tasks[0], tmp_path, "train", "hf")
    assert AnswerType.CLOSED not in {r.answer_type for r in readers.read("vqa_rad", tmp_path, "train").records}
    vqa_rad.export(tasks[0], tmp_path, "train", "osf")
    data = readers.read("vqa_rad", tmp_path, "train")
    assert sum(record.answer_type is AnswerType.CLOSED for record in data.records) == TRAIN * 4 // 6
    assert data.report.notes["answer type from the raw layout beside it"] == TRAIN


@pytest.mark.parametrize(("split", "layout"), [("val", "hf"), ("train", "xlsx")])
def test_unknown_splits_and_layouts_are_refused(tmp_path, split, layout):
    with pytest.raises(RunError, match="layouts hf, osf, mevf and the splits train, test"):
        vqa_rad.export([], tmp_path, split, layout)


def test_a_task_of_two_images_is_refused_by_name(tasks, tmp_path):
    task = dataclasses.replace(tasks[0][0], images=tasks[0][0].images * 2)
    with pytest.raises(RunError, match=f"{task.id}: this layout holds one image a question, not 2"):
        vqa_rad.export([task], tmp_path, "train", "hf")
