"""Contact plans in files: our JSON and CSV, HDTN's JSON and ION's contact commands; written here, and told apart for reading.

ION (ionadmin): ``a contact +start +stop from to rate`` with bytes per second, one line for each direction, times relative to
the start. HDTN: ``{"contacts": [{"contact", "source", "dest", "startTime", "endTime", "rateBitsPerSec", "owlt"}]}`` with whole
seconds, where a rate of 0 is no limit. Neither may promise time that is not there: beginnings are rounded up, ends down, rates
down. A contact with piecewise-constant rates becomes one entry for each piece, and a direction that carries nothing none.
Node 1 is the server, clusters follow from 2 in the plan's order, but for ``[plan] nodes``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path

from .one_way import SERVER, OneWay, node_numbers, read_hdtn, read_ion
from .plan import UNLIMITED, Contact, ContactPlan, PlanError
from .plan_file import CSV_FIELDS, contacts_of, document_of, plan_of, read_csv, text_of

TIGHT_BPS = 1e-3
"""Slack when rates that were averaged are rounded down."""
EXPORTS = {"json": "json", "csv": "csv", "hdtn": "hdtn.json", "ion": "ion.rc"}
"""Format → the file's ending."""


def load_plan(
    path: Path, clusters: Sequence[str], nodes: Mapping[str, int] | None = None, start: datetime | None = None
) -> ContactPlan:
    """Read a plan: CSV by the file's ending, JSON of our own or HDTN's by its first contact, or ION's contact commands.

    Args:
        path: the file.
        clusters: the scenario's clusters, in its order.
        nodes: node numbers of the server and the clusters, where they are not 1, 2, 3, …
        start: the plan's start, from which absolute times count.

    Raises:
        PlanError: the file cannot be read, or holds an impossible contact.
    """
    text = text_of(path)
    if path.suffix.lower() == ".csv":
        return read_csv(path, text, clusters)
    if path.suffix.lower() != ".json" and text.lstrip()[:1] not in ("{", "["):
        return read_ion(path, text, clusters, nodes, start)
    document, rows = document_of(path, text)
    if isinstance(rows[0], dict) and {"source", "dest", "rateBitsPerSec"} & set(rows[0]):
        return read_hdtn(path, rows, clusters, nodes)
    return plan_of(path, clusters, *contacts_of(path, document, rows))


def plan_text(plan: ContactPlan, kind: str, start: datetime | None = None, nodes: Mapping[str, int] | None = None) -> str:
    """A plan in one of the formats of ``EXPORTS``.

    Raises:
        PlanError: an unlimited rate cannot be said in this format, or ``nodes`` do not fit the plan.
    """
    if kind == "json":
        return json.dumps(plan.to_json(), indent=1, allow_nan=False) + "\n"
    if kind == "csv":
        return _csv(plan)
    numbers = node_numbers(plan.clusters, nodes)
    if kind == "hdtn":
        return _hdtn(plan, numbers)
    moment = None if start is None else start.astimezone(UTC)
    head = (
        "" if moment is None else f"# times are relative to {moment.isoformat()}; set it with: @ {moment:%Y/%m/%d-%H:%M:%S}\n"
    )
    return head + _ion(plan, numbers)


def _csv(plan: ContactPlan) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for c in plan.contacts:
        for from_s, until_s, up_bps, down_bps in c.pieces():
            rates = (UNLIMITED if math.isinf(bps) else bps for bps in (up_bps, down_bps))
            writer.writerow([c.cluster, from_s, until_s, *rates, c.satellite])
    return out.getvalue()


def _whole_seconds(contact: Contact) -> Iterator[tuple[int, int, float, float]]:
    """A contact's pieces in whole seconds, each with the least rates within: none carries more than it did, none is lost."""
    rows = list(contact.pieces())
    begins_s, ends_s = [row[0] for row in rows], [row[1] for row in rows]
    first, last = math.ceil(contact.start_s), math.floor(contact.end_s)
    edges = {first, last, *(f(t_s) for t_s in ends_s for f in (math.floor, math.ceil))}

    def least(window: tuple[int, int]) -> tuple[float, float]:
        inside = rows[bisect_right(ends_s, window[0]) : bisect_left(begins_s, window[1])]
        return min(row[2] for row in inside), min(row[3] for row in inside)

    for rates, run in groupby(pairwise(sorted(t for t in edges if first <= t <= last)), least):
        windows = list(run)
        yield windows[0][0], windows[-1][1], *rates


def _one_way(plan: ContactPlan, numbers: Mapping[str, int]) -> Iterator[OneWay]:
    """Contacts in each direction, in whole seconds, rounded inward."""
    for c in plan.contacts:
        where = f"contact of cluster {c.cluster!r} at {c.start_s:g} s"
        cluster, server = numbers[c.cluster], numbers[SERVER]
        for begin_s, end_s, up_bps, down_bps in _whole_seconds(c):
            yield OneWay(where, cluster, server, begin_s, end_s, up_bps)
            yield OneWay(where, server, cluster, begin_s, end_s, down_bps)


def _ion(plan: ContactPlan, numbers: Mapping[str, int]) -> str:
    lines = ["# rates are those of one device; a node is a cluster, with all of its devices"]
    lines += [f"# node {number}: {name}" for name, number in numbers.items()]
    ranges: dict[str, None] = {}
    for one in _one_way(plan, numbers):
        if math.isinf(one.bps):
            raise PlanError(
                f"{one.where}: an unlimited rate cannot be exported to ION; "
                "give the radio a rate, for example radio.fixed_downlink_bps"
            )
        if rate_Bps := math.floor(one.bps / 8 + TIGHT_BPS):
            lines.append(f"a contact +{one.start_s} +{one.end_s} {one.source} {one.dest} {rate_Bps}")
            low, high = sorted((one.source, one.dest))  # in this order it holds for both directions
            ranges[f"a range +{one.start_s} +{one.end_s} {low} {high} 1"] = None
    return "\n".join([*lines, *ranges]) + "\n"


def _hdtn(plan: ContactPlan, numbers: Mapping[str, int]) -> str:
    rows: list[dict[str, float]] = []
    for one in _one_way(plan, numbers):
        rate_bps = 0 if math.isinf(one.bps) else math.floor(one.bps + TIGHT_BPS)
        if rate_bps or math.isinf(one.bps):
            times = {"startTime": one.start_s, "endTime": one.end_s}
            rows.append(
                {"contact": len(rows), "source": one.source, "dest": one.dest, **times, "rateBitsPerSec": rate_bps, "owlt": 1}
            )
    return json.dumps({"contacts": rows}, indent=1, allow_nan=False) + "\n"
