"""What the commands share: results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from ..errors import InputError, legible, visible
from ..report.table import written

Force = Annotated[bool, typer.Option("--force", help="Replace files that fedexperts did not write.")]


@dataclass(frozen=True)
class _Visible:
    """Something to print, without what a terminal would obey: names, paths and texts come from others."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _MakeVisible(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(inner) for inner in renderables]


console = Console(stderr=True, emoji=False)
output = Console(markup=False, emoji=False)  # tables hold names as they are; what is bold there is a Text
for _each in (console, output):
    _each.push_render_hook(_MakeVisible())


def say(text: str, to: Console = console) -> None:
    """A line of text as it is: without markup, colours or breaks."""
    to.print(Text(text), soft_wrap=True)


def warn(text: str, kind: str = "warning") -> None:
    """What a user should know."""
    console.print(Text.assemble((f"{kind}:", "yellow"), f" {legible(text)}"), soft_wrap=True)


def json_text(document: Any) -> str:
    """What ``--json`` prints."""
    return json.dumps(document, indent=2, allow_nan=False)


def print_json(document: Any) -> None:
    """Exactly one JSON object on stdout."""
    print(json_text(document))


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
        say(f"{task.description}: cycle {cycles}{total}, {said}")
    bars.update(bar, completed=cycles, accuracy=said)


def progress_bars() -> Progress:
    """Bars over orbital cycles, with the accuracy, or other metric, reached so far."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cycles"),
        TextColumn("{task.fields[accuracy]}", markup=False),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def running(cycles: Mapping[str, int], metric: str = "accuracy") -> Iterator[Callable[[str, int, float | None], None]]:
    """Bars of several runs, given as name → cycles; yields what moves them. Other runs get a bar when they are heard of."""
    with progress_bars() as bars:
        bar = {name: bars.add_task(name, total=total, accuracy="") for name, total in cycles.items()}

        def show(name: str, cycle: int, accuracy: float | None) -> None:
            if name not in bar:
                bar[name] = bars.add_task(name, total=None, accuracy="")
            advance(bars, bar[name], cycle, reached(accuracy, metric))

        yield show


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C ends the command with what goes on after it."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; go on with the same command and --resume")
        raise typer.Exit(130) from None
