"""``fedexperts explain``: what a key of a scenario, or an event of a ledger, means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..reference.index import find, overview
from ..reference.topic import Topic, unmarked
from ..reference.types import LEFT_OUT, NEEDED
from .common import output, print_json, say
from .run import Json

KEY = "A table, a key or an event: train, train.lr_expert, radio.preset, device.phone, ledger.train. Without one: all tables."


def command(
    key: Annotated[str | None, typer.Argument(metavar="KEY", help=KEY)] = None,
    json: Json = False,
) -> None:
    """Explain a scenario's tables and keys, named radios and devices, and a ledger's events: type, bounds, default, meaning."""
    topic = overview() if key is None else find(key)
    if json:
        print_json(topic.plain())
        return
    show(topic)
    if key is None:
        say("more of each: fedexperts explain train, or train.lr_expert, radio.preset, device.phone, ledger.train", output)


def show(topic: Topic) -> None:
    """A topic, what is in it, and what it can be."""
    output.print(Text(unmarked(topic.title or topic.key), style="bold"))
    output.print(Text(unmarked(topic.meaning)))
    if facts(topic):
        output.print(Text(facts(topic)))
    if topic.parts:
        output.print(listing([*topic.parts, *topic.choices]))
    else:
        for choice in topic.choices:
            show(choice)
    for note in topic.notes:
        output.print(Text(unmarked(note)))


def listing(topics: Sequence[Topic]) -> Table:
    """A row for each: its name, and beside it meaning, type and default."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for topic in topics:
        text = Text(unmarked(topic.meaning))
        if facts(topic):
            text.append(f"\n{facts(topic)}", style="dim")
        table.add_row(Text(topic.name, style="bold"), text)
    return table


def facts(topic: Topic) -> str:
    """Type and default in a line."""
    default = {"": "", NEEDED: "needed", LEFT_OUT: "may be left out"}.get(topic.default, f"default {topic.default}")
    return "; ".join(unmarked(fact) for fact in (topic.type, default) if fact)
