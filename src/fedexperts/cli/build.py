"""``fedexperts build``: MoE checkpoints from dense ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from .common import numbers, print_json, say, warn
from .run import Json

if TYPE_CHECKING:
    from ..moe.build import Built

app = typer.Typer(help="Build MoE models from dense ones.", no_args_is_help=True, add_completion=False)

Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; new or empty.")]
Seed = Annotated[int, typer.Option(help="Of the random gate.")]


class ManyExperts(TyperCommand):
    """Reads ``--experts A B C`` as ``--experts A --experts B --experts C``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, with the option repeated."""
        return super().parse_args(ctx, list(_repeated(args, "--experts")))


def _repeated(args: Iterable[str], option: str) -> Iterator[str]:
    taking, last = False, ""
    for arg in args:
        if arg.startswith("-"):
            taking = arg.split("=")[0] == option
        elif taking and last != option:
            yield option
        yield arg
        last = arg


@app.command("merge", cls=ManyExperts)
def merge(
    base: Annotated[Path, typer.Option(metavar="DIR", help="Gives attention, norms, embeddings and head.")],
    experts: Annotated[list[Path], typer.Option(metavar="DIR DIR …", help="Give the FFNs; one expert each.")],
    out: Out,
    gate: Annotated[Literal["random", "hidden"], typer.Option(help="Random rows, or the base's hidden states.")] = "random",
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help='JSONL: a line ["…", "…"] for each expert.')] = None,
    top_k: Annotated[int, typer.Option(help="Experts that a token goes to.")] = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Merge dense Llama or Mistral checkpoints of one size into a Mixtral checkpoint."""
    from ..moe import build

    show(build.merge(base, experts, out, gate, prompts, top_k, seed), json)


@app.command("upcycle")
def upcycle(
    model: Annotated[Path, typer.Option(metavar="DIR", help="The dense model: Llama, Mistral or BERT.")],
    experts: Annotated[int, typer.Option(help="Copies of each FFN.")],
    out: Out,
    top_k: Annotated[int, typer.Option(help="Experts that a token goes to.")] = 2,
    layers: Annotated[str | None, typer.Option(metavar="0,2", help="Layers to make MoE (BERT); all by default.")] = None,
    gate_std: Annotated[float | None, typer.Option(help="Of the random gate; default: initializer_range.")] = None,
    seed: Seed = 0,
    labels: Annotated[int | None, typer.Option(help="Classes, if the model is no classifier yet.")] = None,
    json: Json = False,
) -> None:
    """Make each FFN of a dense checkpoint several experts that start as its copies: outputs stay the same."""
    from ..moe import build

    chosen = None if layers is None else numbers("--layers", layers)
    show(build.upcycle(model, experts, out, top_k, chosen, gate_std, seed, labels), json)


def show(built: Built, json: bool) -> None:
    """What was written."""
    for note in built.notes:
        warn(note)
    document = {
        "out": str(built.out),
        "parameters": built.parameters,
        "experts": built.experts,
        "top_k": built.top_k,
        "layers": list(built.layers),
        "warnings": list(built.notes),
    }
    if json:
        print_json(document)
        return
    size = f"{built.parameters:,} parameters, {built.experts} experts in {len(built.layers)} layers, Top-{built.top_k}"
    say(f"{built.out}: {size}")
