"""``fedexperts plan``: who can talk when, how many bytes fit, and what that means for a model's upload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..contact.interchange import EXPORTS, plan_text
from ..contact.plan import ContactPlan
from ..contact.schedule import best_passes, contact_rows, statistics, tracks, verdict
from ..errors import InputError
from ..scenario import Network
from ..setup.plan import Orbit, network_plan, orbit
from ..writing import check_replaceable, on_disk, written_beside
from .common import Force, output, print_json, say, warn
from .run import Json, ScenarioPath, Set

MOST_ROWS = 40
PAGE = "plan.html"
TRACK_S = 5 * 3600.0
"""So much of the ground tracks is drawn, if the plan is not shorter: elements may not hold beyond it."""
PAPER_UPLOAD_B = 14_155_776
"""Without a model: Table I, one Llama-3-8B expert with LoRA of rank 4 in bf16."""


def command(
    scenario: ScenarioPath,
    days: Annotated[float | None, typer.Option(help="Change plan.days.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write plan.html, plan.json and any export there.")] = None,
    export: Annotated[list[str], typer.Option(help=f"Also write the plan as {', '.join(EXPORTS)}.")] = [],  # noqa: B006  # typer's way
    force: Force = False,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Show contacts, gaps and bytes of a scenario's plan; needs neither model nor data."""
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
    network = Network.load(scenario, [*set_, *([f"plan.days={days}"] if days is not None else [])])
    found = orbit(network) if network.plan.kind == "orbit" else None
    plan = found.plan() if found else network_plan(network)
    for warning in plan.notes:
        warn(warning)
    document = describe(network, plan, found)
    if out is not None:
        texts = {name: plan_text(plan, kind, network.plan.start, network.plan.nodes) for name, kind in formats.items()}
        with on_disk(out, "make room, or name another folder", "--out"):
            from ..report.plan_html import write_plan

            write_plan(document, out / PAGE, texts)
        say(f"{out}: {PAGE}, {', '.join(texts)}")
    if json:
        print_json(document)
    else:
        output.print(contact_table(document))
        output.print(cluster_table(document))
        for name, row in document["clusters"].items():
            say(f"{name}: {row['verdict']}", output)


def describe(network: Network, plan: ContactPlan, found: Orbit | None) -> dict[str, Any]:
    """The plan as plain data: what ``--json`` prints and ``plan.html`` shows."""
    size_B = PAPER_UPLOAD_B
    if network.model is not None:
        from ..setup.model import upload_B

        size_B = upload_B(network.model, network)
    clusters = statistics(plan, found.stations if found else ())
    for name, row in clusters.items():
        row["verdict"] = verdict(plan, name, size_B)
    document: dict[str, Any] = {
        "name": network.name,
        "start": network.plan.start.isoformat() if network.plan.start else None,
        "horizon_s": plan.horizon_s,
        "cycles": len(plan.cycle_ends_s),
        "cycles_per_day": round(len(plan.cycle_ends_s) / plan.horizon_s * 86400, 3),
        "upload_B": size_B,
        "contacts": contact_rows(plan),
        "clusters": clusters,
        "tracks": [],
        "passes": [],
        "warnings": list(plan.notes),
    }
    if found:
        mask_deg = min(station.site.min_elevation_deg for station in found.stations)
        document["tracks"] = tracks(
            found.satellites, found.start, max(mask_deg, found.radio.min_elevation_deg), min(TRACK_S, found.duration_s)
        )
        document["passes"] = best_passes(plan, found.stations, found.satellites, found.radio, found.start)
    return document


def contact_table(document: dict[str, Any]) -> Table:
    """The first contacts."""
    rows = document["contacts"]
    more = f", the first {MOST_ROWS}" if len(rows) > MOST_ROWS else ""
    table = Table(
        title=f"{len(rows)} contacts in {document['horizon_s'] / 86400:.2f} days{more}; rates and bytes per device", box=None
    )
    several = len({row["satellite"] for row in rows}) > 1
    names = ("cluster", *(["satellite"] if several else []))
    for column in (*names, "rise", "set", "min", "peak", "Mb/s", "MB up", "MB down", ""):
        table.add_column(column, justify="left" if column in (*names, "") else "right", no_wrap=True)
    for row in rows[:MOST_ROWS]:
        table.add_row(
            *(Text(row[name]) for name in names),  # as it is: a name may hold brackets and colons
            clock(row["start_s"]),
            clock(row["end_s"]),
            f"{(row['end_s'] - row['start_s']) / 60:.1f}",
            "" if row["max_elevation_deg"] is None else f"{row['max_elevation_deg']:.1f}°",
            mega(row["uplink_bps"], 2),
            mega(row["uplink_B"]),
            mega(row["downlink_B"]),
            "cut" if row["cut"] else "",
        )
    return table


def cluster_table(document: dict[str, Any]) -> Table:
    """Statistics by cluster."""
    table = Table(
        title=f"passes and gaps by cluster; {document['cycles']} orbital cycles, {document['cycles_per_day']:.1f} a day",
        box=None,
    )
    for column in (
        "cluster",
        "a day",
        "median",
        "longest",
        "gap",
        "max gap",
        "idle",
        "MB up/d",
        "MB down/d",
    ):
        table.add_column(column, justify="left" if column == "cluster" else "right")
    for name, row in document["clusters"].items():
        times = (row["median_duration_s"], row["longest_duration_s"], row["median_gap_s"], row["max_gap_s"])
        idle = f"{row['idle_share']:.1%}"
        bytes_ = (mega(row["uplink_B_per_day"]), mega(row["downlink_B_per_day"]))
        table.add_row(
            Text(name), f"{row['passes_per_day']:.1f}", *("–" if t is None else span(t) for t in times), idle, *bytes_
        )
    return table


def clock(time_s: float) -> str:
    """Day and time of day after the plan's start."""
    days, rest = divmod(round(time_s), 86400)
    return f"{f'{days}d ' if days else ''}{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def span(time_s: float) -> str:
    """A duration as a person says it."""
    if time_s >= 3600:
        return f"{time_s / 3600:.1f} h"
    return f"{time_s:.0f} s" if time_s < 600 else f"{time_s / 60:.0f} min"


def mega(number: float | None, digits: int = 1) -> str:
    """Millions of bytes or bits per second; ∞ for no limit."""
    return "∞" if number is None else f"{number / 1e6:.{digits}f}"
