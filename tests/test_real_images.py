"""The packages themselves are not fetched here; what is made of their files is."""

import io
import json
import tarfile
import zipfile

import pytest
import real_images

from mvg_jax.data.files import Files
from mvg_jax.data.label_names import Name, read_names
from mvg_jax.data.labelled_volume import volume_tasks
from mvg_jax.data.readers.volume import open_volumes
from mvg_jax.errors import RunError
from mvg_jax.experiment import folder
from mvg_jax.models.tokenizer import load_tokenizer
from tests.volume_files import write_volume

AAL = "1 Precentral_L 2001\n2 Precentral_R 2002\n3 Amygdala_L 4201\n4 Vermis_4_5 9120\n5 Cerebelum_4_5_R 9032\n"


@pytest.fixture
def source(tmp_path):
    """What the packages hold, small."""
    folder = write_volume(tmp_path / "made")
    (folder / "labels.nii").rename(folder / "aal.nii.gz")  # a reader goes by content
    (folder / "image.nii.gz").rename(folder / "ch2.nii.gz")
    (folder / "aal.nii.txt").write_text(AAL)
    (folder / "names.txt").unlink()
    return folder


def deb(path, files, inner="data.tar.xz", mode="w:xz"):
    """A Debian package."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./usr/share/mricron/templates/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (inner, packed.getvalue())):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += header + content + b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "package"])
def test_the_brain_becomes_a_task_set(tmp_path, source, packed):
    given = source
    if packed:
        given = deb(tmp_path / "x.deb", {p.name: p.read_bytes() for p in source.iterdir()} | {"copyright": b"BSD"})
    notes = real_images.brain(tmp_path / "out", str(given))
    assert "Tzourio-Mazoyer" in notes
    assert notes.endswith("BSD") == packed
    coarse, fine = (open_volumes(Files(tmp_path / "out" / where))[0] for where in ("volume", "aal/volume"))
    assert coarse.structures == ("frontal", "hippocampus", "cerebellum")
    assert fine.structures == ("Precentral", "Amygdala", "Vermis 4 5", "Cerebelum 4 5")
    assert volume_tasks([coarse], "train").records


def test_coarse_names_keep_sides_and_refuse_strangers():
    names = dict(read_names(real_images.coarse_names(AAL).encode(), "names.txt"))
    assert names[1] == Name("frontal", "left")
    assert names[4] == Name("cerebellum")
    assert names[5] == Name("cerebellum", "right")
    with pytest.raises(RunError, match="Liver"):
        real_images.coarse_names("1 Liver_L 2001\n")


def test_packages_that_do_not_hold_the_files_are_refused(tmp_path, source):
    with pytest.raises(RunError, match=r"ch2\.nii\.gz"):
        real_images.from_deb(deb(tmp_path / "x.deb", {"other": b""}))
    broken = deb(tmp_path / "z.deb", {}, inner="data.tar.zst")
    broken.write_bytes(broken.read_bytes().replace(b"\xfd7zXZ", b"wrong"))
    with pytest.raises(RunError, match="pass the folder"):
        real_images.from_deb(broken)
    (tmp_path / "no.deb").write_bytes(b"nothing")
    with pytest.raises(RunError, match="no Debian package"):
        real_images.from_deb(tmp_path / "no.deb")
    (source / "aal.nii.txt").unlink()
    with pytest.raises(RunError, match=r"aal\.nii\.txt"):
        real_images.brain_files(str(source))


def test_a_client_that_is_missing_or_fails_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match="there is no no-such-client here"):
        real_images.fetch(["no-such-client"], str(tmp_path), "Do this")
    with pytest.raises(RunError, match="Do this"):
        real_images.fetch(["ls", "/no/such/folder"], str(tmp_path), "Do this")


def test_the_tokenizer_spells_the_brain_with_the_ids_of_the_phantoms(tmp_path):
    real_images.tokenizer(tmp_path)
    old, new = load_tokenizer(folder("asset:tiny_internvl")), load_tokenizer(tmp_path / "tokenizer")
    assert old.size == new.size
    for phantom, brain in real_images.RESPELT.items():
        assert old.encode(phantom) == new.encode(brain)
        assert len(new.encode(brain)) == 1
        assert len(new.encode(phantom)) > 1
    for same in ("left, right", "<answer>yes</answer>", "image_zoom_in_tool(bbox_2d, img_idx)\n", "Any other text."):
        assert old.encode(same) == new.encode(same)
    text = "Which structure is in [20, 40, 600, 1000]?\nOptions: frontal, insula, caudate"
    assert new.decode(new.encode(text)) == text
    assert len(new.encode(text)) == 15
    assert {name for name in real_images.COARSE} <= set(real_images.RESPELT.values())
    tokens = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    with pytest.raises(RunError, match="cannot spell"):
        real_images.respelt(tokens, {"liver": "kidney"})


def test_dicom_files_come_out_of_a_wheel_or_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("data_store/data/a.dcm", b"one")
        wheel.writestr("x.dist-info/LICENSE", b"MIT")
    assert real_images.dicom(tmp_path / "out", str(tmp_path / "x.whl")).endswith("MIT")
    assert (tmp_path / "out" / "dicom" / "a.dcm").read_bytes() == b"one"
    real_images.dicom(tmp_path / "again", str(tmp_path / "out"))
    assert (tmp_path / "again" / "dicom" / "a.dcm").read_bytes() == b"one"
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    for bad in ("bad.whl", "again/empty"):
        with pytest.raises(RunError, match=bad):
            real_images.dicom(tmp_path / "never", str(tmp_path / bad))
