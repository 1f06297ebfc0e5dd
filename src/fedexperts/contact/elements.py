"""TLE files as plain text fields, and which of the element sets of a file are meant. No sgp4 here.

A TLE is kept as its two lines, because sgp4 parses them itself. sgp4 passes over what it cannot read, so every column is looked
at here. Source: CelesTrak, "TLE format" (columns, checksum, Alpha-5 numbers).
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..errors import InputError
from ..reading import number, read_text

TLE_COLUMNS = 69
FIRST_LINE = re.compile(r"1 [A-Z \d][ \d]{3}\d")  # the catalogue number; Alpha-5 numbers begin with a letter
ALPHA_5 = "ABCDEFGHJKLMNPQRSTUVWXYZ"
"""First letters of numbers from 100,000 on, which stand for 10, 11, …"""
STATUS = re.compile(r" \[.\]$")
"""CelesTrak's mark of what a satellite still does, as in "NOAA 19 [+]": not part of the name that people give."""
BLANK = {"1": (2, 9, 18, 33, 44, 53, 62, 64), "2": (2, 8, 17, 26, 34, 43, 52)}
POINT = {"1": (24,), "2": (12, 21, 38, 47, 55)}
"""Columns, from 1, that are blank or a decimal point in every TLE."""
NUMBERS = {"1": ((21, 32),), "2": ((9, 16), (18, 25), (27, 33), (35, 42), (44, 51), (53, 63))}
EXPONENTS = re.compile(r"[ \d.+-]*")
SGP4_TYPES = ("", "0", "2")
"""Ephemeris types that are elements for sgp4; 4 is SGP4-XP, which is another theory."""


@dataclass(frozen=True)
class ElementSet:
    """What tells one element set of a file from the others; ``where`` names file and place for messages."""

    where: str
    name: str
    number: int | None
    epoch: datetime
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class TwoLines(ElementSet):
    """One element set of a TLE file: two lines of 69 columns, with their checksums."""

    line1: str = ""
    line2: str = ""
    notes: tuple[str, ...] = ()


def check_type(where: str, kind: str) -> None:
    """Refuse elements that are for another propagator.

    Raises:
        InputError: the ephemeris type is not one of sgp4's.
    """
    if kind.strip() not in SGP4_TYPES:
        raise InputError(
            f"{where}: ephemeris type {kind.strip()}{' is SGP4-XP' if kind.strip() == '4' else ''}: these elements are for "
            "another propagator than sgp4; download those for SGP4 (type 0)"
        )


def checksum(line: str) -> int:
    """Checksum of a TLE line: digits of the first 68 columns, a minus counts 1, modulo 10."""
    return sum(int(c) if c.isdecimal() else c == "-" for c in line[: TLE_COLUMNS - 1]) % 10


def catalogue_number(text: str) -> int:
    """A satellite's number in the catalogue, with zeros or blanks before it, or a letter (Alpha-5).

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    if text[:1].isalpha():
        return (10 + ALPHA_5.index(text[0])) * 10_000 + int(text[1:])
    return int(text)


def two_line_sets(path: Path) -> tuple[TwoLines, ...]:
    """Element sets of a TLE file in its order; a line before line 1 is the name, ``#`` starts a comment line.

    Raises:
        InputError: a line is missing, malformed, belongs to another satellite or propagator, or has a wrong checksum digit; the
            file is no ASCII.
    """
    lines = [(i, line.rstrip(" \t")) for i, line in enumerate(read_text(path, "tle").split("\n"), 1)]
    lines = [(i, line) for i, line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"tle = {str(path)!r}: is empty; it needs at least one set of orbital elements")
    for i, line in lines:
        _check_ascii(f"{path.name}, line {i}", line)
    sets: list[TwoLines] = []
    name = ""
    k = 0
    while k < len(lines):
        i, line = lines[k]
        if not FIRST_LINE.match(line):  # a name
            if name or k + 1 == len(lines):
                raise InputError(f"{path.name}, line {i}: {line[:24]!r} is not the first line of a TLE, which begins with '1 '")
            name = line.removeprefix("0 ").strip()
            k += 1
            continue
        if k + 1 == len(lines) or not lines[k + 1][1].startswith("2 "):
            raise InputError(
                f"{path.name}, line {i}: no second line (one that begins with '2 ') follows this first line of a TLE"
            )
        sets.append(_two_lines(path, name, lines[k], lines[k + 1]))
        name = ""
        k += 2
    return tuple(sets)


def _two_lines(path: Path, name: str, first: tuple[int, str], second: tuple[int, str]) -> TwoLines:
    """One element set; catalogue numbers are written alike, and absent checksums filled in."""
    where, notes = f"{path.name}, line {first[0]}", []
    numbers = []
    for i, line in (first, second):
        at = f"{path.name}, line {i}"
        if len(line) == TLE_COLUMNS - 1:
            notes.append(f"{at}: has no checksum (68 columns instead of 69), so that a changed digit goes unseen")
        else:
            _check_sum(at, line)
        _check_columns(at, line)
        try:
            numbers.append(catalogue_number(line[2:7]))
        except ValueError as error:
            raise InputError(f"{at}: columns 3-7, {line[2:7]!r}: must be a catalogue number such as 25544 or A0001") from error
    if numbers[0] != numbers[1]:
        raise InputError(
            f"{path.name}, line {second[0]}: is of satellite {numbers[1]}, line {first[0]} of {numbers[0]}; keep pairs together"
        )
    check_type(where, first[1][62])
    year, day = first[1][18:20], number(first[1][20:32])
    if not year.isdecimal() or not 1 <= day < 367:
        raise InputError(f"{where}: columns 19-32, {first[1][18:32]!r}: must be a year and a day, 1 to 366")
    epoch = datetime(int(year) + (1900 if int(year) >= 57 else 2000), 1, 1, tzinfo=UTC) + timedelta(days=day - 1)
    same = first[1][2:7].strip().rjust(5, "0")
    one, two = ((line[:2] + same + line[7:])[: TLE_COLUMNS - 1] for _, line in (first, second))
    name = name or f"NORAD {numbers[0]}"
    keys = (name, STATUS.sub("", name), str(numbers[0]), same)
    lines = (f"{one}{checksum(one)}", f"{two}{checksum(two)}")
    return TwoLines(where, name, numbers[0], epoch, keys, *lines, tuple(notes))


def _check_ascii(where: str, line: str) -> None:
    for column, c in enumerate(line, 1):
        if not " " <= c <= "~":
            shown = f"U+{ord(c):04X} {unicodedata.name(c, 'a control character')}"
            raise InputError(f"{where}, column {column}: {shown} is no printable ASCII, as a TLE must be; correct it")


def _check_sum(where: str, line: str) -> None:
    if len(line) < TLE_COLUMNS:
        raise InputError(f"{where}: has {len(line)} columns, a TLE line has {TLE_COLUMNS}; download the file again")
    found, expected = line[TLE_COLUMNS - 1], checksum(line)
    if found != str(expected):
        raise InputError(
            f"{where}: checksum digit is {found!r}, but {expected} follows from the line; "
            f"a digit was changed or lost, so download the file again"
        )


def _check_columns(where: str, line: str) -> None:
    """Blanks, points and numbers are where they belong: a checksum takes a letter for a zero, and sgp4 skips it."""
    kind = line[0]
    for columns, wanted, called in ((BLANK, " ", "blank"), (POINT, ".", "a decimal point")):
        for column in columns[kind]:
            if line[column - 1] != wanted:
                raise InputError(
                    f"{where}, column {column}: is {line[column - 1]!r}, must be {called}; download the file again"
                )
    for begin, end in NUMBERS[kind]:
        try:
            number(line[begin - 1 : end])
        except ValueError as error:
            raise InputError(f"{where}, columns {begin}-{end}: {error}; download the file again") from error
    if kind == "1" and not EXPONENTS.fullmatch(line[33:61]):
        raise InputError(f"{where}, columns 34-61: {line[33:61]!r} are no numbers; download the file again")


def chosen(path: Path, wanted: str | None, sets: Sequence[ElementSet]) -> dict[int, tuple[str, ...]]:
    """Indices of the satellites that are meant, all or the one of that name or number, and what to say of each.

    Of one satellite's element sets the newest counts.

    Raises:
        InputError: no satellite has that name, or several have.
    """
    newest: dict[tuple[str, int | None], int] = {}
    several: dict[tuple[str, int | None], int] = {}
    for i, one in enumerate(sets):
        satellite = (one.name.casefold(), one.number)
        several[satellite] = several.get(satellite, 0) + 1
        if satellite not in newest or sets[newest[satellite]].epoch <= one.epoch:
            newest[satellite] = i
    kept: dict[int, tuple[str, ...]] = {}
    for satellite, i in newest.items():
        say = f"{path.name}: {several[satellite]} element sets of {sets[i].name!r}; the newest is taken, of"
        kept[i] = (f"{say} {sets[i].epoch:%Y-%m-%dT%H:%M:%SZ}",) if several[satellite] > 1 else ()
    return kept if wanted is None else _named(path, wanted, sets, kept)


def _named(path: Path, wanted: str, sets: Sequence[ElementSet], kept: dict[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
    key = wanted.strip().casefold()
    key = key.lstrip("0") if key.isdecimal() else key
    found = [i for i in kept if key in {k.casefold() for k in sets[i].keys if k}]
    if len(found) == 1:
        return {found[0]: kept[found[0]]}
    if found:
        numbers = ", ".join(str(sets[i].number) for i in found[:5])
        raise InputError(
            f"satellite_name = {wanted!r}: {path.name} has {len(found)} satellites of this name, with the catalogue numbers "
            f"{numbers}; give the number instead"
        )
    names = {sets[i].name.casefold(): sets[i].name for i in kept}
    near = difflib.get_close_matches(key, names, n=5, cutoff=0.5) or list(names)[:5]
    listed = ", ".join(names[k] for k in near)
    raise InputError(f"satellite_name = {wanted!r}: not among the {len(kept)} satellites of {path.name}; near: {listed}")
