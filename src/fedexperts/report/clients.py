"""What a run tells of its clients: tables beside the costs, who asks whom, and what asking more experts gives."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .chart import Chart, Heat, Panel
from .page import html_table, text_row
from .table import client_rows, ladder_rows, picks_rows

Summaries = Mapping[str, Mapping[str, Any]]


def client_tables(summaries: Summaries) -> str:
    """Personalised accuracy, F1 and AUC, the share of picks at home and bytes a sample; accuracy by k. As far as runs tell."""
    found = titled(*client_rows(summaries)) + titled(*picks_rows(summaries)) + titled(*ladder_rows(summaries))
    return f"{found}{_note(summaries)}" if found else ""


def titled(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts under its title; nothing without rows."""
    if not rows:
        return ""
    table = html_table([text_row((head.replace("\n", " ") for head in heads), "th")], map(text_row, rows))
    return f"<h2>{html.escape(title.capitalize())}</h2>{table}"


def _note(summaries: Summaries) -> str:
    facts = {key for row in summaries.values() for key, value in row.items() if value not in (None, {}, [])}
    told = []
    if "personal_accuracy" in facts:
        told.append("Personalised: each client with its own experts alone.")
    if "macro_f1" in facts:
        told.append("Macro F1 and AUC are means over classes, of all test data together.")
    if "mean_f1" in facts:
        told.append("Mean F1 and AUC are such values of one cluster or client, and the mean over these.")
    if "local_ratio" in facts:
        told.append(
            "At home: the share of picks that stay with the client; bytes a sample go between clients for one inference, MB "
            "between them in the whole training. "
            "Even shares: each client judged by the same mix of all test data."
        )
    if "ladder" in facts:
        told.append(
            "Beside the gate: random picks, a gate trained on all data in one place, all experts alike, an oracle that picks "
            "an expert that is right, a linear probe of the latents, and each client's most frequent training label."
        )
    if "load_cv" in facts:
        told.append(
            "Load CV: standard deviation over mean of what the experts were trained on, in the whole run; CV a round: in one."
        )
    return f"<p class='note'>{' '.join(told)}</p>" if told else ""


def routing_figure(summaries: Summaries) -> Chart | None:
    """Client by expert, the share of picks on test data; None where no run tells it."""
    found = {name: row for name, row in summaries.items() if row.get("routing") and row.get("accuracy_by_k")}
    if not found:
        return None
    panels = []
    for name, row in found.items():
        heat = Heat(row["routing"], list(row["accuracy_by_cluster"]), [str(m) for m in range(len(row["routing"][0]))])
        panels.append(Panel("expert", "client", [heat], f"{name}: {100 * row['local_ratio']:.0f} % at home"))
    return Chart(
        "Who asks whom",
        f"Maps of clients by experts: the share of a client's picks on test data that go to each expert, of {', '.join(found)}",
        panels,
        "The share of a client's picks on test data; darker is more.",
    )
