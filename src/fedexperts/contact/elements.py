"""Files of orbital elements as plain text fields: TLE (two or three lines) and OMM (JSON, XML, KVN). No sgp4 here.

A TLE is kept as its two lines, because sgp4 parses them itself; an OMM becomes a mapping from CCSDS keywords to text.
Sources: CelesTrak, "TLE format" (columns, checksum); CCSDS 502.0-B-3, "Orbit Data Messages" (OMM keywords, KVN and XML).
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError

TLE_COLUMNS = 69
FIRST_LINE = re.compile(r"1 [A-Z \d][ \d]{3}\d")  # the catalogue number; Alpha-5 numbers begin with a letter
FIELDS = ("EPOCH", "MEAN_MOTION", "ECCENTRICITY", "INCLINATION", "RA_OF_ASC_NODE", "ARG_OF_PERICENTER", "MEAN_ANOMALY")
"""What an OMM must hold for sgp4; BSTAR and the names are optional."""
ONLY = {
    "CENTER_NAME": {"EARTH"},
    "REF_FRAME": {"TEME"},
    "TIME_SYSTEM": {"UTC"},
    "MEAN_ELEMENT_THEORY": {"SGP4", "SGP/SGP4", "SGP"},
}
"""Keywords that may be left out, but must not say otherwise: sgp4 reads every element set as this."""


@dataclass(frozen=True)
class TwoLines:
    """One element set of a TLE file, checksums verified; ``where`` names file and line for messages."""

    name: str
    number: str
    line1: str
    line2: str
    where: str


def read_text(path: Path, field: str) -> str:
    """Text of a file of elements.

    Raises:
        InputError: the file cannot be read, is not text or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{field} = {str(path)!r}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{field} = {str(path)!r}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not text.strip():
        raise InputError(f"{field} = {str(path)!r}: is empty; it needs at least one set of orbital elements")
    return text


def checksum(line: str) -> int:
    """Checksum of a TLE line: digits of the first 68 columns, a minus counts 1, modulo 10."""
    return sum(int(c) if c.isdecimal() else c == "-" for c in line[: TLE_COLUMNS - 1]) % 10


def two_line_sets(path: Path) -> tuple[TwoLines, ...]:
    """Element sets of a TLE file in its order; a line before line 1 is the name, ``#`` starts a comment line.

    Raises:
        InputError: a line is missing, too short, belongs to another satellite, or has a wrong checksum digit.
    """
    lines = [(i, line.rstrip()) for i, line in enumerate(read_text(path, "tle").splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line and not line.startswith("#")]
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
        j, second = lines[k + 1]
        _verify(path, i, line)
        _verify(path, j, second)
        number = line[2:7].strip()
        if second[2:7].strip() != number:
            raise InputError(
                f"{path.name}, line {j}: is of satellite {second[2:7].strip()}, line {i} of {number}; keep pairs together"
            )
        columns = slice(TLE_COLUMNS)  # what follows is not part of the elements
        sets.append(TwoLines(name or f"NORAD {number}", number, line[columns], second[columns], f"{path.name}, line {i}"))
        name = ""
        k += 2
    return tuple(sets)


def _verify(path: Path, i: int, line: str) -> None:
    if len(line) < TLE_COLUMNS:
        raise InputError(
            f"{path.name}, line {i}: has {len(line)} columns, a TLE line has {TLE_COLUMNS}; download the file again"
        )
    found, expected = line[TLE_COLUMNS - 1], checksum(line)
    if found != str(expected):
        raise InputError(
            f"{path.name}, line {i}: checksum digit is {found!r}, but {expected} follows from the line; "
            f"a digit was changed or lost, so download the file again"
        )


def omm_messages(path: Path) -> tuple[dict[str, str], ...]:
    """Messages of an OMM file, each a mapping from keyword to text; the format is seen from the first character.

    Raises:
        InputError: not one of the three formats, a keyword that sgp4 needs is missing, or frame, time system or theory
            is not the one that sgp4 assumes.
    """
    text = read_text(path, "omm")
    first = text.lstrip()[0]
    messages = _json(path, text) if first in "[{" else _xml(path, text) if first == "<" else _kvn(path, text)
    if not messages:
        raise InputError(f"omm = {str(path)!r}: holds no orbit mean-elements message")
    for i, message in enumerate(messages):
        where = f"{path.name}, message {i} ({message.get('OBJECT_NAME', 'no name')})"
        if missing := [field for field in FIELDS if not message.get(field)]:
            raise InputError(f"{where}: {', '.join(missing)} missing; sgp4 needs {', '.join(FIELDS)}")
        for field, allowed in ONLY.items():
            value = message.get(field, "").upper()
            if value and value not in allowed:
                raise InputError(f"{where}: {field} = {value}: sgp4 reads elements as {' or '.join(sorted(allowed))} only")
    return tuple(messages)


def _json(path: Path, text: str) -> list[dict[str, str]]:
    try:
        document: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"omm = {str(path)!r}: is not JSON (line {error.lineno}: {error.msg})") from error
    rows = document if isinstance(document, list) else [document]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"omm = {str(path)!r}: must be an object, or a list of objects, with OMM keywords")
    return [{key: str(value).strip() for key, value in row.items() if value is not None} for row in rows]


def _xml(path: Path, text: str) -> list[dict[str, str]]:
    if "<!ENTITY" in text:  # no OMM has entities; nested ones can blow up the parser
        raise InputError(f"omm = {str(path)!r}: defines XML entities, which no OMM does")
    try:
        root = ET.fromstring(text.strip())
    except ET.ParseError as error:
        raise InputError(f"omm = {str(path)!r}: is not XML ({error})") from error
    local = [(element, element.tag.rpartition("}")[2]) for element in root.iter() if isinstance(element.tag, str)]
    segments = [element for element, tag in local if tag == "segment"]
    return [
        {leaf.tag.rpartition("}")[2]: (leaf.text or "").strip() for leaf in segment.iter() if isinstance(leaf.tag, str)}
        for segment in segments
    ]


def _kvn(path: Path, text: str) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    for i, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line == "COMMENT" or line.startswith("COMMENT "):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise InputError(
                f"{path.name}, line {i}: {line[:24]!r} is not KEYWORD = value, and the file is neither JSON nor XML"
            )
        key = key.strip()
        if key == "CCSDS_OMM_VERS" or not messages:
            messages.append({})
        messages[-1][key] = re.sub(r"\s*\[[^\]]*\]$", "", value.strip())  # units in brackets are fixed by the standard
    return messages
