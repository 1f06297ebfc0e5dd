"""The simulator: a contact plan, devices in this process, and a protocol, in simulated time.

Open contacts are coroutines that the simulator steps itself. Each await is an effect with a duration; completions are
taken from a heap by (time, kind, counter), so that overlapping contacts interleave in one fixed order. At equal times
completions come before ends of cycles, and those before new contacts.
"""

from __future__ import annotations

import gc
import heapq
import math
import types
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..contact.plan import TIGHT_S, Contact, ContactPlan
from ..errors import Diverged, warn_input
from ..moe.parts import MAX_UPDATE_NORM, Fitted, Piece, in_order, is_expert, unfitted
from ..protocol.link import ServerProtocol, SignalLost
from ..train.host import Host, Training, Trial
from ..train.task import Task
from .books import LOWER, Books
from .classes import DeviceClass
from .cluster import Pace
from .energy import shown
from .faults import NO_FAULTS, Faults
from .homes import Homes
from .visit import Effect, SimulatedLink, Visit

if TYPE_CHECKING:
    from ..ledger import Ledger

COMPLETION, CYCLE_END, CONTACT = 0, 1, 2
MANY_STEPS = 100_000
"""A warning is due above so many."""
SHORT = 'as a round is short for them (train.seconds_per_round = "device"); bound it by train.max_rounds'


def _told_s(t_s: float) -> float:
    """When a contact was lost, as the ledger says it, so that a simulation can be told to lose the same."""
    return math.ceil(t_s * 1e6) / 1e6


def warn_of_steps(steps: float, pace: Pace) -> None:
    """Warn of many gradient steps, counted in a plan that was played without training."""
    if steps > MANY_STEPS and pace.seconds_per_round is None and pace.max_rounds is None:
        warn_input(f"devices make some {steps:,.0f} gradient steps, {SHORT}")


class Simulator:
    """Drives one protocol through a contact plan.

    Args:
        plan: who can talk when.
        hosts: the devices of each cluster.
        pace: device speed.
        cycles: orbital cycles to run; fewer if the plan ends before.
        final_flush: one further contact per cluster, after training has ended, to collect what was not uploaded.
        evaluate: called at the end of each cycle with the global model and the cycle's number, and when all is over with None;
            its facts go to the ledger.
        closes_s: contacts (by their number in the plan) whose signal is lost before the planned end, and when.
        faults: random ones, from a seed.
        kinds: what the devices of each cluster are; phones where it does not say.
        trial_B: what a device uploads for a trial pass.
        first_uplink_B: what was uploaded before the first contact.
        homes: what others know of parts that stay with their clients; nobody, if left out.
        alike: first cycles in which the protocol would do the same in a longer run.
        max_update_norm: how far an update may lie from what was sent, see `Admission`.
        fitted: what of a piece the devices of a cluster take.
    """

    def __init__(
        self,
        plan: ContactPlan,
        hosts: Mapping[str, Host],
        pace: Pace,
        cycles: int,
        ledger: Ledger,
        evaluate: Callable[[dict[str, Piece], int | None], dict[str, Any]],
        final_flush: bool = True,
        closes_s: Mapping[int, float] | None = None,
        faults: Faults = NO_FAULTS,
        kinds: Mapping[str, DeviceClass] = types.MappingProxyType({}),
        trial_B: Callable[[Trial], int] = lambda trial: trial.counts_LM.nbytes,
        first_uplink_B: int = 0,
        homes: Homes | None = None,
        alike: int = 0,
        max_update_norm: float = MAX_UPDATE_NORM,
        fitted: Fitted = unfitted,
    ):
        self.plan, self.ledger, self.evaluate = plan, ledger, evaluate
        homes = homes or Homes()
        self.books = Books(hosts, kinds, pace, ledger, faults, trial_B, first_uplink_B, homes, max_update_norm, fitted)
        lost_s = {**faults.closes_s(plan), **(closes_s or {})}
        self.closes_s = {plan.contacts[i]: t_s for i, t_s in lost_s.items()}
        ends_s = plan.cycle_ends_s[:cycles]
        self.end_s = ends_s[-1] if len(ends_s) == cycles else plan.horizon_s
        self.cycle_ends_s = ends_s
        self.visits = [("contact", c) for c in plan.contacts if c.end_s <= self.end_s + TIGHT_S]
        self.expected = self._expected()
        self.alike = self._alike(alike)
        if final_flush:
            flushes = {c.cluster: c for c in reversed(plan.contacts) if c.start_s >= self.end_s - TIGHT_S}
            self.visits += [("flush", c) for c in sorted(flushes.values(), key=lambda c: c.start_s)]
        self.next_visit = 0
        self.training_over = False
        self.cycle_uplink_B = 0
        self.open = 0
        self.fresh = True  # nothing has happened yet
        self.now_s = 0.0

    def _expected(self) -> list[tuple[str, ...]]:
        """Clusters that each cycle has contacts with, in the plan's order."""
        seen: list[set[str]] = [set() for _ in self.cycle_ends_s]
        for _, contact in self.visits:
            if (cycle := self.plan.cycle_of(contact)) < len(seen):
                seen[cycle].add(contact.cluster)
        return [tuple(filter(names.__contains__, self.plan.clusters)) for names in seen]

    def _alike(self, cycles: int) -> int:
        """How many visits a longer run makes as well and in the same way, up to a moment at which no contact is open.

        It makes also those that the end cuts off, which others expect in their cycle.
        """
        cut = [c for c in self.plan.contacts if c.start_s < self.end_s < c.end_s - TIGHT_S]
        cycles = min([cycles, *map(self.plan.cycle_of, cut)])
        visits = [contact for _, contact in self.visits]
        found, closed, open_s = 0, 0, 0.0
        for contact in visits:
            if open_s <= contact.start_s:
                closed = found
            if self.plan.cycle_of(contact) >= cycles:
                return closed
            found, open_s = found + 1, max(open_s, contact.end_s)
        return found if open_s <= self.end_s else closed

    def parting(self) -> bool:
        """Whether this run, in which no contact is open, is for the last time in a state that a longer run goes through too."""
        if not self.alike or self.next_visit != self.alike or self.training_over or not self.heap:
            return False
        _, kind, _, action = self.heap[0]
        return kind == CONTACT or action == self._end_training

    def run(self, protocol: ServerProtocol, pause: Callable[[], None] = lambda: None, foretell: bool = True) -> None:
        """Play the plan to its end; ``pause`` is called whenever no contact is open (the moment for a checkpoint).

        ``foretell`` warns of many gradient steps before they are made; who plays without training counts them afterwards.
        """
        self.protocol = protocol
        if self.fresh:
            if foretell:
                self._warn_of_many_steps(protocol.model)
            self.books.gate.begin(protocol.model, self.books.fitted)
            self._first_orders()
        self.heap: list[tuple[float, int, int, Callable[[float], None]]] = []
        self.counter = 0
        for i in range(self.next_visit, len(self.visits)):
            self._at(self.visits[i][1].start_s, CONTACT, self._begin)
        for end_s in self.cycle_ends_s[self.books.cycle :]:
            self._at(end_s, CYCLE_END, self._end_cycle)
        if not self.training_over:
            self._at(self.end_s, CYCLE_END, self._end_training)
        gc.freeze()  # models, data and modules stay; to look through them again and again takes a quarter of small work
        try:
            while self.heap:
                self.now_s, _, _, action = heapq.heappop(self.heap)
                action(self.now_s)
                if not self.open:
                    pause()
        finally:
            gc.unfreeze()
        self._finish()

    def state(self) -> dict[str, Any]:
        """Everything that changes, when no contact is open."""
        return {
            "books": self.books.state(),
            "now_s": self.now_s,
            "next_visit": self.next_visit,
            "training_over": self.training_over,
            "cycle_uplink_B": self.cycle_uplink_B,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.books.restore(state.pop("books"))
        vars(self).update(state)
        self.fresh = False

    def _warn_of_many_steps(self, model: Mapping[str, Piece]) -> None:
        """Devices that are fast for their slots make thousands of rounds, in silence."""
        if self.books.pace.seconds_per_round is not None or self.books.pace.max_rounds is not None:
            return
        starts_s: dict[str, float] = {}
        for _, contact in self.visits:
            starts_s.setdefault(contact.cluster, contact.start_s)
        steps = 0.0
        for name, start_s in starts_s.items():
            host = self.books.clusters[name].host
            one = next(part for part in in_order(model) if is_expert(part))
            rounds = max(0.0, self.end_s - start_s) / self.books.round_s(name, Task(frozenset({one})))
            steps += rounds * host.local_steps * len(host.devices)
        if steps > MANY_STEPS:
            warn_input(f"devices that train all the time would make some {steps:,.0f} gradient steps, {SHORT}")

    def _first_orders(self) -> None:
        """What clusters do until they are met; nothing, if the protocol does not say."""
        self.fresh = False
        first_order: Callable[[str], Task | None] = getattr(self.protocol, "first_order", lambda name: None)
        for name, cluster in self.books.clusters.items():
            cluster.order = cluster.last = first_order(name)
            cluster.host.part(partial(self._at_first, name))

    def _at_first(self, name: str) -> Training | None:
        cluster = self.books.clusters[name]
        return self.books.ahead(name, cluster.order, cluster.since_s, self._until_s(name, 0.0))

    def _at(self, t_s: float, kind: int, action: Callable[[float], None]) -> None:
        self.counter += 1
        heapq.heappush(self.heap, (t_s, kind, self.counter, action))

    def _end_cycle(self, t_s: float) -> None:
        self.books.cycle += 1
        self.books.book_under_way(t_s)
        self.books.read_meters(t_s, self.books.cycle)
        self.cycle_uplink_B = self.books.totals["uplink_B"]
        facts = self._facts(self.books.cycle)
        if facts:
            self.ledger.write("evaluate", t_s, cycle=self.books.cycle, **self.books.totals, **facts)
        self.ledger.flush()

    def _facts(self, cycle: int | None) -> dict[str, Any]:
        """What the model is worth.

        Raises:
            Diverged: its loss is not finite.
        """
        facts = self.evaluate(self.protocol.model, cycle)
        if not math.isfinite(facts.get("loss", 0.0)):
            self.ledger.flush()
            when = "at the end" if cycle is None else f"of cycle {cycle}"
            raise Diverged(f"the evaluation {when} is not finite (loss {facts['loss']}): {LOWER}")
        return facts

    def _end_training(self, t_s: float) -> None:
        self.training_over = True
        for name in self.books.clusters:
            self.books.catch_up(name, t_s)

    def _finish(self) -> None:
        t_s = max([self.end_s] + [contact.end_s for kind, contact in self.visits if kind == "flush"])
        books, unsent = self.books, self.books.unsent_rounds()
        books.read_meters(t_s, books.cycle + 1)  # the rest: training up to the end, and the flush
        facts = {"energy_per_device": {name: shown(cluster.meter.total_J) for name, cluster in books.clusters.items()}}
        facts |= self._facts(None)
        late = books.totals["uplink_B"] > self.cycle_uplink_B  # something arrived after the last whole cycle
        cycles = len(self.cycle_ends_s)
        self.ledger.write("end", t_s, cycles=cycles, late=late, unsent_rounds=unsent, **books.totals, **facts)
        self.ledger.flush()

    def _begin(self, t_s: float) -> None:
        kind, contact = self.visits[self.next_visit]
        self.next_visit += 1
        standing = self.books.clusters[contact.cluster].order  # holds until a new one has arrived
        self.books.clusters[contact.cluster].host.meet(contact.start_s, contact.end_s)
        self.books.catch_up(contact.cluster, t_s)
        self.ledger.write(kind, t_s, cluster=contact.cluster, satellite=contact.satellite, until_s=round(contact.end_s, 6))
        until_s = partial(self._until_s, contact.cluster, contact.end_s)
        link = SimulatedLink(self.books, self.protocol, self._visit(contact), standing, until_s)
        verb = self.protocol.contact if kind == "contact" else getattr(self.protocol, "flush", None)
        if verb is None:
            link.host.part(lambda: None)
            return
        self.open += 1
        self._step(link, verb(link), t_s, None)

    def _visit(self, contact: Contact) -> Visit:
        cycle = min(self.books.cycle, max(len(self.cycle_ends_s) - 1, 0))
        gap = self.plan.next_start_s(contact.cluster, contact.end_s) > contact.end_s + TIGHT_S
        expected = self.expected[cycle] if self.expected else ()
        return Visit(contact, cycle, self.closes_s.get(contact, contact.end_s), expected, gap)

    def _step(self, link: SimulatedLink, coroutine: Coroutine[Effect, Any, None], t_s: float, value: Any) -> None:
        link.now_s = t_s
        try:
            effect = coroutine.throw(value) if isinstance(value, SignalLost) else coroutine.send(value)
        except StopIteration:
            if self._tells(link):
                self._over(link)
            else:
                self._over(link, SignalLost(*filter(None, (link.host.away,))), _told_s(t_s))
            return
        except SignalLost as lost:
            self._over(link, lost, t_s)
            return
        done_s, away = t_s + effect.duration_s, effect.asks and bool(link.host.away)
        if away:
            link.closes_s = min(link.closes_s, _told_s(t_s))

        def complete(now_s: float) -> None:
            link.now_s = now_s
            self._step(link, coroutine, now_s, effect.done())

        def lose(now_s: float) -> None:
            link.now_s = now_s
            effect.lost(now_s - t_s)
            self._step(link, coroutine, now_s, SignalLost(*filter(None, (link.host.away,))))

        if done_s <= link.closes_s + TIGHT_S and not away:
            self._at(max(t_s, min(done_s, link.closes_s)), COMPLETION, complete)  # not a rounding error after the end
        else:
            self._at(max(t_s, link.closes_s), COMPLETION, lose)

    def _tells(self, link: SimulatedLink) -> bool:
        """The protocol has ended, and its devices tell what stays with them; not if the contact was lost just then."""
        host, name = link.host, link.cluster
        if not (untold := in_order(self.books.untold[name])):
            return True
        if (cut_s := self.closes_s.get(link.contact)) is not None and _told_s(link.now_s) > cut_s - TIGHT_S:
            return False
        host.foresee("own", (untold,), lambda: link.goes_on(link.state.order, link.state.since_s))
        if host.away:
            return False
        self.books.told(name, host.own(untold))
        return True

    def _over(self, link: SimulatedLink, lost: SignalLost | None = None, lost_s: float = 0.0) -> None:
        self.open -= 1
        link.host.part(lambda: link.goes_on(link.state.order, link.state.since_s))
        self.books.count_late(link.cluster)
        if lost is not None:
            self.ledger.write("lost", lost_s, cluster=link.cluster, **({"reason": str(lost)} if lost.args else {}))

    def _until_s(self, name: str, from_s: float) -> float:
        """When a cluster that is out of contact from then on stops what it does: at its next contact, or with training."""
        return min(self.plan.next_start_s(name, from_s), self.end_s)
