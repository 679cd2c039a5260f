import dataclasses
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mvg_jax.data import readers
from mvg_jax.data.exporters import path_vqa
from mvg_jax.data.images import to_8bit
from mvg_jax.data.phantom import PhantomSource
from mvg_jax.errors import RunError


@pytest.fixture(scope="module")
def tasks():
    return [PhantomSource("train", 8)[i] for i in range(8)]


@pytest.mark.parametrize("layout", path_vqa.LAYOUTS)
@pytest.mark.parametrize("split", path_vqa.SPLITS)
def test_what_is_exported_is_read_back(tasks, tmp_path, split, layout):
    path_vqa.export(tasks, tmp_path, split, layout)
    data = readers.read("path_vqa", tmp_path, split)
    assert [(r.question, r.answer) for r in data.records] == [(t.question, t.answer.lower()) for t in tasks]
    assert data.report.dropped == ({} if layout == "hf" else {"duplicate of an earlier row": 1})
    for i in range(2):  # the first is CMYK
        pixels = data[i].images[0].pixels.astype(int)
        assert np.abs(pixels - np.atleast_3d(to_8bit(tasks[i].images[0]))).mean() < 3


def test_the_published_oddities_are_there(tasks, tmp_path):
    yes = dataclasses.replace(tasks[1], answer="Yes")
    path_vqa.export([tasks[0], yes], tmp_path, "train", "hf")
    shards = sorted((tmp_path / "data").iterdir())
    assert len(shards) == 2
    first, second = (pq.read_table(shard).to_pylist()[0] for shard in shards)
    assert Image.open(io.BytesIO(first["image"]["bytes"])).mode == "CMYK"
    assert Image.open(io.BytesIO(second["image"]["bytes"])).mode == "RGB"
    assert first["image"]["path"] == "train_0000.jpg"
    assert second["answer"] == "yes"
    assert b"huggingface" in pq.read_schema(shards[0]).metadata


def test_unknown_splits_and_layouts_are_refused(tmp_path):
    with pytest.raises(RunError, match="layouts hf, original and the splits train, validation, test"):
        path_vqa.export([], tmp_path, "val", "hf")
