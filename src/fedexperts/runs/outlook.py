"""What a method would send, hold and spend over a contact plan: ``fedexperts plan``'s answer to "can I?".

The protocols themselves run, over Hosts that count and pieces without numbers (`imagined`): once over ideal contacts, to say
what a contact is to carry, and once over the plan's own, to say what becomes of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..contact.plan import ContactPlan, always_on, round_robin
from ..drive.classes import DeviceClass
from ..drive.cluster import Pace
from ..drive.simulate import Simulator, warn_of_steps
from ..errors import InputError
from ..ledger import Ledger
from ..moe.outline import count
from ..moe.parts import GATE, Piece, in_order, is_expert
from ..moe.size import forward_flops
from ..protocol.aligned import Alignment
from ..scenario import Prospect
from ..setup.clients import CENTRAL_LINK, central_plan, client_plan, clients, cluster_kinds, device_classes
from ..tables.protocols import AT_HOME, BY_CLIENT
from ..train.dry import Blank, DryHost, Imaginary
from .imagined import Imagined, imagined

MOST_CONTACTS, MOST_LINKS, MOST_CLIENTS = 2000, 50, 100_000
"""So many contacts are played, and links seen in ideal ones: a second or two. A longer plan is told of by its first cycles."""
SLOT_S = 1e4
Lines = list[dict[str, Any]]


class Notes:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.lines: Lines = []

    def write(self, event: str, t_s: float, **facts: Any) -> None:
        """Keep a line."""
        self.lines.append({"event": event, "t_s": t_s, **facts})

    write_any = write

    def flush(self) -> None:
        """Nothing waits."""


def outlook(scenario: Prospect, plan: ContactPlan, cycles: int | None = None) -> dict[str, Any]:
    """What ``plan --json`` prints under ``method``.

    Args:
        scenario: with a model; without ``[train]`` its defaults hold.
        plan: who can talk when.
        cycles: how many orbital cycles are asked for; those of ``[train]`` if left out, or the plan's.

    Raises:
        InputError: the model, or what is to be trained of it, is not there.
    """
    ends_s = plan.cycle_ends_s
    world = imagined(scenario, max(1, len(ends_s)))
    wanted = cycles or world.train.cycles
    links = _Links(scenario, plan, world)
    known_flops = bool(forward_flops(world.model, 1)) and world.train.batch_size != "full"
    played = _played(world, links, wanted, known_flops)
    split = world.model.split(scenario.assignment.granularity)
    return {
        "protocol": scenario.protocol,
        "by_client": scenario.protocol in BY_CLIENT,
        "trained": "adapters" if world.rank else "full parameters",
        "parts": {
            part: {
                "parameters": count(split[part]),
                "trained_parameters": count(world.leaves[part]),
                "piece_B": world.pieces[part].size_B,
                "upload_B": world.upload_B[part],
            }
            for part in in_order(world.pieces)
        },
        "stages": _stages(world, links),
        "ends": _ends(ends_s, plan.horizon_s, wanted),
        "devices": _devices(world, links),
        **played,
    }


class _Links:
    """Who talks to the server: clusters, or clients one by one; by name their class and place.

    Devices of a cluster do the same, and one stands for all.
    """

    def __init__(self, scenario: Prospect, plan: ContactPlan, world: Imagined):
        self.told: Alignment | None = None
        if scenario.protocol in BY_CLIENT:
            if (many := sum(place.devices for place in scenario.cluster)) > MOST_CLIENTS:
                raise InputError(
                    f"protocol = {scenario.protocol!r}: {many:,} devices, each with a link of its own; at most "
                    f"{MOST_CLIENTS:,}: take fewer"
                )
            group = clients(scenario, device_classes(scenario))
            self.plan = client_plan(plan, group, scenario)
            self.kinds = {client.name: client.kind for client in group}
            self.place = {client.name: scenario.cluster[client.at].name for client in group}
        elif scenario.protocol == "central":
            self.plan, self.kinds = central_plan(plan), {CENTRAL_LINK: next(iter(cluster_kinds(scenario).values()))}
            self.place = {CENTRAL_LINK: CENTRAL_LINK}
        else:
            self.plan, self.kinds = plan, cluster_kinds(scenario)
            self.place = {name: name for name in self.kinds}
        if scenario.protocol == "aligned":
            self.told = world.alignment(self.plan, self.kinds)


def _simulated(
    world: Imagined, links: _Links, plan: ContactPlan, cycles: int, pace: Pace, short: bool = False, flush: bool = True
) -> Lines:
    notes, nothing = cast(Ledger, Notes()), dict[str, Any]()
    worlds = {name: world.having(links.kinds[name]) for name in plan.clusters}
    hosts = {
        name: DryHost(Imaginary((name,), (1,), mine.train.local_steps, mine.upload_B, mine.flops), mine.pieces)
        for name, mine in worlds.items()
    }

    def fitted(link: str, piece: Piece) -> Piece:
        size_B = worlds[link].pieces[piece.part].size_B if worlds[link] is not world else piece.size_B
        return piece if size_B == piece.size_B else Blank(piece.part, piece.version, piece.tensors, size_B)

    clock = Simulator(plan, hosts, pace, cycles, notes, lambda model, cycle: nothing, flush, kinds=links.kinds, fitted=fitted)
    clock.run(world.protocol(list(links.kinds), cycles, links.told, short), foretell=False)
    return cast(Notes, notes).lines


def _stages(world: Imagined, links: _Links) -> dict[str, Any]:
    """By stage and link: what a device sends and receives in a contact that carries all of it; of a stage's the most."""
    names, cycles = list(links.kinds)[:MOST_LINKS], world.short_cycles()
    ideal = always_on if world.scenario.plan.kind == "always-on" else round_robin
    lines = _simulated(world, links, ideal(names, cycles, SLOT_S), cycles, Pace(1.0, 1), short=True, flush=False)
    stages: dict[str, dict[str, Any]] = {}
    for contact in _contacts(lines, world, cycles):
        rows = stages.setdefault(contact.pop("stage"), {})
        name = contact.pop("link")
        if name not in rows or _bytes(contact) >= _bytes(rows[name]):
            rows[name] = contact
    return stages


def _contacts(lines: Lines, world: Imagined, cycles: int) -> list[dict[str, Any]]:
    """What each contact carried; first contacts, to which nobody brings anything, tell nothing of owners."""
    networked, enhanced = (world.scenario.protocol == name for name in ("networked", "ems-fl-enhanced"))
    tail_from = cycles - min(2, world.train.gate_tail_cycles)
    found: dict[str, list[dict[str, Any]]] = {}
    stage = "training"
    for line in lines:
        mine = found.setdefault(line.get("cluster", ""), [])
        match line["event"]:
            case "contact":
                if enhanced:
                    stage = "training" if len(mine) < tail_from else "gate tail"
                empty = {"up": [], "uplink_B": 0, "down": [], "downlink_B": 0}
                mine.append({"link": line["cluster"], "stage": stage, **empty})
            case "stage":
                stage = mine[-1]["stage"] = line["stage"]
            case "send" | "collect" as event:
                way = "down" if event == "send" else "up"
                mine[-1][way] += line["parts"]
                mine[-1][f"{way}link_B"] += line[f"{way}link_B"]
    return [contact for mine in found.values() for contact in (mine if networked else mine[1:])]


def _bytes(contact: Mapping[str, Any]) -> int:
    return int(contact["uplink_B"] + contact["downlink_B"])


def _ends(ends_s: Sequence[float], horizon_s: float, wanted: int) -> dict[str, Any]:
    """When the cycle asked for ends; beyond the plan at the pace of its cycles."""
    inside = len(ends_s) >= wanted
    at_s = ends_s[wanted - 1] if inside else ends_s[-1] / len(ends_s) * wanted if ends_s else None
    return {"cycle": wanted, "in_plan": inside, "t_s": None if at_s is None else round(at_s, 3)}


def _devices(world: Imagined, links: _Links) -> list[dict[str, Any]]:
    """Whether devices hold what the method loads, by their class and how many experts they are to hold."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name, kind in links.kinds.items():
        groups.setdefault((kind.name, world.carries(links.told, name)), []).append(name)
    return [{"class": key[0], "links": names, **_device(world, links.kinds[names[0]], key[1])} for key, names in groups.items()]


def _device(world: Imagined, kind: DeviceClass, experts: int) -> dict[str, Any]:
    table = world.scenario.device.get(kind.name)
    phases = world.having(kind).memory(experts, *(table.load, table.cache_experts or 0) if table else (None,))
    most = max(phase["total_B"] for phase in phases.values())
    known = world.model.shape is not None and world.shared <= {GATE} and world.train.batch_size != "full"
    fits = experts > 0 and most <= kind.memory_B
    return {
        "experts": experts,
        "memory_B": kind.memory_B if math.isfinite(kind.memory_B) else None,
        "needs_B": phases,
        "activations_known": known,
        "holds": None if fits and not known and math.isfinite(kind.memory_B) else fits,
    }


def _played(world: Imagined, links: _Links, wanted: int, known_flops: bool) -> dict[str, Any]:
    """What becomes of it in the plan's own contacts, by link and cycle."""
    plan, train = links.plan, world.train
    cycles = min(wanted, len(plan.cycle_ends_s))
    starts = sorted(contact.start_s for contact in plan.contacts)
    while cycles > 1 and bisect.bisect_right(starts, plan.cycle_ends_s[cycles - 1]) > MOST_CONTACTS:
        cycles = max(1, cycles // 2)
    if not cycles:
        return {"played_cycles": 0, "steps": None, "links": {}}
    end_s = plan.cycle_ends_s[cycles - 1]
    later = {c.cluster: c for c in reversed(plan.contacts) if c.start_s >= end_s}
    kept = [c for c in plan.contacts if c.start_s < end_s or later.get(c.cluster) is c]
    timed = train.seconds_per_round != "device" or known_flops
    pace = Pace(None if train.seconds_per_round == "device" else train.seconds_per_round, train.max_rounds)
    if not timed:
        pace = Pace(min(c.end_s - c.start_s for c in kept) / 8, 1)
    part = ContactPlan(plan.clusters, tuple(kept), plan.horizon_s, plan.cycle_ends_s[:cycles])
    lines = _simulated(world, links, part, cycles, pace, flush=train.final_flush)
    read = [line["per_device"] for line in lines if line["event"] == "energy" and line["cycle"] <= cycles]
    every: dict[str, Lines] = {name: [] for name in links.kinds}
    for line in lines:
        if line.get("cluster") in every:
            every[line["cluster"]].append(line)
    one = world.scenario.protocol in AT_HOME
    devices = {place.name: 1 if one else place.devices for place in world.scenario.cluster}  # one was played for all
    steps = sum(line["steps"] * devices.get(line["cluster"], 1) for line in lines if line["event"] == "train")
    if timed:
        warn_of_steps(steps * wanted / cycles, pace)
    return {
        "played_cycles": cycles,
        "steps": steps if timed else None,
        "links": {
            name: {"cluster": links.place[name], **_link(mine, [row[name] for row in read], cycles, timed, known_flops)}
            for name, mine in every.items()
        },
    }


def _link(every: Lines, read: Sequence[Mapping[str, float]], cycles: int, timed: bool, known_flops: bool) -> dict[str, Any]:
    """What becomes of a link, by its lines and its device's joules of each cycle, up to the end of the last.

    Of what the flush brings only whether it arrives.
    """
    flushed = next((i for i, line in enumerate(every) if line["event"] == "flush"), len(every))
    mine = every[:flushed]
    energy: dict[str, float | None] = {use: sum(row[use] for row in read) / cycles for use in read[0]}
    if not (timed and known_flops):
        energy["compute_J"] = None
    brought = [line["parts"] for line in every if line["event"] == "collect" and line["parts"]]
    return {
        "contacts": sum(line["event"] == "contact" for line in mine),
        "lost": sum(line["event"] == "lost" for line in mine),
        "rounds_per_cycle": sum(line["rounds"] for line in mine if line["event"] == "train") / cycles if timed else None,
        "uplink_B_per_cycle": round(sum(line.get("uplink_B", 0) for line in mine) / cycles),
        "downlink_B_per_cycle": round(sum(line.get("downlink_B", 0) for line in mine) / cycles),
        "updates": len(brought),
        "experts_arrive": any(is_expert(part) for parts in brought for part in parts),
        "energy_J_per_cycle": energy,
    }
