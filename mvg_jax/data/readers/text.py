"""Rows of text files: json, jsonl and csv as data sets publish them. Rows are hostile until checked, field by field."""

import ast
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mvg_jax.data.files import Files
from mvg_jax.data.readers import json_rows
from mvg_jax.errors import RunError

MAX_LITERAL = 20_000  # characters of a Python literal in a cell


def object_rows(files: Files, name: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl (one a line) or of a .json (one list). RunError naming the line or row that is no object."""
    if name.lower().endswith(".jsonl"):
        # Only at \n: U+2028 and the like may stand in a string.
        lines = enumerate(files.read(name).split(b"\n"), 1)
        rows = [(f"line {number}", _line(files, name, number, line)) for number, line in lines if line.strip()]
    else:
        rows = [(f"row {number}", row) for number, row in enumerate(json_rows.load_list(files, name))]
    for where, row in rows:
        if not isinstance(row, dict):
            raise RunError(f"{name} of {files.root}: {where} is no object")
    return [row for _, row in rows]


def csv_rows(
    files: Files, name: str, needed: Iterable[str] = (), spelt: Callable[[str], str] = str
) -> Iterator[dict[str, str] | None]:
    """The rows of a csv with a header; every cell stays a string ("N/A", "None", ""). None for a row of another length.

    spelt: makes keys of column names. RunError when the file is no UTF-8 or no csv, or lacks a key of `needed`.
    """
    try:
        text = files.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"cannot read {name} of {files.root}: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [spelt(column) for column in next(reader, [])]
        if missing := [column for column in needed if column not in header]:
            raise RunError(f"{name} of {files.root} has no column {', '.join(missing)}; it has {', '.join(header)}")
        for row in reader:
            if row:
                yield dict(zip(header, row, strict=True)) if len(row) == len(header) else None
    except csv.Error as error:
        raise RunError(f"cannot read {name} of {files.root}, line {reader.line_num}: {error}") from error


def text_list(value: Any) -> list[str] | None:
    """A list of strings or numbers, also as a Python literal in a string ("['a', \"b's\"]"), as strings; None when it is none."""
    if isinstance(value, str) and len(value) > MAX_LITERAL:
        return None
    try:
        items = ast.literal_eval(value.strip()) if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str | int | float) for item in items):
            return [str(item) for item in items]
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass  # what literal_eval, and str of an endless number, raise
    return None


def squeeze(text: str) -> str:
    """Text with every run of blanks, of whatever kind (tabs, no-break and hair spaces), as one space, and none at the ends."""
    return " ".join(text.split())


def _line(files: Files, name: str, number: int, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"line {number} of {name} of {files.root} is no JSON: {error}") from error
