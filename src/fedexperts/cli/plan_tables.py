"""Tables of ``fedexperts plan`` that stay whole in 80 columns, however long names are and however many satellites fly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from ..report.words import LINKS, STAGES, link_rows, stage_rows, utc

MOST_ROWS = 12
NARROWEST = 4
"""A name is never shown in fewer columns."""


def contact_table(document: Mapping[str, Any], width: int) -> Table:
    """The first contacts."""
    rows = document["contacts"]
    more = f", the first {MOST_ROWS}; all in --json and plan.html" if len(rows) > MOST_ROWS else ""
    title = f"{len(rows)} contacts in {document['horizon_s'] / 86400:.2f} days{more}; rates and bytes per device"
    names = ["cluster", *(["satellite"] if len({row["satellite"] for row in rows}) > 1 else [])]
    clock = ["rise, UTC", "set", "after"] if document["start"] else ["rise", "set"]
    shown = rows[:MOST_ROWS]
    cut = ["cut"] if any(row["cut"] for row in shown) else []
    cells = [
        [
            *(str(row[name]) for name in names),
            *_clock(row, document["start"]),
            f"{(row['end_s'] - row['start_s']) / 60:.1f}",
            "" if row["max_elevation_deg"] is None else f"{row['max_elevation_deg']:.0f}°",
            mega(row["uplink_bps"], 2),
            mega(row["uplink_B"]),
            mega(row["downlink_B"]),
            *(["✂" if row["cut"] else ""] if cut else []),
        ]
        for row in shown
    ]
    return fitted(title, [*names, *clock, "min", "peak", "Mb/s", "MB up", "down", *cut], cells, len(names), width)


def cluster_table(document: Mapping[str, Any], width: int) -> Table:
    """Statistics by cluster."""
    title = f"passes and gaps by cluster; {document['cycles']} orbital cycles, {document['cycles_per_day']:.1f} a day"
    heads = ["cluster", "a day", "median", "longest", "gap", "max gap", "idle", "MB up/d", "down/d"]
    cells = []
    for name, row in document["clusters"].items():
        times = (row["median_duration_s"], row["longest_duration_s"], row["median_gap_s"], row["max_gap_s"])
        bytes_ = (mega(row["uplink_B_per_day"]), mega(row["downlink_B_per_day"]))
        spans = ("–" if t is None else span(t) for t in times)
        cells.append([name, f"{row['passes_per_day']:.1f}", *spans, f"{row['idle_share']:.1%}", *bytes_])
    return fitted(title, heads, cells, 1, width)


def stage_table(method: Mapping[str, Any], width: int) -> Table:
    """What a contact is to carry, alike links in one row."""
    title = f"{method['protocol']}, {method['trained']}: what a contact carries for each device"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for head in STAGES:
        table.add_column(head, justify="left" if head else "right", no_wrap=not head, overflow="fold")
    table.columns[0].max_width = max(8, width // 5)
    for row in stage_rows(method):
        table.add_row(*map(Text, row))
    return table


def link_table(method: Mapping[str, Any], width: int) -> Table:
    """What becomes of it in the plan's contacts, for a device and an orbital cycle."""
    title = f"a device in an orbital cycle, over the first {method['played_cycles']}"
    return fitted(title, LINKS, link_rows(method), 1, width)


# --- words ------------------------------------------------------------------------------------------------------------


def fitted(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], names: int, width: int) -> Table:
    """A table whose first columns are names, cut in their middle so that it is no wider than ``width``."""
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    widest = [max(map(cell_len, [head, *(row[i] for row in rows)])) for i, head in enumerate(heads)]
    room = width - sum(widest[names:]) - (len(heads) - 1)
    most = shares(widest[:names], max(room, names * NARROWEST))
    for i, head in enumerate(heads):
        table.add_column(
            shortened(head, most[i]) if i < names else head, justify="left" if i < names else "right", no_wrap=True
        )
    for row in rows:  # as they are: a name may hold brackets and colons
        table.add_row(*(Text(shortened(text, most[i]) if i < names else text) for i, text in enumerate(row)))
    return table


def shares(wanted: Sequence[int], room: int) -> list[int]:
    """Columns for each name: what it wants, or of what the others leave an even share."""
    given: dict[int, int] = {}
    for place, i in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        given[i] = min(wanted[i], room // (len(wanted) - place))
        room -= given[i]
    return [given[i] for i in range(len(wanted))]


def shortened(text: str, most: int) -> str:
    """A text without its middle: names of satellites differ at their ends."""
    if cell_len(text) <= most:
        return text
    tail = max(0, (most - 1) // 2)
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def _clock(row: Mapping[str, Any], start: str | None) -> list[str]:
    if start is None:
        return [clock(row["start_s"]), clock(row["end_s"])]
    return [utc(start, row["start_s"])[5:], utc(start, row["end_s"])[11:], elapsed(row["start_s"])]


def elapsed(time_s: float) -> str:
    """Hours and minutes after the start."""
    minutes = int(time_s // 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


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
