"""Small valid files made wrong, for fuzzing readers: bytes changed, lost and doubled, and values of trees replaced.

A reader reads what it is given or raises `InputError`; nothing else, and at once.
"""

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedexperts.errors import InputError

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = (
    "",
    "0",
    "-1",
    "-0.0",
    "1e400",
    "1e308",
    "-1e308",
    "1e299",
    "5e-324",
    "9" * 25,
    "9" * 5000,
    "nan",
    "inf",
    "NaN",
    "0x10",
    "1_0",
)
WORDS = ("", "unlimited", "null", "\0", "\x1b[2J", "[/]", "../..", "ключ", "a" * 300, '"', "{}", "#")
VALUES = (None, True, -1, 0, 1e299, -1e299, 5e-324, 2**63, 10**25, "", "x", "unlimited", "NaN", [], {}, [[]], {"a": {}}, "\0")


def mutated_bytes(valid: bytes) -> st.SearchStrategy[bytes]:
    """A file of which some bytes are changed, lost or doubled, some numbers or words replaced, or the end cut off."""
    place = st.integers(0, max(0, len(valid) - 1))
    change = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 255)),
        st.tuples(st.just("drop"), place, st.integers(1, 20)),
        st.tuples(st.just("double"), place, st.integers(1, 80)),
        st.tuples(st.just("word"), place, st.sampled_from(NUMBERS + WORDS)),
        st.tuples(st.just("cut"), place, st.just(0)),
        st.tuples(
            st.just("insert"),
            place,
            st.sampled_from([b"\xff", b"\xef\xbb\xbf", b"[" * 5000, b"{" * 99, b"\r", b"\n\n", b"<!DOCTYPE a>"]),
        ),
    )
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _apply(valid, changes))


def _apply(data: bytes, changes: list[tuple[str, int, Any]]) -> bytes:
    for kind, at, how in changes:
        if kind == "flip":
            data = data[:at] + bytes([how]) + data[at + 1 :]
        elif kind == "drop":
            data = data[:at] + data[at + how :]
        elif kind == "double":
            data = data[: at + how] + data[at:]
        elif kind == "word":  # in the place of the word or number that stands there
            stop = b" ,:;=\n\t\"'<>[]{}"
            begin = max((data.rfind(bytes([c]), 0, at) for c in stop), default=-1) + 1
            end = min((i for c in stop if (i := data.find(bytes([c]), at)) >= 0), default=len(data))
            data = data[:begin] + how.encode() + data[max(begin, end) :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[:at] + how + data[at:]
    return data


def mutated_tree(valid: Any) -> st.SearchStrategy[Any]:
    """Plain data of which some values are replaced, keys dropped or renamed, and lists' values doubled."""
    places = list(_places(valid))
    change = st.tuples(
        st.sampled_from(places), st.sampled_from(["replace", "drop", "rename", "double", "nest"]), st.sampled_from(VALUES)
    )
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _changed(valid, changes))


def _places(tree: Any, at: tuple[Any, ...] = ()) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _changed(valid: Any, changes: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
    tree = copy.deepcopy(valid)
    for at, kind, value in changes:
        try:
            parent = tree
            for key in at[:-1]:
                parent = parent[key]
            old = parent[at[-1]]
            if kind == "replace":
                parent[at[-1]] = copy.deepcopy(value)
            elif kind == "drop":
                del parent[at[-1]]
            elif kind == "rename" and isinstance(parent, dict):
                parent[f"{at[-1]}x"] = parent.pop(at[-1])
            elif kind == "double" and isinstance(parent, list):
                parent.append(copy.deepcopy(old))
            elif kind == "nest":
                parent[at[-1]] = {"a": [old]}
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return tree


def as_json(tree: Any) -> bytes:
    """A tree as a file, with NaN and Infinity where it holds them."""
    return json.dumps(tree).encode()


def hold(read: Callable[[Path], Any], path: Path, valid: bytes, *more: st.SearchStrategy[bytes]) -> None:
    """Give a reader a valid file, which it reads, and many that were made of it: each is read, or refused with `InputError`."""
    path.write_bytes(valid)
    read(path)

    @FUZZ
    @given(data=st.one_of(mutated_bytes(valid), *more))
    def once(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            read(path)

    once()
