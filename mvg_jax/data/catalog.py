"""Data sets by name: the embedded phantom, and the published ones as they lie in a folder."""

import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from mvg_jax.data import phantom, readers
from mvg_jax.data.records import DataSet, Record
from mvg_jax.errors import RunError

NAMES = ("phantom", *readers.READERS)


class Choice(NamedTuple):
    """A data set as a config names it: NAME, NAME:SPLIT, NAME=WEIGHT or NAME:SPLIT=WEIGHT. split "": the usual one."""

    name: str
    split: str
    weight: float


def choose(text: str) -> Choice:
    """RunError unless the text names one of NAMES, with a finite weight above 0."""
    named, _, weight = text.partition("=")
    name, _, split = named.partition(":")
    if name not in NAMES:
        raise RunError(
            f"data set {text!r}: use one of {', '.join(NAMES)}, with :SPLIT and =WEIGHT where they are wanted"
        )
    try:
        value = float(weight or 1)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise RunError(f"data set {text!r}: the weight must be a number above 0")
    return Choice(name, split, value)


def open_source(name: str, split: str, root: str, first: int, size: int):
    """Random access to the tasks `first` .. `first + size` (or to the end) of a split.

    root: holds a folder or a zip of each published data set, named like it. RunError names what is not there.
    """
    if size < 1:
        raise RunError(f"the {split} split of {name} is empty: its size must be at least 1")
    if name == "phantom":
        return phantom.PhantomSource(split, size, first)
    data = readers.read(name, find_root(name, root), split)[first : first + size]
    if not data:
        raise RunError(f"{name}: nothing is left of split {split}\n{data.report}")
    return data


def find_root(name: str, root: str) -> pathlib.Path:
    """The folder or zip of a published data set. RunError says where it was looked for."""
    places = [pathlib.Path(root) / name, pathlib.Path(root) / f"{name}.zip"]
    for place in places:
        if place.exists():
            return place
    raise RunError(f"data set {name} is not at {places[0]} or {places[1]}; set config.data.root")


def keep(data: DataSet, fits: Callable[[Record], bool], reason: str) -> DataSet:
    """The records that fit; the others are counted in the report."""
    kept = tuple(record for record in data.records if fits(record))
    for record in data.records if len(kept) < len(data) else ():
        if not fits(record):
            data.report.drop(record.id, reason)
    return DataSet(data.name, data.split, kept, data.report)
