import collections
import io
import os
import pathlib
import pickle
import pickletools

import pytest

from mvg_jax.data import plain_pickle
from mvg_jax.errors import RunError

ROWS = [
    {"image": "train_0001", "question": "what is the ’tissue’?", "answer": "in the canals of hering"},
    {"image": "train_0001", "question": "how many?", "answer": 4},
    {
        "a": [1.5, None, True, False, -1, 2**40, -(2**70), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (), [], {}],
        7: "long" * 100,
    },
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_from_every_protocol(protocol):
    assert plain_pickle.loads(pickle.dumps(ROWS, protocol), "a.pkl") == ROWS


def test_more_rows_than_a_batch_of_the_pickler_come_back():
    rows = [{"image": f"train_{i % 300:04d}", "question": "is it?", "answer": "yes"} for i in range(2500)]
    assert plain_pickle.loads(pickle.dumps(rows), "a.pkl") == rows


def test_strings_of_python_2_come_back():
    assert plain_pickle.loads(b"(lp0\nS'cells'\np1\na(dp2\nS'k'\nI3\nsa.", "a.pkl") == ["cells", {"k": 3}]


def test_equal_objects_may_be_shared():
    row = {"answer": "yes"}
    assert plain_pickle.loads(pickle.dumps([row, row]), "a.pkl") == [row, row]


class Malicious:
    """Touches a file when a real unpickler meets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.PosixPath(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_nothing(tmp_path, protocol):
    mark = tmp_path / "was_here"
    content = pickle.dumps([{"image": "a", "question": Malicious(mark)}], protocol)
    with pytest.raises(RunError, match=r"a\.pkl: .* could run any code"):
        plain_pickle.loads(content, "a.pkl")
    assert not mark.exists()
    pickle.loads(content)  # noqa: S301  the pickle is the real thing
    assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"Psomething\n.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["GLOBAL", "INST", "STACK_GLOBAL", "PERSID", "EXT1"],
)
def test_every_way_to_name_something_is_refused(content, monkeypatch):
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("ran"))
    with pytest.raises(RunError, match="could run any code"):
        plain_pickle.loads(content, "a.pkl")


@pytest.mark.parametrize("value", [collections.OrderedDict(a=1), {1, 2}, b"bytes", 1j, pathlib.PurePosixPath("a")])
def test_other_kinds_of_values_are_refused(value):
    with pytest.raises(RunError, match=r"a\.pkl"):
        plain_pickle.loads(pickle.dumps(value), "a.pkl")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"]]",
        b"]].",
        b"a.",
        b"u.",
        b"h\x07.",
        b"q\x00.",
        b"(t",
        b"K\x01K\x02a.",
        b"}]K\x01s.",
        b"}(K\x01u.",
        b"\x80\x04\x8c\xffshort.",
        b"Inot a number\n.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\xff",
        b"git-lfs",
        pickle.dumps(ROWS)[:-20],
    ],
)
def test_a_broken_pickle_is_named(content):
    with pytest.raises(RunError, match=r"a\.pkl"):
        plain_pickle.loads(content, "a.pkl")


def test_deep_nesting_breaks_nothing():
    deep = plain_pickle.loads(b")" + b"\x85" * 200_000 + b".", "a.pkl")
    assert isinstance(deep, tuple)
    with pytest.raises(RunError, match="key"):
        plain_pickle.loads(b"})" + b"\x85" * 200_000 + b"K\x01s.", "a.pkl")


def test_what_is_known_is_a_subset_of_the_language():
    """A word misspelt in the reader's tables would only show as a refusal."""
    spoken = {opcode.name for opcode in pickletools.opcodes}
    tables = (
        plain_pickle._PUSH,
        plain_pickle._CONSTANTS,
        plain_pickle._EMPTY,
        plain_pickle._PUT,
        plain_pickle._GET,
        plain_pickle._TUPLES,
        plain_pickle._NOTHING,
    )
    assert {word for table in tables for word in table} <= spoken
    assert not {op.name for op, _, _ in pickletools.genops(io.BytesIO(b"cos\nsystem\n(tR."))} <= {
        w for t in tables for w in t
    }
