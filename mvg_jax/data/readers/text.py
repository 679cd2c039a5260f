"""Text files as data sets publish them: JSON, JSON lines and csv, and their cells. Rows are hostile until checked, field by field."""

import ast
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mvg_jax.data.files import Files
from mvg_jax.errors import RunError

MAX_LITERAL = 20_000  # characters of a Python literal in a cell


def parse_json(content: str | bytes, what: str) -> Any:
    """The value of a JSON text; bytes are UTF-8. RunError names `what` when it is none."""
    try:
        return json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{what} is no JSON: {error}") from error


def json_value(files: Files, name: str) -> Any:
    """The content of a JSON file. RunError names the file when it is none."""
    return parse_json(files.read(name), f"{name} of {files.root}")


def json_list(files: Files, name: str) -> list[Any]:
    """The rows, of whatever type, of a JSON file that holds one list. RunError otherwise."""
    return _list(json_value(files, name), f"{name} of {files.root}")


def object_rows(files: Files, name: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl (one a line) or of a .json (one list). RunError naming the line or row that is no object."""
    what = f"{name} of {files.root}"
    if not name.lower().endswith(".jsonl"):
        return objects(json_value(files, name), what)
    numbered = ((f"line {number} of {what}", line) for number, line in lines(files, name))
    return [_object(parse_json(line, where), where) for where, line in numbered]


def objects(rows: Any, what: str) -> list[dict[str, Any]]:
    """`rows` if they are a list of dicts. RunError naming `what`, and the row that is none, otherwise."""
    return [_object(row, f"row {number} of {what}") for number, row in enumerate(_list(rows, what))]


def lines(files: Files, name: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines of a UTF-8 file that are not blank. RunError when it is no UTF-8."""
    # Only at \n: U+2028 and the like may stand in a string.
    return ((i, line) for i, line in enumerate(_decoded(files, name).split("\n"), 1) if line.strip())


def csv_rows(
    files: Files, name: str, needed: Iterable[str] = (), spelt: Callable[[str], str] = str
) -> Iterator[dict[str, str] | None]:
    """The rows of a csv with a header; every cell stays a string ("N/A", "None", ""). None for a row of another length.

    spelt: makes keys of column names. RunError when the file is no UTF-8 or no csv, or lacks a key of `needed`.
    """
    reader = csv.reader(io.StringIO(_decoded(files, name), newline=""))
    try:
        header = [spelt(column) for column in next(reader, [])]
        if missing := [column for column in needed if column not in header]:
            raise RunError(f"{name} of {files.root} has no column {', '.join(missing)}; it has {', '.join(header)}")
        for row in reader:
            if row:
                yield dict(zip(header, row, strict=True)) if len(row) == len(header) else None
    except csv.Error as error:
        raise RunError(f"cannot read {name} of {files.root}, line {reader.line_num}: {error}") from error


def field(row: dict[str, Any], key: str) -> str:
    """A field of a row, squeezed; "" where it is missing or neither text nor a whole number."""
    value = row.get(key)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return squeeze(str(value)) if isinstance(value, str) or whole else ""


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


def _decoded(files: Files, name: str) -> str:
    try:
        return files.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"cannot read {name} of {files.root}, which is not UTF-8: {error}") from error


def _list(rows: Any, what: str) -> list[Any]:
    if not isinstance(rows, list):
        raise RunError(f"{what} holds a {type(rows).__name__}, not a list of rows")
    return rows


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RunError(f"{where} is no object with named fields")
    return row
