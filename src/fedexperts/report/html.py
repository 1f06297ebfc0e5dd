"""One self-contained page, readable offline, from the ledgers of one or more runs."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..ledger import read, summary
from .alignment import heatmap_figure, load_figure, sat_out_table
from .clients import client_tables, routing_figure
from .losses import loss_figure
from .page import (
    COLOURS,
    cell,
    cell_row,
    html_table,
    legend_above,
    look,
    share_map,
    shown,
    target_line,
    text_row,
    warnings_html,
    write_page,
)
from .settings import settings_html
from .table import axis, baseline_rows, cost_rows, goal_of, metric_by_cluster, metric_of, one_of


def write_report(runs: Mapping[str, Path], path: Path, title: str) -> None:
    """Write the page for finished runs, given as name → run directory."""
    summaries = {name: summary(directory / "ledger.jsonl") for name, directory in runs.items()}
    lines = {name: list(read(directory / "ledger.jsonl")) for name, directory in runs.items()}
    figures = [progress_figure(summaries), cluster_figure(summaries)]
    figures += [figure for figure in (loss_figure(summaries), routing_figure(summaries)) if figure is not None]
    figures.append(energy_figure(summaries))
    split = {name: rows for name, rows in lines.items() if any(row["event"] == "assignment" for row in rows)}
    aligned = {name: rows for name, rows in lines.items() if any(row["event"] == "round" for row in rows)}
    if split:
        figures.append(relevance_figure(split))
    if aligned:
        figures += [load_figure(aligned, {name: _look(name, summaries)[0] for name in aligned}), heatmap_figure(aligned)]
    sat_out = f"<h2>Who sat out</h2>{sat_out_table(summaries)}" if aligned else ""
    content = f"""{warnings_html({name: row["warnings"] for name, row in summaries.items()})}
{_table(summaries)}
{_note(summaries)}
{client_tables(summaries)}
{shown(figures)}
{_advice(split)}
{sat_out}
{_privacy(summaries)}
{settings_html(runs)}
"""
    write_page(path, title, content)


def _note(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    told = ["Steps are gradient steps summed over all devices; MB are 10⁶ bytes sent up by all devices."]
    if any(row["gamma"] for row in summaries.values()):
        told.append(
            "Between contacts EMS-FL goes on training, so it makes more steps in a cycle than the baseline: read all the axes."
        )
    if goal_of(summaries) is not None:
        told.append("Stars mark the first evaluation that reached the target.")
    if any(name.endswith(CONTROL) for name in summaries):
        told.append("Dotted lines are the γ ≈ 1 controls, where every cluster holds all kinds of data.")
    return f"<p class='note'>{' '.join(told)}</p>"


def _privacy(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """What shared matrices tell of a sample, where some are shared."""
    notes = {name: row["privacy"] for name, row in summaries.items() if row["privacy"]}
    items = "".join(f"<li>{html.escape(name)}: {html.escape(str(note))}</li>" for name, note in notes.items())
    return f"<h2>Privacy of what clients share</h2><ul>{items}</ul>" if items else ""


def progress_figure(summaries: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Global accuracy against cycles, simulated time, steps and uplink."""
    axes = (
        ("cycle", "orbital cycles", 1.0),
        ("t_s", "simulated hours", 1 / 3600),
        ("steps", "gradient steps", 1.0),
        ("uplink_B", "uplink MB", 1e-6),
    )
    times, label = axis(metric_of(summaries))
    figure = make_subplots(rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.12)
    for name, row in summaries.items():
        colour, dash = _look(name, summaries)
        history = row["history"]
        accuracy = [times * point["accuracy"] for point in history]
        for panel, (key, _, scale) in enumerate(axes):
            line = go.Scatter(
                x=[point[key] * scale for point in history],
                y=accuracy,
                name=name,
                legendgroup=name,
                showlegend=panel == 0,
                mode="lines+markers",
                line={"color": colour, "dash": dash},
                marker={
                    "size": [14 if p["cycle"] == row["cycles_to_target"] else 5 for p in history],
                    "symbol": ["star" if p["cycle"] == row["cycles_to_target"] else "circle" for p in history],
                },
            )
            figure.add_trace(line, row=panel // 2 + 1, col=panel % 2 + 1)
    for panel, (_, text, _) in enumerate(axes):
        figure.update_xaxes(title_text=text, row=panel // 2 + 1, col=panel % 2 + 1)
    target_line(figure, next(iter(summaries.values()))["target"], times)
    figure.update_yaxes(title_text=_on(f"global {label}", _judged_on(summaries)), col=1)
    look(figure, 760, **legend_above(1.07))
    return figure


def _on(label: str, data: str) -> str:
    """An axis with the data that it is read on, before its unit."""
    name, _, unit = label.partition(", ")
    return f"{name} on {data} data" + (f", {unit}" if unit else "")


def _judged_on(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Which data the curves are read on."""
    return " or ".join(sorted({row.get("judged_on", "test") for row in summaries.values()}))


CONTROL = ", γ ≈ 1"


def _look(name: str, summaries: Mapping[str, Any]) -> tuple[str, str]:
    """Colour and dash of a run; the γ ≈ 1 control of a run has its colour, dotted."""
    colours = list(dict.fromkeys(other.removesuffix(CONTROL) for other in summaries))
    colour = COLOURS[colours.index(name.removesuffix(CONTROL)) % len(COLOURS)]
    return colour, "dot" if name.endswith(CONTROL) else "solid"


def cluster_figure(summaries: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Final accuracy on each cluster's or client's test data, beside the personalised one and baselines of tasks on text."""
    figure = go.Figure()
    times, label = axis(metric_by_cluster(summaries))
    for name, row in summaries.items():
        colour, dash = _look(name, summaries)
        by_cluster = row["accuracy_by_cluster"]
        values = [times * value for value in by_cluster.values()]
        figure.add_bar(
            x=list(by_cluster), y=values, name=name, marker={"color": colour, "opacity": 0.4 if dash == "dot" else 1}
        )
        if personal := row.get("personal_by_client"):
            y = [times * value for value in personal.values()]
            look_alike = {"color": colour, "opacity": 0.6, "pattern": {"shape": "/"}}
            figure.add_bar(x=list(personal), y=y, name=f"{name}, personalised", marker=look_alike)
    for i, (name, shares) in enumerate(baseline_rows(summaries).items()):
        grey = ("#bbbbbb", "#777777")[i % 2]
        figure.add_bar(x=list(shares), y=[times * value for value in shares.values()], name=name, marker={"color": grey})
    by = one_of(summaries)
    title = f"final {metric_by_cluster(summaries)} by {by}, on test data"
    look(figure, 380, barmode="group", title=title, yaxis_title=label, legend={"orientation": "h", "y": -0.3})
    return figure


def energy_figure(summaries: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Global accuracy against the joules that a device spent on radio and computing; the whole run's joules by use."""
    figure = make_subplots(cols=2, horizontal_spacing=0.1)
    times, label = axis(metric_of(summaries))
    for name, row in summaries.items():
        colour, dash = _look(name, summaries)
        joules = [point["energy_J_per_device"] for point in row["history"]]
        line = go.Scatter(
            x=[use["radio_J"] + use["compute_J"] for use in joules],
            y=[times * point["accuracy"] for point in row["history"]],
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
        )
        total = row["energy_J_per_device"]
        bar = go.Bar(
            x=[use.removesuffix("_J") for use in total],
            y=list(total.values()),
            name=name,
            showlegend=False,
            marker={"color": colour, "opacity": 0.4 if dash == "dot" else 1},
        )
        figure.add_trace(line, row=1, col=1)
        figure.add_trace(bar, row=1, col=2)
    figure.update_xaxes(title_text="J per device, radio and compute (idle not counted)", row=1, col=1)
    figure.update_yaxes(title_text=_on(label, _judged_on(summaries)), row=1, col=1)
    figure.update_yaxes(title_text="J per device, whole run (log)", type="log", row=1, col=2)
    look(figure, 380, **legend_above(1.15))
    return figure


def relevance_figure(lines: Mapping[str, list[dict[str, Any]]]) -> go.Figure:
    """Expert relevance p (27) by cluster, one panel for each distinct assignment; owned experts are framed."""
    reports: dict[str, dict[str, Any]] = {}
    for name, rows in lines.items():
        report = next(row for row in rows if row["event"] == "assignment")
        if all(report["relevance"] != other["relevance"] for other in reports.values()):
            reports[name] = report
    figure = make_subplots(cols=len(reports), subplot_titles=[f"relevance p before training: {name}" for name in reports])
    for column, report in enumerate(reports.values(), start=1):
        owner = {m: c for c, group in report["assignment"].items() for m in group}
        figure.add_trace(
            share_map(
                report["relevance"],
                x=report["clusters"],
                y=report["experts"],
                text=[
                    [f"{p:.2f}{' ●' if owner.get(m) == c else ''}" for p, c in zip(row, report["clusters"], strict=True)]
                    for m, row in enumerate(report["relevance"])
                ],
                texttemplate="%{text}",
                showscale=column == len(reports),
            ),
            row=1,
            col=column,
        )
    look(figure, 420)
    return figure


def _table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    groups, heads, rows = cost_rows(summaries)
    over = (cell(group, "th", f" colspan={groups.count(group)}") for group in dict.fromkeys(groups))
    goal = goal_of(summaries)
    caption = "" if goal is None else f"<p>The target is {goal}; “final” is judged on test data, once, at the end.</p>"
    return caption + html_table(
        [cell_row(over), text_row((head.replace("\n", " ") for head in heads), "th")], map(text_row, rows)
    )


def _advice(lines: Mapping[str, list[dict[str, Any]]]) -> str:
    if not lines:
        return ""
    notes = {next(row["advice"] for row in rows if row["event"] == "assignment"): name for name, rows in lines.items()}
    items = "".join(f"<li>{html.escape(name)}: {html.escape(note)}</li>" for note, name in notes.items())
    return f"<h2>What γ suggests</h2><ul>{items}</ul><p class='note'>● marks the cluster that owns an expert.</p>"
