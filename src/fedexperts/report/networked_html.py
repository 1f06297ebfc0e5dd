"""The tables of a Networked MoE comparison: for the terminal, and as one page with gating heatmaps and costs."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Group
from rich.table import Table

from .page import COLOURS, cell, cell_row, html_table, look, over_seeds, share_map, shown, spread_cell, text_row, write_page

METRICS = (("accuracy", "Acc"), ("macro_f1", "F1"), ("macro_auc", "AUC"))
TITLES = {
    "same": "Test data like each client's training data (the paper's Table I), %",
    "even": "Even shares of the test data (the paper's Table II), %",
}
DASHES = {"none": "dot", "fedce": "dash", "fedsc": "solid"}
"""Of lines by extractor; gates have colours."""
GATES = ("random", "rolling", "federated")
RUNGS = ("central gate", "all experts", "oracle", "probe")
METHODS = (
    "majority",
    "central",
    "local",
    "fedavg, one-shot",
    "fedavg",
    *(f"{extractor}, {gate}" for extractor in DASHES for gate in (*GATES, *RUNGS)),
)
HEIGHTS = (100, 170, 110, 70)
"""Of the maps of who asks whom, in pixels: over the first line, of a line, below the last one, between lines."""
UNBROKEN = " style='white-space: nowrap'"
Cells = Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]]


def networked_tables(document: Mapping[str, Any]) -> Group:
    """Medians over seeds, in percent."""
    found: list[Table | str] = []
    for key, title in TITLES.items():
        table = Table(title=title, box=None)
        table.add_column("method")
        for name in document["partitions"]:
            for _, short in METRICS:
                table.add_column(f"{_label(name)}\n{short}", justify="right")
        for method in _present(document["tables"][key]):
            table.add_row(method, *(middle for middle, _ in _row(document["tables"][key][method], document["partitions"])))
        found += [table, ""]
    return Group(*found)


def _label(name: str) -> str:
    return "IID" if name == "iid" else f"τ {name}"


def _present(table: Cells) -> list[str]:
    return [method for method in METHODS if method in table]


def _row(cells: Mapping[str, Mapping[str, Sequence[float | None]]], partitions: Sequence[str]) -> list[tuple[str, str]]:
    """Median and spread, in percent, of every metric on every partition."""
    return [_cell(cells.get(name, {}).get(metric, ())) for name in partitions for metric, _ in METRICS]


def _cell(found: Sequence[float | None]) -> tuple[str, str]:
    values = [value for value in found if value is not None]
    if not values:
        return "–", ""
    spread = f"{100 * min(values):.1f}–{100 * max(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.median(values):.1f}", spread


def write_tables(document: Mapping[str, Any], path: Path, title: str) -> None:
    """Write the page."""
    tables = "".join(_html_table(document["tables"][key], document["partitions"], text) for key, text in TITLES.items())
    network, partitions = document["network"], document["partitions"]
    figures = [figure for name in partitions if (figure := routing_figure(network, name)) is not None]
    figures.append(picks_figure(network, partitions))
    if document.get("clients"):
        figures.append(clients_figure(document["clients"], partitions[-1]))
    write_page(path, title, f"{tables}{_note(document['seeds'])}{_costs(network, partitions)}{shown(figures)}")


def _note(seeds: int) -> str:
    return (
        f"<p class='note'>{over_seeds(seeds)}. "
        "Metrics are over all clients' test data together; F1 and AUC are macro means over classes. Controls: <i>central</i>, "
        "the whole MoE trained on all data in one place; <i>local</i>, each client a classifier of its own; <i>fedavg</i>, one "
        "classifier for all, averaged every round, or once. All make equally many gradient steps on the extractor; <i>none</i> "
        "is one that is never trained. Rungs on the same extractor and experts: the <i>central gate</i>, linear and trained on "
        "all data in one place; <i>all experts</i> together; the <i>oracle</i>, an expert that is right, if one is; the "
        "<i>probe</i>, a logistic regression on latents. <i>majority</i>: each client's most frequent label. Maps of who asks "
        "whom, shares of a client's picks on test data, and costs are of the first seed.</p>"
    )


def _html_table(cells: Cells, partitions: Sequence[str], title: str) -> str:
    groups = cell_row(
        ["<th></th>", *(cell(_label(name), "th", f" colspan={len(METRICS)} style='text-align: left'") for name in partitions)]
    )
    heads = text_row(["method", *(short for _ in partitions for _, short in METRICS)], "th")
    body = (
        cell_row([cell(method, attributes=UNBROKEN), *(spread_cell(*found) for found in _row(cells[method], partitions))])
        for method in _present(cells)
    )
    return f"<h2>{html.escape(title)}</h2>{html_table([groups, heads], body)}"


def _costs(network: Mapping[str, Any], partitions: Sequence[str]) -> str:
    """Who asks how often, and what an inference costs between clients."""
    rows = []
    for method in (m for m in METHODS if m in network and "," in m):
        cells = [method]
        for name in partitions:
            facts = network[method].get(name, {})
            ratio, size_B = facts.get("local_ratio"), facts.get("inference_B")
            cells += [f"{100 * ratio[0]:.0f} %", f"{size_B[0]:.0f}"] if ratio and size_B else ["–", "–"]
        rows.append(text_row(cells))
    heads = text_row(["method", *(head for name in partitions for head in (f"{_label(name)}: local", "B an image"))], "th")
    return f"<h2>Local processing ratio, and bytes between clients for one image</h2>{html_table([heads], rows)}"


def routing_figure(network: Mapping[str, Any], name: str) -> go.Figure | None:
    """Client by expert, the share of picks (the paper's Fig. 3), for each extractor and gate on one partition."""
    methods = [m for m in METHODS if "," in m and network.get(m, {}).get(name, {}).get("routing")]
    if not methods:
        return None
    columns, (over, line, below, between) = 3, HEIGHTS
    lines = -(-len(methods) // columns)
    inner = lines * line + (lines - 1) * between
    titles = [f"{m}<br>{100 * network[m][name]['local_ratio'][0]:.0f} % at home" for m in methods]
    figure = make_subplots(
        rows=lines,
        cols=columns,
        subplot_titles=titles,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=between / inner if lines > 1 else 0,
    )
    bar = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "thickness": 10, "tickformat": ".0%"}
    for i, method in enumerate(methods):
        heat = share_map(network[method][name]["routing"][0], showscale=i == 0, colorbar=bar, xgap=1, ygap=1)
        row, column = i // columns + 1, i % columns + 1
        figure.add_trace(heat, row=row, col=column)
        figure.update_yaxes(autorange="reversed", title_text="client" if column == 1 else None, row=row, col=column)
        figure.update_xaxes(title_text="expert" if row == lines else None, row=row, col=column)
    margin = {"l": 45, "r": 10, "t": over, "b": below}
    look(figure, inner + over + below, margin=margin, title=f"who asks whom, {_label(name)}")
    figure.update_annotations(font_size=11)
    return figure


def picks_figure(network: Mapping[str, Any], partitions: Sequence[str]) -> go.Figure:
    """Accuracy by the number of picks at inference (the paper's Fig. 4b), median over seeds."""
    figure = make_subplots(
        cols=len(partitions), shared_yaxes=True, subplot_titles=[_label(name) for name in partitions], horizontal_spacing=0.03
    )
    methods = [m for m in METHODS if "," in m and m in network]
    for column, name in enumerate(partitions, start=1):
        for method in methods:
            tables = network[method].get(name, {}).get("accuracy_by_k", [])
            if not tables:
                continue
            ks = list(tables[0])
            values = [100 * statistics.median(table[k] for table in tables) for k in ks]
            extractor, gate = method.split(", ")
            line = go.Scatter(
                x=ks,
                y=values,
                name=method,
                legendgroup=method,
                showlegend=column == 1,
                line={"color": COLOURS[GATES.index(gate)], "dash": DASHES[extractor]},
            )
            figure.add_trace(line, row=1, col=column)
        figure.update_xaxes(title_text="experts picked, k", type="category", row=1, col=column)
    figure.update_yaxes(title_text="accuracy, %", row=1, col=1)
    look(figure, 520, legend={"orientation": "h", "y": -0.2}, margin={"l": 45, "r": 10, "t": 60}, title="asking more experts")
    return figure


def clients_figure(clients: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> go.Figure:
    """FedGate's accuracy by the number of clients that the same data are dealt to (the paper's Fig. 4a), median over seeds."""
    figure = go.Figure()
    for method in dict.fromkeys(method for found in clients.values() for method in found):
        values = [100 * statistics.median(found[method]) for found in clients.values()]
        figure.add_scatter(x=list(clients), y=values, name=method)
    look(figure, 380, title=f"the same data on more clients, {_label(name)}")
    figure.update_xaxes(title_text="clients", type="category")
    figure.update_yaxes(title_text="accuracy, %")
    return figure
