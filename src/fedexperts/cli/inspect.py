"""``fedexperts inspect``: what a model costs on the link and in memory, from its config alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from ..moe.size import Training, Work, describe
from ..moe.sized import named
from .common import numbers, output, print_json, say
from .run import Json

PURPOSES = {
    "weights": "weights_B",
    "adapters": "adapters_B",
    "grads": "gradients_B",
    "AdamW": "optimizer_B",
    "activations": "activations_B",
    "temp": "working_B",
    "total": "total_B",
}


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, a config.json or a hub name.")],
    experts: Annotated[str, typer.Option(metavar="0,2", help="The experts that the device owns.")] = "0",
    rank: Annotated[int, typer.Option(help="Rank of the LoRA adapters.")] = 4,
    precision: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of weights and activations.")] = "bfloat16",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once; above 1 they are taken to be padded.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 384,
    load: Annotated[
        Literal["all", "own", "stream"] | None,
        typer.Option(
            help="How much of the model the device loads, as [device.<class>] load; default what each protocol allows."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show parts, uploads (Table I) and a device's memory by protocol and phase; reads the config and no weights."""
    chosen = numbers("--experts", experts)
    work, how = Work(batch, length, precision, padded=batch > 1), Training(rank, load)
    document = describe(named(model), chosen, work, how)
    if json:
        print_json({"model": model, **document})
        return
    output.print(parts_table(model, document))
    output.print(upload_table(document))
    if document["memory_B"] is None:
        say("note: what its layers keep in memory is not known for this model type")
    else:
        output.print(memory_table(document))


def parts_table(model: str, document: dict[str, Any]) -> Table:
    """Parameters and bytes of each part; the experts, which are all of one size, share a row."""
    rows = document["parts"]
    experts = [name for name in rows if name.startswith("expert:")]
    total = {key: sum(row[key] for row in rows.values()) for key in ("parameters", "bytes")}
    table = Table(title=f"{model}: {rounded(total['parameters'])} parameters", box=None)
    for column in ("part", "parameters", f"GB in {document['precision']}"):
        table.add_column(column, justify="left" if column == "part" else "right")
    shown = {name: row for name, row in rows.items() if name not in experts}
    for name, row in [*shown.items(), (f"{experts[0]} … {experts[-1]}, each", rows[experts[0]]), ("all", total)]:
        table.add_row(name, f"{row['parameters']:,}", f"{row['bytes'] / 1e9:.3f}", style="bold" if name == "all" else None)
    return table


def rounded(count: int) -> str:
    """A count in thousands, millions or billions: ``1.5 M``."""
    scale, unit = next(((scale, unit) for scale, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")) if count >= scale), (1, ""))
    return f"{count / scale:.{1 if unit else 0}f}{unit}"


def upload_table(document: dict[str, Any]) -> Table:
    """What a contact carries up from a device (Table I)."""
    table = Table(title=f"upload in a contact, LoRA of rank {document['rank']} in bfloat16", box=None)
    table.add_column("")
    table.add_column("MB", justify="right")
    lora_B = document["lora_upload_B"]
    for m in document["experts"]:
        table.add_row(f"expert:{m}", f"{lora_B[f'expert:{m}'] / 1e6:.3f}")
    table.add_row("gate, full rank", f"{document['gate_upload_B'] / 1e6:.3f}")
    table.add_row("baseline: all experts and the gate", f"{document['baseline_upload_B'] / 1e6:.3f}")
    table.add_row("baseline over enhanced EMS-FL with one expert", f"{document['ratio']:.3f} ×", style="bold")
    return table


def memory_table(document: dict[str, Any]) -> Table:
    """A device's memory by protocol and phase."""
    held = ", ".join(map(str, document["experts"]))
    tokens = f"{document['batch']} × {document['length']} tokens"
    table = Table(title=f"GB on a device that owns expert {held}, at {tokens}", box=None)
    table.add_column("", no_wrap=True)
    for column in PURPOSES:
        table.add_column(column, justify="right", style="bold" if column == "total" else None)
    for protocol, phases in document["memory_B"].items():
        table.add_row(protocol)
        for phase, sizes in phases.items():
            table.add_row(f"  {phase.replace('_', ' ')}", *(f"{sizes[key] / 1e9:.2f}" for key in PURPOSES.values()))
    return table
