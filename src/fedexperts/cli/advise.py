"""``fedexperts advise``: which of some settings can reach a goal over a plan, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from ..errors import InputError
from ..report.words import size
from ..scenario import overridden
from ..writing import on_disk, write_together
from .bound_tables import rows_table
from .common import Force, output, print_json, say
from .run import Json, ScenarioPath, Set

MOST_FILES = 20
"""So many scenario files are written at most."""


def command(
    scenario: ScenarioPath,
    goal: Annotated[str, typer.Option(help="What is to be reached: updates=20, complete updates of every cluster.")],
    by: Annotated[str, typer.Option(help='By when after the start, with its unit: "3 d", "36 h", "90 min".')],
    over: Annotated[list[str], typer.Option(metavar="SECTION.KEY=VALUE,VALUE", help="What may vary. May be repeated.")] = [],  # noqa: B006  # typer's way
    limit: Annotated[
        list[str], typer.Option(metavar="RESOURCE=NUMBER", help="The most of uplink_MB, downlink_MB, device_J, hours.")
    ] = [],  # noqa: B006
    owners: Annotated[Path | None, typer.Option(help="Who owns which expert, as assign --json says.")] = None,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Write the scenario of each row beside the given one.")
    ] = True,
    force: Force = False,
    set_: Set = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Vary what --over names; show what reaches the goal by the bounds of `plan --bound`, and write the scenarios to run."""
    from ..runs.advise import advise
    from ..runs.owners_file import read_owners

    document = advise(scenario, goal, by, over, limit, set_, None if owners is None else read_owners(owners))
    if write:
        texts = _texts(scenario, document, set_)
        _check_free(texts, force)
        with on_disk(scenario.parent, "make room", "scenario"):
            write_together(texts)
        for row, path in zip(document["front"], texts, strict=False):
            row["file"] = str(path)
    if json:
        print_json(document)
        return
    heads = ("change", "hours", "up", "down", "J")
    output.print(rows_table(f"{goal} of every cluster, at the earliest", heads, _rows(document["front"])))
    reaching = [row for row in document["others"] if not row["misses"]]
    if reaching:
        output.print(rows_table("these reach it too, and nothing of theirs is better", heads, _rows(reaching)))
    for row in document["front"]:
        if "file" in row:
            say(f"{row['file']}: {_changes(row)}", output)
    for one in document["refused"]:
        say(f"{', '.join(one['changes'])}: {one['reason']}", output)
    say(document["note"], output)


def _texts(scenario: Path, document: Mapping[str, Any], overrides: list[str]) -> dict[Path, str]:
    """The scenarios of the front, beside the given one, so that its relative paths hold."""
    return {
        scenario.with_name(f"{scenario.stem}-advice-{k}.toml"): tomli_w.dumps(
            overridden(scenario, [*overrides, *row["changes"]])
        )
        for k, row in enumerate(document["front"][:MOST_FILES], 1)
    }


def _check_free(texts: Mapping[Path, str], force: bool) -> None:
    for path, text in texts.items():
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise InputError(f"{path}: is in the way; remove it, or use --no-write")
        if path.exists() and not force and path.read_bytes() != text.encode():
            raise InputError(f"{path}: is there and says something else; use --force to replace it, or --no-write")


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            _changes(row),
            f"{row['hours']:.1f}",
            size(1e6 * row["uplink_MB"]),
            size(1e6 * row["downlink_MB"]),
            f"{row['device_J']:,.3g}",
        ]
        for row in rows
    ]


def _changes(row: Mapping[str, Any]) -> str:
    return ", ".join(row["changes"]) or "as it is"
