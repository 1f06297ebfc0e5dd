"""Figures of runs that assign experts to clients in rounds (``protocol = "aligned"``), from their ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .page import html_table, look, share_map, text_row

Lines = Sequence[Mapping[str, Any]]
THIRDS = ("first third", "second third", "last third")
WHOLE = "whole run"


def heatmap_figure(runs: Mapping[str, Lines]) -> go.Figure:
    """Who trained what: clients by experts, a row of panels for each run, over its thirds and whole (the paper's Fig. 3).

    A cell is the share of the period's rounds in which the client was assigned the expert.
    """
    panels = {name: periods(lines) for name, lines in runs.items()}
    columns = [*THIRDS, WHOLE] if all(len(found) > 1 for found in panels.values()) else [WHOLE]
    figure = make_subplots(
        rows=len(runs),
        cols=len(columns),
        subplot_titles=[f"{name}: {period}" for name in runs for period in columns],
        horizontal_spacing=0.03,
        vertical_spacing=0.3 / len(runs),
    )
    for row, (name, lines) in enumerate(runs.items(), start=1):
        clients, experts = names_of(lines)
        for column, period in enumerate((panels[name][period] for period in columns), start=1):
            heat = share_map(
                [[_share(period, client, m) for m in range(experts)] for client in clients],
                x=[str(m) for m in range(experts)],
                y=clients,
                showscale=row == column == 1,
                colorbar={"title": "share of rounds", "len": 1 / len(runs), "y": 1, "yanchor": "top"},
                xgap=1,
                ygap=1,
            )
            figure.add_trace(heat, row=row, col=column)
            figure.update_yaxes(autorange="reversed", showticklabels=column == 1, type="category", row=row, col=column)
            figure.update_xaxes(title_text="expert" if row == len(runs) else None, type="category", row=row, col=column)
    height = 140 + sum(max(190, 16 * len(names_of(lines)[0]) + 70) for lines in runs.values())
    title = "who trained what: share of rounds in which a client was assigned an expert"
    look(figure, height, margin={"t": 90}, title=title)
    figure.update_annotations(font_size=12)
    return figure


def periods(lines: Lines) -> dict[str, list[dict[str, list[int]]]]:
    """Assignments of a run's rounds, whole and, where there are three rounds or more, by thirds."""
    rounds = [line["assigned"] for line in lines if line["event"] == "align"]
    n = len(rounds)
    thirds = {name: rounds[i * n // 3 : (i + 1) * n // 3] for i, name in enumerate(THIRDS)} if n >= 3 else {}
    return {**thirds, WHOLE: rounds}


def names_of(lines: Lines) -> tuple[list[str], int]:
    """Clients of a run, and how many experts there are."""
    clients = next(line["clusters"] for line in lines if line["event"] == "run")
    loads: list[float] = next((line["load"] for line in lines if line["event"] == "round"), [])
    return list(clients), len(loads)


def _share(rounds: Sequence[Mapping[str, Any]], client: str, m: int) -> float:
    return sum(m in assigned.get(client, ()) for assigned in rounds) / len(rounds) if rounds else 0.0


def load_figure(runs: Mapping[str, Lines], colours: Mapping[str, str]) -> go.Figure:
    """What each expert was trained on in the whole run; an even bar chart is a balanced load."""
    figure = go.Figure()
    for name, lines in runs.items():
        loads = [line["load"] for line in lines if line["event"] == "round"]
        total = [sum(load) for load in zip(*loads, strict=True)]
        figure.add_bar(x=[f"expert {m}" for m in range(len(total))], y=total, name=name, marker={"color": colours[name]})
    look(figure, 340, barmode="group", title="training load by expert", yaxis_title="samples (or FLOPs)")
    return figure


def sat_out_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Who sat out, in how many rounds, and why."""
    rows = [
        (name, client, ", ".join(f"{reason} {n}" for reason, n in reasons.items()))
        for name, summary in summaries.items()
        for client, reasons in summary.get("sat_out", {}).items()
    ]
    if not rows:
        return "<p class='note'>No client sat out a round.</p>"
    return html_table([text_row(("run", "client", "rounds sat out, by reason"), "th")], map(text_row, rows))
