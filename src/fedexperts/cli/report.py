"""``fedexperts report``: a page and a table from the ledgers of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..ledger import summary
from ..report.comparable import check_comparable
from ..report.html import write_report
from ..report.table import results_table
from ..runs.sums import SUMS, damage
from ..writing import check_replaceable, on_disk
from .common import Force, output, print_json, say, warn
from .run import Json


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Compare runs from their ledgers alone."""
    check_replaceable(out, "--out", force)
    for directory in runs:
        if not (directory / "ledger.jsonl").is_file():
            raise InputError(f"{directory}: holds no ledger.jsonl; give a run directory")
    names = [directory.resolve().name for directory in runs]
    named = {name if names.count(name) == 1 else str(d): d for name, d in zip(names, runs, strict=True)}
    if len(named) < len(runs):
        raise InputError("a run directory is given twice; name each one once")
    summaries = {}
    for name, directory in named.items():
        summaries[name] = summary(directory / "ledger.jsonl")  # names the line, where a line is wrong
        if (directory / SUMS).exists() and (why := damage(directory, ["ledger.jsonl"], only="ledger.jsonl")):
            raise InputError(f"{directory}: {why}; mend the run with fedexperts run … --resume")
    check_comparable(summaries, named)
    with on_disk(out, "make room, or name another place", "--out"):
        try:
            write_report(named, out, "runs")
            table = results_table(summaries)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"{', '.join(map(str, runs))}: lines of a ledger do not belong together ({error!r})") from error
    for name, row in summaries.items():
        for warning in row["warnings"]:
            warn(f"{name}: {warning}")
    if json:
        print_json({"protocols": summaries})
    else:
        output.print(table)
        say(f"{out}")
