"""The contact plan: when server and clusters hear each other, and at what rate.

Times are seconds after the plan's start. A plan may hold contacts that overlap between clusters, never within one.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Direction = Literal["up", "down"]
TIGHT_S = 1e-9
"""Slack in comparisons of times that were added up."""


class PlanError(InputError):
    """A contact plan that cannot be."""


@dataclass(frozen=True)
class Rates:
    """Constant rates per device until a time."""

    until_s: float
    uplink_bps: float
    downlink_bps: float


@dataclass(frozen=True)
class Contact:
    """One window in which a satellite and a cluster hear each other.

    Rates are per device: constant (``uplink_bps``, ``downlink_bps``), or piecewise constant over ``rates``, whose last piece
    ends with the contact; the two numbers then hold the means. ``cut`` says that the pass goes on beyond the plan's horizon.
    """

    cluster: str
    start_s: float
    end_s: float
    uplink_bps: float = math.inf
    downlink_bps: float = math.inf
    satellite: str = "satellite"
    max_elevation_deg: float | None = None
    rates: tuple[Rates, ...] = ()
    cut: bool = False

    def carried_B(self, direction: Direction, from_s: float, to_s: float) -> float:
        """Bytes that fit between two times: the rate integrated over the window."""
        edges_s, total_B = self._curve(direction)
        if math.isinf(total_B[-1]):
            return math.inf if to_s > from_s else 0.0
        return float(np.interp(to_s, edges_s, total_B) - np.interp(from_s, edges_s, total_B))

    def finish_s(self, direction: Direction, from_s: float, size_B: float) -> float:
        """When a transfer that begins at ``from_s`` is done; infinity if the contact ends before."""
        edges_s, total_B = self._curve(direction)
        if size_B <= 0 or math.isinf(total_B[-1]):
            return from_s
        goal_B = float(np.interp(from_s, edges_s, total_B)) + size_B
        return float(np.interp(goal_B, total_B, edges_s)) if goal_B <= total_B[-1] * (1 + TIGHT_S) else math.inf

    def begin_s(self, direction: Direction, until_s: float, size_B: float) -> float:
        """The latest beginning of a transfer that is done by ``until_s``; minus infinity if none is early enough."""
        edges_s, total_B = self._curve(direction)
        if size_B <= 0 or math.isinf(total_B[-1]):
            return until_s
        goal_B = float(np.interp(until_s, edges_s, total_B)) - size_B
        return float(np.interp(goal_B, total_B, edges_s)) if goal_B >= 0 else -math.inf

    def _curve(self, direction: Direction) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Times and the bytes carried up to each, from the contact's start."""
        pieces = self.rates or (Rates(self.end_s, self.uplink_bps, self.downlink_bps),)
        edges_s = np.array([self.start_s, *(piece.until_s for piece in pieces)])
        rate_bps = np.array([piece.uplink_bps if direction == "up" else piece.downlink_bps for piece in pieces])
        return edges_s, np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * rate_bps / 8)])


@dataclass(frozen=True)
class ContactPlan:
    """Contacts in the order of their start, over a horizon.

    ``ends_s`` are the ends of the orbital cycles, where they are not those that follow from the contacts: clients that join,
    leave or are away must not make a cycle longer.

    Raises:
        PlanError: a contact is reversed, has no positive rate, lies outside the horizon, names an unknown cluster or
            overlaps another contact of its cluster.
    """

    clusters: tuple[str, ...]
    contacts: tuple[Contact, ...]
    horizon_s: float
    ends_s: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.contacts, key=lambda c: c.start_s))  # stable: ties keep the given order
        object.__setattr__(self, "contacts", ordered)
        last: dict[str, Contact] = {}
        for i, contact in enumerate(ordered):
            self._check(i, contact)
            before = last.get(contact.cluster)
            if before and contact.start_s < before.end_s - TIGHT_S:
                raise PlanError(
                    f"contacts of cluster {contact.cluster!r} overlap: {before.start_s:g}-{before.end_s:g} s and "
                    f"{contact.start_s:g}-{contact.end_s:g} s; join them into one"
                )
            last[contact.cluster] = contact

    def _check(self, i: int, contact: Contact) -> None:
        where = f"contact {i} of cluster {contact.cluster!r}"
        if contact.cluster not in self.clusters:
            raise PlanError(f"{where}: unknown cluster; known are {', '.join(self.clusters)}")
        if not (math.isfinite(contact.start_s) and math.isfinite(contact.end_s) and contact.end_s > contact.start_s):
            raise PlanError(f"{where}: end_s = {contact.end_s:g} must be later than start_s = {contact.start_s:g}")
        if contact.start_s < 0 or contact.end_s > self.horizon_s + TIGHT_S:
            raise PlanError(f"{where}: {contact.start_s:g}-{contact.end_s:g} s lies outside the plan's 0-{self.horizon_s:g} s")
        for field in ("uplink_bps", "downlink_bps"):
            if not getattr(contact, field) > 0:
                raise PlanError(f"{where}: {field} = {getattr(contact, field):g} must be above 0; leave it out for no limit")
        edges_s = [contact.start_s, *(piece.until_s for piece in contact.rates)]
        if contact.rates and (any(b <= a for a, b in pairwise(edges_s)) or abs(edges_s[-1] - contact.end_s) > 1e-6):
            raise PlanError(f"{where}: rates must follow one another and the last must end at end_s = {contact.end_s:g}")
        if any(not min(piece.uplink_bps, piece.downlink_bps) > 0 for piece in contact.rates):
            raise PlanError(f"{where}: rates holds a rate that is not above 0; end the contact where the signal ends")

    @property
    def reachable(self) -> tuple[str, ...]:
        """Clusters with at least one contact."""
        seen = {contact.cluster for contact in self.contacts}
        return tuple(cluster for cluster in self.clusters if cluster in seen)

    @cached_property
    def cycle_ends_s(self) -> tuple[float, ...]:
        """When each orbital cycle ends: every reachable cluster has been served since the cycle began."""
        if self.ends_s is not None:
            return self.ends_s
        ends: list[float] = []
        waiting = set(self.reachable)
        begin = 0.0
        for contact in sorted(self.contacts, key=lambda c: c.end_s):
            if contact.start_s >= begin - TIGHT_S:
                waiting.discard(contact.cluster)
            if not waiting:
                begin = contact.end_s
                ends.append(begin)
                waiting = set(self.reachable)
        return tuple(ends)

    def cycle_of(self, contact: Contact) -> int:
        """The orbital cycle in which a contact begins."""
        return bisect.bisect_right(self.cycle_ends_s, contact.start_s + TIGHT_S)

    def next_start_s(self, cluster: str, after_s: float) -> float:
        """Start of the cluster's next contact at or after a time; infinity if there is none."""
        starts = (c.start_s for c in self.contacts if c.cluster == cluster and c.start_s >= after_s - TIGHT_S)
        return next(starts, math.inf)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data; unlimited rates are left out."""
        rows = [
            {k: v for k, v in asdict(c).items() if v is not None and v is not False and v not in (math.inf, ())}
            for c in self.contacts
        ]
        return {"clusters": list(self.clusters), "horizon_s": self.horizon_s, "contacts": rows}


def round_robin(clusters: Sequence[str], cycles: int, slot_s: float = 60.0, idle_slots: int = 0) -> ContactPlan:
    """The paper's schedule (Sec. III-B): slot t serves cluster t mod C; idle slots (Remark 4) end each cycle."""
    period = len(clusters) + idle_slots
    contacts = [
        Contact(cluster, (k * period + c) * slot_s, (k * period + c + 1) * slot_s)
        for k in range(cycles)
        for c, cluster in enumerate(clusters)
    ]
    return ContactPlan(tuple(clusters), tuple(contacts), cycles * period * slot_s)


def always_on(clusters: Sequence[str], cycles: int, slot_s: float = 60.0) -> ContactPlan:
    """Everybody in view all the time, sliced into slots so that a contact always ends."""
    contacts = [Contact(cluster, k * slot_s, (k + 1) * slot_s) for k in range(cycles) for cluster in clusters]
    return ContactPlan(tuple(clusters), tuple(contacts), cycles * slot_s)


def read_plan(path: Path, clusters: Sequence[str]) -> ContactPlan:
    """Read a plan from JSON: ``{"contacts": [{"cluster", "start_s", "end_s", "uplink_bps", "downlink_bps"}], "horizon_s"}``.

    Rates and horizon are optional: no rate means no limit, and the horizon is the end of the last contact.

    Raises:
        PlanError: the file is missing, is not such a document, or holds an impossible contact.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"plan.path = {str(path)!r}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"plan.path = {str(path)!r}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise PlanError(f"plan.path = {str(path)!r}: is not JSON (line {error.lineno}: {error.msg})") from error
    rows = document.get("contacts") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise PlanError(f'plan.path = {str(path)!r}: needs a non-empty list under "contacts"')
    contacts = tuple(_contact(path, i, row) for i, row in enumerate(rows))
    horizon_s = document.get("horizon_s", max(contact.end_s for contact in contacts))
    if not isinstance(horizon_s, (int, float)) or not math.isfinite(horizon_s):
        raise PlanError(f"plan.path = {str(path)!r}: horizon_s = {horizon_s!r}: must be a number of seconds")
    return ContactPlan(tuple(clusters), contacts, float(horizon_s))


def _contact(path: Path, i: int, row: Any) -> Contact:
    numbers = {"start_s", "end_s", "uplink_bps", "downlink_bps", "max_elevation_deg"}
    if not isinstance(row, dict) or not {"cluster", "start_s", "end_s"} <= set(row):
        raise PlanError(f"{path.name}, contact {i}: needs cluster, start_s and end_s")
    try:
        values: dict[str, Any] = {k: float(v) for k, v in row.items() if k in numbers and v is not None}
        values |= {k: v for k, v in row.items() if k in ("cluster", "satellite", "cut")}
        values["rates"] = tuple(_rates(piece) for piece in row.get("rates", ()))
        return Contact(**values)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise PlanError(f"{path.name}, contact {i}: times and rates must be numbers ({error})") from error


def _rates(piece: Any) -> Rates:
    return Rates(float(piece["until_s"]), float(piece.get("uplink_bps", math.inf)), float(piece.get("downlink_bps", math.inf)))
