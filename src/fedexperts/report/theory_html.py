"""A page with both theorems' bounds over cycles and over γ."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .chart import Chart, Line, Panel, looks
from .page import html_table, shown, text_row, write_page

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
    own, panels = looks(NAMES.values()), []
    for key, along, label in PANELS:
        lines = [
            Line(name, *_known(over[key][along], over[key][scheme]), own[name], marked=False) for scheme, name in NAMES.items()
        ]
        panels.append(
            Panel(label, "bound on the mean of ‖∇F‖² (lower is better)", lines, log="xy" if along == "cycles" else "y")
        )
    chart = Chart(
        "Bounds over T and γ",
        "Published bounds on the mean of ‖∇F‖² of EMS-FL and the baseline, against orbital cycles T and against γ",
        panels,
        share_y=True,
    )
    note = (
        f"Published bounds; left at γ = {document['gamma']:.3g}, right at T = {document['cycles']:,} with every γ_c alike. The "
        "constants are " + ", ".join(f"{name} {value:.3g}" for name, value in document["constants"].items()) + "."
    )
    fails = f"<p>Conditions that fail:</p><ul>{failing}</ul>" if failing else ""
    write_page(path, "Theorems 1 and 2", f"{table}{fails}<p class='note'>{html.escape(note)}</p>{shown([chart])}")


def _known(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Points that are numbers above 0, which a logarithmic axis can show."""
    points = [(float(at), value) for at, value in zip(x, y, strict=True) if value is not None and 0 < value < math.inf]
    return [at for at, _ in points], [value for _, value in points]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
