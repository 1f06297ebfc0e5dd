"""The files that a scenario's ``data`` or ``test`` names: which they are, what may be read of them, and their lines.

Everything is bounded before it takes memory. The bounds are far above what people train on here, and far below what a file that
lies about itself asks for.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..reading import parse_json, read_text, short

VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
PATTERN = re.compile(r"[*?\[]")
MOST_FILE_B = 16 * 10**9
"""Of a file, and of all images of a cluster together."""
MOST_LINE = 2**26
"""Characters of a line, and of a field in a table."""
MOST_LIST_B = 10**9
"""Of a file that is one list in JSON: it is parsed as a whole."""
MOST_UNPACKED_B, MOST_RATIO = 10**9, 100
"""What is compressed may unpack to this, and so many times its own size beside it."""


def files(spec: str, base: Path) -> list[Path]:
    """The file, relative to ``base``, or all files that a pattern (``train-*.parquet``) matches, sorted by name.

    ``$NAME`` and ``${NAME}`` stand for environment variables, so that a scenario need not say where data lie. Links keep their
    names: what a file is called says what it is.

    Raises:
        InputError: a variable is not set, or no file matches the pattern.
    """
    path = VARIABLE.sub(lambda found: _variable(found[1].strip("{}"), spec), spec)
    if os.path.lexists(base / path) or not PATTERN.search(path):
        return [(base / path).absolute()]
    found = sorted(glob.glob(path, root_dir=base))
    if not found:
        raise InputError(
            f"data = {spec!r}: no file matches {str((base / path).absolute())!r}; correct the pattern or the folder"
        )
    return [(base / name).absolute() for name in found]


@contextmanager
def as_given(specs: Iterable[str], base: Path) -> Iterator[None]:
    """Errors within the block name the environment variables of ``specs`` and not what they hold, which may be a secret.

    Raises:
        InputError: that which the block raises, in other words.
    """
    try:
        yield
    except InputError as error:
        told = str(error.args[0])
        for value, name in _expanded(specs, base):
            told = told.replace(value, name).replace(repr(value)[1:-1], name)
        raise InputError(told) from None  # what lies below it has the values too


def _expanded(specs: Iterable[str], base: Path) -> list[tuple[str, str]]:
    """Beginnings of paths up to the end of a variable, as `files` gives them and as they were written; the longest first."""
    found = set()
    for spec in specs:
        for variable in VARIABLE.finditer(spec):
            given = spec[: variable.end()]
            path = VARIABLE.sub(lambda one: os.environ.get(one[1].strip("{}"), ""), given)
            found.add((str((base / path).absolute()), given))
    return sorted(found, key=lambda pair: (-len(pair[0]), pair))


def check(path: Path) -> int:
    """Bytes of a regular file; a FIFO or a device may never end, and must not be opened.

    Raises:
        InputError: there is no such file, it is no regular one, or it is larger than `MOST_FILE_B`.
    """
    where = f"data = {str(path)!r}"
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{where}: is not a regular file; give the path of a file, or a pattern such as 'train-*.parquet'")
    if found.st_size > MOST_FILE_B:
        raise InputError(f"{where}: is larger than {MOST_FILE_B:,} bytes; split it into several files, or take a part")
    return found.st_size


def unpacked_most_B(size_B: int) -> int:
    """To how many bytes a file of ``size_B`` may unpack."""
    return MOST_UNPACKED_B + MOST_RATIO * size_B


def unreadable(path: Path, error: Exception) -> InputError:
    """What to raise where the operating system refuses a file."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"data = {str(path)!r}: cannot be read ({reason}); correct the path, or write it again")


def lines(path: Path) -> Iterator[str]:
    """Lines of a text in UTF-8, one after another, with their ends and without a byte order mark.

    Raises:
        InputError: as `check`; the file cannot be read; with its number, a line is not UTF-8 or longer than `MOST_LINE`.
    """
    check(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            number = 0
            while line := file.readline(MOST_LINE + 1):
                number += 1
                if len(line) > MOST_LINE:
                    raise InputError(f"{path}, line {number}: is longer than {MOST_LINE:,} characters; is it the right file?")
                yield line
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except OSError as error:
        raise unreadable(path, error) from error


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file in JSON, each with its place: one on every line that is not blank, or one list of all.

    Raises:
        InputError: as `lines`; with its place, an entry is no object or not what `reading.parse_json` takes.
    """
    content = ((number, line) for number, line in enumerate(lines(path), start=1) if not line.isspace())
    for number, line in content:
        if line.lstrip().startswith("["):
            yield from _listed(path)
            return
        yield _one(line, f"{path}, line {number}")
        break
    for number, line in content:
        yield _one(line, f"{path}, line {number}")


def _one(line: str, where: str) -> tuple[str, dict[str, Any]]:
    hint = "a file must hold one object on every line, or one list of them"
    try:
        row = parse_json(line, where)
    except InputError as error:
        told = str(error).replace(f"{where}, line 1:", f"{where}:", 1)  # there is only one
        raise InputError(f"{told}; {hint}" if isinstance(error.__cause__, ValueError) else told) from error
    return where, _object(row, where, hint)


def _listed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.stat().st_size > MOST_LIST_B:
        raise InputError(
            f"data = {str(path)!r}: is larger than {MOST_LIST_B:,} bytes; such files must have one object on each line (JSONL)"
        )
    for number, row in enumerate(parse_json(read_text(path, "data", MOST_LIST_B), f"data = {str(path)!r}"), start=1):
        where = f"{path}, entry {number}"
        yield where, _object(row, where, "a list holds one object for each row")


def _object(row: Any, where: str, hint: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where}: holds {short(row)}; must be an object: {hint}")
    return row


def _not_utf8(path: Path) -> InputError:
    """Where the file stops being text; a reader of lines knows only how far it was in its buffer."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return InputError(
                    f"{path}, line {number}: is not UTF-8 text ({error.reason} at byte {at + error.start}); save it as UTF-8"
                )
            at += len(line)
    return InputError(f"data = {str(path)!r}: is not UTF-8 text; save it as UTF-8")


def _variable(name: str, spec: str) -> str:
    if not os.environ.get(name):
        raise InputError(
            f"data = {spec!r}: the environment variable {name} is not set; set it to the folder of the data, "
            "or write the path itself"
        )
    return os.environ[name]
