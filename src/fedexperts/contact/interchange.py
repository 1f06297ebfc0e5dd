"""Contact plans in files: our JSON, CSV, HDTN's JSON and ION's contact commands.

ION (ionadmin): ``a contact +start +stop from to rate`` with bytes per second, one line for each direction, times relative to
the start. HDTN: ``{"contacts": [{"contact", "source", "dest", "startTime", "endTime", "rateBitsPerSec", "owlt"}]}`` with whole
seconds. Neither may promise time that is not there: beginnings are rounded up, ends down, rates down. A contact with
piecewise-constant rates becomes one entry for each piece. Node 1 is the server, clusters follow from 2 in the plan's order.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from .plan import Contact, ContactPlan, PlanError, Rates, read_plan

SERVER = 1
TIGHT_BPS = 1e-3
"""Slack when rates that were averaged are rounded down."""
EXPORTS = {"json": "json", "csv": "csv", "hdtn": "hdtn.json", "ion": "ion.rc"}
"""Format → the file's ending."""
CSV_FIELDS = ("cluster", "start_s", "end_s", "uplink_bps", "downlink_bps", "satellite")


def plan_text(plan: ContactPlan, kind: str, start: datetime | None = None) -> str:
    """A plan in one of the formats of ``EXPORTS``.

    Raises:
        PlanError: an unlimited rate cannot be said in this format.
    """
    text = {"json": _json, "csv": _csv, "hdtn": _hdtn, "ion": _ion}[kind](plan)
    if kind == "ion" and start is not None:
        text = f"# times are relative to {start.isoformat()}; set it with: @ {start:%Y/%m/%d-%H:%M:%S}\n{text}"
    return text


def load_plan(path: Path, clusters: Sequence[str]) -> ContactPlan:
    """Read a plan from our JSON, HDTN's JSON or CSV, told apart by the file's ending and its first contact.

    Raises:
        PlanError: see `read_plan`.
    """
    if path.suffix == ".csv":
        return _read_csv(path, clusters)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["contacts"]
        hdtn = isinstance(rows, list) and bool(rows) and "rateBitsPerSec" in rows[0]
    except (OSError, ValueError, KeyError, TypeError):
        hdtn = False  # read_plan tells what is wrong
    return _read_hdtn(path, rows, clusters) if hdtn else read_plan(path, clusters)


def pieces(contact: Contact) -> Iterator[tuple[float, float, float, float]]:
    """(from_s, until_s, uplink_bps, downlink_bps) of a contact's constant pieces."""
    from_s = contact.start_s
    for piece in contact.rates or (Rates(contact.end_s, contact.uplink_bps, contact.downlink_bps),):
        yield from_s, piece.until_s, piece.uplink_bps, piece.downlink_bps
        from_s = piece.until_s


def _json(plan: ContactPlan) -> str:
    return json.dumps(plan.to_json(), indent=1) + "\n"


def _csv(plan: ContactPlan) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for c in plan.contacts:
        for from_s, until_s, up_bps, down_bps in pieces(c):
            writer.writerow([c.cluster, from_s, until_s, up_bps, down_bps, c.satellite])
    return out.getvalue()


def _whole_seconds(contact: Contact) -> Iterator[tuple[int, int, float, float]]:
    """As ``pieces`` in whole seconds, each with the least rates within it: none carries more than it did, none is lost."""
    rows = list(pieces(contact))

    def least(second: int) -> tuple[float, float]:
        inside = [(up, down) for from_s, until_s, up, down in rows if from_s < second + 1 and until_s > second]
        return min(up for up, _ in inside), min(down for _, down in inside)

    for rates, run in groupby(range(math.ceil(contact.start_s), math.floor(contact.end_s)), least):
        seconds = list(run)
        yield seconds[0], seconds[-1] + 1, *rates


def _directions(plan: ContactPlan) -> Iterator[tuple[Contact, int, int, int, int, float]]:
    """(contact, from node, to node, start, end, rate) in whole seconds, rounded inward."""
    nodes = {name: i for i, name in enumerate(plan.clusters, start=SERVER + 1)}
    for c in plan.contacts:
        for begin_s, end_s, up_bps, down_bps in _whole_seconds(c):
            for source, dest, rate_bps in ((nodes[c.cluster], SERVER, up_bps), (SERVER, nodes[c.cluster], down_bps)):
                if not math.isfinite(rate_bps):
                    raise PlanError(
                        f"contact of cluster {c.cluster!r} at {c.start_s:g} s: an unlimited rate cannot be exported; "
                        "give the radio a rate, for example radio.fixed_downlink_bps"
                    )
                yield c, source, dest, begin_s, end_s, rate_bps


def _ion(plan: ContactPlan) -> str:
    names = [f"# node {i}: {name}" for i, name in enumerate(("server", *plan.clusters), start=SERVER)]
    lines = [
        f"a contact +{begin} +{end} {a} {b} {math.floor(rate / 8 + TIGHT_BPS)}"
        for _, a, b, begin, end, rate in _directions(plan)
    ]
    ranges = [f"a range +{begin} +{end} {a} {b} 1" for _, a, b, begin, end, _ in _directions(plan) if a == SERVER]
    return "\n".join([*names, *lines, *ranges]) + "\n"


def _hdtn(plan: ContactPlan) -> str:
    rows = [
        {
            "contact": i,
            "source": a,
            "dest": b,
            "startTime": begin,
            "endTime": end,
            "rateBitsPerSec": math.floor(rate + TIGHT_BPS),
            "owlt": 1,
        }
        for i, (_, a, b, begin, end, rate) in enumerate(_directions(plan))
    ]
    return json.dumps({"contacts": rows}, indent=1) + "\n"


def _read_csv(path: Path, clusters: Sequence[str]) -> ContactPlan:
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise PlanError(f"plan.path = {str(path)!r}: cannot be read ({error.strerror})") from error
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            rates = (float(row.get("uplink_bps") or "inf"), float(row.get("downlink_bps") or "inf"))
            times = (float(row["start_s"]), float(row["end_s"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{path.name}, line {number}: needs cluster, start_s and end_s as numbers ({error!r})") from error
        found.append(Contact(row.get("cluster", ""), *times, *rates, row.get("satellite") or "satellite"))
    if not found:
        raise PlanError(f"plan.path = {str(path)!r}: holds no contact")
    return _joined(clusters, found)


def _read_hdtn(path: Path, rows: list[dict[str, Any]], clusters: Sequence[str]) -> ContactPlan:
    """Uplink and downlink entries of the same window make one contact; node 2 is the first cluster."""
    windows: dict[tuple[int, float, float], dict[str, float]] = {}
    for i, row in enumerate(rows):
        try:
            source, dest = int(row["source"]), int(row["dest"])
            times = (float(row["startTime"]), float(row["endTime"]))
            rate_bps = float(row["rateBitsPerSec"])
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"{path.name}, contact {i}: needs source, dest, startTime, endTime, rateBitsPerSec ({error!r})"
            ) from error
        node = dest if source == SERVER else source
        if SERVER not in (source, dest) or not 0 <= node - SERVER - 1 < len(clusters):
            raise PlanError(
                f"{path.name}, contact {i}: nodes {source} and {dest}; one must be {SERVER}, the server, the other a cluster"
            )
        windows.setdefault((node, *times), {})["down" if source == SERVER else "up"] = rate_bps
    found = [
        Contact(clusters[node - SERVER - 1], begin, end, rates.get("up", math.inf), rates.get("down", math.inf))
        for (node, begin, end), rates in windows.items()
    ]
    return _joined(clusters, found)


def _joined(clusters: Sequence[str], contacts: list[Contact]) -> ContactPlan:
    """Pieces that follow one another without a gap make one contact with piecewise-constant rates."""
    groups: list[list[Contact]] = []
    for c in sorted(contacts, key=lambda c: (c.cluster, c.start_s)):
        last = groups[-1][-1] if groups else None
        if last and (last.cluster, last.satellite) == (c.cluster, c.satellite) and abs(last.end_s - c.start_s) < 1e-6:
            groups[-1].append(c)
        else:
            groups.append([c])
    joined = tuple(_one(group) for group in groups)
    return ContactPlan(tuple(clusters), joined, max(c.end_s for c in joined))


def _one(group: list[Contact]) -> Contact:
    first, last = group[0], group[-1]
    if len(group) == 1:
        return first
    rates = tuple(Rates(c.end_s, c.uplink_bps, c.downlink_bps) for c in group)
    whole = Contact(first.cluster, first.start_s, last.end_s, satellite=first.satellite, rates=rates)
    mean = [whole.carried_B(d, whole.start_s, whole.end_s) * 8 / (whole.end_s - whole.start_s) for d in ("up", "down")]
    return Contact(first.cluster, first.start_s, last.end_s, mean[0], mean[1], first.satellite, rates=rates)
