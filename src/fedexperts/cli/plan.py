"""``fedexperts plan``: who can talk when, how many bytes fit, and whether a method can work with that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..contact.interchange import EXPORTS, plan_text
from ..contact.plan import ContactPlan
from ..contact.schedule import best_passes, contact_rows, statistics, tracks, verdict
from ..errors import InputError
from ..own import is_own
from ..report.words import utc
from ..scenario import Prospect
from ..setup.plan import Orbit, network_plan, orbit
from ..writing import check_replaceable, on_disk, written_beside
from .common import Force, output, print_json, say, warn
from .plan_tables import cluster_table, contact_table, link_table, sentences, stage_table
from .run import Json, Protocol, ScenarioPath, Set

PAGE = "plan.html"
TRACK_S = 5 * 3600.0
"""So much of the ground tracks is drawn, if the plan is not shorter: elements may not hold beyond it."""
PAPER_UPLOAD_B = 14_155_776
"""Without a model: Table I, one Llama-3-8B expert with LoRA of rank 4 in bf16."""
MOST_CYCLES = 1000
"""So many slots' cycles are laid out to tell when the last of them ends."""
REMEDIES = {
    "orbit": "use a lower min_elevation_deg, another inclination_deg or more days",
    "file": "add a contact to the file of plan.path, or drop the cluster",
}
"""For a cluster that is never met, by the plan's kind."""


def command(
    scenario: ScenarioPath,
    days: Annotated[float | None, typer.Option(help="Change plan.days.")] = None,
    protocol: Protocol = None,
    cycles: Annotated[int | None, typer.Option(min=1, help="Tell when this orbital cycle ends; default train.cycles.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write plan.html, plan.json and any export there.")] = None,
    export: Annotated[list[str], typer.Option(help=f"Also write the plan as {', '.join(EXPORTS)}.")] = [],  # noqa: B006  # typer's way
    force: Force = False,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Show contacts, gaps and bytes of a plan, and whether a method can work with them; needs no data, and no model."""
    export = [kind.strip() for given in export for kind in given.split(",") if kind.strip()]
    if unknown := set(export) - set(EXPORTS):
        raise InputError(f"--export {', '.join(sorted(unknown))}: unknown format; choose from {', '.join(EXPORTS)}")
    if export and out is None:
        raise InputError("--export needs --out, the folder to write to")
    formats = {f"plan.{EXPORTS[kind]}": kind for kind in ("json", *export)}
    if out is not None:
        check_replaceable(out / PAGE, "--out", force)
        for name in formats:
            check_replaceable(out / name, "--out", force, written_beside(out / PAGE))
    changes = [f"plan.days={days}"] if days is not None else []
    changes += [f'protocol="{protocol}"'] if protocol is not None else []
    network = Prospect.load(scenario, [*set_, *changes])
    found = orbit(network) if network.plan.kind == "orbit" else None
    plan = found.plan() if found else _slots(network, cycles)
    for warning in plan.notes:
        warn(warning)
    document = describe(network, plan, found, cycles)
    if out is not None:
        texts = {name: plan_text(plan, kind, network.plan.start, network.plan.nodes) for name, kind in formats.items()}
        with on_disk(out, "make room, or name another folder", "--out"):
            from ..report.plan_html import write_plan

            write_plan(document, out / PAGE, texts)
        say(f"{out}: {PAGE}, {', '.join(texts)}")
    if json:
        print_json(document)
        return
    output.print(contact_table(document, output.width))
    output.print(cluster_table(document, output.width))
    for name, row in document["clusters"].items():
        say(f"{name}: {row['verdict']}", output)
    if document["method"] is not None:
        output.print(stage_table(document["method"], output.width))
        output.print(link_table(document["method"], output.width))
        for sentence in document["method"]["answers"]:
            say(sentence, output)


def _slots(network: Prospect, cycles: int | None) -> ContactPlan:
    """A plan of a file or of slots; the latter lasts for the cycles that are asked for."""
    plan = network_plan(network)
    wanted = cycles or (network.train.cycles if network.train else 0)
    if network.plan.kind != "file" and wanted > len(plan.cycle_ends_s):
        plan = network_plan(network, min(wanted, MOST_CYCLES) + 1)
    return plan


def describe(network: Prospect, plan: ContactPlan, found: Orbit | None, cycles: int | None = None) -> dict[str, Any]:
    """The plan as plain data: what ``--json`` prints and ``plan.html`` shows."""
    method = None
    if is_own(network.protocol):
        warn(f"protocol = {network.protocol!r}: what it sends, fedexperts check tells")
    elif network.model is not None and plan.contacts:
        from ..runs.outlook import outlook

        method = outlook(network, plan, cycles)
    start = network.plan.start.isoformat() if network.plan.start else None
    clusters = statistics(plan, found.stations if found else ())
    uploads_B = _uploads_B(method, list(clusters))
    for name, row in clusters.items():
        row["upload_B"] = uploads_B[name]
        row["verdict"] = verdict(plan, name, uploads_B[name], REMEDIES.get(network.plan.kind, "give it more days"))
    document: dict[str, Any] = {
        "name": network.name,
        "start": start,
        "horizon_s": plan.horizon_s,
        "cycles": len(plan.cycle_ends_s),
        "cycles_per_day": round(len(plan.cycle_ends_s) / plan.horizon_s * 86400, 3),
        "upload_B": max(uploads_B.values()),
        "contacts": [_timed(row, start) for row in contact_rows(plan)],
        "clusters": clusters,
        "method": method,
        "tracks": [],
        "passes": [],
        "warnings": list(plan.notes),
    }
    if method is not None:
        method["ends"]["utc"] = utc(start, method["ends"]["t_s"]) if start and method["ends"]["t_s"] is not None else None
        method["answers"] = sentences(document)
    if found:
        mask_deg = min(station.site.min_elevation_deg for station in found.stations)
        document["tracks"] = tracks(
            found.satellites, found.start, max(mask_deg, found.radio.min_elevation_deg), min(TRACK_S, found.duration_s)
        )
        document["passes"] = best_passes(plan, found.stations, found.satellites, found.radio, found.start)
    return document


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
