"""Setting up a Networked MoE: who has which expert, what the server is told, and what is stated of privacy; with the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..moe.parts import expert
from ..moe.resnet import NetworkedMoEForImageClassification
from ..moe.view import View
from ..protocol.networked import Stages
from ..scenario import Scenario
from ..train.device import Device
from ..train.host import Host
from ..train.network import Member, NetworkClient
from ..train.privacy import guarantee

if TYPE_CHECKING:
    from .prepare import Prepared

NETWORK_FIELDS = ("norm", "sigma", "correlation_samples", "share", "balance", "gate_top_k", "gate_lr", "expert_cache")


def connect(
    scenario: Scenario, view: View, devices: Mapping[str, Sequence[Device]], hosts: Mapping[str, Host]
) -> dict[str, Host]:
    """Give every client its expert, by its place; return who answers for which.

    Raises:
        InputError: the model is of another kind, has not one expert for each client, or picks more experts than there are.
    """
    table = scenario.networked
    if not isinstance(view.model, NetworkedMoEForImageClassification):
        raise InputError(
            f'protocol = "networked": needs a model of model_type "networked_moe" with an extractor, not '
            f"{type(view.model).__name__}; set model.config or another model.path"
        )
    wanted = 1 if table.control == "fedavg" else len(devices)
    if view.experts != wanted:
        raise InputError(
            f"model.config.num_experts = {view.experts}: must be {wanted}, one for each client"
            f"{' of one averaged classifier' if table.control == 'fedavg' else ''}; change it or the number of devices"
        )
    for name, k in (("networked.gate_top_k", table.gate_top_k), ("model.config.num_experts_per_tok", view.top_k)):
        if k > view.experts and table.control is None:
            raise InputError(f"{name} = {k}: must be at most the number of clients, {view.experts}; each has one expert")
    if table.prior is not None and (len(table.prior) != len(devices) or not sum(table.prior) > 0):
        raise InputError(
            f"networked.prior = {list(table.prior)}: must be {len(devices)} weights, one for each client, and not all 0"
        )
    owners = {}
    for i, (name, (device,)) in enumerate(devices.items()):
        own = 0 if table.control == "fedavg" else i
        settings = {name: getattr(table, name) for name in NETWORK_FIELDS}
        device.member = Member(NetworkClient(own, **settings))
        if table.control is None:
            owners[expert(own)] = hosts[name]
    return owners


def stages(prepared: Prepared) -> Stages:
    """What the server is told of the scenario and its clients."""
    scenario, config = prepared.scenario, prepared.view.model.config
    names = (
        "extractor",
        "extractor_cycles",
        "expert_cycles",
        "gate",
        "gate_cycles",
        "gate_participation",
        "gate_patience",
        "schedule",
    )
    return Stages(
        samples={name: sum(host.samples) for name, host in prepared.hosts.items()},
        representation_size=int(config.representation_size),  # type: ignore[arg-type,union-attr]  # a Hugging Face config
        seed=scenario.seed,
        control=scenario.networked.control,
        **{name: getattr(scenario.networked, name) for name in names},
    )


SIMULATED = "The noise of a simulated run comes from the scenario's seed: it shows what noise costs, and hides nothing."


def shares_matrices(scenario: Scenario) -> bool:
    """Whether clients share correlation matrices in a run."""
    table = scenario.networked
    return (
        scenario.protocol == "networked" and table.extractor == "fedsc" and table.control is None and table.extractor_cycles > 0
    )


def privacy_facts(scenario: Scenario) -> dict[str, Any]:
    """(ε, δ) of all shared correlation matrices of the run; without noise there is no such guarantee.

    Raises:
        InputError: noise is asked for, and the accountant is not installed.
    """
    table = scenario.networked
    if table.sigma == 0:
        return {"sigma": 0.0, "epsilon": None, "note": "no noise on the shared correlation matrices, so no (ε, δ)"}
    found = guarantee(table.sigma, table.extractor_cycles, table.delta)
    return {"sigma": table.sigma, "epsilon": round(found.epsilon, 6), "delta": found.delta, "note": f"{found} {SIMULATED}"}
