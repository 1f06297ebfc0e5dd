"""``fedexperts export``: the model of a finished run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import output, print_json, say
from .run import Json


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    form: Annotated[
        Literal["merged", "peft"],
        typer.Option("--format", help="A plain checkpoint, or an adapter for PEFT beside its base model."),
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not hold files.")],
    json: Json = False,
) -> None:
    """Write a run's final model as a plain checkpoint, or its adapters as PEFT loads them."""
    from ..runs.export import export

    document = export(run, form, to)
    if json:
        print_json(document)
        return
    say(f"{document['directory']}: load it with")
    say(document["load"], output)
