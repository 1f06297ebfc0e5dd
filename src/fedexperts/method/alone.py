"""Ceiling and floor: all data in one place, and each cluster alone with its own.

No model travels, and one device has all data of a link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..data.objective import Judged, facts_of
from ..data.source import pool
from ..errors import InputError
from ..ledger import Ledger
from ..moe.parts import Piece
from ..protocol.link import ServerProtocol, Start
from ..scenario import Scenario
from ..setup.clients import CENTRAL_LINK, central_plan
from ..setup.devices import Judges
from ..setup.prepare import Prepared, prepare
from ..train.device import Device
from ..train.host import LocalHost
from . import told
from .method import Beginning, Method


def _central(scenario: Scenario, *, only: str | None = None) -> Prepared:
    """Raises: InputError, where clusters have several tasks."""
    prepared = prepare(scenario, only=only)
    first, *others = scenario.cluster
    for cluster in others:
        if prepared.objectives[cluster.name] != prepared.objectives[first.name]:
            raise InputError(
                f'protocol = "central": clusters {first.name!r} and {cluster.name!r} have different tasks, and one place '
                "trains for one; give both the same task, or use local"
            )
    host = _pooled(prepared, CENTRAL_LINK, [cluster.name for cluster in scenario.cluster])
    kinds = {CENTRAL_LINK: prepared.kinds[first.name]}
    return replace(prepared, plan=central_plan(prepared.plan), hosts={CENTRAL_LINK: host}, kinds=kinds, at_home=True)


def _local(scenario: Scenario, *, only: str | None = None) -> Prepared:
    prepared = prepare(scenario, only=only)
    return replace(prepared, hosts={name: _pooled(prepared, name, [name]) for name in prepared.hosts}, at_home=True)


def _pooled(prepared: Prepared, name: str, clusters: Sequence[str]) -> LocalHost:
    """One device with all that the devices of some clusters hold; what it makes of it is there, and weighs nothing."""
    hosts = [prepared.hosts[cluster] for cluster in clusters]
    group = [device for host in hosts if isinstance(host, LocalHost) for device in host.group.values()]
    first, data = group[0], pool([dict(device.data) for device in group])
    local = replace(first.local, proximal_mu=0.0)  # nothing is received that it could be held to
    device = Device(f"{name}/0", prepared.view, data, prepared.model, local, prepared.scenario.seed, first.objective)
    device.sizes_B = dict.fromkeys(prepared.model, 0)
    return LocalHost([device])


def _bring(prepared: Prepared, ledger: Ledger) -> Beginning:
    """The raw data, once."""
    (host,) = prepared.hosts.values()
    assert isinstance(host, LocalHost)
    (device,) = host.group.values()
    size_B = sum(values.numel() * values.element_size() for values in device.data.values())
    ledger.write("pooled", 0, uplink_B=size_B, samples=device.samples)
    return Beginning(uplink_B=size_B)


def _protocol(prepared: Prepared, start: Start) -> ServerProtocol:
    return told.whole(prepared.scenario, start)


def _judge_own(prepared: Prepared, protocol: ServerProtocol, judges: Judges) -> dict[str, Any]:
    """Each cluster's own model, on its own data."""
    view, models = prepared.view, _models(protocol)
    judged: dict[str, Judged] = {}
    for cluster, samples in judges.own.items():
        for part, piece in {**protocol.model, **models.get(cluster, {})}.items():
            view.install(part, piece.tensors)
        view.route(None)
        view.model.eval()
        judged[cluster] = prepared.objectives[cluster].judge(view, samples)
    return facts_of(prepared.objectives, judged)


def _models(protocol: ServerProtocol) -> Mapping[str, Mapping[str, Piece]]:
    found: Mapping[str, Mapping[str, Piece]] = protocol.own  # type: ignore[attr-defined]  # of `Alone`
    return found


CENTRAL = Method(_central, _protocol, begin=_bring)
LOCAL = Method(_local, _protocol, judge=_judge_own)
