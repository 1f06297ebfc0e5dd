"""``fedexperts check``: whether a scenario can work, and what a run of it would do."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..caveats import left_over, who_never_trained
from ..report.words import utc
from .common import output, print_json, say
from .run import Json, Protocol, ScenarioPath, Set, load


def command(
    scenario: ScenarioPath,
    protocol: Protocol = None,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Check all of a scenario, and show what a run would do: rounds, steps, bytes, joules, time. Nothing is written."""
    loaded = load(scenario, protocol, None, set_)
    from ..runs.forecast import forecast

    document = forecast(loaded)
    if json:
        print_json(document)
        return
    output.print(link_table(document))
    output.print(part_table(document))
    say(summary(document), output)
    for text in left_over(document["used"]):
        say(text, output)
    if never := document["never_trained"]:
        say(who_never_trained(never, len(document["links"]), "clients" if document["by_client"] else "clusters"), output)


def summary(document: dict[str, Any]) -> str:
    """The run in a line."""
    wall_s, warm = sum(document["wall_s"].values()), document["warmup_steps"]
    time = f"about {wall_s:.0f} s" if wall_s >= 1 else "under a second"
    went_MB = [document[f"{way}link_B"] / 1e6 for way in ("up", "down")]
    pooled = document["uplink_B"] > sum(row["uplink_B"] for row in document["links"].values())
    once = " (the raw data, once)" if pooled else ""
    date = f", {utc(document['start'], document['ends_s'])} UTC" if document["start"] else ""
    return (
        f"{document['cycles']} orbital cycles end after {document['ends_s'] / 3600:.1f} h{date}; {document['steps']:,} "
        f"gradient steps, {went_MB[0]:.2f} MB up{once}, {went_MB[1]:.2f} MB down; {time} on this machine"
        + (f", and {warm:,} steps of warm-up" if warm else "")
    )


def link_table(document: dict[str, Any]) -> Table:
    """One row for each cluster, or each client."""
    table = Table(title=f"{document['name']}, {document['protocol']}; bytes and joules with the flush at the end", box=None)
    for column in ("link", "devices", "samples", "contacts", "rounds", "steps", "MB up", "MB down", "J a device"):
        table.add_column(column, justify="left" if column == "link" else "right")
    for name, row in document["links"].items():
        table.add_row(
            name,
            str(row["devices"]),
            f"{sum(row['samples']):,}",
            str(row["contacts"]),
            f"{row['rounds']:,}",
            f"{row['steps']:,}",
            f"{row['uplink_B'] / 1e6:.2f}",
            f"{row['downlink_B'] / 1e6:.2f}",
            f"{row['energy_J_per_device']:.3g}",
        )
    return table


def part_table(document: dict[str, Any]) -> Table:
    """Bytes of the parts; experts of one size share a row."""
    table = Table(title="parts", box=None)
    for column in ("part", "kB", "kB uploaded"):
        table.add_column(column, justify="left" if column == "part" else "right")
    rows: dict[tuple[int, int], list[str]] = {}
    for part, row in document["parts"].items():
        rows.setdefault((row["bytes"], row["upload_B"]), []).append(part)
    for (size_B, upload_B), parts in rows.items():
        name = parts[0] if len(parts) == 1 else f"{parts[0]} … {parts[-1]}, each"
        table.add_row(name, f"{size_B / 1e3:,.1f}", f"{upload_B / 1e3:,.1f}")
    return table
