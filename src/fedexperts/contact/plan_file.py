"""Contact plans in files of our own: JSON and CSV.

A rate is a number or ``"unlimited"``; one that is missing carries nothing. What is not known is refused, not passed over.
"""

from __future__ import annotations

import csv
import io
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..reading import number as plain_number
from ..reading import parse_json, read_text
from .plan import UNLIMITED, Contact, ContactPlan, PlanError, Rates, few_enough

CSV_FIELDS = ("cluster", "start_s", "end_s", "uplink_bps", "downlink_bps", "satellite")
NEEDED = CSV_FIELDS[:3]


def read_plan(path: Path, clusters: Sequence[str]) -> ContactPlan:
    """Read a plan from JSON: ``{"contacts": [{"cluster", "start_s", "end_s", "uplink_bps", "downlink_bps"}], "horizon_s"}``.

    A rate is a number or ``"unlimited"``; one that is missing carries nothing. A contact may have ``satellite``,
    ``max_elevation_deg``, ``cut``, ``uplink_share`` (of the time, where devices take turns on a sub-channel), and ``rates``
    that change, ``[{"until_s", "uplink_bps", "downlink_bps", "uplink_share"}]``, which follow one another to its end. The
    horizon is the end of the last contact unless it is given.

    Raises:
        PlanError: the file is missing, is not such a document, or holds an impossible contact.
    """
    return plan_of(path, clusters, *contacts_of(path, *document_of(path, text_of(path))))


def text_of(path: Path) -> str:
    """The text of a plan's file.

    Raises:
        PlanError: it cannot be read, or is not text.
    """
    try:
        return read_text(path, "plan.path")
    except InputError as error:
        raise PlanError(str(error)) from error


def document_of(path: Path, text: str) -> tuple[dict[str, Any], list[Any]]:
    """The document of a plan in JSON, and the rows of its contacts.

    Raises:
        PlanError: it is not JSON, or holds no contacts.
    """
    try:
        document = parse_json(text, f"plan.path = {str(path)!r}")
    except InputError as error:
        raise PlanError(str(error)) from error
    rows = document.get("contacts") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise PlanError(f'plan.path = {str(path)!r}: needs a non-empty list under "contacts"')
    return document, rows


def contacts_of(path: Path, document: Mapping[str, Any], rows: Sequence[Any]) -> tuple[list[Contact], float | None]:
    """The contacts of a plan in our JSON, and its horizon if it has one.

    Raises:
        PlanError: a key that is not known, or needed and missing; a value of another kind.
    """
    _known(path.name, document, ("clusters", "horizon_s", "contacts"))
    contacts = [_contact(f"{path.name}, contact {i}", row) for i, row in enumerate(rows)]
    horizon_s = None if "horizon_s" not in document else _number(path.name, "horizon_s", document["horizon_s"])
    return contacts, horizon_s


def plan_of(
    path: Path, clusters: Sequence[str], contacts: Sequence[Contact], horizon_s: float | None = None, notes: Sequence[str] = ()
) -> ContactPlan:
    """A plan of the contacts of a file; what is wrong with them names the file.

    Raises:
        PlanError: see `ContactPlan`.
    """
    few_enough(sum(len(contact.rates) or 1 for contact in contacts))
    for name, way in (("uplink_bps", "up"), ("downlink_bps", "down")):
        if dead := sum(getattr(contact, name) == 0 for contact in contacts):
            notes = (*notes, f"{path.name}: {dead} of {len(contacts)} contacts carry nothing {way}, for no rate is given")
    horizon_s = max(contact.end_s for contact in contacts) if horizon_s is None else horizon_s
    try:
        return ContactPlan(tuple(clusters), tuple(contacts), horizon_s, notes=tuple(notes))
    except PlanError as error:
        raise PlanError(f"{path.name}: {error}") from error


def _known(where: str, row: Any, keys: Sequence[str], needed: Sequence[str] = ()) -> None:
    if not isinstance(row, dict) or not set(needed) <= set(row):
        raise PlanError(f"{where}: needs {', '.join(needed)}")
    if unknown := sorted(set(row) - set(keys)):
        raise PlanError(f"{where}: {reprlib.repr(unknown[0])} is no key of a plan; known are {', '.join(keys)}")


def _contact(where: str, row: Any) -> Contact:
    needed = ("cluster", "start_s", "end_s")
    known = (*needed, "uplink_bps", "downlink_bps", "satellite", "max_elevation_deg", "rates", "cut", "uplink_share")
    _known(where, row, known, needed)
    start_s, end_s, up_bps, down_bps = (
        *(_number(where, name, row[name]) for name in ("start_s", "end_s")),
        *(rate_bps(where, name, row.get(name, 0.0)) for name in ("uplink_bps", "downlink_bps")),
    )
    texts = {"cluster": row["cluster"], "satellite": row.get("satellite", "satellite")}
    for name, value in texts.items():
        if not (isinstance(value, str) and value.isprintable()):
            raise PlanError(f"{where}: {name} = {reprlib.repr(value)}: must be text")
    highest_deg, cut, pieces = row.get("max_elevation_deg"), row.get("cut", False), row.get("rates", [])
    if not isinstance(cut, bool) or not isinstance(pieces, list):
        raise PlanError(f"{where}: cut must be true or false, and rates a list")
    contact = Contact(
        texts["cluster"],
        start_s,
        end_s,
        up_bps,
        down_bps,
        texts["satellite"],
        None if highest_deg is None else _number(where, "max_elevation_deg", highest_deg),
        tuple(_rates(f"{where}, rates[{k}]", piece) for k, piece in enumerate(pieces)),
        cut,
        _number(where, "uplink_share", row.get("uplink_share", 1.0)),
    )
    return _meant(where, row, contact) if pieces else contact


def _rates(where: str, piece: Any) -> Rates:
    _known(where, piece, ("until_s", "uplink_bps", "downlink_bps", "uplink_share"), ("until_s",))
    up_bps, down_bps = (rate_bps(where, name, piece.get(name, 0.0)) for name in ("uplink_bps", "downlink_bps"))
    share = _number(where, "uplink_share", piece.get("uplink_share", 1.0))
    return Rates(_number(where, "until_s", piece["until_s"]), up_bps, down_bps, share)


def _meant(where: str, row: dict[str, Any], contact: Contact) -> Contact:
    """A contact with the means of its rates, which the file may give too, but not otherwise."""
    mean = Contact.of(contact.cluster, contact.start_s, contact.rates)
    for name in ("uplink_bps", "downlink_bps"):
        given, found = getattr(contact, name), getattr(mean, name)
        if name in row and not math.isclose(given, found, rel_tol=1e-3):
            raise PlanError(f"{where}: {name} = {given:g} is not the mean of its rates, {found:g}; leave it out")
    return replace(contact, uplink_bps=mean.uplink_bps, downlink_bps=mean.downlink_bps)


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PlanError(f"{where}: {name} = {reprlib.repr(value)}: must be a number")
    return float(value)


def rate_bps(where: str, name: str, value: Any) -> float:
    """A rate as a plan file says it.

    Raises:
        PlanError: it is neither a number nor ``"unlimited"``.
    """
    if value == UNLIMITED:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PlanError(f'{where}: {name} = {reprlib.repr(value)}: must be a number of bits per second, or "{UNLIMITED}"')
    return float(value)


def read_csv(path: Path, text: str, clusters: Sequence[str]) -> ContactPlan:
    """Read a plan from CSV with a header; pieces of one contact follow one another in rows.

    Raises:
        PlanError: a column that is not known, or needed and missing; a row that is no contact, with its line.
    """
    reader = csv.reader(io.StringIO(text))
    try:
        header = [name.strip() for name in next(reader, [])]
        if wrong := [name for name in header if name not in CSV_FIELDS or header.count(name) > 1]:
            raise PlanError(f"{path.name}, line 1: {wrong[0]!r} is no column of a plan, or is there twice; {KNOWN}")
        if missing := [name for name in NEEDED if name not in header]:
            raise PlanError(f"{path.name}, line 1: has no column {', '.join(missing)}; {KNOWN}")
        found = []
        for cells in reader:
            if not any(cells):
                continue
            where = f"{path.name}, line {reader.line_num}"
            if len(cells) != len(header):
                raise PlanError(f"{where}: has {len(cells)} cells, and the header {len(header)}")
            found.append(_csv_contact(where, dict(zip(header, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise PlanError(f"{path.name}, line {reader.line_num}: is not CSV ({error})") from error
    if not found:
        raise PlanError(f"plan.path = {str(path)!r}: holds no contact")
    return plan_of(path, clusters, joined(found))


KNOWN = f"known are {', '.join(CSV_FIELDS)}"


def _csv_contact(where: str, row: Mapping[str, str]) -> Contact:
    def number(name: str) -> float:
        text = row.get(name, "")
        try:
            return 0.0 if not text and name not in NEEDED else plain_number(text)
        except ValueError as error:
            remedy = "a number" if name in NEEDED else f'a number of bits per second, "{UNLIMITED}", or empty for nothing'
            raise PlanError(f"{where}: {name} = {reprlib.repr(text)}: must be {remedy}") from error

    up_bps, down_bps = (math.inf if row.get(name) == UNLIMITED else number(name) for name in ("uplink_bps", "downlink_bps"))
    satellite = row.get("satellite") or "satellite"
    if not satellite.isprintable():
        raise PlanError(f"{where}: satellite = {reprlib.repr(satellite)}: must be text")
    return Contact(row["cluster"], *window(where, number("start_s"), number("end_s")), up_bps, down_bps, satellite)


def window(where: str, start_s: float, end_s: float) -> tuple[float, float]:
    """Start and end of a contact.

    Raises:
        PlanError: the contact is reversed or begins before the plan.
    """
    if not 0 <= start_s < end_s:
        raise PlanError(f"{where}: {start_s:g}-{end_s:g} s: must begin at 0 s or later, and end later than it begins")
    return start_s, end_s


def joined(contacts: Sequence[Contact]) -> list[Contact]:
    """Contacts of which those of one cluster and satellite that follow one another without a gap are one, with its rates."""
    groups: list[list[Contact]] = []
    for c in sorted(contacts, key=lambda c: (c.cluster, c.start_s)):
        last = groups[-1][-1] if groups else None
        if last and (last.cluster, last.satellite) == (c.cluster, c.satellite) and abs(last.end_s - c.start_s) < 1e-6:
            groups[-1].append(c)
        else:
            groups.append([c])
    return [
        Contact.of(
            group[0].cluster,
            group[0].start_s,
            [Rates(c.end_s, c.uplink_bps, c.downlink_bps) for c in group],
            group[0].satellite,
        )
        for group in groups
    ]
