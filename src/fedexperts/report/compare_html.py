"""One page for a comparison: runs of several protocols or policies, each with several seeds."""

from __future__ import annotations

import html
import math
import statistics
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ledger import read, summary
from .alignment import heatmap_figure, load_figure, sat_out_table
from .chart import GREYS, Bars, Chart, Line, Look, Panel, looks
from .clients import titled
from .compare_table import (
    COMPARED,
    INTERVAL,
    NEVER,
    Column,
    ahead,
    below,
    between,
    compared,
    compared_columns,
    notes,
    ranges,
    signed,
    tuned_table,
)
from .contacts import contact_figure
from .losses import loss_figure
from .measured import dense_rows
from .page import cell, cell_row, html_table, over_seeds, shown, spread_cell, target_html, text_row, warnings_html, write_page
from .progress import AXES as COSTS
from .progress import ranked
from .settings import environment_html, settings_html
from .table import ACCURACY, axis, baseline_rows, client_rows, goal, link_rows, metric_by_cluster, metric_of, one_of
from .work import cost_table, expert_figure

AXES = (("cycle", "rounds (orbital cycles)", 1.0), *COSTS[1:])
"""With the tables' word for a cycle."""
ABREAST = 7
"""Runs beside each other in a table."""


def write_comparison(
    runs: Mapping[str, Sequence[Path]],
    rows: Mapping[str, Mapping[str, Any]],
    path: Path,
    title: str,
    document: Mapping[str, Any] = types.MappingProxyType({}),
) -> None:
    """Write the page.

    Args:
        runs: run directories of each name, one for each seed.
        rows: the medians of each name.
        path: the page.
        title: its title.
        document: what --json prints, of which ``tuned``, ``baseline`` and ``statistics`` are shown.
    """
    summaries = {name: [summary(at / "ledger.jsonl") for at in group] for name, group in runs.items()}
    lines = {name: list(read(group[0] / "ledger.jsonl")) for name, group in runs.items()}
    own = looks(runs)
    on = next(iter(rows.values())).get("judged_on", "test")
    personal = {name: group for name, group in summaries.items() if _has(group, "personal_accuracy")}
    aligned = {name: group for name, group in lines.items() if any(line["event"] == "round" for line in group)}
    first = {name: group[0] for name, group in summaries.items()}
    seeds = len(next(iter(summaries.values())))
    folders = {name: group[0] for name, group in runs.items()}
    dense, told = dense_rows(folders, first)
    sections = [
        warnings_html({name: row["warnings"] for name, row in rows.items()}),
        f"{target_html(rows)}{_table(rows)}{_note(rows, document, seeds, bool(aligned))}",
        _paired(rows, document.get("baseline")),
        f"{_tuned(document.get('tuned'))}{_by_link(rows)}{_of_clients(rows)}",
        shown(
            [
                curve_figure(summaries, "accuracy", f"global accuracy on {on} data, %", own),
                curve_figure(personal, "personal_accuracy", "personalised accuracy, %", own) if personal else None,
                client_figure(summaries, own, {**dense, **baseline_rows(rows)}, told),
                loss_figure(first),
                load_figure(aligned, own) if aligned else None,
                heatmap_figure(aligned) if aligned else None,
                expert_figure(lines) if aligned.keys() != lines.keys() else None,
                contact_figure(lines),
            ]
        ),
        f"<h2>Who sat out, all seeds</h2>{sat_out_table(rows)}" if aligned else "",
        cost_table(lines, folders),
        settings_html(folders),
        environment_html(folders, lines),
    ]
    write_page(path, title, "\n".join(section for section in sections if section))


def _has(group: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(key in point for summary in group for point in summary["history"])


def curve_figure(summaries: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str, own: Mapping[str, Look]) -> Chart:
    """Accuracy by round, hour, gradient step and MB: the median over seeds, and from the lowest to the highest a band."""
    metric = metric_of(_flat(summaries))
    times, unit = axis(metric)
    label = label if metric == ACCURACY else label.replace("accuracy", unit).removesuffix(", %")
    target = next(iter(summaries.values()))[0]["target"] if key == "accuracy" else None
    panels, seeds = [], max(len(group) for group in summaries.values())
    for along, title, scale in AXES:
        lines = []
        for name, group in summaries.items():
            points = [list(p) for p in zip(*(s["history"] for s in group), strict=False) if all(along in one for one in p)]
            if not points:
                continue
            middle, low, high = ([times * f([p[key] for p in at]) for at in points] for f in (statistics.median, min, max))
            x = [scale * statistics.median(p[along] for p in at) for at in points]
            band: dict[str, Any] = {"low": low, "high": high} if seeds > 1 else {}
            late = [len(points) - 1] if all(p["cycle"] > s["cycles"] for s, p in zip(group, points[-1], strict=True)) else []
            lines.append(Line(name, x, middle, own[name], late=late, **band))
        if lines:
            panels.append(Panel(title, label, lines, target=None if target is None else times * target))
    told = [f"Medians over {seeds} seeds; bands reach from the lowest to the highest."] if seeds > 1 else []
    if target is not None:
        told.append(f"Dashed: the target, {goal(target, metric)}.")
    if any(line.late for panel in panels for line in panel.marks if isinstance(line, Line)):
        told.append("Open, larger points: after the last cycle, in the final flush.")
    name, _, _ = label.partition(", ")
    return Chart(
        f"{name[:1].upper()}{name[1:]}",
        f"{label} of {', '.join(summaries)} against rounds, simulated hours, gradient steps and uplink MB, a panel each",
        panels,
        " ".join(told),
        share_y=True,
    )


def _flat(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """Every run by a name of its own."""
    return {f"{name} {i}": row for name, group in summaries.items() for i, row in enumerate(group)}


def client_figure(
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
    own: Mapping[str, Look],
    baselines: Mapping[str, Mapping[str, float]] = types.MappingProxyType({}),
    told: str = "",
) -> Chart:
    """Final accuracy on each cluster's or client's own test data: the global model, and the personalised one if there is any.

    Protocols that treat clients one by one and those that know clusters alone stand side by side, and grey what needs no model.
    """
    personal = any(s.get("personal_by_client") for group in summaries.values() for s in group)
    kinds = {"accuracy_by_cluster": "global model"} | ({"personal_by_client": "personalised"} if personal else {})
    metric = metric_by_cluster(_flat(summaries))
    times, unit = axis(metric)
    seeds, by = max(len(group) for group in summaries.values()), one_of(_flat(summaries))
    panels = []
    for row, (key, label) in enumerate(kinds.items()):
        bars = []
        for name, group in summaries.items():
            names = list(dict.fromkeys(client for s in group for client in s.get(key) or ()))
            found = {c: [times * s[key][c] for s in group if c in (s.get(key) or ())] for c in names}
            ends = {c: values for c, values in found.items() if len(values) > 1}
            low, high = ({c: f(values) for c, values in ends.items()} for f in (min, max))
            bars.append(Bars(name, {c: statistics.median(values) for c, values in found.items()}, own[name], low, high))
        for i, (name, shares) in enumerate(baselines.items() if row == 0 else ()):
            bars.append(Bars(name, {c: times * value for c, value in shares.items()}, GREYS[i % len(GREYS)]))
        panels.append(ranked(Panel(unit, by, [bar for bar in bars if bar.values], title=label), by))
    spread = ", median over seeds; thin lines reach from the lowest to the highest" if seeds > 1 else ""
    return Chart(
        f"Final {metric} by {by}",
        f"Final {unit} on the test data of each {by}, of {', '.join(summaries)}",
        panels,
        f"On test data, once, at the end{spread}. {told}".strip(),
    )


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = compared_columns(rows)
    found = [below(columns, row)[1] for row in rows.values()]
    cells = {
        column: [spread_cell(compared(column, row)[0], texts[i]) for row, texts in zip(rows.values(), found, strict=True)]
        for i, column in enumerate(columns)
    }
    return _turned(list(rows), cells)


def _turned(names: Sequence[str], lines: Mapping[Column, Sequence[str]]) -> str:
    """A line for each measure, so that many fit a sheet of paper; names are dealt over tables where they do not fit one."""
    each = math.ceil(len(names) / math.ceil(len(names) / ABREAST))
    tables = []
    for at in range(0, len(names), each):
        beside = slice(at, at + each)
        body = (cell_row([cell(column.title), *cells[beside]]) for column, cells in lines.items())
        tables.append(html_table([text_row(["", *names[beside]], "th")], body))
    return "".join(tables)


def _paired(rows: Mapping[str, Mapping[str, Any]], baseline: str | None) -> str:
    """Differences from a named baseline, seed by seed, where rows carry them."""
    told = {name: row["paired"] for name, row in rows.items() if row.get("paired")}
    columns = [column for column in compared_columns(rows) if any(column.key in of for of in told.values())]
    if not columns:
        return ""
    lines = {column: [_difference(column, of.get(column.key)) for of in told.values()] for column in columns}
    note = (
        "Ours less the baseline's, paired by seed: the median of the differences, its interval where the two ends differ, and "
        "on how many seeds ours is ahead. A dash: on some seed one of the two did not get there."
    )
    named = f"Differences from {baseline}" if baseline else "Differences from the baseline"
    return f"<h2>{html.escape(named)}</h2>{_turned(list(told), lines)}<p class='note'>{note}</p>"


def _difference(column: Column, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return cell("–")
    middle, first = signed(column, found["difference"]), ahead(column, found)
    return spread_cell(middle, between(column, found), f"ahead: {first}" if first.strip("–") else "")


def _tuned(tuned: Mapping[str, Any] | None) -> str:
    """What each combination of values came to on validation data, and which was chosen."""
    if not tuned:
        return ""
    table = tuned_table(tuned)
    html_rows = (text_row(row) for row in table.rows)
    return (
        f"<h2>What was tuned</h2>{html_table([text_row(table.heads, 'th')], html_rows)}"
        f"<p class='note'>{html.escape(table.title[:1].upper() + table.title[1:])}.</p>"
    )


def _by_link(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Results by cluster or client, with what needs no model; below a median the lowest and the highest seed."""
    over = ranges(rows)
    title, heads, found = link_rows(rows)
    links = sorted({link for row in rows.values() for link in row["accuracy_by_cluster"]})
    named = over if heads[1:] and len(heads) == len(links) + 1 else {}  # else a spread over many clients
    body = []
    for (name, *cells), _ in found:
        mine = named.get(name, {})
        spreads = [mine.get(link, "") for link in links] if mine else [""] * len(cells)
        body.append(cell_row([cell(name), *map(spread_cell, cells, spreads)]))
    return f"<h2>{html.escape(title.capitalize())}</h2>{html_table([text_row(heads, 'th')], body)}"


def _of_clients(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return titled(*client_rows(rows, {column.key for column in COMPARED}))


def _note(rows: Mapping[str, Mapping[str, Any]], document: Mapping[str, Any], seeds: int, aligned: bool) -> str:
    columns, told = compared_columns(rows), notes(rows, document) if seeds > 1 else []
    if INTERVAL in {below(columns, row)[0] for row in rows.values()}:
        text = f"Medians over {seeds} seeds, below them their intervals, by {one_of(rows)} the lowest and the highest"
    else:
        text = over_seeds(seeds)
    text += f"{', where the two differ' if seeds > 1 else ''}. "
    text += "".join(f"{line[:1].upper()}{line[1:]}. " for line in told)
    text += "" if any(NEVER in line for line in told) else f"A dash, or {NEVER}: not reached. "
    text += "Steps are summed over all devices; MB are 10⁶ bytes sent up by all devices. "
    if aligned:
        text += (
            "Personalised: each client on its own test data with the experts placed on it. Load CV: standard deviation over "
            "mean of what the experts were trained on, in the whole run and in a round. "
        )
    if seeds > 1:
        first = f"Training loss, loads, {'assignments, ' if aligned else ''}contacts, memory and uplink of a device"
        text += f"{first} are of the first seed, as is what to repeat it from."
    return f"<p class='note'>{text}</p>"
