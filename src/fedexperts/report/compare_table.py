"""The tables of a comparison: medians over seeds of several protocols or policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group

from .stacked import Stacked
from .table import ACCURACY, accuracy_table, client_rows, goal, mega, metric_of, never_notes, written


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
    Column(("MB", "up"), "uplink_B", lambda size_B: mega(size_B)),
    Column(("gradient", "steps"), "steps", lambda steps: f"{steps:.0f}"),
)


def comparison_table(rows: Mapping[str, Mapping[str, Any]], target: float | None) -> Group:
    """Medians over seeds; below each the lowest and the highest, where seeds differ. Then the same by cluster or client.

    Beside results on text stands what needs no model.
    """
    found: list[Stacked | str] = [_costs(rows, target)]
    if all("accuracy_by_cluster" in row for row in rows.values()):
        found += ["", accuracy_table(rows, ranges(rows)), *never_notes(rows)]
    title, heads, cells = client_rows(rows, {column.key for column in COMPARED})
    if cells:
        found += ["", Stacked(title, heads, cells)]
    return Group(*found)


def ranges(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """By name and cluster or client, the lowest and the highest of its results over seeds; empty where all seeds agree."""
    found = {}
    for name, row in rows.items():
        for key, label in (("accuracy_by_cluster", name), ("personal_by_client", f"{name}, personalised")):
            seeds = [by_link for by_link in row["by_seed"].get(key, ()) if by_link]
            links = dict.fromkeys(link for by_link in seeds for link in by_link)
            metrics = row.get("metric_by_cluster", {})
            found[label] = {c: _range([by[c] for by in seeds if c in by], metrics.get(c, ACCURACY)) for c in links}
    return found


def _range(values: Sequence[float], metric: str) -> str:
    low, high = written(min(values), metric), written(max(values), metric)
    return "" if low == high else f"{low.removesuffix('%')}–{high.removesuffix('%')}"


def _costs(rows: Mapping[str, Mapping[str, Any]], target: float | None) -> Stacked:
    metric = metric_of(rows)
    title = "rounds to the plateau" if target is None else f"rounds to {goal(target, metric)} and to the plateau"
    on, final = next(iter(rows.values()), {}).get("judged_on", "test"), "final" if metric == ACCURACY else f"final {metric}"
    columns, cells, dim = compared_columns(rows), [], []
    for name, row in rows.items():
        found = [compared(column, row) for column in columns]
        cells.append([name, *(middle for middle, _ in found)])
        if any(spread for _, spread in found):
            dim.append(len(cells))
            cells.append(["", *(spread for _, spread in found)])
    heads = ["", *("\n".join(column.head) for column in columns)]
    return Stacked(f"{_over(rows)}{final} on test data, {title} on {on} data", heads, cells, dim=dim)


def seeds_of(rows: Mapping[str, Mapping[str, Any]]) -> int:
    """How many seeds are compared."""
    return max((len(row["by_seed"].get("seed") or row["by_seed"]["final_accuracy"]) for row in rows.values()), default=0)


def _over(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return "medians over seeds; " if seeds_of(rows) > 1 else ""


def compared_columns(rows: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The columns that some protocol or policy has a value for."""
    metric = metric_of(rows)
    columns: tuple[Column, ...] = COMPARED
    if metric != ACCURACY:
        several = len({m for row in rows.values() for m in row.get("metric_by_cluster", {}).values()})
        unit = metric if metric.isalnum() else f"mean of {several}" if " and " in metric else "score"
        columns = tuple(replace(c, head=(c.head[0], unit), write="{:.3f}".format) if c.head[1] == "%" else c for c in columns)
    if all(row.get("target", 0.0) is None for row in rows.values()):
        columns = tuple(column for column in columns if column.key != "rounds_to_target")
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
