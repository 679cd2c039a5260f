"""Labelled volumes: one folder, or a folder for each subject, that holds

    image.nii.gz or image.nii      what is shown
    labels.nii.gz or labels.nii    a whole number a voxel, on the same grid
    names.txt, .csv, .tsv, .json   what the numbers stand for (data.label_names.read_names); may lie once above all subjects
    volume.json                    optional: {"modality": "MRI", "unit": "grey" | "HU", "window": [low, high], "view": 448,
                                   "kinds": ["structure", ...]}; likewise

view: side in pixels of the overview a model is shown, which decides which questions need a zoom. kinds: of questions, all if not
said. The tasks: data.labelled_volume.
"""

from mvg_jax.data.files import Files
from mvg_jax.data.labelled_volume import KINDS, SPLITS, LabelledVolume, volume_tasks
from mvg_jax.data.readers.text import json_value
from mvg_jax.data.records import DataSet
from mvg_jax.errors import RunError

__all__ = ["SPLITS", "open_volumes", "read"]

IMAGES, LABELS = ("image.nii.gz", "image.nii"), ("labels.nii.gz", "labels.nii")
NAMES, ABOUT = ("names.txt", "names.csv", "names.tsv", "names.json"), ("volume.json",)


def read(files: Files, split: str) -> DataSet:
    """The tasks of a split. RunError when the folder holds no volume, or one that is not right."""
    return volume_tasks(open_volumes(files), split)


def open_volumes(files: Files) -> tuple[LabelledVolume, ...]:
    """The volumes of a folder, by the names of their subjects."""
    images = {}
    for name in files.names:
        folder, _, last = name.rpartition("/")
        if last.lower() in IMAGES:
            images.setdefault(folder, name)
    if not images:
        raise RunError(f"{files.root} holds no {' or '.join(IMAGES)}")
    return tuple(_open(files, folder, image) for folder, image in sorted(images.items()))


def _open(files: Files, folder: str, image: str) -> LabelledVolume:
    labels, names = _beside(files, folder, LABELS), _beside(files, folder, NAMES, above=True)
    for what, found in ((LABELS, labels), (NAMES, names)):
        if found is None:
            raise RunError(f"{files.root} holds {image} and beside it no {' or '.join(what)}")
    about = _beside(files, folder, ABOUT, above=True)
    return LabelledVolume.open(
        files, image, labels, names, subject=folder or "0", **(_about(files, about) if about else {})
    )


def _beside(files: Files, folder: str, ends: tuple[str, ...], above: bool = False) -> str | None:
    """The first of these files in a folder, or in those above it."""
    while True:
        for end in ends:
            name = f"{folder}/{end}" if folder else end
            if name in files.names:
                return name
        if not above or not folder:
            return None
        folder = folder.rpartition("/")[0]


def _about(files: Files, name: str) -> dict:
    about = json_value(files, name)
    checks = {
        "modality": lambda v: isinstance(v, str),
        "unit": lambda v: v in ("grey", "HU"),
        "window": lambda v: isinstance(v, list) and len(v) == 2 and all(map(_finite, v)) and v[0] < v[1],
        "kinds": lambda v: isinstance(v, list) and v and all(kind in KINDS for kind in v),
        "view": lambda v: isinstance(v, int) and not isinstance(v, bool) and 16 <= v <= 8192,
    }
    if not isinstance(about, dict) or set(about) - set(checks):
        raise RunError(f"{name}: an object with some of {', '.join(checks)} is needed")
    for key, value in about.items():
        if not checks[key](value):
            raise RunError(f"{name}: {key} {value!r} is not right")
    if "window" in about:
        about["window"] = tuple(map(float, about["window"]))
    if "kinds" in about:
        about["kinds"] = tuple(about["kinds"])
    return about


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
