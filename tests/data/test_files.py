import pickle
import zipfile

import pytest

from mvg_jax.data.files import Files
from mvg_jax.errors import RunError


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    (root / "images" / "images").mkdir(parents=True)
    (root / "images" / "images" / "Deep.JPG").write_bytes(b"deep")
    (root / "images" / "top.jpg").write_bytes(b"top")
    zipped(root / "imgs.zip", {"imgs/xmlab1/source.jpg": b"one", "imgs/xmlab2/source.jpg": b"two"})
    return root


def test_a_folder_lists_its_files_and_what_its_zips_hold(folder):
    assert Files(folder).names == (
        "images/images/Deep.JPG",
        "images/top.jpg",
        "imgs.zip",
        "imgs.zip/imgs/xmlab1/source.jpg",
        "imgs.zip/imgs/xmlab2/source.jpg",
    )


def test_a_zip_is_read_like_the_folder_it_holds(tmp_path):
    files = Files(zipped(tmp_path / "all.zip", {"set/train.json": b"[]", "set/images/a.png": b"a"}))
    assert files.names == ("set/images/a.png", "set/train.json")
    assert files.read(files.need("images/a.png")) == b"a"
    assert files.path("set/train.json") is None


def test_members_of_a_zip_in_a_folder_are_read_in_place(folder):
    files = Files(folder)
    assert files.read(files.need("xmlab2/source.jpg")) == b"two"
    assert files.path(files.need("top.jpg")) == folder / "images" / "top.jpg"


def test_files_are_found_by_the_end_of_their_path_whatever_the_case(folder):
    files = Files(folder)
    assert files.find("deep.jpg") == "images/images/Deep.JPG"
    assert files.find("IMAGES/Top.JPG") == "images/top.jpg"
    assert files.find("p.jpg") is None, "only whole names fit"
    assert files.find("other/top.jpg") is None


def test_the_first_of_several_ends_wins_and_then_the_shortest_path(folder):
    (folder / "images" / "Deep.JPG").write_bytes(b"shallow")
    files = Files(folder)
    assert files.find("nothing.jpg", "top.jpg", "deep.jpg") == "images/top.jpg"
    assert files.read(files.find("deep.jpg")) == b"shallow"


def test_what_is_needed_and_not_there_is_named(folder):
    with pytest.raises(RunError, match=r"holds no train\.json or test\.json"):
        Files(folder).need("train.json", "test.json")
    with pytest.raises(RunError, match=r"holds no x\.jpg"):
        Files(folder).read("x.jpg")
    with pytest.raises(RunError, match="no such file or folder"):
        Files(folder / "gone")


def test_a_name_cannot_leave_the_folder(folder):
    (folder.parent / "secret.txt").write_bytes(b"secret")
    files = Files(folder)
    assert files.find("../secret.txt") is None
    with pytest.raises(RunError, match="holds no"):
        files.read("../secret.txt")


def test_hidden_files_and_those_of_other_systems_do_not_count(folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "top.jpg").write_bytes(b"")
    (folder / "images" / "._top.jpg").write_bytes(b"")
    zipped(folder / "mac.zip", {"a.png": b"a", "__MACOSX/._a.png": b"", ".DS_Store": b""})
    names = Files(folder).names
    assert "mac.zip/a.png" in names
    assert not [name for name in names if "._" in name or "DS_Store" in name or ".cache" in name]


@pytest.mark.parametrize("whole", [True, False], ids=["the zip itself", "a zip in the folder"])
def test_a_corrupt_zip_is_named(tmp_path, whole):
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(RunError, match=r"cannot read .*broken\.zip"):
        _ = Files(tmp_path / "broken.zip" if whole else tmp_path).names


def test_a_corrupt_member_is_named(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a.txt": bytes(range(256)) * 8})
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read a\.txt"):
        Files(path).read("a.txt")


def test_files_pickle_small_and_open_their_zips_again(folder):
    for number in range(100):
        (folder / f"{number}.txt").write_bytes(b"x")
    files = Files(folder)
    assert files.read("imgs.zip/imgs/xmlab1/source.jpg") == b"one"
    content = pickle.dumps(files)
    assert len(content) < 500
    again = pickle.loads(content)  # noqa: S301
    assert again == files
    assert hash(again) == hash(files)
    assert again.read("imgs.zip/imgs/xmlab1/source.jpg") == b"one"


def test_files_of_different_roots_differ(folder):
    assert Files(folder) != Files(folder / "images")
