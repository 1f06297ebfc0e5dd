"""Small valid files made wrong, for fuzzing readers: bytes changed, lost and doubled, and values of trees replaced.

A reader reads what it is given or raises `InputError`; nothing else, and at once. `readers` is the table of them.
"""

import contextlib
import copy
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import tomli_w
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
    "1e-4",
    "1e17",
    "1000000",
    "2147483648",
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
VALUES: tuple[Any, ...] = (None, True, -1, 0, 1, 1e17, 1e299, -1e299, 5e-324, float("nan"), float("inf"))
VALUES += (1e-9, 1e-4, 0.5, 1.0, 90.0, 1e4, 1e9, 2, 7, 100, 10_000, 10**6, 2**31, 2**31 - 1, 2**62, 2**63 - 1, 10**12)
VALUES += (2**63, 10**400, "", "x", "unlimited", "a\0b", "\ud800", "..", "a" * 300, [], {}, [[]], {"a": {}}, [1, "2"])
TOKEN = re.compile(rb"[\w.+-]+")
Form = Literal["bytes", "json", "lines", "toml"]


@dataclass(frozen=True)
class Reader:
    """A reader of files of one kind.

    Attributes:
        make: writes a valid file into a folder, and what it needs beside it; returns its path.
        read: reads it, and does with it what the product does before any work.
        form: what trees of plain data the file holds, whose values are replaced; every file is mutated as bytes, too.
        share: how many mutations it gets of those that a quick one gets.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    form: Form = "bytes"
    share: float = 1.0

    def __str__(self) -> str:
        return self.name


def mutated(valid: bytes, form: Form, random: Random) -> tuple[bytes, str]:
    """A file made wrong, and what was done to it."""
    if form == "bytes" or random.random() < 0.4:
        return _bytes(valid, random)
    return _TREES[form](valid, random)


def _bytes(data: bytes, random: Random) -> tuple[bytes, str]:
    """Some words and numbers are replaced, bytes changed, lost, doubled or put in, or the end cut off."""
    done = []
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(data) + 1)
        kind = random.choice(("word", "word", "word", "flip", "drop", "double", "insert", "cut"))
        if kind == "word" and (tokens := list(TOKEN.finditer(data))):
            begin, end = random.choice(tokens).span()
            word = random.choice(NUMBERS + WORDS)
            data, kind = data[:begin] + word.encode() + data[end:], f"word {data[begin:end][:20]!r} by {word[:20]!r}"
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
        done.append(f"{kind} at byte {at}" if " " not in kind else kind)
    return data, "; ".join(done)


def _tree(valid: Any, random: Random) -> tuple[Any, str]:
    """Some values of plain data are replaced or nested, keys dropped or renamed, and lists' values doubled."""
    tree, done = copy.deepcopy(valid), []
    for _ in range(random.choice((1, 1, 2, 3))):
        at, parent, key = random.choice(list(_places(tree)) or [("", {}, "")])
        kind = random.choice(("replace", "replace", "replace", "drop", "rename", "double", "nest"))
        if kind == "replace":
            old = parent.get(key) if isinstance(parent, dict) else parent[key]
            alike = [value for value in VALUES if type(value) is type(old)]
            parent[key] = value = copy.deepcopy(random.choice(alike if alike and random.random() < 0.6 else VALUES))
            kind = f"{str(value)[:24]!r} as"
        elif kind == "drop":
            parent.pop(key, None) if isinstance(parent, dict) else parent.pop(key)
        elif kind == "rename" and isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key, None)
        elif kind == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif kind == "nest":
            parent[key] = {"a": [parent.get(key) if isinstance(parent, dict) else parent[key]]}
        done.append(f"{kind} {at}")
    return tree, "; ".join(done)


def _places(tree: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every place by its name, as (name, container, key)."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()):
        name = f"{at}.{key}" if at else str(key)
        yield name, tree, key
        yield from _places(value, name)


def as_json(tree: Any) -> bytes:
    """A tree as a file, with NaN and Infinity where it holds them."""
    return json.dumps(tree).encode()


def on_lines(tree: Any) -> bytes:
    """A list of trees, one on a line; what is no longer a list is one."""
    return b"".join(as_json(row) + b"\n" for row in (tree if isinstance(tree, list) else [tree]))


def _json(valid: bytes, random: Random) -> tuple[bytes, str]:
    tree, how = _tree(json.loads(valid), random)
    return as_json(tree), how


def _lines(valid: bytes, random: Random) -> tuple[bytes, str]:
    tree, how = _tree([json.loads(line) for line in valid.splitlines()], random)
    return on_lines(tree), how


def _toml(valid: bytes, random: Random) -> tuple[bytes, str]:
    document = tomllib.loads(valid.decode())
    while True:
        tree, how = _tree(document, random)
        with contextlib.suppress(TypeError, ValueError, AttributeError):  # what TOML cannot say, such as None
            return tomli_w.dumps(tree).encode(), how


_TREES: dict[str, Callable[[bytes, Random], tuple[bytes, str]]] = {"json": _json, "lines": _lines, "toml": _toml}


def hold(reader: Reader, folder: Path, examples: int | None = None) -> None:
    """Give a reader a valid file, which it reads, and many that were made of it: each is read, or refused with `InputError`."""
    path = reader.make(folder)
    valid = path.read_bytes()
    reader.read(path)

    @settings(FUZZ, max_examples=examples or FUZZ.max_examples)
    @given(seed=st.integers(0, 2**32 - 1))
    def once(seed: int) -> None:
        path.write_bytes(mutated(valid, reader.form, Random(seed))[0])
        with contextlib.suppress(InputError):
            reader.read(path)

    once()
