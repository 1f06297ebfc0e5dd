"""The results tables of the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

COLUMNS = ("run", "γ", "final", "cycles", "steps", "MB up", "cycles", "steps", "MB up")


WIDEST = 8
"""Clusters that a terminal's table has columns for; of more, clients say, it shows the spread."""


def results_table(summaries: Mapping[str, Mapping[str, Any]]) -> Group:
    """One row a run: final accuracy; what the target cost in cycles, gradient steps and uplink MB; the whole run's cost."""
    goal = goal_of(summaries)
    costs = Table(title="the run" if goal is None else f"cost to {goal}, then of the whole run", box=None)
    for i, column in enumerate(COLUMNS):
        costs.add_column(column, justify="left" if i == 0 else "right", style="bold" if 3 <= i <= 5 else None)
    for name, row in summaries.items():
        costs.add_row(*cells(name, row))
    return Group(costs, "", accuracy_table(summaries))


def goal_of(summaries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The target in words, and which data it is read on."""
    row = next(iter(summaries.values()))
    return None if row["target"] is None else f"{row['target']:.0%} accuracy on {row.get('judged_on', 'test')} data"


def accuracy_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Final accuracy on each cluster's or client's own test data, or its spread over them; below it the personalised one."""
    rows = {name: row["accuracy_by_cluster"] for name, row in summaries.items()}
    clients = any(row.get("personal_by_client") for row in summaries.values())
    for name, row in summaries.items():
        if personal := row.get("personal_by_client"):
            rows[f"{name}, personalised"] = personal
    baselines = baseline_rows(summaries)
    names = sorted({name for values in [*rows.values(), *baselines.values()] for name in values})
    by = "client" if clients else "cluster"
    wide = len(names) > WIDEST
    table = Table(title=f"final accuracy over {len(names)} {by}s" if wide else f"final accuracy by {by}", box=None)
    table.add_column("run")
    for column in SPREAD if wide else names:
        table.add_column(column, justify="right")
    for name, values in {**rows, **baselines}.items():
        table.add_row(
            name, *(spread(values) if wide else (_share(values.get(c)) for c in names)), style=_style(name, baselines)
        )
    return table


SPREAD = ("lowest", "", "median", "highest", "")


def spread(values: Mapping[str, float]) -> list[str]:
    """Lowest, median and highest of many clusters or clients, and who has the lowest and the highest."""
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    return [_share(values[low]), low, _share(statistics.median(values.values())), _share(values[high]), high]


def _style(name: str, baselines: Mapping[str, Any]) -> str | None:
    return "dim" if name in baselines else None


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


@dataclass(frozen=True)
class Column:
    """A column of a comparison: a head of two lines, the measure's key, how a value is written."""

    head: tuple[str, str]
    key: str
    write: Callable[[float], str]
    always: bool = False

    @property
    def title(self) -> str:
        """The head in one line."""
        return " ".join(filter(None, self.head))


COMPARED = (
    Column(("final", "%"), "final_accuracy", lambda share: f"{100 * share:.1f}", always=True),
    Column(("personal", "%"), "personal_accuracy", lambda share: f"{100 * share:.1f}"),
    Column(("to", "target"), "rounds_to_target", "{:g}".format, always=True),
    Column(("to", "plateau"), "rounds_to_plateau", "{:g}".format, always=True),
    Column(("load CV", "whole run"), "load_cv", "{:.3f}".format),
    Column(("load CV", "a round"), "load_cv_by_round", "{:.3f}".format),
    Column(("MB", "up"), "uplink_B", lambda size_B: _mega(size_B)),
    Column(("gradient", "steps"), "steps", lambda steps: f"{steps:.0f}"),
)


def comparison_table(rows: Mapping[str, Mapping[str, Any]], target: float | None) -> Table:
    """Medians over seeds; below each the lowest and the highest, where seeds differ."""
    title = "rounds to the plateau" if target is None else f"rounds to {target:.0%} accuracy and to the plateau"
    on = next(iter(rows.values()), {}).get("judged_on", "test")
    table = Table(
        title=f"medians over seeds; final on test data, {title} on {on} data", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("", no_wrap=True, overflow="fold")
    columns = compared_columns(rows)
    for column in columns:
        table.add_column("\n".join(column.head), justify="right", overflow="fold")
    for name, row in rows.items():
        cells = [compared(column, row) for column in columns]
        table.add_row(name, *(middle for middle, _ in cells))
        if any(spread for _, spread in cells):
            table.add_row("", *(spread for _, spread in cells), style="dim")
    return table


def compared_columns(rows: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The columns that some protocol or policy has a value for."""
    return [column for column in COMPARED if column.always or any(row[column.key] is not None for row in rows.values())]


def compared(column: Column, row: Mapping[str, Any]) -> tuple[str, str]:
    """The median over seeds of one protocol or policy, and its range: empty where all seeds agree.

    A dash stands for what was not reached: by most of the seeds for a median, by the last of them for a range.
    """
    values = [None if value is None else column.write(value) for value in row["by_seed"][column.key]]
    middle = "–" if row[column.key] is None else column.write(row[column.key])
    if len(set(values)) == 1:
        return middle, ""
    found = sorted(value for value in row["by_seed"][column.key] if value is not None)
    return middle, f"{column.write(found[0])}–{'' if None in values else column.write(found[-1])}"
