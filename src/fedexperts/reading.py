"""Reading files that others wrote: what kind of file, how large, whether text, how deep — all before a parser sees them.

A parser that is handed a device, gigabytes or a thousand brackets ends in a traceback or not at all. ``what`` is the field
of the scenario that names the file; it heads every message. Of a file that no field names it is empty.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError

MOST_B = 64 * 2**20
"""Enough for the whole catalogue of satellites as XML; what reads larger files says so itself."""
MOST_DEPTH = 64
"""Brackets within brackets; nothing that we read has more than a dozen."""
HUGE = 1e300
"""Numbers from here on are no times, rates or sizes, and overflow when they are multiplied."""

_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)  # strings are matched whole, so that theirs do not count


def read_bytes(path: Path, what: str, most_B: int = MOST_B) -> bytes:
    """Bytes of a regular file; a FIFO or a device may never end, and is not opened.

    Raises:
        InputError: no such file, not a regular one, not to be read, or larger than ``most_B``.
    """
    where = _where(path, what)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{where}: is not a regular file; give the path of a file")
        with path.open("rb") as file:
            data = file.read(most_B + 1)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a path with a null byte
        raise InputError(f"{where}: cannot be read ({error})") from error
    if len(data) > most_B:
        raise InputError(f"{where}: is larger than {most_B:,} bytes; is it the right file?")
    return data


def _where(path: Path, what: str) -> str:
    return f"{what} = {str(path)!r}" if what else str(path)


def read_text(path: Path, what: str, most_B: int = MOST_B) -> str:
    """Text of a file in UTF-8, without its byte order mark; ends of lines become ``\\n``.

    Raises:
        InputError: as `read_bytes`, or the file is not UTF-8, with the line.
    """
    data = read_bytes(path, what, most_B).removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{_where(path, what)}, line {line}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, what: str, most_B: int = MOST_B, most_depth: int = MOST_DEPTH) -> Any:
    """The document in a JSON file.

    Raises:
        InputError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what, most_B), _where(path, what), most_depth)


def parse_json(text: str, where: str, most_depth: int = MOST_DEPTH) -> Any:
    """The document that a text in JSON holds: every number finite, every key once; ``where`` heads the messages.

    Raises:
        InputError: not JSON, nested deeper than ``most_depth``, a key twice in one object, or, with its place, a number from
            1e300 on, an Infinity or NaN, or half of a character.
    """
    check_depth(text, where, most_depth)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in found if keys.count(key) > 1)
            raise InputError(f"{where}: has {twice!r} twice in one object; keep one of them")
        return found

    try:
        document = json.loads(text, object_pairs_hook=once, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not JSON (line {error.lineno}: {error.msg})") from error
    for at, value in leaves(document):
        if isinstance(value, (int, float)) and not abs(value) < HUGE:
            raise InputError(f"{where}: {at} = {float(value)}: must be a finite number below {HUGE:g}")
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise InputError(f"{where}: {at} = {value!r}: holds half of a character (an unpaired surrogate); correct it")
    return document


def check_depth(text: str, where: str, most_depth: int = MOST_DEPTH) -> None:
    """Refuse brackets within brackets, for which parsers use their stack, in a text that a parser of others is to read.

    Raises:
        InputError: nested deeper than ``most_depth``, with the line.
    """
    depth = 0
    for token in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0][0], 0)
        if depth > most_depth:
            line = text.count("\n", 0, token.start()) + 1
            raise InputError(f"{where}, line {line}: is nested deeper than {most_depth} levels; is it the right file?")


def short(value: Any) -> str:
    """A value as errors show it: of thousands of digits, which Python refuses to write, the first in hexadecimal."""
    try:
        text = repr(value)
    except ValueError:
        text = hex(value) if isinstance(value, int) else f"{type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _whole(digits: str) -> int | float:
    """Python refuses to read integers of thousands of digits; a float of them is infinite, which is refused with its place."""
    value = float(digits)
    return int(digits) if math.isfinite(value) else value


def leaves(document: Any) -> Iterator[tuple[str, Any]]:
    """Values of a document with their places such as ``contacts[3].start_s``; keys too, as values of themselves."""
    waiting = [("", document)]
    while waiting:
        at, value = waiting.pop()
        if isinstance(value, dict):
            yield from ((f"a key of {at or 'the document'}", key) for key in value)
            waiting += [(f"{at}.{key}" if at else key, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{at}[{i}]", inner) for i, inner in enumerate(value)]
        else:
            yield at or "the document", value


_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def number(text: str) -> float:
    """The number that a text is; Python's own ``float`` takes ``nan``, ``infinity`` and ``1_0`` too.

    Raises:
        ValueError: it is none, or from 1e300 on; whoever knows the place turns this into an `InputError`.
    """
    if not _NUMBER.fullmatch(text.strip(" \t")) or not abs(value := float(text)) < HUGE:
        raise ValueError(f"{text[:24]!r} is no number below {HUGE:g}")
    return value


def settings(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a document with its value, as a scenario writes keys: ``train.cycles``, ``cluster[0].data``."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from settings(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            yield from settings(inner, f"{at}[{i}]")
    else:
        yield at, value
