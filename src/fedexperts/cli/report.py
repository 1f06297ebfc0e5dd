"""``fedexperts report``: a page and a table from the ledgers of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..ledger import summary
from ..report.html import write_report
from ..report.table import results_table
from .common import console, output, print_json
from .run import Json


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Compare runs from their ledgers alone."""
    for directory in runs:
        if not (directory / "ledger.jsonl").is_file():
            raise InputError(f"{directory}: holds no ledger.jsonl; give a run directory")
    names = [directory.resolve().name for directory in runs]
    named = {name if names.count(name) == 1 else str(d): d for name, d in zip(names, runs, strict=True)}
    if len(named) < len(runs):
        raise InputError("a run directory is given twice; name each one once")
    try:
        summaries = {name: summary(directory / "ledger.jsonl") for name, directory in named.items()}
    except ValueError as error:
        raise InputError(f"{error}; finish it with fedexperts run --resume first") from error
    write_report(named, out, "runs")
    if json:
        print_json({"protocols": summaries})
    else:
        output.print(results_table(summaries))
        console.print(f"{out}")
