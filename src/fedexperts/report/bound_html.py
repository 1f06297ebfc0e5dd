"""Of a plan's page: what the plan allows, as updates over time and as tables."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from .bound_text import ANY, CHANGES, ORDERED, any_rows, change_rows, ordered_rows, sentences
from .page import COLOURS, html_table, look, shown, text_row
from .words import duration

MOST_CURVES = len(COLOURS)
"""As many clusters as there are colours; the others wait in the legend."""
NOTE = (
    "No run has an update earlier than these curves. Solid: in EMS-FL's order, snapshots as a contact begins, one a contact. "
    "Dashed: by any protocol that takes up together what a cluster owns, as often as bytes and rounds allow. Dotted: local "
    "rounds without any network."
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
        f"<p class='note'>{title}:</p><div class='wide'>{html_table([text_row(heads, 'th')], map(text_row, of(bound)))}</div>"
        for title, heads, of in tables
    )
    note = NOTE + (f" Circles: what came in the run, by {bound['run']['protocol']}." if "run" in bound else "")
    figure = shown([updates_figure(bound, 86400.0 if days else 3600.0, "days" if days else "hours")], responsive=True)
    return f"""<h2>What the plan allows</h2><ul>{told}</ul>
<p class='note'>{html.escape(note)}</p>{figure}
{rows}
"""


def updates_figure(bound: Mapping[str, Any], unit_s: float, unit: str) -> go.Figure:
    """Complete updates of each cluster over time, in steps."""
    figure = go.Figure()
    end_s = bound["horizon_s"]
    most = max([1, *(len(row[key]) for row in bound["clusters"].values() for key in ("update_s", "schedule_s"))])
    for i, (name, row) in enumerate(bound["clusters"].items()):
        for key, times_s, dash in (("EMS-FL's order", row["schedule_s"], "solid"), ("any protocol", row["update_s"], "dash")):
            figure.add_scatter(
                x=[0.0, *(t_s / unit_s for t_s in times_s), end_s / unit_s],
                y=[*range(len(times_s) + 1), len(times_s)],
                name=html.escape(f"{name}, {key}"),
                legendgroup=str(i),
                visible=True if i < MOST_CURVES else "legendonly",
                mode="lines",
                line={"shape": "hv", "dash": dash, "color": COLOURS[i % len(COLOURS)], "width": 2 if dash == "solid" else 1.2},
            )
        if came_s := bound.get("run", {"clusters": {}})["clusters"].get(name, {"update_s": []})["update_s"]:
            figure.add_scatter(
                x=[t_s / unit_s for t_s in came_s],
                y=[*range(1, len(came_s) + 1)],
                name=html.escape(f"{name}, the run"),
                legendgroup=str(i),
                visible=True if i < MOST_CURVES else "legendonly",
                mode="markers",
                marker={"color": COLOURS[i % len(COLOURS)], "size": 7, "line": {"color": "white", "width": 1}},
            )
    for round_s in sorted({row["round_s"] for row in bound["clusters"].values() if row["round_s"]}):
        last = min(most, end_s / round_s)
        figure.add_scatter(
            x=[0.0, last * round_s / unit_s],
            y=[0, last],
            name=f"no network, rounds of {duration(round_s)}",
            mode="lines",
            line={"dash": "dot", "color": "#777", "width": 1.5},
        )
    look(figure, 460, xaxis_title=f"{unit} after the start", yaxis_title="complete updates", margin={"t": 20})
    figure.update_yaxes(range=[0, most * 1.05], rangemode="tozero")
    return figure
