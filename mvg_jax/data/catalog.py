"""Data sets by name: the embedded phantoms, and the published ones as they lie in a folder."""

import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from mvg_jax.data import phantom, readers
from mvg_jax.data.phantom.atlas import FAMILIES, PhantomAtlas
from mvg_jax.data.phantom.views import Overview
from mvg_jax.data.records import DataSet, Record
from mvg_jax.errors import RunError

# The families of PhantomAtlas, together and one by one.
ATLAS = {"phantom_atlas": tuple(FAMILIES), **{f"phantom_{family}": (family,) for family in FAMILIES}}
PHANTOMS = {"phantom": phantom.PhantomSource, "phantom_closeup": phantom.PhantomCloseUps}
EMBEDDED = (*PHANTOMS, *ATLAS)
NAMES = (*EMBEDDED, *readers.READERS)


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


def open_source(name: str, split: str, root: str, first: int, size: int, overview: Overview):
    """Random access to the tasks `first` .. `first + size` (or to the end) of a split.

    root: holds a folder or a zip of each published data set, named like it. overview: what the model is shown first, which the
    items of PhantomAtlas are made and certified for. RunError names what is not there, or cannot be made.
    """
    if size < 1:
        raise RunError(f"the {split} split of {name} is empty: its size must be at least 1")
    if name in PHANTOMS:
        return PHANTOMS[name](split, size, first)
    if name in ATLAS:
        try:
            return PhantomAtlas(split, size, first, families=ATLAS[name], overview=overview)
        except ValueError as error:
            raise RunError(f"{name}: {error}") from error
    data = readers.read(name, find_root(name, root), split)
    if first >= len(data):
        begins = f", none from config.data.first {first} on" if first else ""
        raise RunError(f"{name}: split {split} holds {len(data)} questions{begins}\n{data.report}")
    return data[first : first + size]


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
