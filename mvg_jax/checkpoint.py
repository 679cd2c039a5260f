"""Checkpoints of a run: Orbax underneath, one clear error line on top.

A checkpoint holds `arrays` (weights, optimiser state: any pytree of arrays, flattened to path → array, so that named
tuples and empty states need no care) and `meta` (JSON: counters, iterator state). Orbax writes into a temporary directory
and renames it, so a step directory is whole or not there.
"""

import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mvg_jax.errors import RunError

TORN = ".orbax-checkpoint-tmp"  # in the names of what Orbax has not committed
# Seconds in which writes that were in flight when a save failed show up, and how often they are cleared away.
_LATE_WRITES, _CLEARINGS = 0.2, 10


class CheckpointError(RunError):
    """A checkpoint that is not there, does not fit, or cannot be written or read."""


class Checkpoints:
    """The checkpoints in `directory`.

    keep: how many of the latest to keep. The directory is made, and what a killed or failed save left behind is removed.
        None opens for reading only: nothing is made or removed, so that evaluating beside a live run cannot hurt it.
    Raises CheckpointError when the directory is missing (reading) or cannot be made.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int | None):
        self._directory = pathlib.Path(directory).absolute()
        if keep is None and not self._directory.is_dir():
            raise CheckpointError(f"no checkpoint directory {self._directory}")
        try:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                read_only=keep is None,
                create=keep is not None,
                cleanup_tmp_directories=False,  # Orbax would do it some time later
                enable_async_checkpointing=False,  # a save that returns is committed
            )
            handlers = {"arrays": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
            if keep is not None and jax.process_index() == 0:
                self._remove(f"*{TORN}*")
            with _quiet(logging.WARNING):  # that reading is read-only is what we asked for
                self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)
        except OSError as error:
            raise CheckpointError(f"cannot open checkpoint directory {self._directory}: {error.strerror}") from error

    def latest(self) -> int | None:
        """The latest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def steps(self) -> tuple[int, ...]:
        """The steps of all whole checkpoints, ascending."""
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, arrays: Any, meta: Mapping[str, Any]) -> None:
        """Writes and commits checkpoint `step`; drops the oldest beyond `keep` after that.

        arrays: pytree of jax or numpy arrays. ValueError on a typed key (pass `jax.random.key_data(key)`) or an array
            of size zero.
        meta: JSON values (tuples come back as lists). TypeError or ValueError when it is not JSON.
        CheckpointError when it cannot be written (disk full, step not after the latest): earlier checkpoints are
            untouched.
        """
        flat = _flatten(arrays)
        for name, leaf in flat.items():
            if leaf.size == 0 or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
                raise ValueError(f"cannot save {name}: {leaf.dtype}{list(leaf.shape)}")
        record = {"meta": dict(meta), "arrays": {name: _signature(leaf) for name, leaf in flat.items()}}
        json.dumps(record)
        latest = self.latest()
        if latest is not None and step <= latest:
            raise CheckpointError(f"cannot save step {step} to {self._directory}: step {latest} is there already")
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(record))
        try:
            with _quiet(logging.ERROR), _quiet_if_it_fails():
                self._manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax and TensorStore raise a full disk as ValueError, RuntimeError, a group, ...
            self._clear(step)
            raise CheckpointError(
                f"cannot save step {step} to {self._directory}: {_line(error)} (earlier checkpoints are untouched)"
            ) from error

    def restore(self, step: int | None, like: Any) -> tuple[Any, dict[str, Any]]:
        """(arrays, meta) of checkpoint `step` (None = the latest), bit for bit as saved.

        like: pytree of arrays or jax.ShapeDtypeStruct: structure, shapes, dtypes and shardings wanted. A leaf without a
            sharding comes back on the first device, a numpy leaf as numpy. Shapes and dtypes are never adapted.
        CheckpointError when there is no such checkpoint, when it does not fit `like`, and when it is damaged.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self._directory}")
        step = steps[-1] if step is None else step
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise CheckpointError(f"no checkpoint of step {step} in {self._directory}; there are {there}")
        wanted = _flatten(like)
        record = self._read(step, meta=ocp.args.JsonRestore())
        misfit = _misfit(record["arrays"], {name: _signature(leaf) for name, leaf in wanted.items()})
        if misfit:
            raise CheckpointError(f"checkpoint {step} in {self._directory} does not fit: {misfit}")
        targets = {name: _target(leaf) for name, leaf in wanted.items()}
        flat = self._read(step, arrays=ocp.args.StandardRestore(targets))
        return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in wanted]), record["meta"]

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()

    def _clear(self, step: int) -> None:
        """Gives the space of a failed save back. What it had in flight may go on writing and make its directory again: so until
        nothing has come for a while. What comes even later is no checkpoint, and the next opening for writing removes it."""
        for _ in range(_CLEARINGS):
            time.sleep(_LATE_WRITES)
            if not self._remove(f"{step}.*"):
                return

    def _remove(self, pattern: str) -> bool:
        """Removes what is named so, as far as it can be; whether there was anything."""
        found = list(self._directory.glob(pattern))
        for path in found:
            shutil.rmtree(path, ignore_errors=True)
        return bool(found)

    def _read(self, step: int, **item: Any) -> dict[str, Any]:
        (name,) = item
        try:
            with _quiet(logging.ERROR):
                return self._manager.restore(step, args=ocp.args.Composite(**item))[name]
        except Exception as error:  # any damage to any file, in the words of three libraries
            raise CheckpointError(f"cannot read checkpoint {step} in {self._directory}: {_line(error)}") from error


def _flatten(tree: Any) -> dict[str, Any]:
    """{'params.layers.0.kernel': leaf}, in the order of the tree's leaves."""
    leaves = jax.tree.leaves_with_path(tree)
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two leaves of the checkpoint tree have the same path once joined by dots")
    return flat


def _signature(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _target(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(leaf)
    sharding = leaf.sharding if leaf.sharding is not None else jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _misfit(saved: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """The first differences in words; empty when there are none."""
    differences = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    differences += [f"{name} is only in the checkpoint" for name in saved if name not in wanted]
    differences += [f"{n} is {saved[n]}, wanted {wanted[n]}" for n in wanted if n in saved and saved[n] != wanted[n]]
    return "; ".join(differences[:3]) + (f" (and {len(differences) - 3} more)" if len(differences) > 3 else "")


@contextlib.contextmanager
def _quiet(level: int):
    """Drops Orbax's log from `level` up: its threads log, with tracebacks, the errors that also reach the caller."""
    log = logging.getLogger("absl")
    below = lambda record: record.levelno < level
    log.addFilter(below)
    try:
        yield
    finally:
        log.removeFilter(below)


@contextlib.contextmanager
def _quiet_if_it_fails():
    """When a save fails, what it had in flight goes on failing, and each array of it says so, at any time until the program ends:
    TensorStore, whose event loop is closed, and asyncio, whose tasks nobody asks any more. After a failure these stay quiet."""
    log, hook = logging.getLogger("asyncio"), sys.unraisablehook
    asked_for = lambda record: "never retrieved" not in record.getMessage()

    def without_late_callbacks(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    log.addFilter(asked_for)
    sys.unraisablehook = without_late_callbacks
    failed = False
    try:
        yield
    except Exception:
        failed = True
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise
    finally:
        if not failed:
            log.removeFilter(asked_for)
            sys.unraisablehook = hook


def _line(error: BaseException) -> str:
    """The operating system's words where TensorStore hands on its error number, else the first line of the error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return os.strerror(int(number[1]))
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
