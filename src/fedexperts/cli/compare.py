"""``fedexperts compare``: protocols or policies side by side on one scenario, over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from ..errors import InputError
from ..report.compare_html import write_comparison
from ..report.network_html import network_tables, write_tables
from ..report.table import comparison_table
from ..runs.lock import is_free
from ..scenario import Scenario
from ..writing import check_folder, check_replaceable
from .common import advance, console, numbers, output, print_json, progress_bars, reached, say
from .run import Json, ScenarioPath, Set, load

PAGE = "report.html"


def command(
    scenario: ScenarioPath,
    protocol: Annotated[str, typer.Option(help="Protocols to compare, such as sync,ems-fl.")] = "",
    policy: Annotated[str, typer.Option(help="Policies of the scenario's protocol; all four of aligned by default.")] = "",
    tau: Annotated[str, typer.Option(help="Of a Networked MoE: how its data are dealt, iid or τ.")] = "iid,0.5,0.3,0.2",
    clients: Annotated[str, typer.Option(help="Of a Networked MoE: other numbers of clients, such as 5,20.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, from the scenario's seed upwards.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs and the report; default runs/<name>-compare.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in --out.")] = False,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Run a scenario with several protocols or policies and seeds; one table, one report."""
    from ..method.methods import METHODS
    from ..runs import comparison

    loaded = load(scenario, None, None, set_)
    directory = out or Path("runs") / f"{loaded.name}-compare"
    if METHODS[loaded.protocol].fills_tables and not protocol and not policy:
        fill_tables(loaded, tau, clients, seeds, directory, resume, json)
        return
    kind, named = comparison.variants(loaded, _names(protocol), _names(policy))
    _check_free(directory, resume)
    metrics = {loaded.task_of(i).metric for i in range(len(loaded.cluster))}
    metric = metrics.pop() if len(metrics) == 1 else "score"
    with progress_bars() as bars:
        names = comparison.job_names(named, seeds)
        bar = {name: bars.add_task(name, total=cycles, accuracy="") for name, cycles in names.items()}

        def show(name: str, cycles: int, accuracy: float | None) -> None:
            advance(bars, bar[name], cycles, reached(accuracy, metric))

        try:
            summaries = comparison.compare(named, seeds, directory, resume, show)
        except KeyboardInterrupt:
            console.print("interrupted; go on with the same command and --resume")
            raise typer.Exit(130) from None
    rows = comparison.medians(summaries)
    write_comparison(comparison.directories(named, seeds, directory), rows, directory / PAGE, loaded.name)
    if json:
        print_json({"directory": str(directory), "target": loaded.evaluation.target, "seeds": seeds, kind: rows})
    else:
        output.print(comparison_table(rows, loaded.evaluation.target))
        say(f"{directory / PAGE}: curves, loads and assignments; {directory}/<run>/: the runs")


def fill_tables(scenario: Scenario, tau: str, clients: str, seeds: int, out: Path, resume: bool, json: bool) -> None:
    """The tables of the Networked MoE paper."""
    from ..runs import networked_tables as tables

    _check_free(out, resume)
    partitions, counts = tables.partitions(tau), numbers("--clients", clients) if clients else []
    with progress_bars() as bars:
        bar: dict[str, TaskID] = {}

        def show(name: str, cycles: int, accuracy: float | None) -> None:
            if name not in bar:
                bar[name] = bars.add_task(name, total=None, accuracy="")
            advance(bars, bar[name], cycles, reached(accuracy))

        try:
            document = tables.compare(scenario, partitions, seeds, out, resume, show, counts)
        except KeyboardInterrupt:
            console.print("interrupted; go on with the same command and --resume")
            raise typer.Exit(130) from None
    write_tables(document, out / PAGE, scenario.name)
    if json:
        print_json({"directory": str(out), **document})
    else:
        output.print(network_tables(document))
        say(f"{out / PAGE}: tables, gating heatmaps and costs; {out}/<run>/: the runs")


def _check_free(out: Path, resume: bool) -> None:
    check_folder(out, "--out")
    if not resume and not is_free(out):
        raise InputError(f"--out {out}: already holds files; add --resume to go on with it, or name another folder")
    check_replaceable(out / PAGE, "--out")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
