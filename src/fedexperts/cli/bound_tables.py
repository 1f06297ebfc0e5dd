"""What a plan allows, for ``plan --bound``: asked for, and shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..contact.plan import ContactPlan
from ..errors import InputError
from ..report.bound_text import ANY, CHANGES, ORDERED, any_rows, change_rows, ordered_rows, sentences
from ..scenario import Prospect
from ..setup.plan import Orbit
from .common import output, say


def bound_of(
    network: Prospect, plan: ContactPlan, found: Orbit | None, owners: Path | None, run: Path | None = None
) -> dict[str, Any]:
    """What the plan allows, by the owners of a file or of a run, or by experts dealt in turn; a run's updates beside it.

    Raises:
        InputError: as `allowed` and `arrived`; or the run has another model.
    """
    from ..runs.allowed import allowed, sizes
    from ..runs.arrived import arrived
    from ..runs.owners_file import read_owners

    if run is None:
        return allowed(network, plan, found, None if owners is None else read_owners(owners))
    came = arrived(run, plan)
    for part, size_B in sizes(network)[0].upload_B.items():
        if came.upload_B.get(part) != size_B:
            raise InputError(
                f"--run {run}: uploads {came.upload_B.get(part, 0):,} B of {part}, and the scenario {size_B:,} B; give the "
                "scenario of the run, with the --set of it"
            )
    document = allowed(network, plan, found, came.owners)
    clusters = {name: {"update_s": times_s} for name, times_s in came.update_s.items()}
    return {**document, "run": {"protocol": came.protocol, "clusters": clusters}}


def show_bound(document: Mapping[str, Any]) -> None:
    """Tables and sentences on the terminal."""
    bound = document["bound"]
    output.print(rows_table("the earliest updates in EMS-FL's order", ORDERED, ordered_rows(bound)))
    output.print(rows_table("the earliest updates by any protocol, and rounds of the baseline", ANY, any_rows(bound)))
    if bound["helps"]:
        at = f"what would help: when update {bound['helps'][0]['update']} of every cluster stands, each change alone"
        output.print(rows_table(at, CHANGES, change_rows(bound)))
    for sentence in sentences(bound, document["start"]):
        say(sentence, output)


def rows_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Texts as they are, the first column to the left."""
    table = Table(title=Text(title), box=None)
    for i, head in enumerate(heads):  # names are for copying: what is too long goes on below
        table.add_column(head, justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
