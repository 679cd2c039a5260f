import json
import zipfile

import pytest

from mvg_jax.data.files import Files
from mvg_jax.data.readers import read
from mvg_jax.data.readers.volume import open_volumes
from mvg_jax.errors import RunError
from tests.volume_files import write_volume


def test_one_volume_in_a_folder(tmp_path):
    write_volume(
        tmp_path, about={"modality": "CT", "unit": "HU", "window": [0, 200], "view": 64, "kinds": ["structure"]}
    )
    data = read("volume", tmp_path, "train")
    assert {r.kind for r in data.records} == {"structure"}
    task = data[0]
    assert task.modality == "CT"
    assert task.images[0].unit == "HU"
    assert task.images[0].window == (0.0, 200.0)
    assert "usable slice" in str(data.report)


def test_a_folder_a_subject_with_one_table_above_them(tmp_path):
    for subject in ("b", "a"):
        write_volume(tmp_path / subject)
        (tmp_path / subject / "names.txt").rename(tmp_path / "names.txt")
    volumes = open_volumes(Files(tmp_path))
    assert [v.subject for v in volumes] == ["a", "b"]
    assert volumes[0].names == volumes[1].names
    assert {r.id.split("/")[0] for r in read("volume", tmp_path, "val").records} == {"a", "b"}


def test_a_zip_is_as_good_as_a_folder(tmp_path):
    folder = write_volume(tmp_path / "folder", about={"view": 64})
    with zipfile.ZipFile(tmp_path / "volume.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    a, b = (read("volume", root, "test") for root in (folder, tmp_path / "volume.zip"))
    assert [r.id for r in a.records] == [r.id for r in b.records]
    assert (a[0].images[0].pixels == b[0].images[0].pixels).all()


@pytest.mark.parametrize("missing", ["image.nii.gz", "labels.nii", "names.txt"])
def test_what_is_missing_is_named(tmp_path, missing):
    (write_volume(tmp_path) / missing).unlink()
    with pytest.raises(RunError, match=missing.replace(".", r"\.")):
        read("volume", tmp_path, "train")


BAD = (
    [],
    {"size": 3},
    {"window": [3, 1]},
    {"window": ["a", 1]},
    {"view": 3},
    {"view": True},
    {"unit": "mm"},
    {"kinds": ["x"]},
)


@pytest.mark.parametrize("about", BAD)
def test_a_bad_description_is_refused_by_name(tmp_path, about):
    write_volume(tmp_path)
    (tmp_path / "volume.json").write_text(json.dumps(about))
    with pytest.raises(RunError, match=r"volume\.json"):
        read("volume", tmp_path, "train")
