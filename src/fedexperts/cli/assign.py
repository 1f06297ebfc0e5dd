"""``fedexperts assign``: who would train which expert, and whether EMS-FL pays."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..errors import InputError
from .common import output, print_json
from .run import Json, ScenarioPath, Seed, Set, load


def command(
    scenario: ScenarioPath,
    seed: Seed = None,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Show relevance (27)-(29), the experts of each cluster (Algorithm 1), γ and what it suggests."""
    import torch

    from ..drive.align import most_experts
    from ..drive.prepare import prepare
    from ..drive.split import assignment_report, split_experts

    torch.set_num_threads(1)
    loaded = load(scenario, None, seed, set_)
    if loaded.by_client:
        raise InputError(
            f"protocol = {loaded.protocol!r}: decides in rounds who trains what; see the align rows of a run's ledger, or use "
            "--set protocol=ems-fl"
        )
    prepared = prepare(loaded)
    prepared.begin()
    counts = prepared.trial()
    report = assignment_report(loaded, counts, split_experts(loaded, counts, most_experts(prepared)))
    if json:
        print_json(report)
        return
    output.print(relevance_table(report))
    output.print(cluster_table(report, loaded.assignment.policy))
    output.print(report["advice"], markup=False, soft_wrap=True)


def relevance_table(report: dict[str, Any]) -> Table:
    """Experts by clusters: p (27) and, behind it, the assignment probability (29)."""
    table = Table(title=f"relevance p (27) / assignment probability (29); threshold {report['threshold']:.3f}")
    table.add_column("expert")
    for name in report["clusters"]:
        table.add_column(name, justify="right")
    table.add_column("class (Remark 2)")
    for m, part in enumerate(report["experts"]):
        cells = [
            f"{'[bold]' if kept else '[dim]'}{p:.3f}[/] / {q:.2f}"
            for p, q, kept in zip(report["relevance"][m], report["probability"][m], report["truncated"][m], strict=True)
        ]
        table.add_row(part, *cells, report["classes"][m])
    return table


def cluster_table(report: dict[str, Any], policy: str) -> Table:
    """Clusters: their experts and ratios."""
    table = Table(title=policy.capitalize().replace("-", " "))
    for column in ("cluster", "experts", "α", "β", "γ"):
        table.add_column(column, justify="left" if column in ("cluster", "experts") else "right")
    for name in report["clusters"]:
        experts = ", ".join(map(str, report["assignment"][name])) or "none: idles"
        table.add_row(name, experts, *(f"{report[key][name]:.2f}" for key in ("alpha", "beta", "gamma")))
    return table
