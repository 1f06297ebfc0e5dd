"""Clients one by one: every device a link of its own, with its class, its contacts and its time in the federation."""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..assign.scores import Capacity
from ..contact.plan import MOST_CONTACTS, TIGHT_S, Contact, ContactPlan, PlanError
from ..drive.classes import CLASSES, DeviceClass, device_class, drawn
from ..errors import InputError
from ..scenario import Prospect, Scenario
from ..seeds import Stream, stream


@dataclass(frozen=True)
class Client:
    """A device with a link of its own; ``at`` is the place of its ``[[cluster]]`` in the scenario."""

    name: str
    at: int
    kind: DeviceClass


def device_classes(scenario: Scenario | Prospect) -> dict[str, DeviceClass]:
    """The classes of devices that a scenario names, built-in or its own.

    Raises:
        InputError: a cluster or a ``[device.<class>]`` table names an unknown class.
    """
    used = [name for c in scenario.cluster for name in _classes(c.device)]
    beside = {"load", "cache_experts"}  # which say nothing of the class
    tables = {name: table.model_dump(exclude_none=True, exclude=beside) for name, table in scenario.device.items()}
    named = dict.fromkeys([*used, *scenario.device])
    known = sorted({*CLASSES, *tables})
    if unknown := [name for name in used if name not in known]:
        where = next(c.name for c in scenario.cluster if unknown[0] in _classes(c.device))
        near = difflib.get_close_matches(unknown[0], known, 1, 0.5)
        raise InputError(
            f"cluster {where!r}: device = {unknown[0]!r}: unknown class; {f'did you mean {near[0]}? ' if near else ''}"
            f"known are {', '.join(known)}; choose one of them, or give "
            f"[device.{unknown[0]}] with its powers (fedexperts explain device)"
        )
    return {name: device_class(name, name in tables, **tables.get(name, {})) for name in named}


def cluster_kinds(scenario: Scenario | Prospect) -> dict[str, DeviceClass]:
    """The class of each cluster's devices, which are alike; of a mix, which only clients one by one have, the first.

    Raises:
        InputError: see `device_classes`.
    """
    classes = device_classes(scenario)
    return {cluster.name: classes[_classes(cluster.device)[0]] for cluster in scenario.cluster}


CENTRAL_LINK = "central"
"""Where all data are in one place, the only link."""


def central_plan(plan: ContactPlan) -> ContactPlan:
    """When one place with all data trains: in every contact of the plan, whoever's it is; those that overlap are one.

    Cycles end as they do in the plan, so that a cycle has as many rounds, one after the other, as the synchronous baseline's.
    """
    joined: list[tuple[float, float]] = []
    for contact in plan.contacts:
        if joined and contact.start_s < joined[-1][1] - TIGHT_S:
            joined[-1] = joined[-1][0], max(joined[-1][1], contact.end_s)
        else:
            joined.append((contact.start_s, contact.end_s))
    contacts = tuple(Contact(CENTRAL_LINK, start_s, end_s) for start_s, end_s in joined)
    return ContactPlan((CENTRAL_LINK,), contacts, plan.horizon_s, plan.cycle_ends_s, plan.notes)


def _classes(device: str | Mapping[str, float]) -> Sequence[str]:
    return [device] if isinstance(device, str) else list(device)


def default_deadline_s(scenario: Scenario | Prospect, plan: ContactPlan) -> float:
    """The length of a slot, or of a median contact."""
    if scenario.plan.kind in ("always-on", "round-robin"):
        return scenario.plan.slot_s
    return statistics.median(contact.end_s - contact.start_s for contact in plan.contacts)


def capacity_over(plan: ContactPlan, link: str, kind: DeviceClass) -> Capacity:
    """What the devices behind a link can carry, over its median contact."""
    contacts = plan.by_cluster[link]
    up_bps, down_bps = (
        statistics.median(getattr(contact, rate) for contact in contacts) if contacts else math.inf
        for rate in ("uplink_bps", "downlink_bps")
    )
    return kind.capacity(up_bps, down_bps)


def clients(scenario: Scenario | Prospect, kinds: Mapping[str, DeviceClass]) -> list[Client]:
    """The clients of a scenario in order; a class that is drawn depends on the seed and the place alone."""
    found = []
    for at, cluster in enumerate(scenario.cluster):
        for j in range(cluster.devices):
            kind = kinds[drawn(cluster.device, stream(Stream.CLASS, scenario.seed, at, j))]
            found.append(Client(cluster.name if cluster.devices == 1 else f"{cluster.name}/{j}", at, kind))
    return found


def client_plan(plan: ContactPlan, group: Sequence[Client], scenario: Scenario | Prospect) -> ContactPlan:
    """Contacts of clusters as contacts of their clients: of those that have joined, have not left and are not away.

    Orbital cycles stay those of the clusters. Where the plan has no rates of its own, a link is as fast as its client's class.

    Raises:
        PlanError: there are more than `MOST_CONTACTS`; they are counted before they are made.
    """
    devices = {cluster.name: cluster.devices for cluster in scenario.cluster}
    if (many := sum(devices[contact.cluster] for contact in plan.contacts)) > MOST_CONTACTS:
        raise PlanError(
            f"protocol = {scenario.protocol!r}: every device has contacts of its own, {many:,} in all; at most "
            f"{MOST_CONTACTS:,}: take fewer devices, fewer cycles (train.cycles) or a shorter plan"
        )
    place = {cluster.name: at for at, cluster in enumerate(scenario.cluster)}
    members: list[list[Client]] = [[] for _ in scenario.cluster]
    for client in group:
        members[client.at].append(client)
    away = {client.name: stream(Stream.AWAY, scenario.seed, i) for i, client in enumerate(group)}
    contacts = []
    for contact in plan.contacts:
        at, cycle = place[contact.cluster], plan.cycle_of(contact)
        table = scenario.cluster[at]
        for client in members[at]:
            there = away[client.name].random() < client.kind.availability  # drawn whether it has joined or not
            if there and table.from_cycle <= cycle < (table.until_cycle or math.inf):
                contacts.append(_own(contact, client))
    return ContactPlan(tuple(client.name for client in group), tuple(contacts), plan.horizon_s, plan.cycle_ends_s)


def _own(contact: Contact, client: Client) -> Contact:
    if contact.rates or not math.isinf(contact.uplink_bps):
        return replace(contact, cluster=client.name)
    return replace(contact, cluster=client.name, uplink_bps=client.kind.up_bps, downlink_bps=client.kind.down_bps)
