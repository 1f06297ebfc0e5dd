"""Orbit mean-elements messages (OMM) as mappings from CCSDS keywords to text: JSON, XML, KVN and CSV. No sgp4 here.

Source: CCSDS 502.0-B-3, "Orbit Data Messages" (keywords, KVN and XML); JSON and CSV as CelesTrak and Space-Track give them.
"""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..reading import MOST_DEPTH, number, parse_json, read_text
from .elements import ElementSet, check_type

FIELDS = ("EPOCH", "MEAN_MOTION", "ECCENTRICITY", "INCLINATION", "RA_OF_ASC_NODE", "ARG_OF_PERICENTER", "MEAN_ANOMALY")
"""What an OMM must hold for sgp4; BSTAR and the names are optional."""
ONCE = {*FIELDS, "OBJECT_NAME", "OBJECT_ID", "NORAD_CAT_ID", "EPHEMERIS_TYPE", "BSTAR"}
"""What a message may say only once."""
ONLY = {
    "CENTER_NAME": {"EARTH"},
    "REF_FRAME": {"TEME"},
    "TIME_SYSTEM": {"UTC"},
    "MEAN_ELEMENT_THEORY": {"SGP4", "SGP/SGP4", "SGP"},
}
"""Keywords that may be left out, but must not say otherwise: sgp4 reads every element set as this."""
OTHER_THEORY = ("BTERM", "AGOM")
"""Keywords of SGP4-XP, in the place of BSTAR."""
DECLARATION = re.compile(r"<!(?!--|\[CDATA\[)")
MOST_DIGITS = 9


def omm_messages(path: Path) -> tuple[dict[str, str], ...]:
    """Messages of an OMM file, each a mapping from keyword to text; the format is seen from the first line.

    Raises:
        InputError: not one of the four formats, a keyword that sgp4 needs is missing or there twice, or frame, time system,
            theory or ephemeris type is not the one that sgp4 assumes.
    """
    text = read_text(path, "omm").strip()
    if not text:
        raise InputError(f"omm = {str(path)!r}: is empty; it needs at least one set of orbital elements")
    heads = {word.strip(' "') for word in text.partition("\n")[0].split(",")}
    read = _json if text[0] in "[{" else _xml if text[0] == "<" else _csv if {"EPOCH", "MEAN_MOTION"} & heads else _kvn
    messages = read(path, text)
    if not messages:
        raise InputError(f"omm = {str(path)!r}: holds no orbit mean-elements message")
    for i, message in enumerate(messages):
        _check(where_of(path, i, message), message)
    return tuple(messages)


def name_of(message: Mapping[str, str]) -> str:
    """A satellite's name, or its catalogue number if it has none."""
    return message.get("OBJECT_NAME") or f"NORAD {message.get('NORAD_CAT_ID', '?')}"


def where_of(path: Path, i: int, message: Mapping[str, str]) -> str:
    """The place of a message, for messages about it."""
    return f"{path.name}, message {i} ({name_of(message)!r})"


def element_set(path: Path, i: int, message: Mapping[str, str]) -> ElementSet:
    """What tells a message from the others.

    Raises:
        InputError: its epoch is no date.
    """
    where, name, number_text = where_of(path, i, message), name_of(message), message.get("NORAD_CAT_ID", "")
    catalogue = int(number_text) if number_text else None
    try:
        epoch = _epoch(message["EPOCH"])
    except ValueError as error:
        raise InputError(f"{where}: EPOCH = {message['EPOCH'][:40]}: must be a date such as 2026-01-01T00:00:00") from error
    return ElementSet(where, name, catalogue, epoch, (name, str(catalogue or ""), message.get("OBJECT_ID", "")))


def number_of(where: str, message: Mapping[str, str], field: str) -> float:
    """The number that a keyword has; 0 if it is left out.

    Raises:
        InputError: it is no number.
    """
    text = message.get(field) or "0"
    try:
        return number(text)
    except ValueError as error:
        raise InputError(f"{where}: {field} = {text[:40]}: must be a number") from error


def _check(where: str, message: Mapping[str, str]) -> None:
    if missing := [field for field in FIELDS if not message.get(field)]:
        raise InputError(f"{where}: {', '.join(missing)} missing; sgp4 needs {', '.join(FIELDS)}")
    for field, allowed in ONLY.items():
        value = message.get(field, "").upper()
        if value and value not in allowed:
            raise InputError(f"{where}: {field} = {value}: sgp4 reads elements as {' or '.join(sorted(allowed))} only")
    check_type(f"{where}: EPHEMERIS_TYPE", message.get("EPHEMERIS_TYPE", "").removesuffix(".0"))
    if other := [field for field in OTHER_THEORY if message.get(field)]:
        raise InputError(f"{where}: {other[0]} belongs to SGP4-XP: another propagator than sgp4; download elements for SGP4")
    if not name_of(message).isprintable():
        raise InputError(f"{where}: OBJECT_NAME holds a character that cannot be shown; correct it")
    number_text = message.get("NORAD_CAT_ID", "")
    if number_text and not (number_text.isascii() and number_text.isdecimal() and len(number_text) <= MOST_DIGITS):
        raise InputError(f"{where}: NORAD_CAT_ID = {number_text[:40]}: must be a whole number of at most {MOST_DIGITS} digits")


def _epoch(text: str) -> datetime:
    """A CCSDS time, which is UTC: calendar (2026-01-31T…) or day of the year (2026-031T…)."""
    date, _, clock = text.removesuffix("Z").partition("T")
    if date.count("-") == 1:
        date = datetime.strptime(date, "%Y-%j").date().isoformat()
    moment = datetime.fromisoformat(f"{date}T{clock}" if clock else date)
    if moment.tzinfo is not None or not 1957 <= moment.year < 2200:
        raise ValueError(f"{text} has a time zone, or lies outside 1957..2199")
    return moment.replace(tzinfo=UTC)


def _json(path: Path, text: str) -> list[dict[str, str]]:
    document = parse_json(text, f"omm = {str(path)!r}")
    rows = document if isinstance(document, list) else [document]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"omm = {str(path)!r}: must be an object, or a list of objects, with OMM keywords")
        if nested := [key for key, value in row.items() if isinstance(value, (dict, list))]:
            raise InputError(
                f"{path.name}, message {i}: {nested[0][:40]!r} holds more than a value; OMM has keywords and values"
            )
    return [{key: str(value).strip() for key, value in row.items() if value is not None} for row in rows]


def _xml(path: Path, text: str) -> list[dict[str, str]]:
    if found := DECLARATION.search(text):  # no OMM has any; entities within entities can fill the memory
        line = text.count("\n", 0, found.start()) + 1
        raise InputError(f"omm = {str(path)!r}, line {line}: declares a DOCTYPE or entities, which no OMM does")
    parser: ET.XMLPullParser[Any] = ET.XMLPullParser(("start", "end"))
    try:
        parser.feed(text)
        parser.close()
    except (ET.ParseError, ValueError) as error:  # ValueError: an encoding that Python does not know
        raise InputError(f"omm = {str(path)!r}: is not XML ({error})") from error
    depth = 0
    messages: list[dict[str, str]] = []
    events: Iterator[Any] = parser.read_events()
    for event, element in events:
        depth += 1 if event == "start" else -1
        if depth > MOST_DEPTH:
            raise InputError(f"omm = {str(path)!r}: is nested deeper than {MOST_DEPTH} levels; is it the right file?")
        if event == "end" and _tag(element) == "segment":
            messages.append(
                _message(f"{path.name}, message {len(messages)}", [(_tag(e), e.text or "") for e in element.iter()])
            )
    return messages


def _tag(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _message(where: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Keywords and values as a message, no value given twice."""
    message: dict[str, str] = {}
    for key, value in pairs:
        if key in message and key in ONCE:
            raise InputError(f"{where}: {key} is there twice; one message is one element set")
        message[key] = value.strip()
    return message


def _kvn(path: Path, text: str) -> list[dict[str, str]]:
    messages: list[list[tuple[str, str]]] = []
    for i, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line == "COMMENT" or line.startswith("COMMENT "):
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise InputError(
                f"{path.name}, line {i}: {line[:24]!r} is not KEYWORD = value, and the file is neither JSON, XML nor CSV"
            )
        key = key.strip()
        if key == "CCSDS_OMM_VERS" or not messages:
            messages.append([])
        value = value.strip()
        unit = value.rfind(" [") if value.endswith("]") else -1  # units in brackets are fixed by the standard
        messages[-1].append((key, value if unit < 0 or key == "OBJECT_NAME" else value[:unit]))
    return [_message(f"{path.name}, message {i}", pairs) for i, pairs in enumerate(messages)]


def _csv(path: Path, text: str) -> list[dict[str, str]]:
    reader = csv.reader(io.StringIO(text))
    messages = []
    try:
        header = [name.strip() for name in next(reader)]
        for cells in reader:
            where = f"{path.name}, line {reader.line_num}"
            if len(cells) != len(header) and any(cells):
                raise InputError(f"{where}: has {len(cells)} cells, and the header {len(header)}")
            if any(cells):
                messages.append(_message(where, list(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path.name}, line {reader.line_num}: is not CSV ({error})") from error
    return messages
