"""What a contact plan allows: no run can have a cluster's k-th update in the global model before these seconds.

An update is complete when it has covered everything that the cluster owns. It is a chain, whatever a protocol does:

    snapshot k    when version k−1 is fully down (version 0 is known to everybody), and a local round after snapshot k−1:
                  rounds made while an upload waits are carried over
    stands k      its bytes are up, in the cluster's windows; what one contact cannot carry goes on in the next
    known k       version k is down again, as one broadcast

Each of the three is no earlier if what comes before it is later, so taking each as early as it can be bounds them all. That is
`network`: as many exchanges a contact as bytes and rounds allow, by any protocol that snapshots at once what a cluster owns.
`schedule` has EMS-FL's order besides: snapshots are taken as a contact begins, and a cluster that was never met has none.
`synchronous` is the baseline: download, rounds and upload of the whole model, planned to fit into one contact.

What a run is spared here: the bytes of other experts and of shared parts, pieces that are lost, and signals that end early. The
slacks of simulated time are given away too (`EASE`). Nothing here knows models, devices or protocols: windows, bytes, seconds.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from .plan import TIGHT_S, Contact, Direction

EASE = 2 * TIGHT_S
"""Share of bytes and rounds that simulated time may be spared by its own slacks, and then some."""
MOST_UPDATES = 1000
"""So many updates of a cluster are bounded, if a caller does not say."""
Cause = Literal["compute", "uplink", "downlink", "contact"]
"""What an update waits for: a local round, bytes in either direction, or to be met."""


@dataclass(frozen=True)
class Load:
    """What one update of a cluster takes, on each of its devices.

    Attributes:
        up_B: upload of everything that the cluster owns.
        down_B: the same parts, as they come down.
        round_s: the cheapest local round that trains some of it.
    """

    up_B: float
    down_B: float
    round_s: float


@dataclass(frozen=True)
class Carry:
    """Bytes that one window carries: ``contact`` counts the cluster's own, from 0."""

    contact: int
    from_s: float
    to_s: float
    size_B: float


@dataclass(frozen=True)
class Step:
    """One update, as early as it can be: a certificate that windows, rates and rounds allow it.

    ``known_s`` is infinite, and ``down`` incomplete, where the plan ends before the new version is down.
    """

    snapshot_s: float
    up: tuple[Carry, ...]
    stands_s: float
    down: tuple[Carry, ...] = ()
    known_s: float = math.inf


@dataclass(frozen=True)
class Bound:
    """Updates that a plan allows one cluster, and where the time goes.

    Attributes:
        steps: one for each update.
        spent_s: seconds by what they are waited for, up to the last update, or to the plan's end where there is none.
        unfinished: what the next update was waiting for when the plan ended; None if as many are here as were asked for.
    """

    steps: tuple[Step, ...]
    spent_s: dict[Cause, float]
    unfinished: Cause | None

    @property
    def update_s(self) -> list[float]:
        """The earliest second of each update."""
        return [step.stands_s for step in self.steps]

    @property
    def bottleneck(self) -> Cause | None:
        """What most of the time goes to; None where there is no time."""
        longest = max(self.spent_s.items(), key=lambda entry: entry[1], default=None)
        return longest[0] if longest and longest[1] > 0 else None


@dataclass(frozen=True)
class _Moved:
    """A transfer over the windows: its carries, and when it is done, in which window; infinity and none past the last."""

    carries: tuple[Carry, ...]
    done_s: float
    at: int


def _moved(contacts: Sequence[Contact], first: int, from_s: float, direction: Direction, size_B: float) -> _Moved:
    """As early as the windows from the ``first`` on carry it."""
    carries: list[Carry] = []
    left_B = size_B * (1 - EASE)
    for i in range(first, len(contacts)):
        contact = contacts[i]
        begin_s = max(from_s, contact.start_s)
        if begin_s > contact.end_s + TIGHT_S:
            continue
        done_s = contact.finish_s(direction, begin_s, left_B)
        if math.isfinite(done_s):
            return _Moved((*carries, Carry(i, begin_s, done_s, left_B)), done_s, i)
        room_B = min(left_B, contact.carried_B(direction, begin_s, contact.end_s))
        if room_B > 0:
            carries.append(Carry(i, begin_s, contact.end_s, room_B))
            left_B -= room_B
    return _Moved(tuple(carries), math.inf, len(contacts))


def network(contacts: Sequence[Contact], load: Load, horizon_s: float, most: int = MOST_UPDATES) -> Bound:
    """Updates by any protocol that snapshots all that the cluster owns at once.

    Args:
        contacts: those of the cluster, in order.
        horizon_s: when the plan ends.
        most: updates that are of interest.
    """
    return _bound(_exchanges(contacts, load), horizon_s, most)


def schedule(
    contacts: Sequence[Contact], load: Load, horizon_s: float, most: int = MOST_UPDATES, from_start: bool = False
) -> Bound:
    """Updates by EMS-FL: snapshots as a contact begins, at most one in a contact.

    Args:
        contacts: those of the cluster, in order.
        horizon_s: when the plan ends.
        most: updates that are of interest.
        from_start: clusters train from the plan's start, not from their first contact on.
    """
    return _bound(_meetings(contacts, load, from_start), horizon_s, most)


_Waits = list[tuple[Cause, float]]
"""Until when something was waited for, one after another."""


def _round_s(load: Load) -> float:
    return max(0.0, load.round_s * (1 - EASE) - EASE)


def _exchanges(contacts: Sequence[Contact], load: Load) -> Iterator[tuple[Step, _Waits]]:
    """Steps of `network`, the last of which may stand at infinity."""
    snapshot_s, first = _round_s(load), 0
    waits: _Waits = [("compute", snapshot_s)]
    while True:
        up = _moved(contacts, first, snapshot_s, "up", load.up_B)
        down = _moved(contacts, up.at, up.done_s, "down", load.down_B)
        waits += _waited(up, "uplink")
        yield Step(snapshot_s, up.carries, up.done_s, down.carries, down.done_s), waits
        trained_s = snapshot_s + _round_s(load)
        waits = [*_waited(down, "downlink"), ("compute", max(trained_s, down.done_s))]
        snapshot_s, first = max(trained_s, down.done_s), down.at


def _meetings(contacts: Sequence[Contact], load: Load, from_start: bool) -> Iterator[tuple[Step, _Waits]]:
    """Steps of `schedule`, the last of which may stand at infinity."""
    met_s = 0.0 if from_start else contacts[0].start_s if contacts else math.inf
    trained_s, first = met_s + _round_s(load), 0 if from_start else 1
    waits: _Waits = [("contact", met_s), ("compute", trained_s)]
    while True:
        while first < len(contacts) and contacts[first].start_s < trained_s - TIGHT_S:
            first += 1
        snapshot_s = contacts[first].start_s if first < len(contacts) else math.inf
        up = _moved(contacts, first, snapshot_s, "up", load.up_B)
        down = _moved(contacts, up.at, up.done_s, "down", load.down_B)
        waits += [("contact", snapshot_s), *_waited(up, "uplink")]
        yield Step(snapshot_s, up.carries, up.done_s, down.carries, down.done_s), waits
        trained_s, first = snapshot_s + _round_s(load), down.at + 1
        waits = [*_waited(down, "downlink"), ("compute", max(trained_s, down.done_s))]


def _waited(moved: _Moved, cause: Cause) -> _Waits:
    """A transfer waits to be met, and then for its bytes: a gap in the midst of it is the fault of the rate."""
    return [("contact", moved.carries[0].from_s if moved.carries else moved.done_s), (cause, moved.done_s)]


def _bound(steps: Iterator[tuple[Step, _Waits]], horizon_s: float, most: int) -> Bound:
    found: list[Step] = []
    spent_s: dict[Cause, float] = {}
    now_s = 0.0
    for step, waits in islice(steps, most):
        done = math.isfinite(step.stands_s)
        if not done and found:
            return Bound(tuple(found), spent_s, _cause_at(waits, horizon_s))
        for cause, until_s in waits:
            until_s = min(until_s, horizon_s)
            if until_s > now_s:
                spent_s[cause] = spent_s.get(cause, 0.0) + until_s - now_s
                now_s = until_s
        if not done:
            return Bound((), spent_s, _cause_at(waits, horizon_s))
        found.append(step)
    return Bound(tuple(found), spent_s, None)


def _cause_at(waits: _Waits, t_s: float) -> Cause:
    """What was waited for at a time."""
    return next((cause for cause, until_s in waits if until_s > t_s), waits[-1][0])


def synchronous(contacts: Sequence[Contact], load: Load, most: int = MOST_UPDATES) -> list[float]:
    """The earliest second of each round of the baseline: ``load`` is of the whole model, and a contact must hold a round.

    The baseline goes on with rounds until what is left of the contact is the time of the upload.
    """
    ends_s: list[float] = []
    round_s, left_B = _round_s(load), 0.0
    for contact in contacts:
        if len(ends_s) == most:
            break
        down_s = contact.finish_s("down", contact.start_s, left_B)
        if math.isinf(down_s):
            left_B = max(0.0, left_B - contact.carried_B("down", contact.start_s, contact.end_s))
            continue
        left_B = 0.0
        if contact.begin_s("up", contact.end_s, load.up_B * (1 - EASE)) - down_s + EASE < round_s:
            continue
        last_s = contact.begin_s("up", contact.end_s, load.up_B) - load.round_s * (1 + EASE) - EASE
        done_s = contact.finish_s("up", max(down_s + round_s, last_s), load.up_B * (1 - EASE))
        ends_s.append(min(done_s, contact.end_s))
        left_B = load.down_B * (1 - EASE)
    return ends_s


def delivered_s(contacts: Sequence[Contact], news: Sequence[tuple[float, float]]) -> float:
    """When pieces can be down that stand from given seconds on, as (second, bytes); infinity past the last window.

    Whatever stands at a second or later must travel after it, and nothing else bounds a broadcast.
    """
    ordered, ends_s = sorted(news), [contact.end_s for contact in contacts]
    left_B, reached_s = sum(size_B for _, size_B in ordered), 0.0
    for stands_s, size_B in ordered:
        if math.isinf(stands_s):
            return math.inf
        first = bisect.bisect_left(ends_s, stands_s - TIGHT_S)
        reached_s = max(reached_s, _moved(contacts, first, stands_s, "down", left_B).done_s)
        left_B -= size_B
    return reached_s
