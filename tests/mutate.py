"""Small valid files made wrong, for fuzzing readers: bytes changed, lost and doubled, and values of trees replaced.

A reader reads what it is given or raises `InputError`; nothing else, and at once.
"""

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedexperts.errors import InputError

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = (
    "",
    "0",
    "-1",
    "1e400",
    "1e308",
    "-1e308",
    "1e-300",
    "5e-324",
    "1e17",
    "9" * 400,
    "9" * 5000,
    "nan",
    "Infinity",
    "NaN",
    "1_0",
)
WORDS = (
    "unlimited",
    "null",
    "\0",
    "\x1b[2J",
    "[/]",
    "ключ",
    "a" * 300,
    '"',
    "{}",
    "[" * 5000,
    '{"a":' * 3000,
    "<!DOCTYPE a>",
    "\r",
)
BYTES = (b"\xff", b"\xef\xbb\xbf", b"\xc2\xa0", b"\0", b"\n\n", b",", b'"', b"[", b"\xed\xa0\x80")
VALUES = (None, True, -1, 0, 1e17, 1e299, -1e299, 5e-324, float("nan"), float("inf"), 2**63, 10**400, "", "x", "unlimited")
VALUES += ("a\0b", "\ud800", [], {}, [[]], {"a": {}}, [1, "2"])  # type: ignore[assignment]
TOKEN = re.compile(rb"[\w.+-]+")


def mutated_bytes(valid: bytes) -> st.SearchStrategy[bytes]:
    """A file of which some words and numbers are replaced, bytes changed, lost, doubled or put in, or the end cut off."""
    return st.integers(0, 2**32 - 1).map(lambda seed: _bytes(valid, Random(seed)))


def _bytes(data: bytes, random: Random) -> bytes:
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(data) + 1)
        kind = random.choice(("word", "word", "word", "flip", "drop", "double", "insert", "cut"))
        if kind == "word" and (tokens := list(TOKEN.finditer(data))):
            begin, end = random.choice(tokens).span()
            data = data[:begin] + random.choice(NUMBERS + WORDS).encode() + data[end:]
        elif kind == "flip":
            data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        elif kind == "drop":
            data = data[:at] + data[at + random.randrange(1, 20) :]
        elif kind == "double":
            data = data[: at + random.randrange(1, 80)] + data[at:]
        elif kind == "insert":
            data = data[:at] + random.choice(BYTES) + data[at:]
        elif kind == "cut" and random.random() < 0.2:
            data = data[:at]
    return data


def mutated_tree(valid: Any) -> st.SearchStrategy[Any]:
    """Plain data of which some values are replaced or nested, keys dropped or renamed, and lists' values doubled."""
    return st.integers(0, 2**32 - 1).map(lambda seed: _tree(valid, Random(seed)))


def _tree(valid: Any, random: Random) -> Any:
    tree = copy.deepcopy(valid)
    for _ in range(random.choice((1, 1, 2, 3))):
        parent, key = random.choice(list(_places(tree)) or [({}, "")])
        kind = random.choice(("replace", "replace", "replace", "drop", "rename", "double", "nest"))
        if kind == "replace":
            parent[key] = copy.deepcopy(random.choice(VALUES))
        elif kind == "drop":
            parent.pop(key, None) if isinstance(parent, dict) else parent.pop(key)
        elif kind == "rename" and isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key, None)
        elif kind == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif kind == "nest":
            parent[key] = {"a": [parent.get(key) if isinstance(parent, dict) else parent[key]]}
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key)."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()):
        yield tree, key
        yield from _places(value)


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
