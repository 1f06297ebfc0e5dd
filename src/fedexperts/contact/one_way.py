"""Contact plans of other tools, whose contacts are one-way: HDTN's JSON and ION's contact commands.

HDTN: ``{"contacts": [{"contact", "source", "dest", "startTime", "endTime", "rateBitsPerSec", "owlt"}]}``, where a rate of 0 is
no limit. ION (ionrc(5)): ``a contact start stop from to rate`` in bytes per second; a time is ``+`` seconds after a reference,
which ``@`` sets, or ``yyyy/mm/dd-hh:mm:ss`` in UTC.

A direction that has no contact carries nothing. Where the windows of two directions differ, each keeps its own: together they
are one contact whose rates change. Node 1 is the server and clusters follow from 2 in the scenario's order, but for
``[plan] nodes``. Delays between nodes are not simulated.
"""

from __future__ import annotations

import math
import re
import reprlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from .plan import Contact, ContactPlan, Direction, PlanError
from .plan_file import joined, plan_of, window

SERVER = "server"
HDTN_FIELDS = ("source", "dest", "startTime", "endTime", "rateBitsPerSec")
NO_DELAYS = "delays between nodes are not simulated"
NUMBER = re.compile(r"\d{1,19}(\.\d{1,19})?")


def node_numbers(clusters: Sequence[str], nodes: Mapping[str, int] | None) -> dict[str, int]:
    """The node number of the server and of each cluster.

    Raises:
        PlanError: ``nodes`` leaves a cluster out, names something else, or gives a number twice.
    """
    if nodes is None:
        return {name: number for number, name in enumerate((SERVER, *clusters), start=1)}
    if SERVER in clusters:
        raise PlanError(f"plan.nodes: {SERVER!r} is the satellite, and a cluster has this name too; rename the cluster")
    numbers = {SERVER: 1, **nodes}
    if wrong := set(numbers) ^ {SERVER, *clusters}:
        known = ", ".join((SERVER, *clusters))
        raise PlanError(f"plan.nodes: {', '.join(sorted(wrong))}: must give a number to each of {known}, and to nothing else")
    if len(set(numbers.values())) < len(numbers):
        raise PlanError(f"plan.nodes = {numbers}: has a number twice; every node needs its own (the server is 1 unless given)")
    return numbers


@dataclass(frozen=True)
class OneWay:
    """A contact in one direction; ``where`` is its place in the file."""

    where: str
    source: int
    dest: int
    start_s: float
    end_s: float
    bps: float


def both_ways(rows: Sequence[OneWay], clusters: Sequence[str], numbers: Mapping[str, int]) -> list[Contact]:
    """One-way contacts as contacts of clusters with both directions.

    Raises:
        PlanError: a contact between other nodes, reversed, or at the time of another in its direction.
    """
    found: dict[tuple[str, Direction], list[OneWay]] = {}
    names = {number: name for name, number in numbers.items()}
    for row in rows:
        found.setdefault(_end_of(row, names), []).append(row)
    for (cluster, direction), mine in found.items():
        mine.sort(key=lambda row: row.start_s)
        for a, b in pairwise(mine):
            if b.start_s < a.end_s:
                raise PlanError(
                    f"{b.where}: {b.start_s:g}-{b.end_s:g} s overlaps {a.start_s:g}-{a.end_s:g} s ({a.where}), both "
                    f"{'from the server to' if direction == 'down' else 'to the server from'} {cluster!r}; keep one of them"
                )
    return joined([c for cluster in clusters for c in _pieces(cluster, *(found.get((cluster, d), []) for d in ("up", "down")))])


def _end_of(row: OneWay, names: Mapping[int, str]) -> tuple[str, Direction]:
    """The cluster at the other end, and whether the contact goes up to the server or down from it."""
    window(row.where, row.start_s, row.end_s)
    ends = [names.get(number, "unknown") for number in (row.source, row.dest)]
    cluster, direction = (ends[1], "down") if ends[0] == SERVER else (ends[0], "up")
    if SERVER in ends and cluster not in ("unknown", SERVER):
        return cluster, direction  # type: ignore[return-value]  # one of two literals
    known = ", ".join(f"{name} = {number}" for number, name in names.items())
    shown = f"{row.where}: from node {row.source} ({ends[0]}) to node {row.dest} ({ends[1]})"
    if SERVER not in ends:
        raise PlanError(
            f"{shown}: is a relay, for neither is the server; clusters talk to the server alone. Leave the contact out, or say "
            f"which node is which with [plan] nodes; now {known}"
        )
    raise PlanError(f"{shown}: is not between the server and a cluster; say which node is which with [plan] nodes; now {known}")


def _pieces(cluster: str, up: Sequence[OneWay], down: Sequence[OneWay]) -> list[Contact]:
    """Each stretch between two edges of any window, with the rates that hold there."""
    edges_s = sorted({t for row in (*up, *down) for t in (row.start_s, row.end_s)})
    rates = ((_bps(up, a_s), _bps(down, a_s)) for a_s in edges_s)
    return [
        Contact(cluster, a_s, b_s, up_bps or 0.0, down_bps or 0.0)
        for (a_s, b_s), (up_bps, down_bps) in zip(pairwise(edges_s), rates, strict=False)
        if not (up_bps is None and down_bps is None)
    ]


def _bps(rows: Sequence[OneWay], time_s: float) -> float | None:
    """The rate from a time on; None where there is no contact."""
    k = bisect_right(rows, time_s, key=lambda row: row.start_s) - 1
    return rows[k].bps if k >= 0 and time_s < rows[k].end_s else None


def read_hdtn(path: Path, rows: Sequence[Any], clusters: Sequence[str], nodes: Mapping[str, int] | None = None) -> ContactPlan:
    """The plan that HDTN's contacts make.

    Raises:
        PlanError: a contact lacks a field, or cannot be; see `both_ways` and `node_numbers`.
    """
    found = []
    for i, row in enumerate(rows):
        where = f"{path.name}, contact {i}"
        if not isinstance(row, dict) or not set(HDTN_FIELDS) <= set(row):
            raise PlanError(f"{where}: needs {', '.join(HDTN_FIELDS)}")
        for name in HDTN_FIELDS:
            value, kinds = row[name], int if name in ("source", "dest") else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
                raise PlanError(f"{where}: {name} = {reprlib.repr(value)}: must be a number of at least 0")
        source, dest, start_s, end_s, bps = (row[name] for name in HDTN_FIELDS)
        found.append(OneWay(where, source, dest, float(start_s), float(end_s), float(bps) or math.inf))
    notes = [f"{path.name}: owlt is ignored; {NO_DELAYS}"] if any(row.get("owlt") for row in rows) else []
    return plan_of(path, clusters, both_ways(found, clusters, node_numbers(clusters, nodes)), notes=notes)


def read_ion(
    path: Path, text: str, clusters: Sequence[str], nodes: Mapping[str, int] | None = None, start: datetime | None = None
) -> ContactPlan:
    """The plan that the contact commands of ION make; ``start`` is what absolute times are counted from.

    Raises:
        PlanError: a command that is malformed or changes an earlier one, a contact that cannot be, or none at all.
    """
    found, others, ranges, reference_s = [], [], 0, 0.0
    for i, line in enumerate(text.split("\n"), 1):
        where, words = f"{path.name}, line {i}", line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "@" and len(words) == 2:
            reference_s = _ion_time_s(where, words[1], reference_s, start)
        elif words[:2] == ["a", "range"]:
            ranges += 1
        elif words[0] in ("c", "d") and words[1:2] == ["contact"]:
            raise PlanError(f"{where}: {line.strip()[:40]!r} changes an earlier contact; change that one instead")
        elif words[:2] != ["a", "contact"] or words[2:3] == ["-1"] or words[3:4] == ["0"]:
            others.append(f"line {i}, {line.strip()[:40]!r}")  # also registrations and hypothetical contacts, of no known time
        else:
            found.append(_ion_contact(where, words[2:], reference_s, start))
    if not found:
        raise PlanError(
            f"plan.path = {str(path)!r}: holds no contact; a plan is JSON, CSV in a file that ends in .csv, or contact "
            "commands of ION, such as: a contact +0 +600 2 1 125000"
        )
    notes = [f"{path.name}: ranges are ignored; {NO_DELAYS}"] if ranges else []
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"{path.name}: what is no scheduled contact is ignored: {others[0]}{more}")
    return plan_of(path, clusters, both_ways(found, clusters, node_numbers(clusters, nodes)), notes=notes)


def _ion_contact(where: str, words: Sequence[str], reference_s: float, start: datetime | None) -> OneWay:
    if len(words) not in (5, 6) or not all(NUMBER.fullmatch(word) for word in words[2:]):
        raise PlanError(f"{where}: must be a contact start stop from to rate, with nodes and a rate in bytes/s as numbers")
    if "." in words[2] + words[3] or not float(words[4]) > 0:
        raise PlanError(f"{where}: nodes {words[2]} and {words[3]} must be whole numbers, and the rate {words[4]} above 0")
    if len(words) == 6 and float(words[5]) != 1:
        raise PlanError(f"{where}: has a confidence of {words[5]}; contacts of a plan are certain, so leave it out")
    start_s, end_s = (_ion_time_s(where, word, reference_s, start) for word in words[:2])
    return OneWay(where, int(words[2]), int(words[3]), start_s, end_s, 8 * float(words[4]))


def _ion_time_s(where: str, word: str, reference_s: float, start: datetime | None) -> float:
    """Seconds after the plan's start."""
    if word.startswith("+") and NUMBER.fullmatch(word[1:]):
        return reference_s + float(word[1:])
    try:
        moment = datetime.strptime(word, "%Y/%m/%d-%H:%M:%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise PlanError(f"{where}: {word[:24]!r} is no time; write +seconds or yyyy/mm/dd-hh:mm:ss") from error
    if start is None:
        raise PlanError(f"{where}: {word} is an absolute time; set plan.start, from which the plan's seconds count")
    return (moment - start).total_seconds()
