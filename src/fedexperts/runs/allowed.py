"""What a plan allows a method: ``plan --bound``. Bytes and rounds come from the scenario, the bounds from `contact.bound`.

Like `outlook`, from sizes alone: without data, without torch. Experts are dealt to clusters in turn unless owners are given.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..contact.bound import MOST_UPDATES, Bound, Load, delivered_s, network, schedule, synchronous
from ..contact.orbit import beside
from ..contact.plan import FASTEST_BPS, Contact, ContactPlan, Direction
from ..drive.classes import DeviceClass
from ..errors import InputError
from ..moe.parts import in_order, is_expert
from ..scenario import Prospect
from ..setup.clients import cluster_kinds
from ..setup.plan import Orbit
from ..tables import EmsFl
from ..train.task import Task
from .imagined import Imagined, imagined

Owners = Mapping[str, frozenset[str]]
BOUNDED = ("ems-fl", "ems-fl-enhanced", "sync")
MOST_SATELLITES = 50
"""Of a larger shell passes are not computed again to say what a lower mask or one more satellite would help."""
LOWER_DEG = 5.0
"""So much lower a mask is tried."""


@dataclass(frozen=True)
class Sizes:
    """What the bounds must know of a scenario, by part or by cluster.

    Attributes:
        piece_B: of each trained part, as it comes down; of adapters of the model's rank.
        upload_B: of the same parts; of adapters of the highest rank that devices have.
        worlds: the scenario as each cluster's devices have it, whose adapters may have a rank of their own.
        round_s: the cheapest local round of a cluster's experts.
        whole_round_s: a local round of everything that is trained.
        round_J: of that cheapest round on a device.
        kinds: the class of a cluster's devices.
        timed: whether seconds of a round are known; if not, they are taken as none.
    """

    piece_B: Mapping[str, int]
    upload_B: Mapping[str, int]
    worlds: Mapping[str, Imagined]
    round_s: Mapping[str, float]
    whole_round_s: Mapping[str, float]
    round_J: Mapping[str, float]
    kinds: Mapping[str, DeviceClass]
    timed: bool

    @property
    def experts(self) -> list[str]:
        """All of them."""
        return [part for part in in_order(self.piece_B) if is_expert(part)]

    def load(self, cluster: str, mine: frozenset[str]) -> Load:
        """Of everything that the cluster owns."""
        return Load(self.up_B(cluster, mine), self.down_B(cluster, mine), self.round_s[cluster])

    def whole(self, cluster: str) -> Load:
        """Of everything that is trained."""
        return Load(self.up_B(cluster, self.piece_B), self.down_B(cluster, self.piece_B), self.whole_round_s[cluster])

    def up_B(self, cluster: str, parts: Iterable[str]) -> int:
        """An upload of some parts by a device of a cluster."""
        return sum(self.worlds[cluster].upload_B[part] for part in parts)

    def down_B(self, cluster: str, parts: Iterable[str]) -> int:
        """These parts on their way to a cluster."""
        return sum(self.worlds[cluster].pieces[part].size_B for part in parts)


def sizes(scenario: Prospect, owners: Owners | None = None) -> tuple[Sizes, Owners]:
    """Bytes, rounds and owners of a scenario.

    Raises:
        InputError: there is no model, the protocol has no owners, or these do not fit the model.
    """
    if scenario.model is None:
        raise InputError("[model]: is missing; a bound needs the sizes of what travels: give a path or a config")
    if scenario.protocol not in BOUNDED:
        raise InputError(
            f"protocol = {scenario.protocol!r}: bounds are of protocols whose clusters own experts; use ems-fl, "
            "ems-fl-enhanced or sync"
        )
    if scenario.protocol != "sync" and scenario.ems_fl not in (None, EmsFl()):
        raise InputError("[ems_fl]: bounds are of EMS-FL with all its parts; leave the table out")
    world = imagined(scenario)
    train = world.train
    trained = [part for part in world.pieces if is_expert(part) or part in train.shared]
    names = [place.name for place in scenario.cluster]
    dealt = world.owned(names) if owners is None else {name: frozenset(owners.get(name, ())) for name in names}
    if owners is not None:
        _check_owners(owners, names, [part for part in trained if is_expert(part)])
    kinds = cluster_kinds(scenario)
    worlds = {name: world.having(kind) for name, kind in kinds.items()}
    flops = {name: _cheapest(worlds[name], mine) for name, mine in dealt.items()}
    every = Task(frozenset(trained))
    timed = train.seconds_per_round != "device" or all(flops.values())

    def round_s(name: str, step: int) -> float:
        given = train.seconds_per_round
        return float(given) if given != "device" else train.local_steps * step / kinds[name].flops_per_s

    return (
        Sizes(
            {part: world.pieces[part].size_B for part in trained},
            {part: max(mine.upload_B[part] for mine in worlds.values()) for part in trained},
            worlds,
            {name: round_s(name, flops[name]) for name in names},
            {name: round_s(name, worlds[name].flops(every)) for name in names},
            {name: train.local_steps * flops[name] * kinds[name].compute_J_per_FLOP for name in names},
            kinds,
            timed,
        ),
        dealt,
    )


def _cheapest(world: Imagined, mine: frozenset[str]) -> int:
    """FLOPs of the cheapest step that trains some of these experts: one, which all cost alike."""
    one = frozenset(sorted(mine)[:1])
    return world.flops(Task(one, route=one)) if mine else 0


def check_rates(plan: ContactPlan) -> None:
    """Refuse a plan whose contacts carry nothing up.

    Raises:
        InputError: they do not.
    """
    if plan.contacts and not any(up_bps > 0 for contact in plan.contacts for _, _, up_bps, _ in contact.pieces()):
        raise InputError(
            f'plan: none of its {len(plan.contacts):,} contacts carries anything up; give them an uplink_bps (or "unlimited")'
        )


def _check_owners(owners: Owners, names: Sequence[str], experts: Sequence[str]) -> None:
    if unknown := sorted(set(owners) - set(names)):
        raise InputError(f"--owners: unknown cluster {', '.join(unknown)}; the scenario has {', '.join(names)}")
    held = [part for parts in owners.values() for part in parts]
    if strange := sorted(set(held) - set(experts)):
        raise InputError(f"--owners: the model has no {', '.join(strange[:5])}; it has {experts[0]} … {experts[-1]}")
    if twice := sorted({part for part in held if held.count(part) > 1}):
        raise InputError(f"--owners: {', '.join(twice[:5])} in two clusters; an expert has one owner")


def allowed(
    scenario: Prospect, plan: ContactPlan, found: Orbit | None = None, owners: Owners | None = None, helps: bool = True
) -> dict[str, Any]:
    """What ``plan --bound --json`` prints under ``bound``.

    Args:
        scenario: with a model.
        plan: who can talk when.
        found: what the plan was made of, where it is an orbit's.
        owners: expert parts by cluster; dealt in turn if left out.
        helps: whether to try what would help.

    Raises:
        InputError: see `sizes` and `check_rates`.
    """
    check_rates(plan)
    known, dealt = sizes(scenario, owners)
    wanted = scenario.train.cycles if scenario.train else MOST_UPDATES
    windows, notes = plan.by_cluster, list[str]()
    loads = {name: known.load(name, mine) for name, mine in dealt.items()}
    any_way = {name: network(windows[name], load, plan.horizon_s) for name, load in loads.items()}
    ordered = in_its_order(scenario, plan, loads)
    idle = [name for name, mine in dealt.items() if not mine]
    if idle:
        notes.append(f"{', '.join(idle)} own no expert: they have nothing to update")
    owned = frozenset[str]().union(*dealt.values())
    if nobody := [part for part in known.experts if part not in owned]:
        few = ", ".join(nobody[:5]) + (f" and {len(nobody) - 5} more" if len(nobody) > 5 else "")
        notes.append(f"nobody owns {few}: nobody trains them, and their bytes are in no update")
    if scenario.assignment.every_cycles:
        notes.append("experts are split again during the run: these are bounds of owners that stay")
    if not known.timed:
        notes.append("seconds of a local round are not known without data: computing is taken to need no time")
    if len({contact.satellite for contact in plan.contacts}) > 1:
        notes.append("several satellites share the server's state at once, as if a gateway carried it (decision 24)")
    rounds = {name: synchronous(windows[name], known.whole(name)) for name in dealt}
    busy = [name for name in dealt if name not in idle]
    return {
        "protocol": scenario.protocol,
        "owners": {name: in_order(mine) for name, mine in dealt.items()},
        "horizon_s": plan.horizon_s,
        "clusters": {name: _cluster(loads[name], any_way[name], ordered[name]) for name in busy},
        "sync": {
            "round_s": sorted(_seconds([t for ends in rounds.values() for t in ends])),
            "clusters": {name: {"round_s": _seconds(ends)} for name, ends in rounds.items()},
        },
        "final": _final(known, dealt, busy, windows, ordered, min(wanted, MOST_UPDATES)),
        "helps": _helps(scenario, plan, found, owners, loads, {name: ordered[name] for name in busy}, wanted)
        if helps and busy
        else [],
        "notes": notes,
    }


def in_its_order(
    scenario: Prospect, plan: ContactPlan, loads: Mapping[str, Load], most: int = MOST_UPDATES
) -> dict[str, Bound]:
    """The bounds of clusters in EMS-FL's order, as the scenario begins its first cycle."""
    from_start = scenario.train is not None and scenario.train.first_cycle == "paper"
    windows = plan.by_cluster
    return {name: schedule(windows[name], load, plan.horizon_s, most, from_start) for name, load in loads.items()}


def _seconds(times_s: Sequence[float]) -> list[float]:
    return [round(t_s, 6) for t_s in times_s]


def _cluster(load: Load, any_way: Bound, ordered: Bound) -> dict[str, Any]:
    contacts = [len({carry.contact for carry in step.up}) for step in ordered.steps]
    return {
        "update_s": _seconds(any_way.update_s),
        "bottleneck": any_way.bottleneck,
        "spent_s": {cause: round(spent_s, 3) for cause, spent_s in any_way.spent_s.items()},
        "unfinished": any_way.unfinished,
        "schedule_s": _seconds(ordered.update_s),
        "schedule_bottleneck": ordered.bottleneck,
        "schedule_spent_s": {cause: round(spent_s, 3) for cause, spent_s in ordered.spent_s.items()},
        "schedule_unfinished": ordered.unfinished,
        "contacts_per_upload": statistics.median(contacts) if contacts else None,
        "upload_B": round(load.up_B),
        "download_B": round(load.down_B),
        "round_s": load.round_s if math.isfinite(load.round_s) else None,
    }


def _final(
    known: Sizes,
    dealt: Owners,
    busy: Sequence[str],
    windows: Mapping[str, Sequence[Contact]],
    ordered: Mapping[str, Bound],
    wanted: int,
) -> dict[str, Any]:
    """The last update of all clusters that can be down everywhere before the plan ends, in EMS-FL's order; what it takes."""
    most = min([wanted, *(len(ordered[name].steps) for name in busy)]) if busy else 0

    def reached_s(k: int) -> dict[str, float]:
        if not k:
            return dict.fromkeys(windows, 0.0)

        def news(to: str) -> list[tuple[float, float]]:
            return [(ordered[o].update_s[k - 1], float(known.down_B(to, dealt[o]))) for o in busy]

        return {name: delivered_s(contacts, news(name)) for name, contacts in windows.items()}

    k = bisect.bisect_left(range(1, most + 1), True, key=lambda k: any(map(math.isinf, reached_s(k).values())))
    at_s = reached_s(k)
    return {
        "updates": k,
        "stands_s": round(max(ordered[name].update_s[k - 1] for name in busy), 6) if k else None,
        "reached_s": round(max(at_s.values()), 6) if k else None,
        "clusters": {
            name: taken(known, name, dealt[name], contacts, ordered[name], k, at_s[name]) for name, contacts in windows.items()
        }
        if k
        else {},
    }


def taken(
    known: Sizes,
    name: str,
    mine: frozenset[str],
    contacts: Sequence[Contact],
    ordered: Bound | None,
    k: int,
    until_s: float,
) -> dict[str, Any]:
    """What k updates take of a device at least, idling until a time.

    In EMS-FL's order: k uploads of its own, k − 1 downloads of these, and all experts at the end. In the baseline's, where
    ``ordered`` is None: all that is trained up k times, and down k − 1 times.
    """
    kind = known.kinds[name]
    load = known.load(name, mine) if ordered else known.whole(name)
    steps = ordered.steps[:k] if ordered and mine else ()
    updates, last_B = (len(steps), known.down_B(name, known.experts)) if ordered else (k, 0)
    if ordered:
        tx_s = sum(contacts[c.contact].sending_s(c.from_s, c.to_s) for step in steps for c in step.up)
        rx_s = sum(c.to_s - c.from_s for step in steps[:-1] for c in step.down)
    else:
        tx_s, rx_s = _fastest_s(contacts, "up", k * load.up_B), _fastest_s(contacts, "down", (k - 1) * load.down_B)
    idle_J = max(0.0, until_s - tx_s - rx_s) * kind.idle_power_W
    radio_J, compute_J = tx_s * kind.tx_power_W + rx_s * kind.rx_power_W, updates * known.round_J[name]
    return {
        "reached_s": round(until_s, 6),
        "uplink_B": round(updates * load.up_B),
        "downlink_B": round(max(0, updates - 1) * load.down_B + last_B),
        "device_J": float(f"{radio_J + compute_J + idle_J:.6g}"),
        "radio_J": float(f"{radio_J:.6g}"),
    }


def _fastest_s(contacts: Sequence[Contact], direction: Direction, size_B: float) -> float:
    """Seconds of sending at the highest rate that a plan has: no transfer takes fewer."""
    fastest_bps = max((up if direction == "up" else down for c in contacts for _, _, up, down in c.pieces()), default=math.inf)
    return size_B * 8 / fastest_bps if fastest_bps > 0 else 0.0


# ---- what would help


def _helps(
    scenario: Prospect,
    plan: ContactPlan,
    found: Orbit | None,
    owners: Owners | None,
    loads: Mapping[str, Load],
    ordered: Mapping[str, Bound],
    wanted: int,
) -> list[dict[str, Any]]:
    """Single changes, each computed again: when the same updates stand then, and how many the plan has room for."""
    model = scenario.model
    assert model is not None  # `sizes` has asked

    def sized(**table: Any) -> dict[str, Load]:
        known, dealt = sizes(scenario.changed(model=table), owners)
        return {name: known.load(name, mine) for name, mine in dealt.items()}

    trials: list[tuple[str, ContactPlan, Mapping[str, Load]]] = [("twice the rate", faster(plan, 2.0), loads)]
    if model.uplink != "int8":
        trials.append(("uplink in int8", plan, sized(uplink="int8")))
    own = any(kind.lora_rank is not None for kind in cluster_kinds(scenario).values())
    if model.lora is not None and model.lora.rank > 1 and not own:
        half = model.lora.model_copy(update={"rank": model.lora.rank // 2}).model_dump()
        trials.append((f"rank {model.lora.rank // 2}", plan, sized(lora=half)))
    if found is not None and len(found.satellites) <= MOST_SATELLITES:
        trials.append((f"a mask {LOWER_DEG:g}° lower", lower(found, LOWER_DEG).plan(), loads))
        trials.append(("one more satellite", replace(found, satellites=one_more(found)).plan(), loads))
    k = max(1, min([wanted, *(len(bound.steps) for bound in ordered.values())]))
    rows = [_row("as it is", ordered, k)]
    for name, over, changed in trials:
        rows.append(_row(name, in_its_order(scenario, over, {cluster: changed[cluster] for cluster in ordered}), k))
    return rows


def _row(name: str, bounds: Mapping[str, Bound], k: int) -> dict[str, Any]:
    many = min(len(bound.steps) for bound in bounds.values())
    stands_s = round(max(bound.update_s[k - 1] for bound in bounds.values()), 6) if many >= k else None
    return {"change": name, "update": k, "stands_s": stands_s, "updates": many}


def faster(plan: ContactPlan, times: float) -> ContactPlan:
    """The same contacts at rates so many times as high, as far as a rate may be."""

    def higher(bps: float) -> float:
        return bps * times if math.isinf(bps) else min(bps * times, FASTEST_BPS)

    def of(contact: Contact) -> Contact:
        rates = tuple(replace(r, uplink_bps=higher(r.uplink_bps), downlink_bps=higher(r.downlink_bps)) for r in contact.rates)
        up_bps, down_bps = higher(contact.uplink_bps), higher(contact.downlink_bps)
        return replace(contact, uplink_bps=up_bps, downlink_bps=down_bps, rates=rates)

    return replace(plan, contacts=tuple(map(of, plan.contacts)))


def lower(found: Orbit, by_deg: float) -> Orbit:
    """The same orbits with every mask lower, but never below the horizon."""
    stations = tuple(
        replace(s, site=replace(s.site, min_elevation_deg=max(0.0, s.site.min_elevation_deg - by_deg))) for s in found.stations
    )
    radio = replace(found.radio, min_elevation_deg=max(0.0, found.radio.min_elevation_deg - by_deg))
    return replace(found, stations=stations, radio=radio)


def one_more(found: Orbit) -> tuple[Any, ...]:
    """The satellites, and one more in the orbit of the first, midway to the next that flies there."""
    return (*found.satellites, beside(found.satellites[0], found.satellites))
