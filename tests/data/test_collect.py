"""Rows into records, and the report of those that were dropped."""

import pytest

from mvg_jax.data.records import NAMED, BadRow, ReadReport, Record, collect
from mvg_jax.data.task import AnswerType


def record(name):
    return Record(name, "set", "test", "kind", (), "What?", "A", AnswerType.CHOICE, options=("x", "y"))


def make(name, row):
    if row is None:
        raise BadRow("nothing in it")
    return record(row)


def test_rows_are_made_or_dropped_with_a_reason():
    report = ReadReport("set test")
    records = collect(report, [("1", "a"), ("2", None), ("3", "a"), ("4", "b")], make)
    assert [record.id for record in records] == ["a", "b"]
    assert (report.rows, report.dropped) == (4, {"nothing in it": 1, "the id of an earlier row": 1})
    assert str(report).splitlines()[0] == "set test: 4 rows read, 2 kept, 2 dropped"


def test_other_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        collect(ReadReport("x"), [("1", 0)], lambda name, row: 1 / row)


def test_a_report_names_few_rows_and_no_control_characters():
    report = ReadReport("set")
    for number in range(NAMED + 3):
        report.drop(f"{number}\x1b[2J" + "long" * 1000, "why")
    line = str(report).splitlines()[1]
    assert line.isprintable()
    assert len(line) < 600
    assert line.startswith(f"  dropped {NAMED + 3}: why (0?[2J")
    assert line.endswith(" ...)")
