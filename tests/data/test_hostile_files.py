"""Folders and zips that mean no good, or are laid out oddly."""

import os
import zipfile

import pytest

from mvg_jax.data import files as files_module
from mvg_jax.data.files import Files
from mvg_jax.errors import RunError


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    files = lay(tmp_path, "images/1.jpg")
    (tmp_path / "images").chmod(0)
    try:
        with pytest.raises(RunError, match="images"):
            _ = files.names
    finally:
        (tmp_path / "images").chmod(0o700)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and so on", b"PK\x05\x06" + b"\xff" * 18])
def test_a_broken_zip_is_named(tmp_path, content):
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(RunError, match=r"images\.zip"):
        _ = Files(tmp_path).names


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
