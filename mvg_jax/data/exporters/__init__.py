"""Writers of tasks in the layouts of published data sets, quirks included, one module each: fixtures for the readers, and examples.

A module has LAYOUTS, the usual one first, and `export(tasks, folder, split, layout)`; a split is named as its reader names it.
"""

import importlib
import pathlib
from collections.abc import Sequence

from mvg_jax.data.task import Task
from mvg_jax.errors import RunError

EXPORTERS = ("vqa_rad", "path_vqa", "slake", "pmc_vqa", "mmmu", "medxpertqa", "omnimedvqa", "folder")


def layouts(name: str) -> tuple[str, ...]:
    """The layouts that a data set can be written in, the usual one first. RunError for an unknown data set."""
    return _module("exporters", name).LAYOUTS


def export(name: str, tasks: Sequence[Task], folder: str | pathlib.Path, split: str, layout: str | None = None) -> None:
    """Writes tasks as a split of a data set into a folder, which is made. layout: None = the usual one.

    RunError for unknown names, and for files that are in the way or cannot be written.
    """
    if split not in (splits := _module("readers", name).SPLITS):
        raise RunError(f"{name} has the splits {', '.join(splits)}, not {split!r}")
    known, folder = layouts(name), pathlib.Path(folder)
    layout = known[0] if layout is None else layout
    if layout not in known:
        raise RunError(f"{name} has the layouts {', '.join(known)}, not {layout!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _module("exporters", name).export(tasks, folder, split, layout)
    except FileExistsError as error:
        raise RunError(f"{error.filename} is there already") from error
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error}") from error


def _module(room: str, name: str):
    if name not in EXPORTERS:
        raise RunError(f"data set {name!r}: use one of {', '.join(EXPORTERS)}")
    return importlib.import_module(f"mvg_jax.data.{room}.{name}")
