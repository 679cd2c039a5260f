import pytest

from mvg_jax.data.files import Files
from mvg_jax.data.readers.text import MAX_LITERAL, csv_rows, object_rows, squeeze, text_list
from mvg_jax.errors import RunError


def files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    return Files(tmp_path)


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("['a', \"b's\"]", ["a", "b's"]),
        (" ('x', 2, 0.5) ", ["x", "2", "0.5"]),
        ("[]", []),
        (["as", "it", "is"], ["as", "it", "is"]),
    ],
)
def test_a_list_of_texts_written_as_a_literal(value, items):
    assert text_list(value) == items


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('true')",
        "[x for x in 'ab']",
        "['a', ['b']]",
        "{'a': 1}",
        "['a'",
        "['a\0']",
        "[" * 5000 + "]" * 5000,
        "-" * 10_000 + "1",
        "[0x" + "f" * 15_000 + "]",  # more digits than Python turns into text
        "[" + "'a', " * MAX_LITERAL + "]",
        None,
        3,
        [{"a": 1}],
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_list_of_texts_is_none(hostile):
    assert text_list(hostile) is None


def test_cells_stay_strings(tmp_path):
    content = '\ufeffa,b\nN/A,None\nNA,"1,\n5"\n\n,\n1\n'.encode()
    rows = list(csv_rows(files(tmp_path, "x.csv", content), "x.csv"))
    assert rows == [{"a": "N/A", "b": "None"}, {"a": "NA", "b": "1,\n5"}, {"a": "", "b": ""}, None]


@pytest.mark.parametrize("content", [b"a,b\n\xff,1\n", b'a,b\n"' + b"x" * 200_000 + b'",1\n'])
def test_no_csv(tmp_path, content):
    with pytest.raises(RunError, match=r"cannot read x\.csv"):
        list(csv_rows(files(tmp_path, "x.csv", content), "x.csv"))


def test_json_lines_end_at_newlines_only(tmp_path):
    content = '{"a": "one\u2028two\x85three"}\r\n\n{"a": 2}'.encode()
    assert object_rows(files(tmp_path, "x.jsonl", content), "x.jsonl") == [{"a": "one\u2028two\x85three"}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "line 2"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', "line 2"),
        ("x.json", b'[{"a": 1}, 2]', "row 1"),
        ("x.json", b'{"a": 1}', "not a list"),
        ("x.json", b"[" * 100_000, "is no JSON"),
        ("x.json", b"\xff", "is no JSON"),
    ],
)
def test_no_object_rows(tmp_path, name, content, where):
    with pytest.raises(RunError, match=where):
        object_rows(files(tmp_path, name, content), name)


def test_squeeze():
    assert squeeze("\xa0Heart \tlungs\u200a \n") == "Heart lungs"
