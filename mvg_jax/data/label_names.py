"""Tables that name the labels of a label volume, as programs write them."""

import csv
import io
import json
import re
from typing import NamedTuple

from mvg_jax.errors import RunError

MAX_NAME = 64

_SIDE = {"left": "left", "l": "left", "lh": "left", "right": "right", "r": "right", "rh": "right"}
_QUOTED = re.compile(r'"([^"]*)"')
_AT_END = re.compile(
    r"(?:^(?P<first>left|right|lh|rh|l|r)[ \-.]+|[ \-.]+(?P<last>left|right|lh|rh|l|r)$)", re.IGNORECASE
)
_INSIDE = re.compile(r" (left|right) ", re.IGNORECASE)


class Name(NamedTuple):
    """What a label stands for. side: "left", "right" (the patient's) or ""."""

    name: str
    side: str = ""

    @property
    def full(self) -> str:
        """Side and name in words."""
        return f"{self.side} {self.name}".strip()


def read_names(content: bytes, where: str) -> tuple[tuple[int, Name], ...]:
    """(label, name) of each label but 0, in order. where: the file's name, which tells the format.

    .json: {"1": "liver"}, {"liver": 1}, or either under "labels". .csv, .tsv: first column of whole numbers, first column of words.
    Otherwise a line each: `1 Precentral_L 2001` (id, name, further numbers), `1 left kidney`, or a label file with the name in quotes
    at its end; "#" begins a comment. "_" reads as a blank; "_L", "_R", "Left-", "Right-", "left", "right" name the patient's side.
    Several labels may have one name. RunError naming the file and what is wrong.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{where} is not UTF-8: {error}") from error
    pairs = {"json": _from_json, "csv": _from_csv, "tsv": _from_csv}.get(where.lower().rsplit(".", 1)[-1], _from_lines)(
        text, where
    )
    named: dict[int, Name] = {}
    for label, written in pairs:
        if label < 0 or label > 2**31:
            raise RunError(f"{where}: label {label} is out of range")
        if label in named:
            raise RunError(f"{where}: label {label} is named twice")
        if label and written.strip():
            named[label] = parse_name(written)
    if not named:
        raise RunError(f"{where} names no label")
    if len(set(named.values())) > 65535:
        raise RunError(f"{where} has more than 65535 names")
    return tuple(sorted(named.items()))


def parse_name(written: str) -> Name:
    """ "Precentral_L" as Name("Precentral", "left")."""
    name = " ".join(written.replace("_", " ").split())[:MAX_NAME]
    if (found := _AT_END.search(name)) and found.group() != name:
        rest = (name[: found.start()] + name[found.end() :]).strip()
        if rest:
            return Name(rest, _SIDE[(found["first"] or found["last"]).lower()])
    if found := _INSIDE.search(name):
        return Name(f"{name[: found.start()]} {name[found.end() :]}", found[1].lower())
    return Name(name)


def _from_json(text: str, where: str) -> list[tuple[int, str]]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not JSON: {error}") from error
    if isinstance(table, dict) and isinstance(table.get("labels"), dict):
        table = table["labels"]
    if not isinstance(table, dict):
        raise RunError(f"{where}: an object of labels and names is needed")
    pairs = []
    for key, value in table.items():
        if isinstance(value, str) and _whole(key):
            pairs.append((int(key), value))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs.append((value, key))
        else:
            raise RunError(f"{where}: {key!r}: {value!r} is no label and its name")
    return pairs


def _from_csv(text: str, where: str) -> list[tuple[int, str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter="\t" if "\t" in text else ",") if any(row)]
    except csv.Error as error:
        raise RunError(f"{where} is no table: {error}") from error
    if rows and not any(_whole(cell) for cell in rows[0]):
        rows = rows[1:]  # the header
    pairs = []
    for row in rows:
        label = next((cell for cell in row if _whole(cell)), None)
        name = next((cell for cell in row if cell.strip() and not _number(cell)), None)
        if label is None or name is None:
            raise RunError(f"{where}: row {','.join(row)[:80]!r} has no label and name")
        pairs.append((int(label), name))
    return pairs


def _from_lines(text: str, where: str) -> list[tuple[int, str]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split() if '"' not in line else line.split()
        if not words or words[0].startswith("#"):
            continue
        if not _whole(words[0]):
            raise RunError(f"{where}, line {number}: {line[:80]!r} does not begin with a label")
        quoted = _QUOTED.search(line)
        rest = words[1:]
        while len(rest) > 1 and _number(rest[-1]):
            rest.pop()
        name = quoted[1] if quoted else " ".join(rest)
        if not name:
            raise RunError(f"{where}, line {number}: {line[:80]!r} has no name")
        pairs.append((int(words[0]), name))
    return pairs


def _whole(text: str) -> bool:
    return re.fullmatch(r"\s*[0-9]{1,10}\s*", text) is not None


def _number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?[0-9]+(\.[0-9]*)?\s*", text) is not None
