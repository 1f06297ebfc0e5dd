"""Of a plan's page: what the plan allows, as updates over time and as tables."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from .bound_text import ANY, CHANGES, ORDERED, any_rows, change_rows, ordered_rows, sentences
from .chart import COLOURS, Chart, Line, Look, Panel, looks
from .page import html_table, shown, text_row
from .words import duration

MOST_CURVES = len(COLOURS)
"""As many clusters as there are colours; the others stand in the tables."""
NOTE = (
    "No run has an update earlier than these curves. Solid: in EMS-FL's order, snapshots as a contact begins, one a contact. "
    "Dashed: by any protocol that takes up together what a cluster owns, as often as bytes and rounds allow. Dotted: local "
    "rounds without any network. More updates are better."
)


def bound_section(document: Mapping[str, Any]) -> str:
    """The bounds of a plan, where they were asked for."""
    bound = document.get("bound")
    if bound is None:
        return ""
    days = document["horizon_s"] > 2 * 86400
    told = "".join(f"<li>{html.escape(text)}</li>" for text in sentences(bound, document["start"]))
    tables = [("In EMS-FL's order", ORDERED, ordered_rows), ("By any protocol", ANY, any_rows)]
    tables += (
        [(f"What would help, each change alone; update {bound['helps'][0]['update']} of every cluster", CHANGES, change_rows)]
        if bound["helps"]
        else []
    )
    rows = "".join(
        f"<p class='note'>{title}:</p>{html_table([text_row(heads, 'th')], map(text_row, of(bound)))}"
        for title, heads, of in tables
    )
    figure = shown([updates_figure(bound, 86400.0 if days else 3600.0, "days" if days else "hours")])
    return f"""<h2>What the plan allows</h2><ul>{told}</ul>
{figure}
{rows}
"""


def updates_figure(bound: Mapping[str, Any], unit_s: float, unit: str) -> Chart:
    """Complete updates of each cluster over time, in steps."""
    lines, end_s, clusters = [], bound["horizon_s"], bound["clusters"]
    most = max([1, *(len(row[key]) for row in clusters.values() for key in ("update_s", "schedule_s"))])
    own = looks(clusters)
    for name, row in list(clusters.items())[:MOST_CURVES]:
        for label, times_s, dash in (("EMS-FL's order", row["schedule_s"], "-"), ("any protocol", row["update_s"], "--")):
            x = [0.0, *(t_s / unit_s for t_s in times_s), end_s / unit_s]
            y = [*map(float, range(len(times_s) + 1)), float(len(times_s))]
            lines.append(
                Line(f"{name}, {label}", x, y, Look(own[name].colour, dash, own[name].marker), step=True, marked=False)
            )
        if came_s := bound.get("run", {"clusters": {}})["clusters"].get(name, {"update_s": []})["update_s"]:
            x, y = [t_s / unit_s for t_s in came_s], [*map(float, range(1, len(came_s) + 1))]
            lines.append(Line(f"{name}, the run", x, y, own[name], joined=False))
    for round_s in sorted({row["round_s"] for row in clusters.values() if row["round_s"]}):
        last = min(most, end_s / round_s)
        x = [0.0, last * round_s / unit_s]
        lines.append(Line(f"no network, rounds of {duration(round_s)}", x, [0.0, last], Look("#777777", ":"), marked=False))
    note = NOTE + (f" Markers: what came in the run, by {bound['run']['protocol']}." if "run" in bound else "")
    if len(clusters) > MOST_CURVES:
        note += f" The first {MOST_CURVES} of {len(clusters)} clusters are drawn."
    return Chart(
        "Updates over time",
        f"Complete updates of each cluster over {unit}: in EMS-FL's order, by any protocol, and without any network",
        [Panel(f"{unit} after the start", "complete updates", lines)],
        note,
        columns=1,
    )
