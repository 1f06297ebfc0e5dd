"""One page for a comparison: runs of several protocols or policies, each with several seeds."""

from __future__ import annotations

import html
import statistics
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..ledger import read, summary
from .alignment import heatmap_figure, load_figure, sat_out_table
from .clients import titled
from .compare_table import COMPARED, compared, compared_columns, ranges
from .losses import loss_figure
from .page import (
    COLOURS,
    cell,
    cell_row,
    html_table,
    legend_above,
    look,
    over_seeds,
    shown,
    spread_cell,
    target_line,
    text_row,
    warnings_html,
    write_page,
)
from .settings import settings_html
from .table import ACCURACY, axis, baseline_rows, client_rows, link_rows, metric_by_cluster, metric_of, one_of

AXES = (("cycle", "rounds (orbital cycles)", 1.0), ("steps", "gradient steps", 1.0), ("uplink_B", "uplink MB", 1e-6))


def write_comparison(runs: Mapping[str, Sequence[Path]], rows: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Write the page.

    Args:
        runs: run directories of each name, one for each seed.
        rows: the medians of each name.
        path: the page.
        title: its title.
    """
    summaries = {name: [summary(at / "ledger.jsonl") for at in group] for name, group in runs.items()}
    lines = {name: list(read(group[0] / "ledger.jsonl")) for name, group in runs.items()}
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(runs)}
    on = next(iter(rows.values())).get("judged_on", "test")
    figures = [curve_figure(summaries, "accuracy", f"global accuracy on {on} data, %", colours)]
    if personal := {name: group for name, group in summaries.items() if _has(group, "personal_accuracy")}:
        figures.append(curve_figure(personal, "personal_accuracy", "personalised accuracy, %", colours))
    figures.append(client_figure(summaries, colours, baseline_rows(rows)))
    figures += [figure for figure in [loss_figure({name: group[0] for name, group in summaries.items()})] if figure is not None]
    aligned = {name: group for name, group in lines.items() if any(line["event"] == "round" for line in group)}
    if aligned:
        figures += [load_figure(aligned, colours), heatmap_figure(aligned)]
    seeds = len(next(iter(summaries.values())))
    sat_out = f"<h2>Who sat out, all seeds</h2>{sat_out_table(rows)}" if aligned else ""
    warned = warnings_html({name: row["warnings"] for name, row in rows.items()})
    tables = f"{_table(rows)}{_note(seeds, bool(aligned))}{_by_link(rows)}{_of_clients(rows)}"
    settings = settings_html({name: group[0] for name, group in runs.items()})
    write_page(path, title, f"{warned}{tables}{shown(figures)}{sat_out}{settings}")


def _has(group: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(key in point for summary in group for point in summary["history"])


def curve_figure(
    summaries: Mapping[str, Sequence[Mapping[str, Any]]], key: str, label: str, colours: Mapping[str, str]
) -> go.Figure:
    """Accuracy by round, gradient step and MB: the median over seeds, and between the lowest and the highest a band."""
    figure = make_subplots(cols=len(AXES), shared_yaxes=True, horizontal_spacing=0.03)
    metric = metric_of({f"{name} {i}": row for name, group in summaries.items() for i, row in enumerate(group)})
    times, _ = axis(metric)
    label = label if metric == ACCURACY else label.replace("accuracy", metric).removesuffix(", %")
    for name, group in summaries.items():
        points = [list(p) for p in zip(*(s["history"] for s in group), strict=False)]
        middle, low, high = ([times * f([p[key] for p in at]) for at in points] for f in (statistics.median, min, max))
        for column, (along, _, scale) in enumerate(AXES, start=1):
            x = [scale * statistics.median(p[along] for p in at) for at in points]
            band = go.Scatter(
                x=x + x[::-1],
                y=high + low[::-1],
                fill="toself",
                fillcolor=colours[name],
                opacity=0.15,
                mode="lines",
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
            line = go.Scatter(
                x=x,
                y=middle,
                name=name,
                mode="lines+markers",
                legendgroup=name,
                line={"color": colours[name]},
                showlegend=column == 1,
            )
            figure.add_traces([band, line], rows=1, cols=column)
    for column, (_, text, _) in enumerate(AXES, start=1):
        figure.update_xaxes(title_text=text, row=1, col=column)
    target_line(figure, next(iter(summaries.values()))[0]["target"] if key == "accuracy" else None, times)
    figure.update_yaxes(title_text=label, col=1)
    look(figure, 420, **legend_above(1.12))
    return figure


def client_figure(
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
    colours: Mapping[str, str],
    baselines: Mapping[str, Mapping[str, float]] = types.MappingProxyType({}),
) -> go.Figure:
    """Final accuracy on each cluster's or client's own test data: the global model, and the personalised one if there is any.

    Protocols that treat clients one by one and those that know clusters alone stand side by side, and grey what needs no model.
    """
    personal = any(s.get("personal_by_client") for group in summaries.values() for s in group)
    kinds = {"accuracy_by_cluster": "global model"} | ({"personal_by_client": "personalised"} if personal else {})
    metric = metric_by_cluster({f"{name} {i}": row for name, group in summaries.items() for i, row in enumerate(group)})
    times, unit = axis(metric)
    unit = unit.removeprefix("accuracy, ")
    figure = make_subplots(rows=len(kinds), shared_xaxes=True, vertical_spacing=0.08)
    for row, (key, label) in enumerate(kinds.items(), start=1):
        for name, group in summaries.items():
            names = list(dict.fromkeys(client for s in group for client in s.get(key) or ()))
            values = [times * statistics.median(s[key][c] for s in group if c in s[key]) for c in names]
            bar = go.Bar(x=names, y=values, name=name, legendgroup=name, showlegend=row == 1, marker={"color": colours[name]})
            figure.add_trace(bar, row=row, col=1)
        for i, (name, shares) in enumerate(baselines.items() if row == 1 else ()):
            grey, y = ("#bbbbbb", "#777777")[i % 2], [times * value for value in shares.values()]
            figure.add_trace(go.Bar(x=list(shares), y=y, name=name, marker={"color": grey}), row=row, col=1)
        figure.update_yaxes(title_text=f"{label}, {unit}", row=row, col=1)
    seeds = max(len(group) for group in summaries.values())
    by = one_of({f"{name} {i}": row for name, group in summaries.items() for i, row in enumerate(group)})
    title = f"final {metric} by {by}{', median over seeds' if seeds > 1 else ''}"
    look(figure, 120 + 220 * len(kinds), barmode="group", title=title)
    return figure


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = compared_columns(rows)
    heads = text_row(["", *(column.title for column in columns)], "th")
    body = (cell_row([cell(name), *(spread_cell(*compared(c, found)) for c in columns)]) for name, found in rows.items())
    return html_table([heads], body)


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


def _note(seeds: int, aligned: bool) -> str:
    text = f"{over_seeds(seeds)}{' where seeds differ' if seeds > 1 else ''}. A dash: not reached. "
    text += "Steps are summed over all devices; MB are 10⁶ bytes sent up by all devices. "
    if aligned:
        text += (
            "Personalised: each client on its own test data with the experts placed on it. Load CV: standard deviation over "
            "mean of what the experts were trained on, in the whole run and in a round. Loads and assignments below are of the "
            "first seed."
        )
    return f"<p class='note'>{text}</p>"
