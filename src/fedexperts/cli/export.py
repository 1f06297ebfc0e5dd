"""``fedexperts export``: the model or the ledger of a finished run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import output, print_json, say
from .run import Json


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    form: Annotated[
        Literal["merged", "peft", "parquet", "tensorboard"],
        typer.Option("--format", help="A plain checkpoint, an adapter for PEFT beside its base model, or the ledger."),
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not hold files.")],
    json: Json = False,
) -> None:
    """Write a run's final model as a plain checkpoint, its adapters as PEFT loads them, or its ledger for other programs."""
    from ..runs.export import export

    document = export(run, form, to)
    if json:
        print_json(document)
        return
    say(f"{document['directory']}: load it with")
    say(document["load"], output)
