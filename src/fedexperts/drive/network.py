"""Connecting the clients of a Networked MoE: who has which expert, and the checks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import InputError
from ..moe.parts import expert
from ..moe.resnet import NetworkedMoEForImageClassification
from ..moe.view import View
from ..scenario import Scenario
from ..train.device import Device
from ..train.network import NetworkClient, Peers

NETWORK_FIELDS = ("norm", "sigma", "correlation_samples", "share", "balance", "gate_top_k", "gate_lr", "expert_cache")


def connect(scenario: Scenario, view: View, devices: Mapping[str, Sequence[Device]]) -> Peers:
    """Give every client its expert, by its place, and the way to the others.

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
    peers = Peers()
    for i, device in enumerate(device for group in devices.values() for device in group):
        own = 0 if table.control == "fedavg" else i
        settings = {name: getattr(table, name) for name in NETWORK_FIELDS}
        device.network = NetworkClient(own, **settings)
        if table.control is None:
            peers.owners[expert(own)] = device
            device.peers = peers
    return peers
