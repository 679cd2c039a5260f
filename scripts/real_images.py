"""Real images that ordinary packages ship, laid out for the readers `volume` and `dicom`.

    python scripts/real_images.py --out=data/real [--mricron=FOLDER|FILE.deb] [--dicom=FOLDER|FILE.whl]

    OUT/volume          one brain: T1 MR of 181 x 217 x 181 mm, the AAL atlas on its grid, named in eleven coarse structures
    OUT/aal/volume      the same with the atlas's own 116 names
    OUT/dicom           about 20 different images of people in 68 DICOM files, test cards and odd encodings among them
    OUT/tokenizer       the embedded model's tokenizer with words of the brain in place of words of the phantoms, ids unchanged
    OUT/LICENCES.txt    what the packages say about their files

The brain comes from Debian's package mricron-data, the DICOM files from the Python package pydicom-data. Both are fetched with the
system's own clients (apt-get, pip) and unpacked without being installed. Where that does not work, fetch them elsewhere and pass
the files, or folders that hold what is in them. Parts that are there already are left alone.
"""

import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter

from absl import flags

from mvg_jax import program
from mvg_jax.data.files import Files
from mvg_jax.data.labelled_volume import SPLITS, slices, volume_tasks
from mvg_jax.data.readers import dicom as dicom_reader
from mvg_jax.data.readers.volume import open_volumes
from mvg_jax.errors import RunError
from mvg_jax.experiment import TOKENIZER_FILES, folder

INSTALLED = "/usr/share/mricron/templates"  # where `apt-get install mricron-data` puts them
BRAIN = {"ch2.nii.gz": "image.nii.gz", "aal.nii.gz": "labels.nii.gz", "aal.nii.txt": "names.txt"}
BRAIN_LICENCE = """\
volume, aal: from Debian's package mricron-data. Its copyright file puts all of its files under the BSD 3-clause licence, (c) Chris
Rorden. That file says nothing of the atlas's own terms: AAL is by N. Tzourio-Mazoyer et al., NeuroImage 15:273-289 (2002), drawn on
the average of 27 scans of one man (C. J. Holmes et al., J. Comput. Assist. Tomogr. 22:324-333, 1998). One brain: nothing learnt
from it says anything about other patients. The package's copyright file: """
DICOM_LICENCE = "dicom: from the Python package pydicom-data, whose licence file says:\n\n"

# Coarse structures by how AAL's names begin; short words, so that a small model's prompts stay short.
COARSE = {
    "frontal": ("Frontal", "Precentral", "Rolandic", "Supp_Motor", "Olfactory", "Rectus"),
    "parietal": ("Postcentral", "Parietal", "SupraMarginal", "Angular", "Precuneus", "Paracentral"),
    "temporal": ("Temporal", "Fusiform", "Heschl"),
    "occipital": ("Occipital", "Calcarine", "Cuneus", "Lingual"),
    "cingulum": ("Cingulum",),
    "insula": ("Insula",),
    "hippocampus": ("Hippocampus", "ParaHippocampal", "Amygdala"),
    "caudate": ("Caudate",),
    "putamen": ("Putamen", "Pallidum"),
    "thalamus": ("Thalamus",),
    "cerebellum": ("Cerebelum", "Vermis"),
}
# Tokens of the embedded model that only phantoms need -> what they spell here: questions and answers stay as short as phantoms' are.
RESPELT = {
    "homogeneous": "frontal",
    "rim-enhancing": "parietal",
    "calcified": "temporal",
    "septated": "occipital",
    "liver": "cingulum",
    "spleen": "insula",
    "left kidney": "hippocampus",
    "right kidney": "caudate",
    "lytic": "putamen",
    "sclerotic": "thalamus",
    "subdural": "cerebellum",
    "What is the structure of the lesion?\n": "Which structure is in [",
    "Is there a large cyst?\n": "]?\n",
    "On which side of the image is the lesion?\n": "On which side of the patient is the ",
    "How many specks are in the lesion?\n": " in [",
    "Which organ holds the lesion?\n": " in this slice?\n",
    "The lesion is too small. Zoom in.": "It is too small. Zoom in.",
}
VIEW = 64  # side of the embedded model's overview: decides which questions need a zoom


def coarse_names(aal: str) -> str:
    """AAL's table (`1 Precentral_L 2001`) with coarse names (`1 frontal_L`). RunError for a name that belongs to none."""
    lines = []
    for line in filter(str.strip, aal.splitlines()):
        label, name = line.split()[:2]
        found = [coarse for coarse, begins in COARSE.items() if name.startswith(begins)]
        if len(found) != 1:
            raise RunError(f"aal.nii.txt: {name!r} is no name of the AAL atlas")
        lines.append(f"{label} {found[0]}{name[-2:] if name.endswith(('_L', '_R')) else ''}")
    return "\n".join(lines) + "\n"


def tokenizer(out: pathlib.Path) -> None:
    """Fills OUT/tokenizer."""
    source, target = folder("asset:tiny_internvl"), out / "tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer.json"
    path.write_text(json.dumps(respelt(json.loads(path.read_text()), RESPELT), ensure_ascii=False))


def respelt(tokens: dict, words: dict[str, str]) -> dict:
    """A byte-level tokenizer.json that cuts out the new words where it cut out the old ones, each with the old one's id.

    words: old -> new, in ASCII. RunError for an old word that is no token, and a new one that is.
    """
    written = lambda text: text.replace(" ", "\u0120").replace("\n", "\u010a")  # byte-level BPE's blank and line end
    vocab, cuts = dict(tokens["model"]["vocab"]), json.dumps(tokens["pre_tokenizer"])
    for old, new in words.items():
        pattern = json.dumps(re.escape(old))[1:-1]
        if written(old) not in vocab or written(new) in vocab or pattern not in cuts:
            raise RunError(f"the tokenizer cannot spell {new!r} where it spelt {old!r}")
        vocab[written(new)] = vocab.pop(written(old))
        cuts = cuts.replace(pattern, json.dumps(re.escape(new))[1:-1])
    ordered = dict(sorted(vocab.items(), key=lambda item: item[1]))
    return tokens | {"pre_tokenizer": json.loads(cuts), "model": tokens["model"] | {"vocab": ordered}}


def brain(out: pathlib.Path, given: str | None) -> str:
    """Fills OUT/volume and OUT/aal/volume; the licence notes."""
    files = brain_files(given)
    coarse = {"modality": "MRI", "view": VIEW, "kinds": ["structure", "presence"]}
    for place, about in (("volume", coarse), ("aal/volume", {"modality": "MRI"})):
        (out / place).mkdir(parents=True, exist_ok=True)
        for name, target in BRAIN.items():
            (out / place / target).write_bytes(files[name])
        (out / place / "volume.json").write_text(json.dumps(about) + "\n")
    (out / "volume" / "names.txt").write_text(coarse_names(files["aal.nii.txt"].decode()))
    return BRAIN_LICENCE + "\n\n" + files.get("copyright", b"(not at hand)").decode(errors="replace")


def brain_files(given: str | None) -> dict[str, bytes]:
    """The three files of BRAIN and perhaps the package's `copyright`: from where the flag says, from the system, or fetched."""
    if given is None and all((pathlib.Path(INSTALLED) / name).exists() for name in BRAIN):
        given = INSTALLED
    if given is None:
        with tempfile.TemporaryDirectory() as scratch:
            fetch(
                ["apt-get", "download", "mricron-data"],
                scratch,
                "On Debian and Ubuntu `apt-get install mricron-data` puts the files where this script finds them; elsewhere "
                "download the .deb of mricron-data from a Debian mirror and pass --mricron=FILE.deb",
            )
            return from_deb(next(pathlib.Path(scratch).glob("*.deb")))
    path = pathlib.Path(given)
    if path.is_file():
        return from_deb(path)
    found = {name: next(iter(sorted(path.rglob(name))), None) for name in BRAIN}
    if missing := [name for name, where in found.items() if where is None]:
        raise RunError(f"--mricron={given}: there is no {', '.join(missing)}")
    beside = sorted(path.rglob("copyright")) + [pathlib.Path("/usr/share/doc/mricron-data/copyright")]
    if there := [where for where in beside if where.exists()]:
        found["copyright"] = there[0]
    return {name: where.read_bytes() for name, where in found.items()}


def from_deb(path: pathlib.Path) -> dict[str, bytes]:
    """The files of a Debian package (an `ar` archive that holds a tar) by their last names; nothing is written."""
    content, at = path.read_bytes(), 8
    if content[:8] != b"!<arch>\n":
        raise RunError(f"{path} is no Debian package")
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode("latin-1").strip(" /"), content[at + 48 : at + 58].strip()
        if not size.isdigit():
            break
        if name.startswith("data.tar"):
            try:
                return _members(content[at + 60 : at + 60 + int(size)])
            except (tarfile.TarError, EOFError, OSError) as error:
                raise RunError(f"cannot read {path} ({name}): {error}; unpack it and pass the folder") from error
        at += 60 + int(size) + int(size) % 2
    raise RunError(f"{path} holds no data.tar")


def _members(data: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            name = member.name.rsplit("/", 1)[-1]
            if member.isfile() and name in (*BRAIN, "copyright"):
                found[name] = archive.extractfile(member).read()
    if missing := set(BRAIN) - set(found):
        raise RunError(f"the package holds no {', '.join(sorted(missing))}")
    return found


def dicom(out: pathlib.Path, given: str | None) -> str:
    """Fills OUT/dicom; the licence notes."""
    target = out / "dicom"
    with tempfile.TemporaryDirectory() as scratch:
        if given is None:
            fetch(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "-q",
                    "--no-deps",
                    "--only-binary=:all:",
                    "pydicom-data==1.0.0",
                ],
                scratch,
                "Download the wheel of pydicom-data 1.0.0 where there is a package index, and pass --dicom=FILE.whl",
            )
            given = str(next(pathlib.Path(scratch).glob("*.whl")))
        path, found, licence = pathlib.Path(given), {}, b"(not at hand)"
        if path.is_file():
            try:
                with zipfile.ZipFile(path) as wheel:
                    for name in wheel.namelist():
                        if name.endswith(".dcm"):
                            found[name.rsplit("/", 1)[-1]] = wheel.read(name)
                        elif name.endswith("/LICENSE"):
                            licence = wheel.read(name)
            except (zipfile.BadZipFile, OSError) as error:
                raise RunError(f"cannot read {path}: {error}") from error
        else:
            found = {where.name: where.read_bytes() for where in sorted(path.rglob("*.dcm"))}
    if not found:
        raise RunError(f"--dicom={given}: there is no .dcm file")
    target.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        (target / name).write_bytes(content)
    return DICOM_LICENCE + licence.decode(errors="replace")


def fetch(command: list[str], folder: str, otherwise: str) -> None:
    """Runs a package client in a folder. RunError that says what to do where it does not work."""
    if shutil.which(command[0]) is None:
        raise RunError(f"there is no {command[0]} here. {otherwise}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not any(pathlib.Path(folder).iterdir()):
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise RunError(f"{' '.join(command)} failed: {lines[-1][:300]}. {otherwise}")


def main() -> None:
    out = pathlib.Path(flags.FLAGS.out)
    notes = out / "LICENCES.txt"
    if not notes.exists():
        said = [brain(out, flags.FLAGS.mricron), dicom(out, flags.FLAGS.dicom)]
        tokenizer(out)
        notes.write_text("\n\n----\n\n".join(said))
    print(notes.read_text().partition(" The package's copyright file")[0] + f" More: {notes}\n")
    for what, root in (("116 regions", out / "aal" / "volume"), ("11 structures", out / "volume")):
        volumes = open_volumes(Files(root))
        usable = [one for volume in volumes for one in slices(volume)]
        pairs = sum(len(one.areas) for one in usable)
        print(f"{what}, {root}: {len(usable)} slices, {pairs} pairs of a slice and a region that is visible in it")
        for data in (volume_tasks(volumes, split) for split in SPLITS):
            kinds = Counter(record.kind for record in data.records)
            print(
                f"  {data.split}: {len(data)} tasks ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))})"
            )
    files = Files(out / "dicom")
    print(f"{len(files.names)} DICOM files, {out / 'dicom'}")
    for split in dicom_reader.SPLITS:
        kinds = Counter(record.kind for record in dicom_reader.read(files, split).records)
        print(f"  {split}: {kinds.total()} tasks ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))})")


if __name__ == "__main__":  # the flags are its own only when it is the program
    flags.DEFINE_string("out", None, "Folder to fill.")
    flags.DEFINE_string(
        "mricron", None, "mricron-data: its .deb, or a folder with ch2.nii.gz, aal.nii.gz and aal.nii.txt."
    )
    flags.DEFINE_string("dicom", None, "pydicom-data as a .whl file, or a folder of .dcm files.")
    program.run(main, required=("out",))
