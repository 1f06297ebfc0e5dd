"""A page with both theorems' bounds over cycles and over γ."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plotly.subplots import make_subplots

from .page import COLOURS, html_table, look, shown, text_row, write_page

NAMES = {"ems_fl": "EMS-FL, (45)", "sync": "baseline, (48)"}
PANELS = (("over_cycles", "cycles", "T, orbital cycles"), ("over_gamma", "gamma", "γ"))


def write_theory(document: Mapping[str, Any], over: Mapping[str, Any], path: Path) -> None:
    """Write the page, from what ``bound --json`` prints and from the curves.

    Raises:
        OSError: it cannot be written.
    """
    rows = (
        [NAMES[scheme], *(_number(document[scheme][key]) for key in ("published", "corrected"))]
        for scheme in ("ems_fl", "sync")
    )
    table = html_table([text_row(("the mean of ‖∇F‖² is at most", "published", "corrected"), "th")], map(text_row, rows))
    failing = "".join(f"<li>{html.escape(row['reason'])}</li>" for row in document["conditions"].values() if not row["holds"])
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, (panel, axis, title) in enumerate(PANELS, 1):
        for (scheme, name), colour in zip(NAMES.items(), COLOURS, strict=False):
            figure.add_scatter(
                x=over[panel][axis],
                y=over[panel][scheme],
                name=name,
                legendgroup=scheme,
                showlegend=column == 1,
                mode="lines",
                line={"color": colour},
                row=1,
                col=column,
            )
        figure.update_xaxes(title=title, row=1, col=column)
    figure.update_xaxes(type="log", row=1, col=1)
    figure.update_yaxes(type="log", exponentformat="power")
    look(figure, 440, margin={"t": 20}, yaxis_title="bound on the mean of ‖∇F‖²")
    note = (
        f"Published bounds; left at γ = {document['gamma']:.3g}, right at T = {document['cycles']:,} with every γ_c alike. The "
        "constants are " + ", ".join(f"{name} {value:.3g}" for name, value in document["constants"].items()) + "."
    )
    fails = f"<p>Conditions that fail:</p><ul>{failing}</ul>" if failing else ""
    write_page(
        path, "Theorems 1 and 2", f"{table}{fails}<p class='note'>{html.escape(note)}</p>{shown([figure], responsive=True)}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
