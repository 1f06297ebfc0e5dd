"""``fedexperts try``: what models say to a prompt, before and after tuning side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ..errors import visible
from ..reading import read_text
from .common import output, print_json, warn
from .run import Json

LABELS_SHOWN = 3
MOST_PROMPT_B = 10**6
"""Of a file with a prompt: above any model's context."""


def command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoint folders, run directories or hub names.")],
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="May be repeated.")] = [],  # noqa: B006
    prompt_file: Annotated[list[Path], typer.Option(metavar="FILE", help="One prompt, the whole file; may be repeated.")] = [],  # noqa: B006
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose task is asked, of a classifier with several.")
    ] = None,
    second: Annotated[
        list[str], typer.Option(metavar="TEXT", help="The second text of a pair; one for each prompt, in their order.")
    ] = [],  # noqa: B006
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 64,
    json: Json = False,
) -> None:
    """Let models answer prompts (greedy), or label them; of a run also the model that it began with (Table II)."""
    import torch

    from ..runs.answers import ask

    torch.set_num_threads(1)
    document = ask(models, [*prompt, *map(_read, prompt_file)], max_new_tokens, cluster, second)
    for note in document["notes"]:
        warn(note, "note")
    if json:
        print_json(document)
    else:
        output.print(answer_table(document))


def _read(path: Path) -> str:
    return read_text(path, "--prompt-file", MOST_PROMPT_B).removesuffix("\n")


def answer_table(document: dict[str, Any]) -> Table:
    """One row a prompt, one column a model."""
    table = Table(show_lines=True)
    table.add_column("prompt")
    for name in document["models"]:
        table.add_column(Text(name))
    for i, prompt in enumerate(document["prompts"]):
        pair = "\n".join([prompt, *document["second"][i : i + 1]])
        table.add_row(Text(pair), *(Text(_shown(row["answers"][i])) for row in document["models"].values()))
    return table


def _shown(answer: dict[str, Any]) -> str:
    if "text" in answer:
        return visible(str(answer["text"]))  # before its width is taken
    if "score" in answer:
        return f"{answer['score']:.3f}"
    likely = sorted(answer["probabilities"].items(), key=lambda entry: -entry[1])[:LABELS_SHOWN]
    return "\n".join(f"{visible(label)}: {share:.1%}" for label, share in likely)
