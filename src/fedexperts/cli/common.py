"""What the commands share: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..errors import InputError
from ..report.table import written

Force = Annotated[bool, typer.Option("--force", help="Replace a file that is no page of fedexperts.")]
console = Console(stderr=True)
output = Console()


def print_json(document: Any) -> None:
    """Exactly one JSON object on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def numbers(option: str, text: str) -> list[int]:
    """The value of an option like ``0,2``.

    Raises:
        InputError: it is something else.
    """
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r}: must be numbers with commas between them, such as 2,5") from error


def reached(value: float | None, metric: str = "accuracy") -> str:
    """What a progress bar says of the model."""
    return f"{metric} {written(value, metric)}"


def advance(bars: Progress, bar: TaskID, cycles: int, said: str) -> None:
    """Move a bar; where nobody sees bars, as in a file, a line for each cycle instead."""
    task = next(task for task in bars.tasks if task.id == bar)
    if not console.is_terminal and (cycles > task.completed or not task.fields["accuracy"]):
        total = "" if task.total is None else f" of {task.total:g}"
        console.print(f"{escape(task.description)}: cycle {cycles}{total}, {said}", highlight=False, soft_wrap=True)
    bars.update(bar, completed=cycles, accuracy=said)


def progress_bars() -> Progress:
    """Bars over orbital cycles, with the accuracy, or other metric, reached so far."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cycles"),
        TextColumn("{task.fields[accuracy]}"),
        TimeElapsedColumn(),
        console=console,
    )
