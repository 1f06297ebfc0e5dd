"""``fedexperts init``: a first scenario for one's own data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError
from ..writing import on_disk, write_together
from .common import say, warn

TOKENIZER = "tokenizer"


Kind = Annotated[Literal["text", "questions", "images", "plan"] | None, typer.Option(help="Default: as the data look.")]
Data = Annotated[list[Path], typer.Option(help="Training data; one cluster each. Default: those in DIR.")]
Test = Annotated[list[Path], typer.Option(help="Test data; as many. Default: those beside the training data.")]


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; may hold the data.")],
    kind: Kind = None,
    data: Data = [],  # noqa: B006  # typer wants the default to be a list, and nobody writes to it
    test: Test = [],  # noqa: B006
    model: Annotated[str | None, typer.Option(help="A checkpoint folder or hub name. Default: a small random one.")] = None,
) -> None:
    """Write a commented scenario for your data, which runs as it is."""
    from ..setup import sketch

    if kind == "plan":
        if data or test or model:
            raise InputError("--kind plan: takes neither --data, --test nor --model; leave them out, or name another kind")
        made = sketch.plan("five-towns")
    else:
        for path in (*data, *test):
            if not path.is_file():
                raise InputError(f"{path}: there is no such file; correct --data or --test")
        base = model if model is None or not Path(model).is_dir() else Path(os.path.relpath(model, directory)).as_posix()
        made = sketch.tuning(directory, kind, data, test, base)
    names = [*made.files, *([TOKENIZER] if made.corpus else [])]
    if there := [name for name in names if os.path.lexists(directory / name)]:
        raise InputError(f"{directory}: already holds {', '.join(there)}; move it away, or name another folder")
    with on_disk(directory, "make room, or name another folder", "DIR"):
        directory.mkdir(parents=True, exist_ok=True)
        if made.corpus:
            from ..moe.tokenizer import train_tokenizer

            train_tokenizer(made.corpus, sketch.VOCABULARY).save_pretrained(directory / TOKENIZER)
        write_together({directory / name: text for name, text in made.files.items()})
    for note in made.notes:
        say(note)
    scenario = directory / "scenario.toml"
    refused = kind != "plan" and _refused(scenario)
    does = f"plan {scenario} --out {directory / 'plan'}" if kind == "plan" else f"run {scenario}"
    say(f"{directory}: {', '.join(names)}; {'mend that first, then' if refused else 'go on with'}: fedexperts {does}")


def _refused(scenario: Path) -> bool:
    """Whether a run would refuse the data; says why at once."""
    from ..scenario import Scenario
    from ..setup.samples import datasets

    try:
        datasets(Scenario.load(scenario))
    except InputError as error:
        warn(f"a run would be refused so far: {error}")
        return True
    return False
