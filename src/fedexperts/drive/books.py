"""The accounts of a run in simulated time: how long work takes, and what it has cost when it is done.

Steps, FLOPs and joules count when they are done; training itself is computed in one go, when its phase ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Diverged
from ..moe.parts import MAX_UPDATE_NORM, Fitted, Tensors, in_order, unfitted
from ..protocol.admission import Admission
from ..train.task import Experts, Task
from .classes import PHONE, DeviceClass
from .cluster import ClusterState, Pace, whole_rounds
from .energy import shown
from .faults import Faults
from .homes import Homes

if TYPE_CHECKING:
    from ..ledger import Ledger
    from ..train.host import Host, Trained, Training, Trial

LOWER = "lower train.lr_expert or train.lr_gate, with --set, and go on with --resume"


class Books:
    """What the clusters of a run are doing, and its totals.

    Args:
        hosts: the devices of each cluster.
        kinds: what the devices of each cluster are; phones where it does not say.
        pace: device speed.
        ledger: where all of it is written.
        faults: random ones, from a seed.
        trial_B: what a device uploads for a trial pass.
        first_uplink_B: what was uploaded before the first contact.
        homes: what others know of parts that stay with their clients.
        max_update_norm: see `Admission`.
        fitted: what of a piece the devices of a cluster take.
    """

    def __init__(
        self,
        hosts: Mapping[str, Host],
        kinds: Mapping[str, DeviceClass],
        pace: Pace,
        ledger: Ledger,
        faults: Faults,
        trial_B: Callable[[Trial], int],
        first_uplink_B: int,
        homes: Homes,
        max_update_norm: float = MAX_UPDATE_NORM,
        fitted: Fitted = unfitted,
    ):
        self.clusters = {name: ClusterState(host, kinds.get(name, PHONE)) for name, host in hosts.items()}
        self.pace, self.ledger, self.faults, self.trial_B = pace, ledger, faults, trial_B
        self.homes, self.fitted = homes, fitted
        self.untold: dict[str, set[str]] = {name: set() for name in hosts}  # parts that stay there, as nobody else knows them
        declared = {name: dict(zip(host.devices, host.samples, strict=True)) for name, host in hosts.items()}
        self.gate = Admission(declared, max_update_norm)
        self.cycle = 0  # whole cycles so far
        self.totals = {"steps": 0, "uplink_B": first_uplink_B, "downlink_B": 0}
        self.finite: dict[str, dict[str, bool]] = {}  # part -> cluster -> whether a device had finite numbers of it last

    def round_s(self, name: str, task: Task) -> float:
        """Seconds of a local round; of devices that differ in speed, those of the slowest."""
        if self.pace.seconds_per_round is not None or not task.parts:
            return (self.pace.seconds_per_round or math.inf) / task.speed
        cluster = self.clusters[name]
        flops = cluster.host.local_steps * max(cluster.host.flops(task))
        return max(1, flops) / cluster.meter.kind.flops_per_s / task.speed

    def train(self, name: str, task: Task, rounds: int, t_s: float, phase: Literal["connected", "disconnected"]) -> None:
        """Let all devices of a cluster do local rounds, which end now."""
        cluster, round_s = self.clusters[name], self.round_s(name, task)
        if rounds <= 0 or not task.parts:
            return
        self._book(cluster, task, rounds)
        cluster.booked = 0
        self.gate.ordered(name, task, rounds)
        done = cluster.host.train(task, rounds, round_s, self.peers(name, task))
        self.untold[name] |= task.keeps
        self._keep_finite(name, task, done, t_s)
        facts = {"cluster": name, "phase": phase, "parts": in_order(task.parts), "rounds": rounds, "steps": done.steps}
        if done.loss is not None:
            facts["loss"] = round(done.loss, 6)
        if task.goal != "task":
            facts["goal"] = task.goal
        if done.peer_B:
            facts["peer_B"] = done.peer_B
            self._asked(done.peer_B)
        self.ledger.write("train", t_s, **facts)

    def peers(self, name: str, task: Task) -> Experts | None:
        """Experts of others that a task is trained with."""
        return self.homes.others(name) if task.peers else None

    def told(self, name: str, parts: Mapping[str, Tensors]) -> None:
        """A contact has ended, and with it a cluster has told what stays there."""
        self.homes.tell(name, parts)
        self.untold[name] -= set(parts)

    def count_late(self, name: str) -> None:
        """What a cluster has asked of others, where it could tell that only in a contact after."""
        if late_B := self.clusters[name].host.late_B():
            self._asked(late_B)

    def _asked(self, size_B: int) -> None:
        self.totals["peer_B"] = self.totals.get("peer_B", 0) + size_B

    def _keep_finite(self, name: str, task: Task, done: Trained, t_s: float) -> None:
        """What has left the finite numbers, or all bounds, stays on its device and is given up there; the others go on.

        Raises:
            Diverged: that has happened to all devices that trained a part last.
        """
        for device, parts in done.broken.items():
            if parts:
                self.ledger.write("refuse", t_s, cluster=name, device=device, parts=parts, reason="diverged")
        for part in in_order(task.parts):
            links = self.finite.setdefault(part, {})
            links[name] = not all(part in parts for parts in done.broken.values())
            if not any(links.values()):
                self.ledger.flush()
                where = f"cluster {', '.join(links)}, cycle {self.cycle + 1}"
                raise Diverged(
                    f"{part} has diverged in local training on all devices ({where}): it is not finite, or further from what "
                    f"was sent than train.max_update_norm lets it be; {LOWER}, or raise train.max_update_norm"
                )

    def _book(self, cluster: ClusterState, task: Task, rounds: int) -> None:
        """Count steps and FLOPs of the first ``rounds`` rounds of the phase under way, less what was counted before."""
        if rounds > cluster.booked:
            steps = (rounds - cluster.booked) * cluster.host.local_steps
            self.totals["steps"] += steps * len(cluster.host.devices)
            cluster.meter.flops += steps * sum(cluster.host.flops(task))
            if not cluster.booked:
                cluster.meter.flops += cluster.host.flops_beside(task)
        cluster.booked = max(cluster.booked, rounds)

    def book_under_way(self, t_s: float) -> None:
        """What has been done so far counts already."""
        for name, cluster in self.clusters.items():
            if (phase := cluster.training) is not None:
                rounds = whole_rounds(t_s - phase.since_s, self.round_s(name, phase.task))
                self._book(cluster, phase.task, min(rounds, phase.rounds))
            elif cluster.order is not None and cluster.order.parts:
                self._book(cluster, cluster.order, self._rounds_away(name, cluster.order, t_s))

    def catch_up(self, name: str, until_s: float) -> None:
        """Disconnected phase: the rounds of the standing order between the last contact and now."""
        cluster = self.clusters[name]
        if cluster.order is not None:
            self.train(name, cluster.order, self._rounds_away(name, cluster.order, until_s), until_s, "disconnected")
        cluster.order = None

    def _rounds_away(self, name: str, order: Task, until_s: float) -> int:
        """Rounds of the standing order between the last contact and a time."""
        return self._rounds_between(name, order, self.clusters[name].since_s, until_s)

    def ahead(self, name: str, order: Task | None, from_s: float, until_s: float) -> Training | None:
        """What a cluster that follows an order between two times does then; None if nothing."""
        if order is None or not order.parts:
            return None
        rounds = self._rounds_between(name, order, from_s, until_s)
        return order, rounds, self.round_s(name, order), self.peers(name, order)

    def _rounds_between(self, name: str, order: Task, from_s: float, until_s: float) -> int:
        """Rounds of an order that is followed out of contact."""
        rounds = self.pace.rounds(until_s - from_s, self.round_s(name, order))
        return rounds if order.rounds is None else min(rounds, order.rounds)

    def read_meters(self, t_s: float, cycle: int) -> None:
        """A line of joules by device, for the time since the last."""
        per_device = {name: shown(cluster.meter.read(t_s)) for name, cluster in self.clusters.items()}
        self.ledger.write("energy", t_s, cycle=cycle, per_device=per_device)

    def unsent_rounds(self) -> int:
        """Local rounds that no contact has carried."""
        return sum(cluster.host.unsent_rounds() for cluster in self.clusters.values())

    def state(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "clusters": {name: cluster.state() for name, cluster in self.clusters.items()},
            "cycle": self.cycle,
            "finite": self.finite,
            "gate": self.gate.state(),
            "totals": self.totals,
            "told": self.homes.told,
            "untold": self.untold,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        for name, saved in state.pop("clusters").items():
            self.clusters[name].restore(saved)
        if gate := state.pop("gate", None):
            self.gate.restore(gate)
        else:
            self._owed_before()
        if "told" in state:
            self.homes.told.update(state.pop("told"))
        else:
            self._tell_all()
        vars(self).update(state)

    def _tell_all(self) -> None:
        """A checkpoint from before clients told what stays with them, in which others knew it as it was."""
        for name, cluster in self.clusters.items():
            for device in cluster.host.state().get("devices", {}).values():
                mine = {part: tensors for part, tensors in device["trained"].items() if part in self.homes.model}
                self.homes.tell(name, mine)

    def _owed_before(self) -> None:
        """A checkpoint from before there was a gate: what devices hold, and have not delivered, is what they may deliver."""
        for name, cluster in self.clusters.items():
            for device, saved in cluster.host.state().get("devices", {}).items():
                self.gate.held[name] = {part: [piece] for part, piece in saved["held"].items()}
                self.gate.accounts[device].ordered = dict(saved["pending"])
                for update, _ in cluster.outbox.get(device, ()):
                    part = update.piece.part
                    self.gate.accounts[device].asked[part] = update.rounds, update.size_B
                    self.gate.accounts[device].coming.add(part)
