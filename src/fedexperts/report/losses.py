"""Training loss by cluster or client, from the ledgers of runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .page import COLOURS, look
from .table import WIDEST, one_of


def loss_figure(summaries: Mapping[str, Mapping[str, Any]]) -> go.Figure | None:
    """Training loss by cycle, a panel for each run and for what was learnt; None where no run tells it.

    A line is a cluster or client; of many the median, in a band from the lowest to the highest.
    """
    panels = {}
    for name, row in summaries.items():
        points = [(p["cycle"], p["training_loss"]) for p in row["history"] if p.get("training_loss")]
        for goal in dict.fromkeys(goal for _, found in points for goal in found):
            of = GOALS.get(goal, goal)
            panels[f"{name}, {of}" if of else name] = [(cycle, found[goal]) for cycle, found in points if goal in found]
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = make_subplots(rows=lines, cols=columns, subplot_titles=list(panels), vertical_spacing=0.35 / lines)
    links = list(dict.fromkeys(link for points in panels.values() for _, found in points for link in found))
    shown: set[str] = set()
    for i, points in enumerate(panels.values()):
        down, column = i // columns + 1, i % columns + 1
        own = list(dict.fromkeys(link for _, found in points for link in found))
        for line in _band(points) if len(own) > WIDEST else _by_link(points, own, links):
            line.showlegend = line.name not in shown and line.name is not None
            shown.add(line.name)
            figure.add_trace(line, row=down, col=column)
        figure.update_xaxes(title_text="orbital cycles" if down == lines else None, row=down, col=column)
    figure.update_yaxes(title_text="loss", col=1)
    by = one_of(summaries)
    title = f"training loss by {by}: mean over the steps since the last evaluation, each on its batch before the step"
    look(figure, 130 + 270 * lines, title=title, margin={"t": 110})
    return figure


GOALS = {"task": "", "contrast": "contrast of views", "own-id": "whose sample it is"}
"""What was learnt, in words."""
Points = Sequence[tuple[int, Mapping[str, float]]]


def _by_link(points: Points, own: Sequence[str], links: Sequence[str]) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=[cycle for cycle, found in points if link in found],
            y=[found[link] for _, found in points if link in found],
            name=link,
            legendgroup=link,
            mode="lines+markers",
            marker={"size": 4},
            line={"color": COLOURS[links.index(link) % len(COLOURS)]},
        )
        for link in own
    ]


def _band(points: Points) -> list[go.Scatter]:
    x = [cycle for cycle, _ in points]
    low, middle, high = ([f(found.values()) for _, found in points] for f in (min, statistics.median, max))
    band = go.Scatter(x=x + x[::-1], y=high + low[::-1], fill="toself", fillcolor=COLOURS[0], opacity=0.15, line={"width": 0})
    band.update(mode="lines", hoverinfo="skip", showlegend=False)
    return [band, go.Scatter(x=x, y=middle, name="median", legendgroup="median", line={"color": COLOURS[0]})]
