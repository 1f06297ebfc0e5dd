"""The tables of a Networked MoE comparison: for the terminal, and as one page with gating heatmaps and costs."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from .chart import COLOURS, MARKERS, Chart, Heat, Line, Look, Panel, looks
from .page import cell, cell_row, html_table, over_seeds, shown, spread_cell, text_row, write_page

METRICS = (("accuracy", "Acc"), ("macro_f1", "F1"), ("macro_auc", "AUC"))
TITLES = {
    "same": "Test data like each client's training data (the paper's Table I), %",
    "even": "Even shares of the test data (the paper's Table II), %",
}
DASHES = {"none": ":", "fedce": "--", "fedsc": "-"}
"""Of lines by extractor; gates have colours and markers."""
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
    figures = [*(routing_figure(network, name) for name in partitions), picks_figure(network, partitions)]
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


def routing_figure(network: Mapping[str, Any], name: str) -> Chart | None:
    """Client by expert, the share of picks (the paper's Fig. 3), for each extractor and gate on one partition."""
    methods = [m for m in METHODS if "," in m and network.get(m, {}).get(name, {}).get("routing")]
    if not methods:
        return None
    panels = []
    for method in methods:
        shares, ratio = network[method][name]["routing"][0], network[method][name]["local_ratio"][0]
        clients, experts = ([str(i) for i in range(n)] for n in (len(shares), len(shares[0])))
        title = f"{method}: {100 * ratio:.0f} % at home"
        panels.append(Panel("expert", "client", [Heat(shares, clients, experts)], title))
    return Chart(
        f"Who asks whom, {_label(name)}",
        f"Maps of clients by experts: the share of a client's picks on test data, {_label(name)}, of {'; '.join(methods)}",
        panels,
        "The share of a client's picks on test data, of the first seed; darker is more.",
        columns=3,
        narrow=2,
    )


def picks_figure(network: Mapping[str, Any], partitions: Sequence[str]) -> Chart | None:
    """Accuracy by the number of picks at inference (the paper's Fig. 4b), median over seeds."""
    methods, panels = [m for m in METHODS if "," in m and m in network], []
    for name in partitions:
        lines = []
        for method in methods:
            tables = network[method].get(name, {}).get("accuracy_by_k", [])
            if not tables:
                continue
            values = [100 * statistics.median(table[k] for table in tables) for k in tables[0]]
            extractor, gate = method.split(", ")
            look = Look(COLOURS[GATES.index(gate)], DASHES[extractor], MARKERS[GATES.index(gate)], hollow=extractor == "none")
            lines.append(Line(method, [float(k) for k in tables[0]], values, look))
        if lines:
            panels.append(Panel("experts picked, k", "accuracy, %", lines, _label(name)))
    if not panels:
        return None
    alt = f"Accuracy by the number of experts picked at inference, of {'; '.join(methods)}, a panel for each way data are dealt"
    return Chart("Asking more experts", alt, panels, "Medians over seeds, on test data.", share_y=True)


def clients_figure(clients: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> Chart:
    """FedGate's accuracy by the number of clients that the same data are dealt to (the paper's Fig. 4a), median over seeds."""
    methods = list(dict.fromkeys(method for found in clients.values() for method in found))
    own, lines = looks(methods), []
    for method in methods:
        known = {count: found[method] for count, found in clients.items() if method in found}
        values = [100 * statistics.median(found) for found in known.values()]
        lines.append(Line(method, [float(count) for count in known], values, own[method]))
    return Chart(
        f"The same data on more clients, {_label(name)}",
        f"Accuracy by the number of clients that the same data are dealt to, of {'; '.join(methods)}",
        [Panel("clients", "accuracy, %", lines)],
        "Medians over seeds, on test data.",
        columns=1,
    )
