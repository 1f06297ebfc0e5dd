"""Figures of runs that assign experts to clients in rounds (``protocol = "aligned"``), from their ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .chart import Bars, Chart, Heat, Look, Panel
from .page import html_table, text_row
from .progress import ranked

Lines = Sequence[Mapping[str, Any]]
THIRDS = ("first third", "second third", "last third")
WHOLE = "whole run"


def heatmap_figure(runs: Mapping[str, Lines]) -> Chart:
    """Who trained what: clients by experts, a row of panels for each run, over its thirds and whole (the paper's Fig. 3).

    A cell is the share of the period's rounds in which the client was assigned the expert.
    """
    of = {name: periods(lines) for name, lines in runs.items()}
    columns = [*THIRDS, WHOLE] if all(len(found) > 1 for found in of.values()) else [WHOLE]
    panels = []
    for name, lines in runs.items():
        clients, experts = names_of(lines)
        if not clients or not experts:
            continue
        for period in columns:
            shares = [[_share(of[name][period], client, m) for m in range(experts)] for client in clients]
            heat = Heat(shares, clients, [str(m) for m in range(experts)])
            panels.append(Panel("expert", "client", [heat], f"{name}: {period}"))
    return Chart(
        "Who trained what",
        f"Maps of clients by experts: the share of rounds in which a client was assigned an expert, of {', '.join(runs)}, over "
        f"{', '.join(columns)}",
        panels,
        "The share of the period's rounds in which a client was assigned an expert; darker is more.",
        columns=2 if len(columns) > 1 else min(2, len(panels)),
    )


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


def load_figure(runs: Mapping[str, Lines], own: Mapping[str, Look]) -> Chart:
    """What each expert was trained on in the whole run; an even bar chart is a balanced load."""
    bars = []
    for name, lines in runs.items():
        loads = [line["load"] for line in lines if line["event"] == "round"]
        total = [float(sum(load)) for load in zip(*loads, strict=True)]
        bars.append(Bars(name, {str(m): load for m, load in enumerate(total)}, own[name]))
    return Chart(
        "Training load by expert",
        f"Samples, or FLOPs, that each expert was trained on in the whole run, of {', '.join(runs)}",
        [ranked(Panel("samples, or FLOPs as alignment.usage says", "expert", bars), "expert")],
        "Bars of one length are a balanced load.",
        columns=1,
    )


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
