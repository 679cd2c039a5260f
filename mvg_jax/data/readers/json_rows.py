"""Questions in JSON files: rows as dictionaries, and ids that stay unique."""

import json
from typing import Any

from mvg_jax.data.files import Files
from mvg_jax.data.records import ReadReport
from mvg_jax.errors import RunError


def load(files: Files, name: str) -> Any:
    """The content of a JSON file. RunError names the file when it is none."""
    try:
        return json.loads(files.read(name).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{name} of {files.root} is no JSON: {error}") from error


def load_list(files: Files, name: str) -> list:
    """The rows of a JSON file that holds a list. RunError otherwise."""
    rows = load(files, name)
    if not isinstance(rows, list):
        raise RunError(f"{name} of {files.root} holds a {type(rows).__name__}, not a list of questions")
    return rows


def text(row: dict, key: str) -> str:
    """A field of a row with single blanks; "" where it is missing or neither text nor a whole number."""
    value = row.get(key)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return " ".join(str(value).split()) if isinstance(value, str) or whole else ""


def unique(name: str, seen: set[str], report: ReadReport) -> str:
    """`name`, told apart from the ids in `seen` if it is one of them; adds it there."""
    chosen, count = name, 2
    while chosen in seen:
        chosen, count = f"{name}#{count}", count + 1
    if chosen != name:
        report.note("an id used before, numbered")
    seen.add(chosen)
    return chosen
