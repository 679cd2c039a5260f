"""Readers of published data sets, one module each: `read(files, split) -> DataSet`, and SPLITS, the splits there may be."""

import importlib
import pathlib

from mvg_jax.data.files import Files
from mvg_jax.data.records import DataSet
from mvg_jax.errors import RunError

READERS = ("vqa_rad", "slake", "path_vqa", "pmc_vqa", "mmmu", "medxpertqa", "omnimedvqa", "folder")


def splits(name: str) -> tuple[str, ...]:
    """The splits that a data set has. RunError when there is no reader of that name."""
    return _reader(name).SPLITS


def read(name: str, root: str | pathlib.Path, split: str) -> DataSet:
    """Reads a split of a data set. RunError names what is not there: the data set, its files, the split."""
    reader = _reader(name)
    if split not in reader.SPLITS:
        raise RunError(f"{name} has the splits {', '.join(reader.SPLITS)}, not {split!r}")
    return reader.read(Files(root), split)


def _reader(name: str):
    if name not in READERS:
        raise RunError(f"data set {name!r}: use one of {', '.join(READERS)}")
    return importlib.import_module(f"mvg_jax.data.readers.{name}")
