"""Which nodes a scenario has, and whether it can be deployed at all."""

from __future__ import annotations

import math

from ..contact.plan import ContactPlan
from ..errors import InputError
from ..own import imported_class, is_own
from ..scenario import Scenario
from ..setup.clients import client_plan, clients, device_classes
from ..setup.plan import network_plan
from ..tables.protocols import AT_HOME


def links_of(scenario: Scenario) -> tuple[str, ...]:
    """The nodes: clusters, or clients where the protocol treats these one by one.

    Raises:
        InputError: the protocol's devices cannot live on nodes.
    """
    if scenario.protocol in AT_HOME:
        raise InputError(
            f"protocol = {scenario.protocol!r}: has no devices that anybody talks to, so there is nothing to deploy; use "
            "fedexperts run"
        )
    if _by_client(scenario):
        return tuple(client.name for client in clients(scenario, device_classes(scenario)))
    return tuple(cluster.name for cluster in scenario.cluster)


def _by_client(scenario: Scenario) -> bool:
    if is_own(scenario.protocol):
        return bool(getattr(imported_class("protocol", scenario.protocol, scenario.base), "by_client", False))
    return scenario.by_client


def unlimited(scenario: Scenario) -> list[str]:
    """Links of which the plan says no rate: where one of their contacts is lost, no simulation can repeat the run."""
    plan = network_plan(scenario, scenario.train.cycles + 1)
    if _by_client(scenario):
        plan = client_plan(plan, clients(scenario, device_classes(scenario)), scenario)
    return _without_rate(plan)


def _without_rate(plan: ContactPlan) -> list[str]:
    return sorted(
        {
            contact.cluster
            for contact in plan.contacts
            for _, _, up_bps, down_bps in contact.pieces()
            if math.isinf(up_bps) or math.isinf(down_bps)
        }
    )


def rates_missing(scenario: Scenario) -> str | None:
    """What to say of a plan with links of no rate; None if all have one."""
    if not (links := unlimited(scenario)):
        return None
    shown = ", ".join(links[:5]) + (", …" if len(links) > 5 else "")
    return (
        f"[plan] kind = {scenario.plan.kind!r}: gives {shown} no rate, so that transfers take no time, and a run that has lost "
        'a contact cannot be repeated by a simulation; use kind = "orbit", or kind = "file" with uplink_bps and downlink_bps'
    )
