"""The tables of a comparison: medians over seeds of several protocols or policies."""

from __future__ import annotations

import types
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
    Column(("perplexity", "↓"), "perplexity", "{:.2f}".format),
    Column(("loss", "↓"), "final_loss", "{:.3f}".format),
    Column(("rounds", "to target"), "rounds_to_target", "{:g}".format, always=True),
    Column(("hours", "to target"), "hours_to_target", "{:.2f}".format),
    Column(("steps", "to target"), "steps_to_target", "{:.0f}".format),
    Column(("MB up", "to target"), "uplink_B_to_target", lambda size_B: mega(size_B)),
    Column(("J", "to target"), "joules_to_target", "{:.3g}".format),
    Column(("rounds", "to plateau"), "rounds_to_plateau", "{:g}".format, always=True),
    Column(("load CV", "whole run"), "load_cv", "{:.3f}".format),
    Column(("load CV", "a round"), "load_cv_by_round", "{:.3f}".format),
    Column(("MB up", "whole run"), "uplink_B", lambda size_B: mega(size_B)),
    Column(("steps", "whole run"), "steps", lambda steps: f"{steps:.0f}"),
)
NEVER = "∞"
"""The end of an interval that was not reached."""


def comparison_table(
    rows: Mapping[str, Mapping[str, Any]], target: float | None, document: Mapping[str, Any] = types.MappingProxyType({})
) -> Group:
    """Medians over seeds, with their intervals, and the differences from the baseline; then the same by cluster or client.

    Of fewer seeds than an interval needs, the lowest and the highest stand below a median, where they differ. Beside results on
    text stands what needs no model. ``document``: what --json prints, of which ``tuned``, ``baseline`` and ``statistics`` are
    shown.
    """
    found: list[Stacked | str] = [_costs(rows, target), *notes(rows, document)]
    if differences := _differences(rows, document.get("baseline")):
        found += ["", differences]
    if document.get("tuned"):
        found += ["", tuned_table(document["tuned"])]
    if all("accuracy_by_cluster" in row for row in rows.values()):
        over = ranges(rows)
        found += ["", accuracy_table(rows, over)]
        if any(spread for by_link in over.values() for spread in by_link.values()):
            found.append("below a result its lowest and its highest over seeds")
        found += never_notes(rows)
    title, heads, cells = client_rows(rows, {column.key for column in COMPARED})
    if cells:
        found += ["", Stacked(title, heads, cells)]
    return Group(*found)


def notes(rows: Mapping[str, Mapping[str, Any]], document: Mapping[str, Any]) -> list[str]:
    """What intervals are worth, which way is better, and what a dash is."""
    how, seeds = document.get("statistics", {}), seeds_of(rows)
    found = []
    if how.get("covers"):
        found.append(
            f"interval: bootstrap of the median over {seeds} seeds, nominally {how['level']:.0%}; of so many seeds it holds "
            f"the true median in {how['covers']:.1%} of cases"
        )
    elif how and seeds > 1:
        found.append(f"{seeds} seeds are too few for an interval; it needs 3")
    found.append("↓: lower is better, as of all costs")
    late = {
        name: row["not_reached"]["rounds_to_target"]
        for name, row in rows.items()
        if "rounds_to_target" in row.get("not_reached", {})
    }
    if any(late.values()):
        each = ", ".join(f"{name} {many} of {seeds}" for name, many in late.items() if many)
        found.append(f"– and {NEVER}: not reached, which counts as later than all that were; target not reached: {each}")
    return found


def _differences(rows: Mapping[str, Mapping[str, Any]], baseline: str | None) -> Stacked | None:
    """Of each other row its differences from the baseline; None where there are none."""
    told = {name: row["paired"] for name, row in rows.items() if row.get("paired")}
    columns = [column for column in compared_columns(rows) if any(column.key in found for found in told.values())]
    if not columns or baseline is None:
        return None
    cells, dim = [], []
    for name, found in told.items():
        cells.append([name, *(signed(column, found.get(column.key, {}).get("difference")) for column in columns)])
        for label, told_of in ((INTERVAL, between), (AHEAD, ahead)):
            line = [told_of(column, found.get(column.key)) for column in columns]
            if any(line):
                dim.append(len(cells))
                cells.append([label, *line])
    heads = ["", *("\n".join(column.head) for column in columns)]
    return Stacked(f"difference from {baseline}, seed by seed: its median", heads, cells, dim=dim)


INTERVAL, AHEAD, RANGE = "  interval", "  seeds ahead", "  lowest–highest"


def signed(column: Column, value: float | None) -> str:
    """A difference with its sign; a dash where it is not known."""
    if value is None:
        return "–"
    text = column.write(abs(value))
    sign = "" if not text.strip("0.%") else "-" if value < 0 else "+"
    return f"{sign}{text}"


def between(column: Column, found: Mapping[str, Any] | None) -> str:
    """The interval of a difference; empty where there is none, or its two ends are the difference."""
    low, high = (signed(column, end) for end in (found and found["interval"]) or (None, None))
    return "" if low == high else f"{low} to {high}"


def ahead(_: Column, found: Mapping[str, Any] | None) -> str:
    """On how many seeds ours is better; a dash where it is known of none, empty of one seed."""
    if not found or found["of"] < 2:
        return ""
    return f"{found['ahead']} of {found['of']}" if found["ahead"] + found["behind"] else "–"


def tuned_table(tuned: Mapping[str, Any]) -> Stacked:
    """What each combination of values came to on validation data, and which was chosen."""
    names, seeds = list(tuned["cells"]), ", ".join(map(str, tuned["seeds"]))
    rows = []
    for same in zip(*tuned["cells"].values(), strict=True):
        values = ", ".join(f"{key}={value}" for key, value in same[0]["values"].items())
        scores = ["diverged" if cell["score"] is None else written(cell["score"], tuned["metric"]) for cell in same]
        rows.append([values, *(f"{score}{' *' * cell['chosen']}" for score, cell in zip(scores, same, strict=True))])
    title = (
        f"tuned on {tuned['judged_on']} data, seeds {seeds}, {tuned['better']} is better: median {tuned['metric']} at the end; "
        "* was run with the seeds above"
    )
    return Stacked(title, ["", *names], rows)


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
    metric, seeds = metric_of(rows), seeds_of(rows)
    title = "rounds to the plateau" if target is None else f"costs to {goal(target, metric)} and rounds to the plateau"
    on, final = next(iter(rows.values()), {}).get("judged_on", "test"), "final" if metric == ACCURACY else f"final {metric}"
    columns, cells, dim = compared_columns(rows), [], []
    reached = any("rounds_to_target" in row.get("not_reached", {}) for row in rows.values()) and seeds > 1
    for name, row in rows.items():
        late = row.get("not_reached", {}).get("rounds_to_target", 0)
        cells.append([name, *[f"{seeds - late} of {seeds}"] * reached, *(compared(column, row)[0] for column in columns)])
        label, texts = below(columns, row)
        if any(texts):
            dim.append(len(cells))
            cells.append([label, *[""] * reached, *texts])
    heads = ["", *["target\nreached"] * reached, *("\n".join(column.head) for column in columns)]
    return Stacked(f"{_over(rows)}{final} on test data, {title} on {on} data", heads, cells, dim=dim)


def below(columns: Sequence[Column], row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What stands below medians, and how it is called: intervals or, of fewer seeds than these need, lowest and highest."""
    if any(row.get("interval", {}).get(column.key) for column in columns):
        return INTERVAL, [_interval(column, row) for column in columns]
    return RANGE, [compared(column, row)[1] for column in columns]


def _interval(column: Column, row: Mapping[str, Any]) -> str:
    """Empty where there is none, or its two ends are the median."""
    ends = row.get("interval", {}).get(column.key) or (None, None)
    low, high = (NEVER if end is None else column.write(end) for end in ends)
    return "" if low == high else f"{low}–{high}"


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
    return [column for column in columns if column.always or any(_has(row, column.key) for row in rows.values())]


def _has(row: Mapping[str, Any], key: str) -> bool:
    """Whether a seed has a value; most may not have got there."""
    return any(value is not None for value in row["by_seed"].get(key, ()))


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
