"""What a run would do, without training: contacts, rounds, steps, bytes, joules, and how long this machine would need.

The protocol runs through the contact plan with Hosts that only count. What depends on what is learnt is left out: bytes between
clients while a gate is trained on everybody's experts, which clients an alignment prefers, and a rolling gate that ends early.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from ..caveats import never_trained
from ..drive.cluster import Pace
from ..drive.simulate import warn_of_steps
from ..errors import warn_input
from ..ledger import Ledger, read
from ..method.method import Method, start
from ..method.methods import of
from ..moe.parts import in_order
from ..own import is_own
from ..scenario import Scenario
from ..setup.prepare import Prepared
from ..train.dry import DryHost
from ..train.host import Host
from ..train.task import Task
from .run import ready, simulator

Lines = list[dict[str, Any]]


def forecast(scenario: Scenario | str | Path) -> dict[str, Any]:
    """What a run would do, its contacts gone through without training; what ``fedexperts check --json`` prints.

    Everything that a run checks is checked. Experts are split before a warm-up, which is not done: who owns which may differ.

    Raises:
        InputError: the scenario cannot work.
    """
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    torch.set_num_threads(1)
    method = of(scenario)
    prepared = ready(scenario, method)
    warm_steps = scenario.warmup.steps if scenario.warmup else 0
    prepared.scenario = scenario.model_copy(update={"warmup": None})
    prepared.begin()
    hosts: dict[str, Host] = {name: DryHost(host, prepared.model_of(name)) for name, host in prepared.hosts.items()}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.jsonl"
        with closing(Ledger(path)) as ledger:
            pace = _play(prepared, method, hosts, ledger)
        lines = list(read(path))
    end = lines[-1]
    _warn_of_steps(scenario, end["steps"], pace)
    train_s, judge_s = _measured_s(prepared, lines)
    return {
        "name": scenario.name,
        "protocol": scenario.label,
        "cycles": end["cycles"],
        "start": scenario.plan.start.isoformat() if scenario.plan.start else None,
        "ends_s": end["t_s"],
        "steps": end["steps"],
        "uplink_B": end["uplink_B"],
        "downlink_B": end["downlink_B"],
        "unsent_rounds": end["unsent_rounds"],
        "warmup_steps": warm_steps,
        "parts": {
            part: {"bytes": piece.size_B, "upload_B": max(host.upload_B(part) for host in prepared.hosts.values())}
            for part, piece in ((part, prepared.model[part]) for part in in_order(prepared.model))
        },
        "never_trained": never_trained(lines, list(prepared.hosts)),
        "used": prepared.used(),
        "by_client": prepared.by_client,
        "links": {name: _link(name, host, lines, end) for name, host in prepared.hosts.items()},
        "wall_s": {"training": train_s, "evaluation": judge_s * (end["cycles"] // scenario.evaluation.every_cycles + 2)},
    }


def _play(prepared: Prepared, method: Method, hosts: dict[str, Host], ledger: Ledger) -> Pace:
    begun = method.begin(prepared, ledger)
    clock = simulator(prepared, hosts, begun.uplink_B, ledger, lambda model, cycle: {})
    clock.run(method.protocol(prepared, start(prepared, begun.owned)), foretell=False)
    return clock.books.pace


def _warn_of_steps(scenario: Scenario, steps: int, pace: Pace) -> None:
    """Warn of none at all, and of very many."""
    if not steps:
        own = "is an await missing? link.train(…) without it does nothing"
        why = own if is_own(scenario.protocol) else "fedexperts plan says what its contacts have no room for"
        warn_input(f"protocol = {scenario.protocol!r}: no gradient step in the whole run; {why}")
    warn_of_steps(steps, pace)


def _link(name: str, host: Host, lines: Lines, end: dict[str, Any]) -> dict[str, Any]:
    mine = [line for line in lines if line.get("cluster") == name]
    trained = [line for line in mine if line["event"] == "train"]
    contacts = [line for line in mine if line["event"] == "contact"]
    return {
        "devices": len(host.devices),
        "samples": list(host.samples),
        "contacts": len(contacts),
        "first_contact_s": contacts[0]["t_s"] if contacts else None,
        "rounds": sum(line["rounds"] for line in trained),
        "steps": sum(line["steps"] for line in trained),
        "uplink_B": sum(line.get("uplink_B", 0) for line in mine),
        "downlink_B": sum(line.get("downlink_B", 0) for line in mine),
        "energy_J_per_device": sum(end["energy_per_device"][name].values()),
    }


def _measured_s(prepared: Prepared, lines: Lines) -> tuple[float, float]:
    """Seconds of all training ahead and of one evaluation on this machine, from one local round of each set of parts.

    Masks and goals are not in the ledger: of tasks that have them the time is that of plain training.
    """
    steps: dict[tuple[str, tuple[str, ...]], int] = {}
    for line in (line for line in lines if line["event"] == "train"):
        key = line["cluster"], tuple(line["parts"])
        steps[key] = steps.get(key, 0) + line["steps"]
    train_s = 0.0
    for (name, parts), count in steps.items():
        host, known = prepared.hosts[name], frozenset(part for part in parts if part in prepared.view.parts)
        began_s = time.perf_counter()
        done = host.train(Task(known), 1, 0.0, {}) if known else None
        if done is not None and done.steps:
            train_s += (time.perf_counter() - began_s) * count / done.steps
    began_s = time.perf_counter()
    samples = prepared.validation.own
    for name, objective in prepared.objectives.items():
        if name in samples:
            objective.judge(prepared.view, samples[name])
    return train_s, time.perf_counter() - began_s
