"""Reads pickles of plain values without running them: a pickle is a program, and this machine knows its harmless words only."""

import pickletools
from typing import Any

from mvg_jax.errors import RunError

_PUSH = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "STRING BINSTRING SHORT_BINSTRING".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
_GET = ("GET", "BINGET", "LONG_BINGET")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = ("PROTO", "FRAME")
_KEYS = (str, int, float, type(None))
_MARK = object()


def loads(content: bytes, name: str) -> Any:
    """The lists, tuples, dicts, strings, numbers and constants in a pickle of protocol 0 to 5.

    RunError naming the file for anything else, above all for what names classes or functions: nothing is imported or called.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, at in pickletools.genops(content):
            word = opcode.name
            if word == "STOP":
                (value,) = stack
                return value
            _step(word, argument, at, stack, memo)
    except RunError as error:
        raise RunError(f"{name}: {error}") from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise RunError(f"{name} is a broken pickle: {error}") from error
    raise RunError(f"{name} is a broken pickle: it has no end")


def _step(word: str, argument: Any, at: int, stack: list[Any], memo: dict[int, Any]) -> None:
    if word in _PUSH:
        stack.append(argument)
    elif word in _CONSTANTS:
        stack.append(_CONSTANTS[word])
    elif word in _EMPTY:
        stack.append(_EMPTY[word]())
    elif word == "MARK":
        stack.append(_MARK)
    elif word in _TUPLES:
        items = _pop(stack, _TUPLES[word])
        stack.append(tuple(items))
    elif word in ("LIST", "TUPLE"):
        items = _pop_marked(stack)
        stack.append(items if word == "LIST" else tuple(items))
    elif word == "DICT":
        stack.append(_pairs(_pop_marked(stack)))
    elif word in ("APPEND", "APPENDS"):
        items = _pop(stack, 1) if word == "APPEND" else _pop_marked(stack)
        _top(stack, list).extend(items)
    elif word in ("SETITEM", "SETITEMS"):
        items = _pop(stack, 2) if word == "SETITEM" else _pop_marked(stack)
        _top(stack, dict).update(_pairs(items))
    elif word in _PUT:
        memo[argument] = stack[-1]
    elif word == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif word in _GET:
        stack.append(memo[argument])
    elif word not in _NOTHING:
        raise RunError(
            f"a pickle that does more than hold plain values ({word} at byte {at}) is not read: it could run any code"
        )


def _pop(stack: list[Any], many: int) -> list[Any]:
    items = stack[-many:]
    if len(items) < many or any(item is _MARK for item in items):
        raise ValueError("too few values")
    del stack[-many:]
    return items


def _pop_marked(stack: list[Any]) -> list[Any]:
    """The values above the last mark, which goes too."""
    mark = next(i for i in range(len(stack) - 1, -2, -1) if i < 0 or stack[i] is _MARK)
    if mark < 0:
        raise ValueError("no mark")
    items = stack[mark + 1 :]
    del stack[mark:]
    return items


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(key, _KEYS) for key in items[::2]):
        raise ValueError("a key that is neither text nor number")  # hashing deeply nested tuples overflows the C stack
    return dict(zip(items[::2], items[1::2], strict=True))


def _top(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise ValueError(f"no {kind.__name__} to fill")
    return stack[-1]
