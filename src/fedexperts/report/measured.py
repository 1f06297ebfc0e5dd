"""What other commands have left with a run: bounds beside measured gradient norms, dense models on the same test data."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import legible
from .page import html_table, text_row

FILE = "bound.json"
"""In a run directory: what ``fedexperts bound SCENARIO.toml --json`` printed."""
JUDGED = "eval.json"
"""In a run directory: what ``fedexperts eval MODEL... --task SCENARIO.toml --json`` printed of dense models."""
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What a file that is none of ours gives."""
BEST = "best dense model"


def dense_rows(runs: Mapping[str, Path], summaries: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict[str, float]], str]:
    """The score of the best single dense model on each cluster, a row for each run where runs differ; which models they are.

    Files that cannot be read, or that are of other metrics, are told in the words.
    """
    rows: dict[str, dict[str, float]] = {}
    told: list[str] = []
    for name, directory in runs.items():
        if not (directory / JUDGED).is_file():
            continue
        try:
            found = _best(json.loads((directory / JUDGED).read_text(encoding="utf-8")), summaries[name]["metric_by_cluster"])
        except UNREADABLE as error:
            told.append(f"{name}: {JUDGED} cannot be read ({error!r}); write it again with fedexperts eval … --json.")
            continue
        scores = {cluster: score for cluster, (score, _) in found.items()}
        if scores and scores not in rows.values():
            rows[f"{BEST}, {name}" if rows else BEST] = scores
            told.append(f"Best dense model: {', '.join(f'{cluster} {model}' for cluster, (_, model) in found.items())}.")
    return rows, legible(" ".join(told))


def _best(document: Any, metrics: Mapping[str, str]) -> dict[str, tuple[float, str]]:
    """Of each cluster the best score by its metric, and whose it is."""
    found: dict[str, tuple[float, str]] = {}
    for one in document.get("models", [document]):
        for cluster, metric in metrics.items():
            row = one["clusters"].get(cluster, {}) if one["dense"] else {}
            if row.get("metric") == metric and (cluster not in found or row[metric] > found[cluster][0]):
                found[cluster] = (float(row[metric]), str(one["model"]))
    return found


def bound_section(runs: Mapping[str, Path]) -> str:
    """A row for each run that has the file; nothing where none has it. What cannot be read is told."""
    rows, told = [], []
    for name, directory in runs.items():
        path = directory / FILE
        if not path.is_file():
            continue
        try:
            rows.append([name, *_cells(json.loads(path.read_text(encoding="utf-8")))])
        except UNREADABLE as error:
            told.append(f"{name}: {FILE} cannot be read ({error!r}); write it again with fedexperts bound … --json")
    if not rows and not told:
        return ""
    heads = ["run", "EMS-FL, published", "corrected", "baseline, published", "corrected", "‖∇ expert F‖", "‖∇ gate F‖"]
    gaps = "".join(f"<p class='note'>{html.escape(legible(text))}</p>" for text in told)
    table = html_table([text_row(heads, "th")], map(text_row, rows)) if rows else ""
    return (
        f"<h2>Bounds, and gradients measured</h2>{table}{gaps}"
        "<p class='note'>Theorems 1 and 2 bound the mean of ‖∇F‖² over the run; lower is better. The norms on the right are "
        "the largest at the few points where constants were estimated: their squares are to be compared with the bounds, and "
        "with estimated constants a bound is an estimate too.</p>"
    )


def _cells(document: Mapping[str, Any]) -> list[str]:
    schemes = [document[scheme][key] for scheme in ("ems_fl", "sync") for key in ("published", "corrected")]
    return [_number(value) for value in (*schemes, *(document["constants"][key] for key in ("grad_expert", "grad_gate")))]


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"
