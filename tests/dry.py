"""Runs of protocols over plans with devices that do not train: pieces of a few numbers, uploads of any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fedexperts.contact.bound import Load
from fedexperts.contact.plan import Contact, ContactPlan, Rates
from fedexperts.drive.classes import DeviceClass
from fedexperts.drive.cluster import Pace
from fedexperts.drive.faults import NO_FAULTS, Faults
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.moe.parts import Piece
from fedexperts.protocol.ems_fl import EnhancedEmsFl
from fedexperts.protocol.link import Start
from fedexperts.train.dry import DryHost
from fedexperts.train.task import Task


@dataclass(frozen=True)
class Case:
    """A plan, who owns what, and what it weighs."""

    plan: ContactPlan
    owned: Mapping[str, tuple[int, ...]]
    up_B: Mapping[str, int]  # by part, the shared head among them
    numbers: Mapping[str, int]  # of a part as it comes down
    seconds_per_round: float | None = 1.0
    cycles: int = 3
    devices: int = 1
    first_cycle: str = "met"
    max_rounds: int | None = None
    faults: Faults = NO_FAULTS
    closes_s: Mapping[int, float] = field(default_factory=dict)

    def model(self) -> dict[str, Piece]:
        return {part: Piece(part, 0, {"w": torch.zeros(n)}) for part, n in self.numbers.items()}

    def parts(self, cluster: str) -> list[str]:
        return [f"expert:{m}" for m in self.owned[cluster]]

    def step_flops(self, task: Task) -> int:
        """Of one step: more for each part, less behind a mask."""
        return 100 * len(task.parts) + (50 if task.route is None else 0)

    def round_s(self, cluster: str) -> float:
        tasks = [Task(frozenset({part}), route=frozenset({part})) for part in self.parts(cluster)]
        return self.seconds_per_round or min(self.step_flops(task) for task in tasks) / 100

    def load(self, cluster: str) -> Load:
        model = self.model()
        mine = self.parts(cluster)
        return Load(sum(self.up_B[p] for p in mine), sum(model[p].size_B for p in mine), self.round_s(cluster))

    def whole(self) -> Load:
        sizes = [piece.size_B for piece in self.model().values()]
        task = Task(frozenset(self.numbers))
        round_s = self.seconds_per_round or self.step_flops(task) / 100
        return Load(sum(self.up_B.values()), sum(sizes), round_s)


def play(protocol_class: Any, case: Case, path: Path) -> list[dict[str, Any]]:
    """The ledger of a run in which nothing is trained."""
    model = case.model()
    hosts = {}
    for name in case.plan.clusters:
        devices = tuple(f"{name}/{j}" for j in range(case.devices))
        real: Any = SimpleNamespace(
            devices=devices,
            samples=(4,) * case.devices,
            local_steps=1,
            upload_B=case.up_B.__getitem__,
            flops=lambda task: [case.step_flops(task)] * case.devices,
            flops_beside=lambda task: 0,
        )
        hosts[name] = DryHost(real, model)
    owned = {name: frozenset(case.parts(name)) for name in case.owned}
    told: Any = {"first_cycle": case.first_cycle}
    start = Start(model, case.plan.clusters, frozenset({"head"}), owned, case.cycles, **told)
    protocol = protocol_class(start, gate_tail_cycles=0) if protocol_class is EnhancedEmsFl else protocol_class(start)
    kinds = {name: DeviceClass("any", 1.0, 1.0, 0.0, 0.0, flops_per_s=100.0) for name in hosts}
    pace = Pace(case.seconds_per_round, case.max_rounds)
    with path.open("w"):
        pass
    ledger = Ledger(path)
    simulator = Simulator(
        case.plan,
        hosts,
        pace,
        case.cycles,
        ledger,
        lambda model, cycle: {},
        closes_s=case.closes_s,
        faults=case.faults,
        kinds=kinds,
    )
    simulator.run(protocol)
    ledger.close()
    return list(read(path))


def updates_s(lines: list[dict[str, Any]], case: Case, cluster: str) -> list[float]:
    """When the k-th complete update of everything that the cluster owns stood in the global model."""
    seen: Counter[str] = Counter()
    found: list[float] = []
    mine = case.parts(cluster)
    for line in lines:
        if line["event"] == "aggregate" and line["cluster"] == cluster and line["part"] in mine and line["behind"] == 0:
            seen[line["part"]] += 1
            if min(seen[part] for part in mine) > len(found):
                found.append(line["t_s"])
    return found


def rounds_s(lines: list[dict[str, Any]], case: Case, cluster: str) -> list[float]:
    """When the k-th update of the whole model by the cluster was complete."""
    seen: Counter[str] = Counter()
    found: list[float] = []
    for line in lines:
        if line["event"] == "aggregate" and line["cluster"] == cluster:
            seen[line["part"]] += 1
            if min(seen[part] for part in case.numbers) > len(found):
                found.append(line["t_s"])
    return found


def random_case(seed: int, lossless: bool = False) -> Case:
    """Overlaps, cuts, several satellites, rates that change inside a contact or carry nothing, faults."""
    rng = np.random.default_rng(seed)
    names = ("a", "b", "c")[: rng.integers(1, 4)]
    experts = list(rng.permutation(len(names) + int(rng.integers(0, 4))))
    cuts = np.sort(rng.choice(np.arange(1, len(experts)), len(names) - 1, replace=False)) if len(names) > 1 else []
    owned = {name: tuple(sorted(map(int, part))) for name, part in zip(names, np.split(experts, cuts), strict=True)}
    up_B = {**{f"expert:{m}": int(rng.integers(50, 4000)) for m in sorted(experts)}, "head": int(rng.integers(30, 300))}
    numbers = {part: int(rng.choice([1, 10, 100, 700])) for part in up_B}
    tempo = float(rng.choice([0.05, 0.2, 1.0, 5.0]))  # how short contacts are for the bytes
    contacts = []
    for name in names:
        t = float(rng.choice([0.0, rng.uniform(0, 40)]))
        for k in range(int(rng.integers(4, 14))):
            length = float(rng.choice([rng.uniform(0.2, 3), rng.uniform(3, 30), 10.0]))
            rates, edge = [], t
            for share in [*sorted(rng.uniform(0.1, 0.9, int(rng.integers(0, 4)))), 1.0]:
                until = t + length * share
                if until - edge > 1e-3:
                    up, down = (_rate(rng, lossless) * tempo for _ in "ud")
                    rates.append(Rates(until, up, down, float(rng.choice([1.0, 0.5]))))
                    edge = until
            contact = Contact.of(name, t, rates, f"sat-{k % 2}")
            contacts.append(contact)
            gap = rng.choice([0.0, rng.uniform(0, 2), rng.uniform(5, 100), 20.0])
            t = contact.end_s + float(gap)
    horizon = max(c.end_s for c in contacts) + float(rng.uniform(0, 20))
    plan = ContactPlan(names, tuple(contacts), horizon)
    lossy = not lossless and rng.random() < 0.4
    closes = {i: float(rng.uniform(c.start_s, c.end_s)) for i, c in enumerate(plan.contacts) if lossy and rng.random() < 0.2}
    return Case(
        plan,
        owned,
        up_B,
        numbers,
        seconds_per_round=None if rng.random() < 0.2 else float(rng.choice([0.5, 2.0, 7.5, rng.uniform(0.3, 40)])),
        cycles=int(rng.choice([rng.integers(1, 12), 1000])),
        devices=int(rng.integers(1, 3)),
        first_cycle=str(rng.choice(["met", "paper"])),
        max_rounds=None if rng.random() < 0.7 else int(rng.integers(1, 4)),
        faults=Faults(0.2, 0.1, 0.2, seed=seed) if lossy else NO_FAULTS,
        closes_s=closes,
    )


def _rate(rng: np.random.Generator, lossless: bool) -> float:
    if lossless:
        return float(rng.uniform(2e3, 2e4))
    return float(rng.choice([rng.uniform(200, 2e4), rng.uniform(2e3, 2e5), 0.0, np.inf], p=[0.45, 0.4, 0.1, 0.05]))
