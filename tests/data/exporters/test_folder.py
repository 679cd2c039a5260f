import dataclasses

import numpy as np
import pytest

from mvg_jax.data import readers
from mvg_jax.data.exporters import folder as exporter
from mvg_jax.data.phantom import PhantomSource
from mvg_jax.data.task import AnswerType, Box, NativeImage, Task
from mvg_jax.errors import RunError
from mvg_jax.tools.spec import ToolCall

COLOUR = NativeImage(np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8))
SCALED = NativeImage(
    np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000, (-55.25, 1200.0), 0.030517578125, -1024.0, "HU", 0.35
)
FLAT = NativeImage(np.arange(20, dtype=np.uint8).reshape(4, 5) * 10)
TASKS = [
    Task("a", "mine", "organ", (SCALED,), "Where?", "liver", ("liver", "spleen"), chain=()),
    Task(
        "b", "mine", "where", (COLOUR, FLAT), "Where?", "[0, 0, 500, 10]", answer_type=AnswerType.BOX,
        boxes=(Box("cyst", (0.0, 0.5, 10.0, 1000.0), 1),), modality="MRI", language="zh",
        chain=(ToolCall("image_zoom_in_tool", {"bbox_2d": [1, 2, 3, 4], "img_idx": 0}),),
    ),
    Task("c", "mine", "open", (FLAT,), "What?", "a cyst", answer_type=AnswerType.OPEN, accepted=("cyst",)),
    Task("d", "mine", "letter", (FLAT,), "What?", "B", ("one", "two"), answer_type=AnswerType.CHOICE),
    Task("e", "mine", "size", (FLAT,), "How wide?", "12 mm", answer_type=AnswerType.NUMBER, tolerance=0.15),
]  # fmt: skip


def export_and_read(tasks, root, layout, split="train"):
    exporter.export(tasks, root, split, layout)
    data = readers.read("folder", root, split)
    assert not data.report.dropped
    return list(data)


def same(made, read):
    for field in dataclasses.fields(Task):
        if field.name not in ("images", "id", "dataset", "certificate"):
            assert getattr(made, field.name) == getattr(read, field.name), field.name
    assert read.id == f"folder/{made.id}"
    for ours, theirs in zip(made.images, read.images, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.pixels.dtype == theirs.pixels.dtype
        assert ours.unit == theirs.unit
        for name in ("window", "slope", "intercept", "spacing_mm"):
            assert getattr(theirs, name) == pytest.approx(getattr(ours, name)), name


@pytest.mark.parametrize("layout", exporter.LAYOUTS)
def test_tasks_come_back_whole(tmp_path, layout):
    for made, read in zip(TASKS, export_and_read(TASKS, tmp_path, layout), strict=True):
        same(made, read)


def test_phantoms_come_back_whole(tmp_path):
    source = PhantomSource("val", 2)
    made = [source[i] for i in range(2)]
    for ours, theirs in zip(made, export_and_read(made, tmp_path, "files"), strict=True):
        same(ours, theirs)


def test_splits_of_one_file(tmp_path):
    exporter.export(TASKS[:1], tmp_path, "train", "one_file")
    (read,) = export_and_read(TASKS[2:3], tmp_path, "one_file", "test")
    assert read.id == "folder/c"
    assert len(readers.read("folder", tmp_path, "train")) == 1


def test_one_image_is_one_file(tmp_path):
    export_and_read(TASKS, tmp_path, "files")
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_nothing_is_overwritten(tmp_path):
    exporter.export(TASKS, tmp_path, "train", "files")
    with pytest.raises(FileExistsError):
        exporter.export(TASKS, tmp_path, "train", "files")
    with pytest.raises(RunError, match="layouts files, one_file"):
        exporter.export(TASKS, tmp_path, "train", "zip")
