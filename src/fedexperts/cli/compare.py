"""``fedexperts compare``: protocols or policies side by side on one scenario, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from ..errors import overheard
from ..overrides import varied
from ..report.compare_html import write_comparison
from ..report.compare_table import comparison_table
from ..report.networked_html import networked_tables, write_tables
from ..writing import check_replaceable
from .common import numbers, output, print_json, resumable, running, say, warn
from .run import Json, ScenarioPath, Set, load

if TYPE_CHECKING:
    from ..runs.grid import Done

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
    grid: Annotated[
        list[str], typer.Option(metavar="SECTION.KEY=VALUE,VALUE", help="Values to cross, for each protocol. May be repeated.")
    ] = [],  # noqa: B006
    tune: Annotated[int, typer.Option(min=0, help="Seeds that choose among --grid by validation data; not reported.")] = 0,
    baseline: Annotated[
        str | None, typer.Option(help="What others are compared with, seed by seed; default the first.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at a time; default one for each processor.")] = None,
    ray: Annotated[str | None, typer.Option(help="Run on a Ray cluster: auto, HOST:PORT, or local to start one.")] = None,
    set_: Set = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    json: Json = False,
) -> None:
    """Run a scenario with several protocols or policies, values and seeds; one table, one report."""
    from ..runs.compare import check_out, default_directory, on
    from ..runs.compare import grid as grid_of
    from ..runs.grid import Grid, job_name, run_grid
    from ..runs.networked_tables import partitions

    loaded = load(scenario, None, None, set_)
    directory = out or default_directory(loaded)
    page = directory / PAGE
    counts = numbers("--clients", clients) if clients else []
    compared, varying, dealt = (_names(protocol), _names(policy)), varied("--grid", grid), partitions(tau)
    wanted: Grid = grid_of(loaded, *compared, seeds, dealt, counts, varying, tune, baseline)
    workers = on(jobs, ray)
    check_out(directory, resume)
    check_replaceable(page, "--out")
    known = {} if wanted.then and not wanted.tunes else {job_name(key): job.train.cycles for key, job in wanted.jobs.items()}
    with running(known, wanted.metric) as show, resumable(), overheard() as heard:
        done = run_grid(wanted, directory, resume, show, workers)
    document, reported = wanted.fill(done), wanted.reported(done)
    _warn_once(reported, heard)
    table: RenderableType
    if wanted.kind == "tables":
        write_tables(document, page, loaded.name)
        table, holds = networked_tables(document), "tables, gating heatmaps and costs"
    else:
        rows = document[wanted.kind]
        runs = {name: [one.directory for one in group] for name, group in reported.items()}
        write_comparison(runs, rows, page, loaded.name, document)
        table, holds = comparison_table(rows, document["target"], document), "curves, results by cluster, settings"
    if json:
        print_json({"directory": str(directory), **document})
    else:
        output.print(table)
        say(f"{page}: {holds}; {directory}/<run>/: the runs")


def _warn_once(reported: Mapping[str, Sequence[Done]], heard: Sequence[str]) -> None:
    """What a reader should know of the runs, one warning of many runs once; not what was warned of before."""
    told: dict[str, list[str]] = {}
    for name, group in reported.items():
        for warning in dict.fromkeys(text for one in group for text in one.summary["warnings"] if text not in heard):
            told.setdefault(warning, []).append(name)
    for warning, names in told.items():
        warn(f"{names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {warning}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
