"""The simulator: a contact plan, devices in this process, and a protocol, in simulated time.

Open contacts are coroutines that the simulator steps itself. Each await is an effect with a duration; completions are
taken from a heap by (time, kind, counter), so that overlapping contacts interleave in one fixed order. At equal times
completions come before ends of cycles, and those before new contacts.
"""

from __future__ import annotations

import heapq
import math
import types
import warnings
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..contact.plan import TIGHT_S, ContactPlan
from ..errors import Diverged, InputWarning
from ..ledger import Ledger
from ..moe.parts import Piece, in_order, is_expert
from ..protocol.link import ServerProtocol, SignalLost
from ..train.device import Device
from ..train.task import Task
from .classes import PHONE, DeviceClass
from .cluster import ClusterState, Pace, whole_rounds
from .energy import shown
from .faults import NO_FAULTS, Faults
from .link import Effect, SimulatedLink

COMPLETION, CYCLE_END, CONTACT = 0, 1, 2
MANY_STEPS = 100_000
"""A warning is due above so many."""
LOWER = "lower train.lr_expert or train.lr_gate, with --set, and go on with --resume"


class Simulator:
    """Drives one protocol through a contact plan.

    Args:
        plan: who can talk when.
        devices: the devices of each cluster, in a fixed order.
        pace: device speed.
        cycles: orbital cycles to run; fewer if the plan ends before.
        final_flush: one further contact per cluster, after training has ended, to collect what was not uploaded.
        evaluate: called at the end of each cycle with the global model and the cycle's number, and when all is over with None;
            its facts go to the ledger.
        closes_s: contacts (by their number in the plan) whose signal is lost before the planned end, and when.
        faults: random ones, from a seed.
        kinds: what the devices of each cluster are; phones where it does not say.
        trial_B: what a device uploads for a trial pass with these counts_LM.
        first_uplink_B: what was uploaded before the first contact.
    """

    def __init__(
        self,
        plan: ContactPlan,
        devices: dict[str, list[Device]],
        pace: Pace,
        cycles: int,
        ledger: Ledger,
        evaluate: Callable[[dict[str, Piece], int | None], dict[str, Any]],
        final_flush: bool = True,
        closes_s: Mapping[int, float] | None = None,
        faults: Faults = NO_FAULTS,
        kinds: Mapping[str, DeviceClass] = types.MappingProxyType({}),
        trial_B: Callable[[Device, NDArray[np.int64]], int] = lambda device, counts_LM: counts_LM.nbytes,
        first_uplink_B: int = 0,
    ):
        self.plan, self.pace, self.ledger, self.evaluate = plan, pace, ledger, evaluate
        self.clusters = {name: ClusterState(group, kinds.get(name, PHONE)) for name, group in devices.items()}
        self.faults = faults
        lost_s = {**faults.closes_s(plan), **(closes_s or {})}
        self.closes_s = {plan.contacts[i]: t_s for i, t_s in lost_s.items()}
        ends_s = plan.cycle_ends_s[:cycles]
        self.end_s = ends_s[-1] if len(ends_s) == cycles else plan.horizon_s
        self.cycle_ends_s = ends_s
        self.visits = [("contact", c) for c in plan.contacts if c.end_s <= self.end_s + TIGHT_S]
        self.expected = self._expected()
        if final_flush:
            flushes = {c.cluster: c for c in reversed(plan.contacts) if c.start_s >= self.end_s - TIGHT_S}
            self.visits += [("flush", c) for c in sorted(flushes.values(), key=lambda c: c.start_s)]
        self.next_visit = self.next_cycle = 0
        self.training_over = False
        self.totals = {"steps": 0, "uplink_B": first_uplink_B, "downlink_B": 0}
        self.cycle_uplink_B = 0
        self.flops: dict[tuple[str, str, int, frozenset[str], bool, str, int], int] = {}
        self.finite: dict[str, dict[str, bool]] = {}  # part -> cluster -> whether a device had finite numbers of it last
        self.trial_B = trial_B
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

    def run(self, protocol: ServerProtocol, pause: Callable[[], None] = lambda: None) -> None:
        """Play the plan to its end; ``pause`` is called whenever no contact is open (the moment for a checkpoint)."""
        self.protocol = protocol
        if self.fresh:
            self._warn_of_many_steps()
            self._first_orders()
        self.heap: list[tuple[float, int, int, Callable[[float], None]]] = []
        self.counter = 0
        for i in range(self.next_visit, len(self.visits)):
            self._at(self.visits[i][1].start_s, CONTACT, self._begin)
        for end_s in self.cycle_ends_s[self.next_cycle :]:
            self._at(end_s, CYCLE_END, self._end_cycle)
        if not self.training_over:
            self._at(self.end_s, CYCLE_END, self._end_training)
        while self.heap:
            self.now_s, _, _, action = heapq.heappop(self.heap)
            action(self.now_s)
            if not self.open:
                pause()
        self._finish()

    def state(self) -> dict[str, Any]:
        """Everything that changes, when no contact is open."""
        return {
            "clusters": {name: cluster.state() for name, cluster in self.clusters.items()},
            "now_s": self.now_s,
            "next_visit": self.next_visit,
            "next_cycle": self.next_cycle,
            "training_over": self.training_over,
            "cycle_uplink_B": self.cycle_uplink_B,
            "flops": self.flops,
            "finite": self.finite,
            "totals": self.totals,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        for name, saved in state.pop("clusters").items():
            self.clusters[name].restore(saved)
        vars(self).update(state)
        self.fresh = False

    def _warn_of_many_steps(self) -> None:
        """Devices that are fast for their slots make thousands of rounds, in silence."""
        if self.pace.seconds_per_round is not None or self.pace.max_rounds is not None:
            return
        starts_s: dict[str, float] = {}
        for _, contact in self.visits:
            starts_s.setdefault(contact.cluster, contact.start_s)
        steps = 0.0
        for name, start_s in starts_s.items():
            devices = self.clusters[name].devices
            one = next(part for part in in_order(devices[0].held) if is_expert(part))
            rounds = max(0.0, self.end_s - start_s) / self.round_s(name, Task(frozenset({one})))
            steps += rounds * sum(device.local.local_steps for device in devices)
        if steps > MANY_STEPS:
            warnings.warn(
                f"devices that train all the time would make some {steps:,.0f} gradient steps, as a round is short for them "
                '(train.seconds_per_round = "device"); bound it by train.max_rounds',
                InputWarning,
                stacklevel=2,
            )

    def _first_orders(self) -> None:
        """What clusters do until they are met; nothing, if the protocol does not say."""
        self.fresh = False
        first_order: Callable[[str], Task | None] = getattr(self.protocol, "first_order", lambda name: None)
        for name, cluster in self.clusters.items():
            cluster.order = cluster.last = first_order(name)

    def _at(self, t_s: float, kind: int, action: Callable[[float], None]) -> None:
        self.counter += 1
        heapq.heappush(self.heap, (t_s, kind, self.counter, action))

    def _end_cycle(self, t_s: float) -> None:
        self.next_cycle += 1
        self._book_under_way(t_s)
        self._read_meters(t_s, self.next_cycle)
        self.cycle_uplink_B = self.totals["uplink_B"]
        facts = self._facts(self.next_cycle)
        if facts:
            self.ledger.write("evaluate", t_s, cycle=self.next_cycle, **self.totals, **facts)
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

    def _read_meters(self, t_s: float, cycle: int) -> None:
        per_device = {name: shown(cluster.meter.read(t_s)) for name, cluster in self.clusters.items()}
        self.ledger.write("energy", t_s, cycle=cycle, per_device=per_device)

    def _end_training(self, t_s: float) -> None:
        self.training_over = True
        for name in self.clusters:
            self._catch_up(name, t_s)

    def _finish(self) -> None:
        t_s = max([self.end_s] + [contact.end_s for kind, contact in self.visits if kind == "flush"])
        unsent = sum(max(d.pending.values(), default=0) for c in self.clusters.values() for d in c.devices)
        self._read_meters(t_s, self.next_cycle + 1)  # the rest: training up to the end, and the flush
        facts = {"energy_per_device": {name: shown(cluster.meter.total_J) for name, cluster in self.clusters.items()}}
        facts |= self._facts(None)
        late = self.totals["uplink_B"] > self.cycle_uplink_B  # something arrived after the last whole cycle
        cycles = len(self.cycle_ends_s)
        self.ledger.write("end", t_s, cycles=cycles, late=late, unsent_rounds=unsent, **self.totals, **facts)
        self.ledger.flush()

    def _begin(self, t_s: float) -> None:
        kind, contact = self.visits[self.next_visit]
        self.next_visit += 1
        standing = self.clusters[contact.cluster].order  # holds until a new one has arrived
        self._catch_up(contact.cluster, t_s)
        self.ledger.write(kind, t_s, cluster=contact.cluster, satellite=contact.satellite, until_s=round(contact.end_s, 6))
        link = SimulatedLink(self, contact, min(self.next_cycle, max(len(self.cycle_ends_s) - 1, 0)), standing)
        verb = self.protocol.contact if kind == "contact" else getattr(self.protocol, "flush", None)
        if verb is None:
            return
        self.open += 1
        self._step(link, verb(link), t_s, None)

    def _step(self, link: SimulatedLink, coroutine: Coroutine[Effect, Any, None], t_s: float, value: Any) -> None:
        link.now_s = t_s
        try:
            effect = coroutine.throw(value) if isinstance(value, SignalLost) else coroutine.send(value)
        except StopIteration:
            self.open -= 1
            return
        except SignalLost:
            self.open -= 1
            self.ledger.write("lost", t_s, cluster=link.cluster)
            return
        done_s = t_s + effect.duration_s

        def complete(now_s: float) -> None:
            link.now_s = now_s
            self._step(link, coroutine, now_s, effect.done())

        def lose(now_s: float) -> None:
            link.now_s = now_s
            effect.lost(now_s - t_s)
            self._step(link, coroutine, now_s, SignalLost())

        if done_s <= link.closes_s + TIGHT_S:
            self._at(max(t_s, min(done_s, link.closes_s)), COMPLETION, complete)  # not a rounding error after the end
        else:
            self._at(max(t_s, link.closes_s), COMPLETION, lose)

    def train(self, name: str, task: Task, rounds: int, t_s: float, phase: Literal["connected", "disconnected"]) -> None:
        """Let all devices of a cluster do local rounds."""
        cluster, round_s = self.clusters[name], self.round_s(name, task)
        if rounds <= 0 or not task.parts:
            return
        self._book(name, task, rounds)
        cluster.booked = 0
        peer_B = -sum(device.member.peer_B for device in cluster.devices if device.member is not None)
        steps = sum(device.train(task, rounds, round_s) for device in cluster.devices)
        self._keep_finite(name, task, t_s)
        facts = {"cluster": name, "phase": phase, "parts": in_order(task.parts), "rounds": rounds, "steps": steps}
        if peer_B := peer_B + sum(device.member.peer_B for device in cluster.devices if device.member is not None):
            facts["peer_B"] = peer_B
            self.totals["peer_B"] = self.totals.get("peer_B", 0) + peer_B
        self.ledger.write("train", t_s, **facts)

    def _keep_finite(self, name: str, task: Task, t_s: float) -> None:
        """What has left the finite numbers stays on its device and is given up there; the others go on.

        Raises:
            Diverged: that has happened to all devices that trained a part last.
        """
        devices = self.clusters[name].devices
        broken = {device.name: device.diverged(task.parts) for device in devices}
        for device, parts in broken.items():
            if parts:
                self.ledger.write("refuse", t_s, cluster=name, device=device, parts=parts, reason="not finite")
        for part in in_order(task.parts):
            links = self.finite.setdefault(part, {})
            links[name] = not all(part in parts for parts in broken.values())
            if not any(links.values()):
                self.ledger.flush()
                where = f"cluster {', '.join(links)}, cycle {self.next_cycle + 1}"
                raise Diverged(f"{part} is not finite after local training on any device ({where}): {LOWER}")

    def _book(self, name: str, task: Task, rounds: int) -> None:
        """Count steps and FLOPs of the first ``rounds`` rounds of the phase under way, less what was counted before."""
        cluster = self.clusters[name]
        for device in cluster.devices if rounds > cluster.booked else ():
            steps = (rounds - cluster.booked) * device.local.local_steps
            self.totals["steps"] += steps
            cluster.meter.flops += self._flops_per_step(name, device, task) * steps
            if device.member is not None and not cluster.booked:
                cluster.meter.flops += device.member.spent(device, task)
        cluster.booked = max(cluster.booked, rounds)

    def _book_under_way(self, t_s: float) -> None:
        """What has been done counts when it is done; the training itself is computed in one go, when the phase ends."""
        for name, cluster in self.clusters.items():
            if (phase := cluster.training) is not None:
                rounds = whole_rounds(t_s - phase.since_s, self.round_s(name, phase.task))
                self._book(name, phase.task, min(rounds, phase.rounds))
            elif cluster.order is not None and cluster.order.parts:
                self._book(name, cluster.order, self._rounds_away(name, cluster.order, t_s))

    def round_s(self, name: str, task: Task) -> float:
        """Seconds of a local round; of devices that differ in speed, those of the slowest."""
        if self.pace.seconds_per_round is not None or not task.parts:
            return self.pace.seconds_per_round or math.inf
        cluster = self.clusters[name]
        flops = max(d.local.local_steps * self._flops_per_step(name, d, task) for d in cluster.devices)
        return max(1, flops) / cluster.meter.kind.flops_per_s

    def _flops_per_step(self, name: str, device: Device, task: Task) -> int:
        """Measured once for each cluster and kind of task: how many experts, which shared parts, masked or not, what batch.

        Clusters differ in the lengths of their data and in what their gate picks; devices of one cluster where lengths vary.
        """
        shared = frozenset(part for part in task.parts if not is_expert(part))
        batch = min(device.local.batch_size or device.samples, device.samples)
        who = device.name if device.lengths_vary else ""
        kind = (name, who, len(task.parts) - len(shared), shared, task.route is not None, task.goal, batch)
        if kind not in self.flops:
            self.flops[kind] = device.flops_per_step(task)
        return self.flops[kind]

    def _catch_up(self, name: str, until_s: float) -> None:
        """Disconnected phase: the rounds of the standing order between the last contact and now."""
        cluster = self.clusters[name]
        if cluster.order is not None:
            self.train(name, cluster.order, self._rounds_away(name, cluster.order, until_s), until_s, "disconnected")
        cluster.order = None

    def _rounds_away(self, name: str, order: Task, until_s: float) -> int:
        """Rounds of the standing order between the last contact and a time."""
        rounds = self.pace.rounds(until_s - self.clusters[name].since_s, self.round_s(name, order))
        return rounds if order.rounds is None else min(rounds, order.rounds)
