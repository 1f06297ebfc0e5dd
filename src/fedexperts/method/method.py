"""What a method is to those who run it: a record of functions, the same for all methods.

A method is a protocol and what it needs beside it. Each stands in a module of its own; `methods` knows them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..data.objective import evaluate
from ..ledger import Ledger
from ..protocol.link import ServerProtocol, Start
from ..scenario import Scenario
from ..setup.devices import Judges
from ..setup.prepare import Prepared
from ..tables import Load
from . import told


@dataclass(frozen=True)
class Beginning:
    """What there was before the first contact: who owns which expert, and the bytes that finding out took up."""

    owned: Mapping[str, frozenset[str]] = field(default_factory=dict)
    uplink_B: int = 0


class Prepare(Protocol):
    """Plan, model, data and devices of a scenario; with ``only`` devices of that cluster, see `setup.prepare.prepare`."""

    def __call__(self, scenario: Scenario, *, only: str | None = None) -> Prepared:
        """Raises: InputError, where it cannot work."""


def nothing(prepared: Prepared) -> None:
    """Of a step that a method has no use for."""


def at_once(prepared: Prepared, ledger: Ledger) -> Beginning:
    """A method that needs nothing before the first contact."""
    return Beginning()


def judged_by_clusters(prepared: Prepared, protocol: ServerProtocol, judges: Judges) -> dict[str, Any]:
    """The global model, which is in the view, on each link's data."""
    return evaluate(prepared.view, prepared.objectives, judges.own)


def everything(scenario: Scenario) -> tuple[Load, ...]:
    """Devices that train with the gate free meet all experts."""
    return ("all",)


def all_cycles(scenario: Scenario, cycles: int) -> int:
    """A method that does not ask in a cycle how many there will be."""
    return cycles


@dataclass(frozen=True)
class Method:
    """A method, as runs, comparisons and the command line ask it.

    Attributes:
        prepare: plan, model, data and devices of a scenario; raises `InputError` where it cannot work.
        protocol: the server's side, from what every protocol is told and whatever else this one is told.
        check: refuses, before any training, what devices cannot carry; of adapters that is known when they are attached.
        begin: what comes before the first contact, with its lines of the ledger.
        judge: facts of the model that is in the view.
        loads: how much of the model devices in processes of their own may load.
        alike: how many of a run's first cycles would be the same in a longer run, of a scenario and the cycles that it makes.
        finish: called before the model in the view is saved.
    """

    prepare: Prepare
    protocol: Callable[[Prepared, Start], ServerProtocol]
    check: Callable[[Prepared], None] = nothing
    begin: Callable[[Prepared, Ledger], Beginning] = at_once
    judge: Callable[[Prepared, ServerProtocol, Judges], dict[str, Any]] = judged_by_clusters
    loads: Callable[[Scenario], tuple[Load, ...]] = everything
    alike: Callable[[Scenario, int], int] = all_cycles
    finish: Callable[[Prepared], None] = nothing


def start(prepared: Prepared, owned: Mapping[str, frozenset[str]]) -> Start:
    """What every protocol is told."""
    train = prepared.scenario.train
    cycles = min(train.cycles, len(prepared.plan.cycle_ends_s))
    samples = {name: sum(host.samples) for name, host in prepared.hosts.items()}
    return told.start(prepared.scenario, train, prepared.model, owned, cycles, samples, prepared.lora, prepared.fitted)
