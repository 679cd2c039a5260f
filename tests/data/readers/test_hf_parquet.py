import io
import json
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mvg_jax.data.files import Files
from mvg_jax.data.images import BadImage, EncodedRef, FileImage
from mvg_jax.data.readers import hf_parquet
from mvg_jax.errors import RunError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(value, size=(5, 4)):
    out = io.BytesIO()
    Image.new("L", size, value).save(out, "PNG")
    return out.getvalue()


def write(path, images, kind=IMAGE, metadata=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("image", kind), ("question", pa.string())], metadata=metadata)
    table = pa.Table.from_pylist([{"image": image, "question": f"q{i}"} for i, image in enumerate(images)], schema)
    pq.write_table(table, path, **options)


def read(root, split="train"):
    files = Files(root)
    return list(hf_parquet.rows(files, hf_parquet.shards(files, split)))


def grey(ref):
    return int(ref.load().pixels[0, 0])


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        ("data/train-00000-of-00002-0123456789abcdef.parquet", "data/train-00001-of-00002-fedcba9876543210.parquet"),
        ("default/train/0000.parquet", "default/train/0001.parquet"),
    ],
    ids=["plain", "with a hash", "converted"],
)
def test_shards_of_every_naming_are_read_in_order(tmp_path, names):
    for i, name in enumerate(names):
        write(tmp_path / name, [{"bytes": png(10 * i + j), "path": None} for j in range(2)])
    write(tmp_path / names[0].replace("train", "test"), [{"bytes": png(99), "path": None}])
    rows = read(tmp_path)
    assert [row_id for row_id, _ in rows] == ["0:0", "0:1", "1:0", "1:1"]
    assert [grey(row["image"]) for _, row in rows] == [0, 1, 10, 11]
    assert [grey(row["image"]) for _, row in read(tmp_path, "test")] == [99]


def test_a_single_file_of_a_split_is_a_shard(tmp_path):
    write(tmp_path / "train.parquet", [{"bytes": png(3), "path": None}])
    write(tmp_path / "pretrain.parquet", [{"bytes": png(4), "path": None}])
    assert [grey(row["image"]) for _, row in read(tmp_path)] == [3]


def test_shards_of_a_config_are_told_apart(tmp_path):
    for subject in ("Pharmacy", "Public_Health"):
        write(tmp_path / subject / "dev-00000-of-00001.parquet", [None])
    assert hf_parquet.shards(Files(tmp_path), "dev", "pharmacy") == ["Pharmacy/dev-00000-of-00001.parquet"]


@pytest.mark.parametrize(
    "metadata", [None, {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}]
)
def test_the_metadata_of_the_hub_are_not_needed(tmp_path, metadata):
    write(tmp_path / "train.parquet", [{"bytes": png(3), "path": "a.png"}], metadata=metadata)
    ((_, row),) = read(tmp_path)
    assert grey(row["image"]) == 3
    assert row["question"] == "q0"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bare_bytes_are_images_too(tmp_path, kind):
    write(tmp_path / "train.parquet", [png(5), None], kind)
    (_, first), (_, second) = read(tmp_path)
    assert grey(first["image"]) == 5
    assert second["image"] is None


def test_an_absent_image_is_none(tmp_path):
    write(tmp_path / "train.parquet", [None, {"bytes": png(1), "path": None}, {"bytes": None, "path": None}])
    assert [row["image"] is None for _, row in read(tmp_path)] == [True, False, True]


def test_an_image_that_was_not_embedded_is_found_by_its_path(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(42))
    write(tmp_path / "data" / "train.parquet", [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "gone.png"}])
    (_, first), (_, second) = read(tmp_path)
    assert isinstance(first["image"], FileImage)
    assert grey(first["image"]) == 42
    with pytest.raises(BadImage, match=r"gone\.png"):
        second["image"].load()


def test_embedded_bytes_win_over_the_path(tmp_path):
    (tmp_path / "a.png").write_bytes(png(42))
    write(tmp_path / "train.parquet", [{"bytes": png(7), "path": "a.png"}])
    ((_, row),) = read(tmp_path)
    assert grey(row["image"]) == 7


def test_images_lie_in_any_row_group(tmp_path):
    write(tmp_path / "train.parquet", [{"bytes": png(i), "path": None} for i in range(11)], row_group_size=2)
    rows = read(tmp_path)
    assert [row["question"] for _, row in rows] == [f"q{i}" for i in range(11)]
    assert [grey(row["image"]) for _, row in reversed(rows)] == list(range(11))[::-1]
    assert len({row["image"].name for _, row in rows}) == 11


def test_a_shard_within_a_zip_is_read(tmp_path):
    write(tmp_path / "train.parquet", [{"bytes": png(8), "path": None}])
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "train.parquet", "data/train-00000-of-00001.parquet")
    ((_, row),) = read(tmp_path / "set.zip")
    assert grey(row["image"]) == 8


def test_a_reference_pickles_small(tmp_path):
    write(tmp_path / "train.parquet", [{"bytes": png(8, (300, 300)), "path": None}])
    ((_, row),) = read(tmp_path)
    content = pickle.dumps(row["image"])
    assert len(content) < 500
    again = pickle.loads(content)  # noqa: S301
    assert again == row["image"]
    assert isinstance(again, EncodedRef)
    np.testing.assert_array_equal(again.load().pixels, 8)


@pytest.mark.parametrize("content", [b"", b"no image"], ids=["empty", "text"])
def test_bytes_that_are_no_image_are_named_when_loaded(tmp_path, content):
    write(tmp_path / "train.parquet", [{"bytes": content, "path": "a.png"}])
    ((_, row),) = read(tmp_path)
    with pytest.raises(BadImage, match=r"train\.parquet#0\.0\.image"):
        row["image"].load()


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(RunError, match=r"cannot read train\.parquet"):
        read(tmp_path)


def test_a_shard_with_broken_pages_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    write(path, [{"bytes": png(8, (64, 64)), "path": None}] * 3, compression="gzip")
    content = bytearray(path.read_bytes())
    content[8 : len(content) // 3] = b"\xff" * (len(content) // 3 - 8)
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read .* of train\.parquet"):
        read(tmp_path)
