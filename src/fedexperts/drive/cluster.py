"""What the devices of one cluster are doing between a protocol's awaits, and how fast they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..contact.plan import TIGHT_S, ContactPlan
from ..errors import InputError
from ..train.host import Host
from ..train.task import Task, Update
from .classes import DeviceClass
from .energy import Meter

MOST_STEPS = 1e12
"""Of a run: a thousand processors for years."""


@dataclass(frozen=True)
class Pace:
    """How fast devices are: seconds of one local round, and a cap on the rounds of a disconnected phase.

    Without seconds a round takes as long as its FLOPs do at the speed of the device's class.
    """

    seconds_per_round: float | None
    max_rounds: int | None = None

    def rounds(self, time_s: float, round_s: float) -> int:
        """Whole local rounds that a disconnected phase of this length has room for."""
        fit = whole_rounds(time_s, round_s)
        return fit if self.max_rounds is None else min(fit, self.max_rounds)


def whole_rounds(time_s: float, round_s: float) -> int:
    """Local rounds that end within a time; none where nothing bounds it, or nothing is trained."""
    return max(0, math.floor(time_s / round_s + TIGHT_S)) if math.isfinite(time_s) and math.isfinite(round_s) else 0


def check_steps(pace: Pace, plan: ContactPlan, cycles: int, a_round: int) -> None:
    """Refuse a run that would not end: ``a_round`` is the steps of all devices in a local round.

    Raises:
        InputError: all rounds that the plan has room for come to more than `MOST_STEPS`.
    """
    if pace.seconds_per_round is None or not cycles:
        return
    until_s = plan.cycle_ends_s[cycles - 1]
    rounds = until_s / pace.seconds_per_round
    if pace.max_rounds is not None:  # in a contact, and in the gap after it
        rounds = min(rounds, 2.0 * pace.max_rounds * (len(plan.contacts) + 1))
    if (steps := rounds * a_round) > MOST_STEPS:
        raise InputError(
            f"train.seconds_per_round = {pace.seconds_per_round:g}: {until_s:g} s have room for {rounds:.3g} rounds, with "
            f"{a_round:,} steps on all devices each {steps:.3g} gradient steps; at most {MOST_STEPS:g}: take longer rounds, "
            "fewer cycles, devices or train.local_steps, or set train.max_rounds"
        )


@dataclass(frozen=True)
class Phase:
    """So many local rounds of a task, from a time on."""

    task: Task
    since_s: float
    rounds: int


class ClusterState:
    """What the devices of one cluster are doing between awaits: their standing order, and uploads under way."""

    def __init__(self, host: Host, kind: DeviceClass):
        self.host = host
        self.meter = Meter(kind, len(host.devices))
        self.order: Task | None = None
        self.last: Task | None = None  # the last order but for those to rest
        self.since_s = 0.0
        self.training: Phase | None = None  # in contact
        self.booked = 0  # rounds of the phase under way that are in the totals already
        self.outbox: dict[str, list[tuple[Update, int]]] = {}  # device -> snapshots under way, and sends each one needs
        self.sent_B: dict[str, int] = {}  # device -> bytes of its outbox that have arrived
        self.heard_B: dict[tuple[str, int], int] = {}  # (part, version) -> bytes of an unfinished broadcast

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "host": self.host.state(),
            "order": self.order,
            "last": self.last,
            "since_s": self.since_s,
            "booked": self.booked,
            "outbox": self.outbox,
            "sent_B": self.sent_B,
            "heard_B": self.heard_B,
            "meter": self.meter.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.host.restore(state.pop("host"))
        vars(self.meter).update(state.pop("meter"))
        vars(self).update(state)
