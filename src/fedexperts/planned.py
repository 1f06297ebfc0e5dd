"""A contact plan, and whether a method can work with it, as plain data: what ``fedexperts plan`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .contact.plan import ContactPlan
from .contact.schedule import best_passes, contact_rows, statistics, tracks, verdict
from .errors import overheard, warn_input
from .own import imported_class, is_own
from .report.words import count, duration, size, together, utc
from .runs.allowed import allowed
from .scenario import Prospect, Scenario
from .setup.plan import Orbit, network_plan, orbit
from .works import idle, judged

TRACK_S = 5 * 3600.0
"""So much of the ground tracks is drawn, if the plan is not shorter: elements may not hold beyond it."""
PAPER_UPLOAD_B = 14_155_776
"""Without a model: Table I, one Llama-3-8B expert with LoRA of rank 4 in bf16."""
MOST_NAMED = 5
"""So many clusters a sentence names."""
MOST_CYCLES = 1000
"""So many slots' cycles are laid out to tell when the last of them ends."""
REMEDIES = {
    "orbit": "use a lower min_elevation_deg, another inclination_deg or more days",
    "file": "add a contact to the file of plan.path, or drop the cluster",
}
"""For a cluster that is never met, by the plan's kind."""


def plan(scenario: Scenario | str | Path, cycles: int | None = None, bound: bool = False) -> dict[str, Any]:
    """Contacts, gaps and bytes of a scenario's plan, and whether its method can work with them; no data are needed.

    Args:
        scenario: a scenario, or the path of its file, which need not have the tables of training.
        cycles: tell when this orbital cycle ends; default ``train.cycles``.
        bound: say how early updates can be as well, see the guide "whether, when, at what cost".

    Returns:
        What ``fedexperts plan --json`` prints; times in seconds after ``start``, bytes for each device.

    Raises:
        InputError: the plan cannot be made, or the method cannot work with the model.
    """
    if isinstance(scenario, Scenario):
        document = scenario.model_dump(exclude_none=True, include=set(Prospect.model_fields) - {"base"})
        network = Prospect.parse(document, scenario.base)
    else:
        network = Prospect.load(scenario)
    found = planned(network, cycles)
    return described(*found, cycles) | ({"bound": allowed(*found)} if bound else {})


def planned(network: Prospect, cycles: int | None) -> tuple[Prospect, ContactPlan, Orbit | None]:
    """The contact plan, and what it was made of where it is an orbit's."""
    found = orbit(network) if network.plan.kind == "orbit" else None
    return network, found.plan() if found else _slots(network, cycles), found


def _slots(network: Prospect, cycles: int | None) -> ContactPlan:
    """A plan of a file or of slots; the latter lasts for the cycles that are asked for."""
    plan = network_plan(network)
    wanted = cycles or (network.train.cycles if network.train else 0)
    if network.plan.kind != "file" and wanted > len(plan.cycle_ends_s):
        plan = network_plan(network, min(wanted, MOST_CYCLES) + 1)
    return plan


def described(network: Prospect, plan: ContactPlan, found: Orbit | None, cycles: int | None = None) -> dict[str, Any]:
    """The plan as plain data: what ``--json`` prints and ``plan.html`` shows."""
    with overheard() as heard:
        method = _method(network, plan, cycles)
    start = network.plan.start.isoformat() if network.plan.start else None
    clusters = statistics(plan, found.stations if found else ())
    uploads_B = _uploads_B(method, list(clusters))
    links: dict[str, list[dict[str, Any]]] = {}
    for link in method["links"].values() if method is not None else ():
        links.setdefault(link["cluster"], []).append(link)
    for name, row in clusters.items():
        row["upload_B"] = uploads_B[name]
        rests = method is not None and idle(links.get(name, ()))
        row["verdict"] = verdict(plan, name, uploads_B[name], REMEDIES.get(network.plan.kind, "give it more days"), rests)
    document: dict[str, Any] = {
        "name": network.name,
        "start": start,
        "horizon_s": plan.horizon_s,
        "cycles": len(plan.cycle_ends_s),
        "cycles_per_day": round(len(plan.cycle_ends_s) / plan.horizon_s * 86400, 3),
        "upload_B": max(uploads_B.values()),
        "upload_of": _upload_of(network, method),
        "contacts": [_timed(row, start) for row in contact_rows(plan)],
        "clusters": clusters,
        "method": method,
        "tracks": [],
        "passes": [],
        "warnings": [*plan.notes, *heard],
    }
    if method is not None:
        if method["works"] is False:  # nothing ends that does not go on
            method["ends"]["t_s"] = None
        method["ends"]["utc"] = utc(start, method["ends"]["t_s"]) if start and method["ends"]["t_s"] is not None else None
        method["answers"] = _sentences(document)
    if found:
        mask_deg = min(station.site.min_elevation_deg for station in found.stations)
        document["tracks"] = tracks(
            found.satellites, found.start, max(mask_deg, found.radio.min_elevation_deg), min(TRACK_S, found.duration_s)
        )
        document["passes"] = best_passes(plan, found.stations, found.satellites, found.radio, found.start)
    return document


def _method(network: Prospect, plan: ContactPlan, cycles: int | None) -> dict[str, Any] | None:
    """What the method would do; None where there is nothing to do it with."""
    if is_own(network.protocol):
        imported_class("protocol", network.protocol, network.base)
        warn_input(
            f"protocol = {network.protocol!r}: whether it works, and what it sends, fedexperts check tells, on your data"
        )
    elif network.model is not None and plan.contacts:
        from .runs.outlook import outlook

        found = outlook(network, plan, cycles)
        return {**found, **judged(found, plan, [place.name for place in network.cluster])}
    return None


def _upload_of(network: Prospect, method: Mapping[str, Any] | None) -> str:
    """What ``upload_B`` is of: Table I's expert where it is not known what would be sent."""
    if method is not None:
        return f"the most that a device sends in a contact, by {network.protocol}"
    if network.model is None:
        why = "as no model is given"
    else:
        why = f"as what {network.protocol} sends is not known here" if is_own(network.protocol) else "as there is no contact"
    return f"{PAPER_UPLOAD_B / 1e6:.1f} MB, an expert of Llama-3-8B with LoRA of rank 4, {why}"


def _uploads_B(method: dict[str, Any] | None, clusters: list[str]) -> dict[str, int]:
    """What a device of each cluster sends in a contact at most."""
    if method is None:
        return dict.fromkeys(clusters, PAPER_UPLOAD_B)
    found = dict.fromkeys(clusters, 0)
    rows = [(name, one["uplink_B"]) for links in method["stages"].values() for name, one in links.items()]
    for name, size_B in rows:
        cluster = method["links"].get(name, {"cluster": name})["cluster"]
        found[cluster] = max(found.get(cluster, 0), size_B)
    most = max((size_B for _, size_B in rows), default=0)
    return {name: size_B or most for name, size_B in found.items()}


def _timed(row: dict[str, Any], start: str | None) -> dict[str, Any]:
    """A contact with its times in UTC, where the plan's start is known."""
    if start is None:
        return row
    return {**row, **{f"{edge}_utc": f"{utc(start, row[f'{edge}_s'])}Z".replace(" ", "T") for edge in ("start", "end")}}


def _sentences(document: Mapping[str, Any]) -> list[str]:
    """The answers in words: whether it works, memory, contacts that are lost, and when it ends."""
    method = document["method"]
    told = [f"{method['protocol']}: {method['answer']}: {method['why']}"]
    if lost := [f"{name} {row['lost']:,} of {row['contacts']:,}" for name, row in method["by_cluster"].items() if row["lost"]]:
        few = ", ".join(lost[:MOST_NAMED]) + (
            f", and of {len(lost) - MOST_NAMED} more clusters" if len(lost) > MOST_NAMED else ""
        )
        told.append(f"contacts that end before all is done: {few}; a transfer goes on in the next")
    for device in method["devices"]:
        phase, needs = max(device["needs_B"].items(), key=lambda pair: pair[1]["total_B"])
        least = "" if device["activations_known"] else "at least "
        need = f"needs {least}{size(needs['total_B'])} ({phase.replace('_', ' ')}, {count(device['experts'], 'expert')})"
        has = "memory without a bound" if device["memory_B"] is None else f"{size(device['memory_B'])}"
        answer = {True: "fits", False: "does not fit", None: "fits, but for what its layers keep, which is not known here"}
        told.append(f"memory of {device['class']} ({together(device['links'])}): {need} of {has}: {answer[device['holds']]}")
    ends, start = method["ends"], document["start"]
    if method["works"] is False:
        return told
    if ends["t_s"] is None:
        told.append(f"cycle {ends['cycle']}: the plan holds no whole cycle; some cluster is never met")
        return told
    when = f"{duration(ends['t_s'])} after the start"
    when = f"{utc(start, ends['t_s'])} UTC, {when}" if start else when
    beyond = (
        "" if ends["in_plan"] else f"; about, as the plan ends with cycle {document['cycles']}: give it more days to be sure"
    )
    told.append(f"cycle {ends['cycle']} ends {when}{beyond}")
    return told
