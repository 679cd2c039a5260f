"""What a reader makes of a published data set: records without pixels, images loaded when asked for, and a report."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from mvg_jax.data.images import ImageRef
from mvg_jax.data.task import AnswerType, Box, Task
from mvg_jax.tools.spec import ToolCall

NAMED = 5  # dropped rows that a report names for each reason


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
            named.append(row)

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
