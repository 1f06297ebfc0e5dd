"""The results tables of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

COLUMNS = ("run", "γ", "final", "cycles", "steps", "MB up", "cycles", "steps", "MB up")


def results_table(summaries: Mapping[str, Mapping[str, Any]]) -> Group:
    """One row a run: final accuracy; what the target cost in cycles, gradient steps and uplink MB; the whole run's cost."""
    target = next(iter(summaries.values()))["target"]
    costs = Table(title="the run" if target is None else f"cost to {target:.0%} accuracy, then of the whole run", box=None)
    for i, column in enumerate(COLUMNS):
        costs.add_column(column, justify="left" if i == 0 else "right", style="bold" if 3 <= i <= 5 else None)
    for name, row in summaries.items():
        costs.add_row(*cells(name, row))
    names = sorted({name for row in summaries.values() for name in row["accuracy_by_cluster"]})
    clusters = Table(title="final accuracy by cluster", box=None)
    clusters.add_column("run")
    for name in names:
        clusters.add_column(name, justify="right")
    for name, row in summaries.items():
        clusters.add_row(name, *(_share(row["accuracy_by_cluster"].get(c)) for c in names))
    for name, values in baseline_rows(summaries).items():
        clusters.add_row(name, *(_share(values.get(c)) for c in names), style="dim")
    return Group(costs, "", clusters)


def baseline_rows(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What needs no model, by cluster: a row for each baseline, or for each run where runs differ in their data."""
    rows: dict[str, dict[str, float]] = {}
    for label, kind in (("majority", "majority"), ("TF-IDF", "tfidf")):
        found: list[dict[str, float]] = []
        for run, row in summaries.items():
            values = {c: v[kind] for c, v in row["baselines"].items() if v[kind] is not None}
            if values and values not in found:
                rows[f"{label}, {run}" if found else label] = values
                found.append(values)
    return rows


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """The row of one run; MB are 10⁶ B, a dash means that the target was not reached."""
    gammas = list(row["gamma"].values())
    uplink_B = row["uplink_B_to_target"]
    return [
        name,
        f"{sum(gammas) / len(gammas):.2f}" if gammas else "–",
        f"{row['final_accuracy']:.1%}",
        "–" if row["cycles_to_target"] is None else str(row["cycles_to_target"]),
        "–" if row["steps_to_target"] is None else str(row["steps_to_target"]),
        "–" if uplink_B is None else _mega(uplink_B),
        str(row["cycles"]),
        str(row["steps"]),
        _mega(row["uplink_B"]),
    ]


def _mega(size_B: float) -> str:
    """MB (10⁶ B); small runs send kilobytes."""
    return f"{size_B / 1e6:.1f}" if size_B >= 1e6 else f"{size_B / 1e6:.3f}"


COMPARED = ("", "final", "personalised", "to target", "to plateau", "load CV", "CV a round", "MB up", "steps")


def comparison_table(rows: Mapping[str, Mapping[str, Any]], target: float | None) -> Table:
    """Medians over seeds; in brackets the lowest and the highest, where there are several seeds."""
    title = "rounds to the plateau" if target is None else f"rounds to {target:.0%} accuracy and to the plateau"
    table = Table(title=f"medians over seeds; {title}", box=None)
    for i, column in enumerate(COMPARED):
        table.add_column(column, justify="left" if i == 0 else "right")
    for name, row in rows.items():
        table.add_row(*compared(name, row))
    return table


def compared(name: str, row: Mapping[str, Any]) -> list[str]:
    """The row of one protocol or policy."""

    def cell(key: str, write: Callable[[float], str]) -> str:
        values = [value for value in row["by_seed"][key] if value is not None]
        if row[key] is None:
            return "–"
        spread = f" ({write(min(values))}–{write(max(values))})" if len(row["by_seed"][key]) > 1 else ""
        return write(row[key]) + spread

    def count(value: float) -> str:
        return f"{value:g}"

    def ratio(value: float) -> str:
        return f"{value:.3f}"

    return [
        name,
        cell("final_accuracy", _share),
        cell("personal_accuracy", _share),
        cell("rounds_to_target", count),
        cell("rounds_to_plateau", count),
        cell("load_cv", ratio),
        cell("load_cv_by_round", ratio),
        cell("uplink_B", _mega),
        cell("steps", count),
    ]
