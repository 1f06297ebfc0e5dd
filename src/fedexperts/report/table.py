"""The results tables of the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group
from rich.table import Table

COLUMNS = ("run", "γ", "final", "cycles", "steps", "MB up", "cycles", "steps", "MB up")


ACCURACY = "accuracy"
"""The one metric that is written in percent."""
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
    on = row.get("judged_on", "test")
    return None if row["target"] is None else f"{goal(row['target'], metric_of(summaries))} on {on} data"


def goal(target: float, metric: str) -> str:
    """A target of a metric, as a target is given: an accuracy in whole percent."""
    return f"{target:.0%} accuracy" if metric == ACCURACY else f"{metric} {target:.3f}"


def metric_of(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the runs' figures over all clusters are: "score" where they differ."""
    return _common(row.get("metric", ACCURACY) for row in rows.values())


def metric_by_cluster(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """What the figures of single clusters are: "score" where they differ."""
    return _common(m for row in summaries.values() for m in row.get("metric_by_cluster", {"": ACCURACY}).values())


def _common(metrics: Iterable[str]) -> str:
    names = set(metrics)
    return names.pop() if len(names) == 1 else "score"


def written(value: float | None, metric: str) -> str:
    """A value of a metric: an accuracy is a percentage, others are plain numbers."""
    return "–" if value is None else f"{value:.1%}" if metric == ACCURACY else f"{value:.3f}"


def axis(metric: str) -> tuple[float, str]:
    """By what a figure multiplies a metric, and how its axis is called."""
    return (100.0, "accuracy, %") if metric == ACCURACY else (1.0, metric)


def accuracy_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """Final accuracy on each cluster's or client's own test data, or its spread over them; below it the personalised one.

    Clusters that are judged by other metrics have these, by name.
    """
    rows: dict[str, Mapping[str, float]] = {name: row["accuracy_by_cluster"] for name, row in summaries.items()}
    metrics = {name: row.get("metric_by_cluster", {}) for name, row in summaries.items()}
    clients = any(row.get("personal_by_client") for row in summaries.values())
    for name, row in summaries.items():
        if personal := row.get("personal_by_client"):
            rows[f"{name}, personalised"], metrics[f"{name}, personalised"] = personal, metrics[name]
    baselines = baseline_rows(summaries)
    for label in baselines:  # "majority", or "majority, run"
        metrics[label] = metrics.get(label.partition(", ")[2]) or next((of for of in metrics.values() if of), {})
    names = sorted({name for values in [*rows.values(), *baselines.values()] for name in values})
    one = metric_by_cluster(summaries)
    heads = {c: _common(metrics[name].get(c, ACCURACY) for name, row in rows.items() if c in row) for c in names}
    wide, by = len(names) > WIDEST, "client" if clients else "cluster"
    table = Table(title=f"final {one} over {len(names)} {by}s" if wide else f"final {one} by {by}", box=None)
    table.add_column("run")
    for column in SPREAD if wide else names:
        own = wide or one != "score" or heads[column] == "score"
        table.add_column(column if own else f"{column}, {heads[column]}", justify="right")
    for name, values in {**rows, **baselines}.items():
        of = metrics[name]
        each = [_cell(values.get(c), of.get(c, ACCURACY), heads[c]) for c in names]
        table.add_row(name, *(spread(values, one) if wide else each), style=_style(name, baselines))
    return table


def _cell(value: float | None, metric: str, head: str) -> str:
    """A value, with its metric where the column's head has none."""
    own = value is not None and head == "score" and metric != ACCURACY
    return f"{written(value, metric)} {metric}" if own else written(value, metric)


SPREAD = ("lowest", "", "median", "highest", "")


def spread(values: Mapping[str, float], metric: str = ACCURACY) -> list[str]:
    """Lowest, median and highest of many clusters or clients, and who has the lowest and the highest."""
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    middle = statistics.median(values.values())
    return [written(values[low], metric), low, written(middle, metric), written(values[high], metric), high]


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


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """The row of one run; MB are 10⁶ B, a dash means that the target was not reached."""
    gammas = list(row["gamma"].values())
    uplink_B = row["uplink_B_to_target"]
    return [
        name,
        f"{sum(gammas) / len(gammas):.2f}" if gammas else "–",
        written(row["final_accuracy"], row.get("metric", ACCURACY)),
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
    metric = metric_of(rows)
    title = "rounds to the plateau" if target is None else f"rounds to {goal(target, metric)} and to the plateau"
    on, final = next(iter(rows.values()), {}).get("judged_on", "test"), "final" if metric == ACCURACY else f"final {metric}"
    table = Table(
        title=f"medians over seeds; {final} on test data, {title} on {on} data",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
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
    metric = metric_of(rows)
    columns: tuple[Column, ...] = COMPARED
    if metric != ACCURACY:
        unit = metric if metric.isalnum() else "score"
        columns = tuple(replace(c, head=(c.head[0], unit), write="{:.3f}".format) if c.head[1] == "%" else c for c in columns)
    return [column for column in columns if column.always or any(row[column.key] is not None for row in rows.values())]


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
