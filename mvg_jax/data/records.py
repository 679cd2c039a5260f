"""What a reader makes of a published data set: records without pixels, images loaded when asked for, and a report."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mvg_jax.data.images import ImageRef
from mvg_jax.data.task import AnswerType, Box, Task
from mvg_jax.tools.spec import ToolCall

NAMED = 5  # dropped rows that a report names for each reason
NAME_CHARS = 80  # of a row's name, which the data set chose

Row = TypeVar("Row")


class BadRow(Exception):
    """A row that no record can be made of; the text is the reason, a short phrase that many rows may share."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A Task whose images are not loaded yet; see Task. split: as published."""

    id: str
    dataset: str
    split: str
    kind: str
    images: tuple[ImageRef, ...]
    question: str
    answer: str
    answer_type: AnswerType
    options: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    modality: str = ""
    language: str = "en"
    boxes: tuple[Box, ...] = ()
    chain: tuple[ToolCall, ...] | None = None
    tolerance: float = 0.0

    def task(self) -> Task:
        """Loads the images. BadImage names one that cannot be used."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("split", "images")}
        return Task(images=tuple(image.load() for image in self.images), **fields)


class ReadReport:
    """How many rows were read, and which were dropped for what reason."""

    def __init__(self, what: str):
        self.what, self.rows = what, 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.named: dict[str, list[str]] = {}

    def drop(self, row: str, reason: str) -> None:
        """Counts a row that is left out. reason: a short phrase that many rows may share."""
        self.dropped[reason] += 1
        named = self.named.setdefault(reason, [])
        if len(named) < NAMED:
            named.append("".join(c if c.isprintable() else "?" for c in row[:NAME_CHARS]))

    def note(self, what: str) -> None:
        """Counts something mended on the way."""
        self.notes[what] += 1

    def __str__(self) -> str:
        lost = sum(self.dropped.values())
        lines = [f"{self.what}: {self.rows} rows read, {self.rows - lost} kept, {lost} dropped"]
        for reason, count in self.dropped.most_common():
            more = " ..." if count > NAMED else ""
            lines.append(f"  dropped {count}: {reason} ({', '.join(self.named[reason])}{more})")
        lines += [f"  {count} times: {what}" for what, count in self.notes.most_common()]
        return "\n".join(lines)


def collect(
    report: ReadReport, rows: Iterable[tuple[str, Row]], make: Callable[[str, Row], Record]
) -> tuple[Record, ...]:
    """make(name, row) of every (name, row). Rows of which it raises BadRow, or makes an id again, are dropped and reported."""
    records: dict[str, Record] = {}
    for name, row in rows:
        report.rows += 1
        try:
            record = make(name, row)
            if record.id in records:
                raise BadRow("the id of an earlier row")
            records[record.id] = record
        except BadRow as reason:
            report.drop(name, str(reason))
    return tuple(records.values())


def unique_id(name: str, seen: set[str], report: ReadReport) -> str:
    """`name`, told apart from the ids in `seen` if it is one of them; adds it there."""
    chosen, count = name, 2
    while chosen in seen:
        chosen, count = f"{name}#{count}", count + 1
    if chosen != name:
        report.note("an id used before, numbered")
    seen.add(chosen)
    return chosen


@dataclasses.dataclass(frozen=True, eq=False)
class DataSet(Sequence):
    """A random-access source of tasks over records. data[i] loads the images of task i (BadImage); data[i:j] is a DataSet."""

    name: str
    split: str
    records: tuple[Record, ...]
    report: ReadReport

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return dataclasses.replace(self, records=self.records[index])
        return self.records[index].task()


def without_broken_text(data: DataSet) -> DataSet:
    """The records whose texts are Unicode. JSON can spell halves of characters ("\\ud800"), which no tokenizer or file takes."""
    kept = []
    for record in data.records:
        try:
            "".join((record.id, record.kind, record.question, record.answer, record.modality)).encode()
            "".join(record.options + record.accepted + tuple(box.label for box in record.boxes)).encode()
            kept.append(record)
        except UnicodeEncodeError:
            data.report.drop(record.id, "text that is no Unicode")
    return dataclasses.replace(data, records=tuple(kept))
