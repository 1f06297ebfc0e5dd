"""Dynamic client-expert alignment: what the server is told before a run, and clients judged with their own experts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..assign.scores import experts_that_fit
from ..data.objective import Objective, evaluate, total
from ..data.source import Samples
from ..errors import InputError
from ..moe.parts import GATE, Tensors
from ..moe.view import View
from ..protocol.aligned import Aligned, Alignment, Client
from ..protocol.link import ServerProtocol, Start
from ..setup.devices import Judges
from ..setup.prepare import Prepared, prepare
from . import told
from .capacity import capacity_of, need
from .method import Method


def alignment(prepared: Prepared) -> Alignment:
    """What the server is told of the scenario and its clients.

    Raises:
        InputError: the load bounds ask for more than all clients can carry together.
    """
    scenario = prepared.scenario
    clients = {name: Client(capacity_of(prepared, name), sum(host.samples)) for name, host in prepared.hosts.items()}
    needed = need(prepared, told.aligned_shared(scenario, scenario.train))
    found = told.alignment(scenario, prepared.plan, clients, needed)
    _check_loads(found, prepared.view.experts)
    return found


def _check_loads(told: Alignment, experts: int) -> None:
    """Raises: InputError."""
    most = min(experts, told.max_experts or experts)
    carried = sum(experts_that_fit(client.capacity, told.need, told.deadline_s, most)[0] for client in told.clients.values())
    if told.min_load is not None and told.min_load * experts > carried:
        raise InputError(
            f"alignment.min_load = {told.min_load}: {experts} experts would need {told.min_load * experts} places, and all "
            f"{len(told.clients)} clients together can carry {carried}; lower it to {carried // experts}, or give clients more "
            "memory_B, rate or deadline_s"
        )
    if told.min_load is not None and told.min_load > len(told.clients):
        raise InputError(f"alignment.min_load = {told.min_load}: must be at most the number of clients, {len(told.clients)}")


def _check(prepared: Prepared) -> None:
    alignment(prepared)


def _protocol(prepared: Prepared, start: Start) -> Aligned:
    return Aligned(start, alignment(prepared))


def judge(prepared: Prepared, protocol: ServerProtocol, judges: Judges) -> dict[str, Any]:
    """The global model on each client's data, and each client with its own experts and, if it has one, its own gate."""
    placed: dict[str, frozenset[str]] = protocol.placement()  # type: ignore[attr-defined]  # see `methods.own`
    facts = evaluate(prepared.view, prepared.objectives, judges.own)
    return facts | personal(prepared.view, prepared.objectives, judges.own, placed, _gates(prepared))


def _gates(prepared: Prepared) -> dict[str, Tensors]:
    """Gates that belong to clients alone."""
    if prepared.scenario.alignment.gate != "per-client":
        return {}
    return {name: told[GATE].tensors for name, told in prepared.homes.told.items() if GATE in told}


def personal(
    view: View,
    objectives: Mapping[str, Objective],
    tests: Mapping[str, Samples],
    placed: Mapping[str, frozenset[str]],
    gates: Mapping[str, Tensors],
) -> dict[str, Any]:
    """How clients do with the experts placed on them and, where they have one, with a gate of their own.

    The global model is in ``view`` and stays there but for the gate. It judges clients that can hold no expert, so that the
    mean is over the same clients as that of the global model.
    """
    shared = view.export(GATE) if gates else {}
    judged = {}
    for client in tests:
        if gates:
            view.install(GATE, gates.get(client, shared) if placed[client] else shared)
        view.route(placed[client] or None)
        view.model.eval()
        judged[client] = objectives[client].judge(view, tests[client])
    view.route(None)
    if gates:
        view.install(GATE, shared)
    if not any(placed[client] for client in tests):
        return {}
    accuracy = total(objectives, judged)["accuracy"]
    return {"personal_accuracy": accuracy, "personal_by_client": {client: one.score for client, one in judged.items()}}


ALIGNED = Method(partial(prepare, by_client=True), _protocol, _check, judge=judge)
