import errno
import os
import pickle
import zipfile

import pytest

from mvg_jax.data import files as files_module
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


def test_hidden_files_and_those_of_other_systems_do_not_count(folder):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "top.jpg").write_bytes(b"")
    (folder / "images" / "._top.jpg").write_bytes(b"")
    zipped(folder / "mac.zip", {"a.png": b"a", "__MACOSX/._a.png": b"", ".DS_Store": b""})
    names = Files(folder).names
    assert "mac.zip/a.png" in names
    assert not [name for name in names if "._" in name or "DS_Store" in name or ".cache" in name]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"PK\x05\x06" + b"\xff" * 18])
@pytest.mark.parametrize("whole", [True, False], ids=["the zip itself", "a zip in the folder"])
def test_a_corrupt_zip_is_named(tmp_path, whole, content):
    (tmp_path / "broken.zip").write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read .*broken\.zip"):
        _ = Files(tmp_path / "broken.zip" if whole else tmp_path).names


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


# ---- folders and zips that mean no good, or are laid out oddly ----------------------------------------------------------


def lay(folder, *names):
    """Files that hold their own names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return Files(folder)


def pack(path, *names, method=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_found_by_the_end_of_the_path(tmp_path):
    files = lay(tmp_path, "more/images/1.jpg", "images/1.jpg", "images/1.JPG.txt", "IMAGES2/a/1.JPG", "x1.jpg")
    assert files.find("1.jpg") == "images/1.jpg"
    assert files.find("more/images/1.jpg") == "more/images/1.jpg"
    assert files.find("images2/A/1.jpg") == "IMAGES2/a/1.JPG"
    assert files.find("2.jpg", "/images/1.jpg") == "images/1.jpg"
    assert files.find("mages/1.jpg") is None
    with pytest.raises(RunError, match=r"holds no 2\.jpg or 3\.jpg"):
        files.need("2.jpg", "3.jpg")


@pytest.mark.parametrize(
    "hostile", ["", "/", "..", "../secret", "images/../../secret", "/etc/passwd", "images//1.jpg", "./1.jpg", "images"]
)
def test_only_listed_files_are_found_and_read(tmp_path, hostile):
    (tmp_path / "secret").write_text("secret")
    files = lay(tmp_path / "set", "images/1.jpg")
    assert files.find(hostile) is None
    with pytest.raises(RunError, match="holds no"):
        files.read(hostile)
    assert files.find("images/1.jpg") == "images/1.jpg"


def test_a_members_name_leads_nowhere(tmp_path):
    pack(tmp_path / "set" / "a.zip", "../../secret", "/secret")
    (tmp_path / "secret").write_text("outside")
    files = Files(tmp_path / "set")
    assert files.names == ("a.zip", "a.zip//secret")
    assert files.read("a.zip//secret") == b"/secret"


def test_linked_files_and_folders_are_read(tmp_path):
    lay(tmp_path / "blobs", "5f3a", "images/1.jpg")
    files = lay(tmp_path / "set", "a.json")
    (tmp_path / "set" / "b.json").symlink_to(tmp_path / "blobs" / "5f3a")
    (tmp_path / "set" / "images").symlink_to(tmp_path / "blobs" / "images")
    assert files.names == ("a.json", "b.json", "images/1.jpg")
    assert files.read("b.json") == b"5f3a"


def test_links_in_circles_end(tmp_path):
    files = lay(tmp_path, "images/1.jpg", "more/2.jpg")
    (tmp_path / "images" / "all").symlink_to(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "images")
    (tmp_path / "more" / "self").symlink_to(tmp_path / "more")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert files.names == ("images/1.jpg", "more/2.jpg")


def test_what_is_no_plain_file_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert lay(tmp_path, "a.json").names == ("a.json",)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    """The system's refusal is played: root, who may run the tests, is never refused."""
    files, scandir = lay(tmp_path, "images/1.jpg"), os.scandir

    def refusing(path):
        if os.fspath(path).endswith("images"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(RunError, match="images"):
        _ = files.names


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_named(tmp_path, method):
    path = pack(tmp_path / "a.zip", "one.txt", method=method)
    content = bytearray(path.read_bytes())
    content[38:42] = b"\xff\xfe\xfd\xfc"  # just behind the member's header of 30 bytes and its name
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"cannot read one\.txt"):
        Files(path).read("one.txt")


def test_a_member_that_unpacks_to_too_much(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1_000_000))
    monkeypatch.setattr(files_module, "MAX_MEMBER", 999_999)
    with pytest.raises(RunError, match=r"zeros .*1000000 bytes unpacked"):
        Files(path).read("zeros")


def test_an_encrypted_member(tmp_path):
    path = pack(tmp_path / "a.zip", "one.txt")
    content = bytearray(path.read_bytes())
    for at in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[at] |= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="encrypted"):
        Files(path).read("one.txt")
