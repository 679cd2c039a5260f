import pytest

from mvg_jax.data.catalog import Choice, choose, find_root, keep, open_source
from mvg_jax.data.images import BadImage
from mvg_jax.data.phantom.views import Overview
from mvg_jax.data.records import DataSet, ReadReport, Record
from mvg_jax.data.task import AnswerType
from mvg_jax.errors import RunError


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("phantom", Choice("phantom", "", 1.0)),
        ("slake:validation", Choice("slake", "validation", 1.0)),
        ("vqa_rad=0.5", Choice("vqa_rad", "", 0.5)),
        ("pmc_vqa:train_2=3", Choice("pmc_vqa", "train_2", 3.0)),
    ],
)
def test_how_a_config_names_data_sets(text, choice):
    assert choose(text) == choice


@pytest.mark.parametrize("text", ["nothing", "slake=0", "slake=-1", "slake=nan", "slake=inf", "slake=x", ""])
def test_what_names_no_data_set_is_refused(text):
    with pytest.raises(RunError, match="data set"):
        choose(text)


def test_a_data_set_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match=r"config\.data\.root"):
        open_source("slake", "train", str(tmp_path), 0, 10, Overview())
    (tmp_path / "slake.zip").touch()
    assert find_root("slake", str(tmp_path)) == tmp_path / "slake.zip"


def test_a_range_behind_the_end_of_a_data_set_names_where_it_begins(tmp_path):
    """configs/tiny.py begins at item 500,000 of the phantom; published sets are not that long."""
    (tmp_path / "folder").mkdir()
    line = '{"id": "a", "images": ["a.png"], "question": "left or right?", "answer": "left"}'
    (tmp_path / "folder" / "a.png").touch()
    (tmp_path / "folder" / "train.jsonl").write_text(line)
    with pytest.raises(RunError, match=r"folder: split train holds 1 questions, none from config\.data\.first 500000"):
        open_source("folder", "train", str(tmp_path), 500_000, 10, Overview())


def test_the_phantom_needs_no_files():
    assert len(open_source("phantom", "val", "/nonexistent", 3, 5, Overview())) == 5
    with pytest.raises(RunError, match="empty"):
        open_source("phantom", "val", "/nonexistent", 0, 0, Overview())


def test_the_atlas_is_made_for_the_overview():
    both = open_source("phantom_atlas", "val", "/nonexistent", 0, 5, Overview(256, 32))
    one = open_source("phantom_fundus", "ood", "/nonexistent", 0, 5, Overview(256, 32))
    assert len(both.families) == 5
    assert one.families == ("fundus",)
    assert one[0].images[0].pixels.shape == (256, 256, 3)
    with pytest.raises(RunError, match=r"phantom_fundus: .* at least 4 native pixels"):
        open_source("phantom_fundus", "val", "/nonexistent", 0, 5, Overview(512, 448))
    with pytest.raises(RunError, match="phantom_atlas: split 'dev'"):
        open_source("phantom_atlas", "dev", "/nonexistent", 0, 5, Overview())


def test_records_that_do_not_fit_are_counted_and_named():
    record = lambda i: Record(f"r{i}", "d", "train", "kind", (), "?" * i, "yes", AnswerType.YES_NO)
    report = ReadReport("d train")
    report.rows = 4
    data = DataSet("d", "train", tuple(map(record, range(4))), report)
    kept = keep(data, lambda r: len(r.question) < 2, "too long")
    assert [r.id for r in kept.records] == ["r0", "r1"]
    assert "2 kept, 2 dropped" in str(kept.report)
    assert "r2, r3" in str(kept.report)
    assert kept[0].question == ""
    assert len(kept[1:]) == 1


def test_a_bad_image_is_no_run_error():
    assert not issubclass(BadImage, RunError)
