"""``fedexperts assign``: who would train which expert, and whether EMS-FL pays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from .common import output, print_json, say
from .run import Json, ScenarioPath, Seed, Set, load

ExpertsFrom = Annotated[
    list[str],
    typer.Option(
        "--experts-from",
        metavar="[CLUSTER=]FILE",
        help="Compare with experts that ESFT has chosen for a cluster's task (its expert configuration, JSON). "
        "May be repeated; CLUSTER= may be left out where the scenario has one cluster.",
    ),
]


def command(
    scenario: ScenarioPath,
    seed: Seed = None,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    experts_from: ExpertsFrom = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Show relevance (27)-(29), the experts of each cluster (Algorithm 1), γ and what it suggests."""
    import torch

    from ..method.capacity import most_experts
    from ..method.methods import prepare
    from ..method.owners import assignment_report, split_experts
    from ..setup.experts_from import check_layers, choice_report, choices, layer_numbers
    from ..setup.prepare import counted

    torch.set_num_threads(1)
    loaded = load(scenario, None, seed, set_)
    if loaded.by_client:
        raise InputError(
            f"protocol = {loaded.protocol!r}: decides in rounds who trains what; see the align rows of a run's ledger, or use "
            "--set protocol=ems-fl"
        )
    chosen = choices(experts_from, [cluster.name for cluster in loaded.cluster])
    prepared = prepare(loaded)
    layers = layer_numbers(prepared.view)
    check_layers(chosen, layers)
    prepared.begin()
    counts = counted(prepared.trials())
    owned = split_experts(loaded, counts, most_experts(prepared))
    report = assignment_report(loaded, counts, owned)
    if chosen:
        report["experts_from"] = {
            name: choice_report(choice, counts[name][0], layers, owned[name]) for name, choice in chosen.items()
        }
    if json:
        print_json(report)
        return
    output.print(relevance_table(report))
    output.print(cluster_table(report, loaded.assignment.policy))
    say(report["advice"], output)
    for name, row in report.get("experts_from", {}).items():
        output.print(choice_table(name, row))
        for line in choice_notes(name, row):
            say(line, output)


def relevance_table(report: dict[str, Any]) -> Table:
    """Experts by clusters: p (27) and, behind it, the assignment probability (29)."""
    table = Table(title=f"relevance p (27) / assignment probability (29); threshold {report['threshold']:.3f}")
    table.add_column("expert")
    for name in report["clusters"]:
        table.add_column(name, justify="right")
    table.add_column("class (Remark 2)")
    for m, part in enumerate(report["experts"]):
        cells = [
            Text.assemble((f"{p:.3f}", "bold" if kept else "dim"), f" / {q:.2f}")
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


def choice_table(name: str, row: dict[str, Any]) -> Table:
    """A file's experts for a cluster, layer by layer, beside as many of our own."""
    table = Table(title=f"{Path(row['file']).name}: experts chosen for {name}")
    for column in ("layer", "chosen", "most relevant here", "in both", f"owned by {name}", "picks"):
        table.add_column(column, justify="left" if column in ("chosen", "most relevant here") else "right")
    for layer, of in row["layers"].items():
        picks = "–" if of["picks"] is None else f"{of['picks']:.0%}"
        sets = (", ".join(map(str, of[key])) or "none" for key in ("experts", "ours"))
        table.add_row(layer, *sets, *(f"{of[key]} of {len(of['experts'])}" for key in ("shared", "owned")), picks)
    return table


def choice_notes(name: str, row: dict[str, Any]) -> list[str]:
    """What the table comes to, and what in the file does not fit the model."""
    notes = []
    if row["chosen"]:
        notes.append(
            f"{row['overlap']:.0%} of the {row['chosen']} experts chosen are among the most relevant to {name} "
            f"(by chance {row['overlap_by_chance']:.0%}); {name} owns {row['owned']:.0%} of them"
            + ("" if row["picks"] is None else f", and they have {row['picks']:.0%} of its picks")
        )
        often = sorted(((n, -m) for m, n in enumerate(row["layers_by_expert"]) if n), reverse=True)
        notes.append("experts by the number of layers: " + ", ".join(f"{-m} in {n}" for n, m in often))
    else:
        notes.append("the file chooses no expert that the model has")
    if row["missing_layers"]:
        notes.append(f"the file lacks layer {_numbers(row['missing_layers'])} of the model")
    if row["unknown_layers"]:
        notes.append(f"the model has no MoE layer {_numbers(row['unknown_layers'])}, which the file has")
    for layer, of in row["layers"].items():
        if of["unknown"]:
            notes.append(f"the model has no expert {_numbers(of['unknown'])} in layer {layer}, which the file chooses")
    if row["also"]:
        notes.append(f"the file has {' and '.join(row['also'])} trained too; they belong to no cluster here")
    return notes


def _numbers(values: list[int]) -> str:
    return ", ".join(map(str, values))
