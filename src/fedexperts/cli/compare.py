"""``fedexperts compare``: protocols or policies side by side on one scenario, over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from ..errors import overheard
from ..report.compare_html import write_comparison
from ..report.compare_table import comparison_table
from ..report.networked_html import networked_tables, write_tables
from ..writing import check_replaceable
from .common import numbers, output, print_json, resumable, running, say, warn
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
    from ..runs.compare import check_out, default_directory
    from ..runs.compare import grid as grid_of
    from ..runs.grid import by_name, job_name, run_grid
    from ..runs.networked_tables import partitions

    loaded = load(scenario, None, None, set_)
    directory = out or default_directory(loaded)
    page = directory / PAGE
    counts = numbers("--clients", clients) if clients else []
    grid = grid_of(loaded, _names(protocol), _names(policy), seeds, partitions(tau), counts)
    check_out(directory, resume)
    check_replaceable(page, "--out")
    known = {} if grid.then else {job_name(key): job.train.cycles for key, job in grid.jobs.items()}
    with running(known, grid.metric) as show, resumable(), overheard() as heard:
        done = run_grid(grid, directory, resume, show)
    document = grid.fill(done)
    told: dict[str, list[str]] = {}  # one warning of many runs is told once
    for name, group in by_name(done).items():
        for warning in dict.fromkeys(text for one in group for text in one.summary["warnings"] if text not in heard):
            told.setdefault(warning, []).append(name)
    for warning, names in told.items():
        warn(f"{names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {warning}")
    table: RenderableType
    if grid.kind == "tables":
        write_tables(document, page, loaded.name)
        table, holds = networked_tables(document), "tables, gating heatmaps and costs"
    else:
        rows = document[grid.kind]
        runs = {name: [one.directory for one in group] for name, group in by_name(done).items()}
        write_comparison(runs, rows, page, loaded.name)
        table, holds = comparison_table(rows, document["target"]), "curves, results by cluster, settings"
    if json:
        print_json({"directory": str(directory), **document})
    else:
        output.print(table)
        say(f"{page}: {holds}; {directory}/<run>/: the runs")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
