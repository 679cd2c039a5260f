"""metrics.jsonl, the printed line and the progress bar of a run; summary.json.

A step's metrics stay on the device until the next step has been dispatched, so that reading them never makes the
device wait.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
import tqdm

from mvg_jax.errors import RunError

WALL_CLOCK = "time/"  # every key that differs between two runs of one config begins so


class MetricsLog:
    """One JSON object a step in `workdir/metrics.jsonl`, one printed line a step, and the time left.

    Steps count finished updates: step n is logged after the n-th update, and a checkpoint of step n is resumed with
    `resume_step=n` (0 starts over). On opening, lines beyond `resume_step` are dropped: the steps after the checkpoint
    are about to be run again. Call `flush()` before saving a checkpoint, or a run killed just after it resumes without
    that step's line.

    show: keys printed each step, in this order; a key that a step lacks is left out of its line.
    Only process 0 writes and prints. Raises RunError when the file cannot be read or written.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int, total_steps: int, show: Sequence[str]):
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        self._total, self._show = total_steps, tuple(show)
        self._first, self._started = resume_step, time.monotonic()
        self._written, self._step, self._pending = resume_step, None, {}
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        _keep_until(self._path, resume_step)
        self._bar = tqdm.tqdm(total=total_steps, initial=resume_step, unit="step", disable=not sys.stderr.isatty())

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds scalars (numbers, strings, 0-d arrays on host or device) to the step's record; writes the one before.

        Several calls may name the same step. ValueError when steps go backwards or a key is given twice.
        """
        if step <= self._written or (self._step is not None and step < self._step):
            raise ValueError(f"step {step} logged after step {max(self._written, self._step or 0)}")
        if self._step != step:
            self.flush()
            self._step = step
        twice = sorted(self._pending.keys() & metrics.keys())
        if twice:
            raise ValueError(f"step {step}: logged twice: {twice}")
        self._pending.update(metrics)

    def flush(self) -> dict[str, Any]:
        """Reads the pending step from the device, writes and prints it: its record, empty if none was pending."""
        if self._step is None:
            return {}
        values = jax.device_get(self._pending)
        record = {"step": self._step} | {key: _plain(key, value) for key, value in values.items()}
        self._written, self._step, self._pending = self._step, None, {}
        if not self._writes:
            return record
        # One line, one write: a kill leaves at most a torn last line, which the next start drops.
        try:
            with self._path.open("a") as file:
                file.write(_dumps(record) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from error
        self._print(record)
        return record

    def close(self) -> None:
        """Flushes and ends the progress bar."""
        self.flush()
        if self._writes:
            self._bar.close()

    def _print(self, record: dict[str, Any]) -> None:
        step, parts = record["step"], [f"{key} {_short(record[key])}" for key in self._show if key in record]
        elapsed = time.monotonic() - self._started
        left = elapsed / (step - self._first) * (self._total - step)
        clock = f"{tqdm.tqdm.format_interval(elapsed)}<{tqdm.tqdm.format_interval(left)}"
        self._bar.update(step - self._bar.n)
        tqdm.tqdm.write("  ".join([f"step {step}/{self._total} [{clock}]", *parts]), file=sys.stdout)
        sys.stdout.flush()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order; a torn last line (the run was killed while writing) is left out.

    RunError when the file cannot be read or another line is broken.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty or torn
        try:
            record = json.loads(line)
            record["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}:{number} is not a metrics record") from error
        records.append(record)
    return records


def write_summary(path: str | os.PathLike, summary: Mapping[str, Any]) -> None:
    """Writes `summary` (JSON values) with sorted keys, in one piece: a reader sees the old file or the new one.

    Raises RunError when it cannot be written.
    """
    write_atomically(path, _dumps(summary, indent=2) + "\n")


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Replaces the file in one piece, or leaves it as it was and raises RunError. Only process 0 writes."""
    if jax.process_index() != 0:
        return
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to be written that takes the place of `path` in one piece, unless something is raised. OSError as of files.

    One writer at a time: what a killed one leaves has the same name, so that the next writes over it.
    """
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _keep_until(path: pathlib.Path, step: int) -> None:
    kept = [record for record in read_metrics(path) if record["step"] <= step] if path.exists() else []
    write_atomically(path, "".join(_dumps(record) + "\n" for record in kept))


def _plain(key: str, value: Any) -> int | float | str | bool:
    if isinstance(value, str | bool | int | float) and not isinstance(value, np.generic):
        return value
    if np.ndim(value) != 0:
        raise ValueError(f"metric {key!r} must be a scalar, has shape {np.shape(value)}")
    return np.asarray(value).item()


def _finite(value: Any) -> Any:
    """NaN and infinities as "NaN", "Infinity", "-Infinity" (protobuf's JSON mapping): bare, they are not JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(value), sort_keys=True, allow_nan=False, indent=indent)


def _short(value: int | float | str | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
