"""Readers of published data sets, one module each: `read(files, split) -> DataSet`, and SPLITS, the splits there may be."""

import importlib
import pathlib

from mvg_jax.data.files import Files
from mvg_jax.data.records import DataSet, without_broken_text
from mvg_jax.errors import RunError

READERS = (
    "vqa_rad",
    "slake",
    "path_vqa",
    "pmc_vqa",
    "mmmu",
    "medxpertqa",
    "omnimedvqa",
    "folder",
    "dicom",
    "volume",
)


def read(name: str, root: str | pathlib.Path, split: str) -> DataSet:
    """Reads a split of a data set. RunError names what is not there: the data set, its files, the split, a usable row."""
    if name not in READERS:
        raise RunError(f"data set {name!r}: use one of {', '.join(READERS)}")
    reader = importlib.import_module(f"mvg_jax.data.readers.{name}")
    if split not in reader.SPLITS:
        raise RunError(f"{name} has the splits {', '.join(reader.SPLITS)}, not {split!r}")
    data = without_broken_text(reader.read(Files(root), split))
    if not len(data):
        raise RunError(f"{root} holds nothing usable for {name}/{split}: {data.report}")
    return data
