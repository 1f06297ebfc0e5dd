"""One self-contained page, readable offline, in print and on a phone, from the ledgers of one or more runs."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ledger import read, summary
from .alignment import heatmap_figure, load_figure, sat_out_table
from .chart import CONTROL, Chart, Heat, Panel, looks
from .clients import client_tables, routing_figure, titled
from .comparable import targets_differ
from .contacts import contact_figure
from .losses import loss_figure
from .measured import bound_section, dense_rows
from .page import cell, cell_row, html_table, shown, target_html, text_row, warnings_html, write_page
from .progress import cluster_figure, energy_figure, late_points, progress_figure
from .settings import environment_html, settings_html
from .table import cost_rows, metrics_rows
from .words import EXPERT, together
from .work import cost_table, expert_figure, stage_table


def write_report(runs: Mapping[str, Path], path: Path, title: str) -> None:
    """Write the page for finished runs, given as name → run directory; what it has is what their ledgers hold."""
    summaries = {name: summary(directory / "ledger.jsonl") for name, directory in runs.items()}
    lines = {name: list(read(directory / "ledger.jsonl")) for name, directory in runs.items()}
    split = {name: rows for name, rows in lines.items() if any(row["event"] == "assignment" for row in rows)}
    aligned = {name: rows for name, rows in lines.items() if any(row["event"] == "round" for row in rows)}
    own = looks(summaries)
    sections = [
        warnings_html({**targets_differ(summaries), **{name: row["warnings"] for name, row in summaries.items()}}),
        _table(summaries),
        _note(summaries),
        client_tables(summaries),
        titled(*metrics_rows(summaries)),
        shown([progress_figure(summaries), cluster_figure(summaries, *dense_rows(runs, summaries)), loss_figure(summaries)]),
        shown([relevance_figure(split)]) + _advice(split) if split else "",
        shown([routing_figure(summaries), heatmap_figure(aligned) if aligned else None]),
        shown(
            [load_figure(aligned, own) if aligned else None, expert_figure(lines) if aligned.keys() != lines.keys() else None]
        ),
        f"<h2>Who sat out</h2>{sat_out_table(summaries)}" if aligned else "",
        stage_table(lines),
        cost_table(lines, runs),
        shown([energy_figure(summaries), contact_figure(lines)]),
        bound_section(runs),
        _privacy(summaries),
        settings_html(runs),
        environment_html(runs, lines),
    ]
    write_page(path, title, "\n".join(section for section in sections if section))


def _note(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    told = ["Steps are gradient steps summed over all devices; MB are 10⁶ bytes sent up by all devices. Fewer are better."]
    if any(row["gamma"] for row in summaries.values()):
        told.append(
            "Between contacts EMS-FL goes on training, so it makes more steps in a cycle than the baseline: read all the axes."
        )
    if any(late_points(row) for row in summaries.values()):
        told.append("What arrives after the last cycle, in the final flush, counts as one more cycle.")
    if any(name.endswith(CONTROL) for name in summaries):
        told.append("Dotted lines and hollow bars are the γ ≈ 1 controls, where every cluster holds all kinds of data.")
    return f"<p class='note'>{' '.join(told)}</p>"


def _privacy(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """What shared matrices tell of a sample, where some are shared."""
    notes = {name: row["privacy"] for name, row in summaries.items() if row["privacy"]}
    items = "".join(f"<li>{html.escape(name)}: {html.escape(str(note))}</li>" for name, note in notes.items())
    return f"<h2>Privacy of what clients share</h2><ul>{items}</ul>" if items else ""


def relevance_figure(lines: Mapping[str, list[dict[str, Any]]]) -> Chart:
    """Expert relevance p (27) by cluster, one panel for each distinct assignment; owned experts are framed."""
    reports: dict[str, dict[str, Any]] = {}
    for name, rows in lines.items():
        report = next(row for row in rows if row["event"] == "assignment")
        same = ((other["relevance"], other["assignment"]) for other in reports.values())
        if (report["relevance"], report["assignment"]) not in same:
            reports[name] = report
    panels = []
    for name, report in reports.items():
        experts = [str(expert).removeprefix(EXPERT) for expert in report["experts"]]
        clusters = list(report["clusters"])
        values = [[row[c] for row in report["relevance"]] for c in range(len(clusters))]
        owned = {
            (clusters.index(cluster), experts.index(str(m)))
            for cluster, group in report["assignment"].items()
            for m in group
            if cluster in clusters and str(m) in experts
        }
        panels.append(Panel("expert", "cluster", [Heat(values, clusters, experts, owned)], name if len(reports) > 1 else ""))
    return Chart(
        "Relevance of experts, and who owns them",
        f"Maps of clusters by experts: the share of a cluster's tokens that an expert gets, of {', '.join(reports)}",
        panels,
        "Relevance p (27) before training: the share of a cluster's tokens that an expert gets; darker is more. A "
        "frame marks the cluster that owns an expert.",
    )


def _table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    groups, heads, rows = cost_rows(summaries)
    over = (cell(group, "th", f" colspan={groups.count(group)}") for group in dict.fromkeys(groups))
    table = html_table([cell_row(over), text_row((head.replace("\n", " ") for head in heads), "th")], map(text_row, rows))
    return target_html(summaries) + table


def _advice(lines: Mapping[str, list[dict[str, Any]]]) -> str:
    notes: dict[str, list[str]] = {}
    for name, rows in lines.items():
        notes.setdefault(next(row["advice"] for row in rows if row["event"] == "assignment"), []).append(name)
    items = "".join(f"<li>{html.escape(together(names))}: {html.escape(note)}</li>" for note, names in notes.items())
    return f"<h2>What γ suggests</h2><ul>{items}</ul>"
