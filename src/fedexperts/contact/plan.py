"""The contact plan: when server and clusters hear each other, and at what rate.

Times are seconds after the plan's start. A plan may hold contacts that overlap between clusters, never within one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from ..errors import InputError

Direction = Literal["up", "down"]
UNLIMITED = "unlimited"
"""How plan files say that a rate has no limit; a rate that is not given carries nothing."""
TIGHT_S = 1e-9
"""Slack in comparisons of times that were added up, and the share of a transfer that may be lost to rounding."""
SHORTEST_S = 1e-6
"""No contact is shorter."""
LONGEST_S = 1e10
"""No plan is longer (three centuries, and Unix time): sums of seconds keep their microseconds."""
FASTEST_BPS = 1e18
"""No rate is higher, but those without limit: sums of bytes stay finite."""
MOST_CONTACTS = 200_000
"""A plan holds no more; they take some kilobytes and a millisecond each."""


class PlanError(InputError):
    """A contact plan that cannot be."""


@dataclass(frozen=True)
class Rates:
    """Constant rates per device until a time."""

    until_s: float
    uplink_bps: float
    downlink_bps: float
    uplink_share: float = 1.0
    """Of the time for which each device sends: less where devices take turns on a sub-channel."""


@dataclass(frozen=True)
class Contact:
    """One window in which a satellite and a cluster hear each other.

    Rates are per device: constant (``uplink_bps``, ``downlink_bps``), or piecewise constant over ``rates``, whose last piece
    ends with the contact; the two numbers then hold the means. Infinity is no limit, and a direction of rate 0 carries
    nothing: its transfers begin and never finish. ``cut`` says that the pass goes on beyond the plan's horizon.
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
    uplink_share: float = 1.0

    @classmethod
    def of(
        cls,
        cluster: str,
        start_s: float,
        rates: Sequence[Rates],
        satellite: str = "satellite",
        max_elevation_deg: float | None = None,
        cut: bool = False,
    ) -> Contact:
        """A contact whose rates change: ``rates`` follow one another to its end, and the two numbers are their means."""
        rates = tuple(rates)
        end_s, told = rates[-1].until_s, (satellite, max_elevation_deg)
        if len(rates) == 1:
            (one,) = rates
            return cls(cluster, start_s, end_s, one.uplink_bps, one.downlink_bps, *told, (), cut, one.uplink_share)
        whole = cls(cluster, start_s, end_s, rates=rates)
        length_s = max(end_s - start_s, SHORTEST_S)
        up_bps, down_bps = (whole.carried_B(d, start_s, end_s) * 8 / length_s for d in ("up", "down"))
        return cls(cluster, start_s, end_s, up_bps, down_bps, *told, rates, cut)

    def pieces(self) -> Iterator[tuple[float, float, float, float]]:
        """(from_s, until_s, uplink_bps, downlink_bps) of each stretch of constant rates."""
        from_s = self.start_s
        for piece in self.rates or (Rates(self.end_s, self.uplink_bps, self.downlink_bps),):
            yield from_s, piece.until_s, piece.uplink_bps, piece.downlink_bps
            from_s = piece.until_s

    def sending_s(self, from_s: float, to_s: float) -> float:
        """Seconds for which each device sends in a stretch of its uploads: its turns on a sub-channel."""
        total_s, a_s = 0.0, self.start_s
        for piece in self.rates or (Rates(self.end_s, self.uplink_bps, self.downlink_bps, self.uplink_share),):
            total_s += piece.uplink_share * max(0.0, min(piece.until_s, to_s) - max(a_s, from_s))
            a_s = piece.until_s
        return total_s

    def carried_B(self, direction: Direction, from_s: float, to_s: float) -> float:
        """Bytes that fit between two times: the rate integrated over the window."""
        return sum(
            (
                (min(b_s, to_s) - max(a_s, from_s)) * bps / 8
                for a_s, b_s, bps in self._open(direction)
                if b_s > from_s and a_s < to_s
            ),
            0.0,
        )

    def finish_s(self, direction: Direction, from_s: float, size_B: float) -> float:
        """When a transfer that begins at ``from_s`` is done; infinity if the contact ends before."""
        if size_B <= 0:
            return from_s
        left_B = size_B
        for a_s, b_s, bps in self._open(direction):
            begin_s = max(a_s, from_s)
            if begin_s > b_s + TIGHT_S:
                continue
            if math.isinf(bps):
                return begin_s
            room_B = max(0.0, (b_s - begin_s) * bps / 8)
            if left_B <= room_B + TIGHT_S * (size_B + bps / 8):
                return max(begin_s, min(b_s, begin_s + left_B * 8 / bps))
            left_B -= room_B
        return math.inf

    def begin_s(self, direction: Direction, until_s: float, size_B: float) -> float:
        """The latest beginning of a transfer that is done by ``until_s``; minus infinity if none is early enough."""
        if size_B <= 0:
            return until_s
        left_B = size_B
        for a_s, b_s, bps in reversed(self._open(direction)):
            end_s = min(b_s, until_s)
            if end_s < a_s - TIGHT_S:
                continue
            if math.isinf(bps):
                return end_s
            room_B = max(0.0, (end_s - a_s) * bps / 8)
            if left_B <= room_B + TIGHT_S * (size_B + bps / 8):
                return min(end_s, max(a_s, end_s - left_B * 8 / bps))
            left_B -= room_B
        return -math.inf

    def _open(self, direction: Direction) -> list[tuple[float, float, float]]:
        """(from_s, until_s, rate) of the stretches that carry something."""
        if not self.rates:
            bps = self.uplink_bps if direction == "up" else self.downlink_bps
            return [(self.start_s, self.end_s, bps)] if bps > 0 else []
        rows = ((a_s, b_s, up if direction == "up" else down) for a_s, b_s, up, down in self.pieces())
        return [row for row in rows if row[2] > 0]


@dataclass(frozen=True)
class ContactPlan:
    """Contacts in the order of their start, over a horizon.

    ``ends_s`` are the ends of the orbital cycles, where they are not those that follow from the contacts: clients that join,
    leave or are away must not make a cycle longer. ``notes`` are what whoever made the plan should be told.

    Raises:
        PlanError: a contact is reversed, has a negative rate, lies outside the horizon, names an unknown cluster or
            overlaps another contact of its cluster; or there are more than ``MOST_CONTACTS``.
    """

    clusters: tuple[str, ...]
    contacts: tuple[Contact, ...]
    horizon_s: float
    ends_s: tuple[float, ...] | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        few_enough(len(self.contacts))
        known = frozenset(self.clusters)
        for i, contact in enumerate(self.contacts):
            self._check(i, contact, known)
        if not 0 <= self.horizon_s <= LONGEST_S:
            raise PlanError(f"horizon_s = {self.horizon_s:g}: must be within 0..{LONGEST_S:g} seconds")
        ordered = tuple(sorted(self.contacts, key=lambda c: c.start_s))  # stable: ties keep the given order
        object.__setattr__(self, "contacts", ordered)
        last: dict[str, Contact] = {}
        for contact in ordered:
            before = last.get(contact.cluster)
            if before and contact.start_s < before.end_s - TIGHT_S:
                raise PlanError(
                    f"contacts of cluster {contact.cluster!r} overlap: {before.start_s:g}-{before.end_s:g} s and "
                    f"{contact.start_s:g}-{contact.end_s:g} s; join them into one"
                )
            last[contact.cluster] = contact

    def _check(self, i: int, contact: Contact, known: frozenset[str]) -> None:
        where = f"contact {i} of cluster {contact.cluster!r}"
        if contact.cluster not in known:
            raise PlanError(f"{where}: unknown cluster; known are {', '.join(self.clusters)}")
        if not (math.isfinite(contact.start_s) and math.isfinite(contact.end_s) and contact.end_s > contact.start_s):
            raise PlanError(f"{where}: end_s = {contact.end_s:g} must be later than start_s = {contact.start_s:g}")
        if contact.end_s > LONGEST_S:
            raise PlanError(f"{where}: end_s = {contact.end_s:g} must be at most {LONGEST_S:g} s")
        if contact.end_s - contact.start_s < SHORTEST_S:
            raise PlanError(f"{where}: lasts {contact.end_s - contact.start_s:g} s, must be {SHORTEST_S:g} s at least")
        if contact.start_s < 0 or contact.end_s > self.horizon_s + TIGHT_S:
            raise PlanError(f"{where}: {contact.start_s:g}-{contact.end_s:g} s lies outside the plan's 0-{self.horizon_s:g} s")
        edges_s = [contact.start_s, *(piece.until_s for piece in contact.rates)]
        if contact.rates and (any(not b > a for a, b in pairwise(edges_s)) or abs(edges_s[-1] - contact.end_s) > 1e-6):
            raise PlanError(f"{where}: rates must follow one another and the last must end at end_s = {contact.end_s:g}")
        for share in (contact.uplink_share, *(piece.uplink_share for piece in contact.rates)):
            if not 0 < share <= 1:
                raise PlanError(f"{where}: uplink_share = {share:g} must be above 0 and at most 1")
        for rates in (contact, *contact.rates):
            for name in ("uplink_bps", "downlink_bps"):
                bps = getattr(rates, name)
                if not (0 <= bps <= FASTEST_BPS or bps == math.inf):
                    raise PlanError(f"{where}: {name} = {bps:g} must be within 0..{FASTEST_BPS:g}; 0 carries nothing")

    @cached_property
    def reachable(self) -> tuple[str, ...]:
        """Clusters with at least one contact."""
        return tuple(cluster for cluster, contacts in self.by_cluster.items() if contacts)

    @cached_property
    def by_cluster(self) -> dict[str, tuple[Contact, ...]]:
        """The contacts of each cluster, in order."""
        found: dict[str, list[Contact]] = {cluster: [] for cluster in self.clusters}
        for contact in self.contacts:
            found[contact.cluster].append(contact)
        return {cluster: tuple(contacts) for cluster, contacts in found.items()}

    @cached_property
    def _starts_s(self) -> dict[str, list[float]]:
        """When the contacts of each cluster begin, in order."""
        return {cluster: [contact.start_s for contact in contacts] for cluster, contacts in self.by_cluster.items()}

    @cached_property
    def cycle_ends_s(self) -> tuple[float, ...]:
        """When each orbital cycle ends: every reachable cluster has been served since the cycle began."""
        if self.ends_s is not None:
            return self.ends_s
        ends: list[float] = []
        reachable = frozenset(self.reachable)
        waiting = set(reachable)
        begin = 0.0
        for contact in sorted(self.contacts, key=lambda c: c.end_s):
            if contact.start_s >= begin - TIGHT_S:
                waiting.discard(contact.cluster)
            if not waiting:
                begin = contact.end_s
                ends.append(begin)
                waiting = set(reachable)
        return tuple(ends)

    def cycle_of(self, contact: Contact) -> int:
        """The orbital cycle in which a contact begins."""
        return bisect.bisect_right(self.cycle_ends_s, contact.start_s + TIGHT_S)

    def next_start_s(self, cluster: str, after_s: float) -> float:
        """Start of the cluster's next contact at or after a time; infinity if there is none."""
        starts_s = self._starts_s.get(cluster, [])
        at = bisect.bisect_left(starts_s, after_s - TIGHT_S)
        return starts_s[at] if at < len(starts_s) else math.inf

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, which `read_plan` reads; rates without limit are ``"unlimited"``."""
        rows = [
            {k: v for k, v in _known(asdict(c)).items() if v is not None and v is not False and v != ()} | _said(c)
            for c in self.contacts
        ]
        for row in rows:
            if "rates" in row:
                row["rates"] = [_known(piece) | _said(Rates(**piece)) for piece in row["rates"]]
        return {"clusters": list(self.clusters), "horizon_s": self.horizon_s, "contacts": rows}


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """Without a share of 1, which goes without saying."""
    return {key: value for key, value in row.items() if key != "uplink_share" or value != 1}


def _said(rates: Contact | Rates) -> dict[str, Any]:
    """Rates as plan files say them."""
    both = {"uplink_bps": rates.uplink_bps, "downlink_bps": rates.downlink_bps}
    return {name: UNLIMITED if bps == math.inf else bps for name, bps in both.items()}


def few_enough(contacts: float) -> None:
    """Refuse a plan of too many contacts before they are made.

    Raises:
        PlanError: there are more than ``MOST_CONTACTS``.
    """
    if contacts > MOST_CONTACTS:
        raise PlanError(
            f"the plan has {contacts:,.0f} contacts, and {MOST_CONTACTS:,} are the most; take longer slots (plan.slot_s), "
            "fewer cycles (train.cycles), fewer days (plan.days), fewer clusters or satellites"
        )


def round_robin(clusters: Sequence[str], cycles: int, slot_s: float = 60.0, idle_slots: int = 0) -> ContactPlan:
    """The paper's schedule (Sec. III-B): slot t serves cluster t mod C; idle slots (Remark 4) end each cycle."""
    few_enough(cycles * len(clusters))
    period = len(clusters) + idle_slots
    contacts = [
        Contact(cluster, (k * period + c) * slot_s, (k * period + c + 1) * slot_s)
        for k in range(cycles)
        for c, cluster in enumerate(clusters)
    ]
    return ContactPlan(tuple(clusters), tuple(contacts), cycles * period * slot_s)


def always_on(clusters: Sequence[str], cycles: int, slot_s: float = 60.0) -> ContactPlan:
    """Everybody in view all the time, sliced into slots so that a contact always ends."""
    few_enough(cycles * len(clusters))
    contacts = [Contact(cluster, k * slot_s, (k + 1) * slot_s) for k in range(cycles) for cluster in clusters]
    return ContactPlan(tuple(clusters), tuple(contacts), cycles * slot_s)
