"""A comparison from beginning to end: which grid it is, and the call that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..scenario import Scenario
from ..writing import check_folder
from . import comparison
from . import networked_tables as tables
from .grid import Done, Grid, by_name, run_grid
from .lock import is_free
from .parallel import Progress

PARTITIONS = ("iid", "0.5", "0.3", "0.2")


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        directory: of all runs.
        document: what ``fedexperts compare --json`` prints: medians over seeds, and every seed's values.
        runs: each run's directory and summary, by the name of what is compared, in the order of the seeds.
    """

    directory: Path
    document: dict[str, Any]
    runs: dict[str, list[Done]]


def compare(
    scenario: Scenario | str | Path,
    protocols: Sequence[str] = (),
    policies: Sequence[str] = (),
    seeds: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    partitions: Sequence[str] = PARTITIONS,
    clients: Sequence[int] = (),
) -> Comparison:
    """Run a scenario with several protocols or policies over several seeds, each run in a process of its own.

    Args:
        scenario: a scenario or the path of its file.
        protocols: names, ``"module:Class"`` of your own among them.
        policies: of the scenario's protocol, in place of protocols; all of them where neither is named.
        seeds: runs of each, from the scenario's seed upwards.
        out: the folder of the runs; default ``runs/<name>-compare``.
        resume: go on with the comparison in ``out``; runs that have ended are left alone, and cost nothing.
        progress: called with a run's name, its finished cycles and its last accuracy.
        partitions: of a Networked MoE whose tables are filled as nothing else is named: how its data are dealt, iid or τ.
        clients: of a Networked MoE, other numbers of clients beside the scenario's.

    Raises:
        InputError: a scenario cannot work, or ``out`` holds something else.
        RunError: the machine refuses, as a full disk does; ``resume`` goes on.
    """
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    directory = default_directory(scenario) if out is None else Path(out)
    wanted = grid(scenario, protocols, policies, seeds, partitions, clients)
    check_out(directory, resume)
    done = run_grid(wanted, directory, resume, progress)
    return Comparison(directory, wanted.fill(done), by_name(done))


def grid(
    scenario: Scenario,
    protocols: Sequence[str],
    policies: Sequence[str],
    seeds: int,
    partitions: Sequence[str] = PARTITIONS,
    clients: Sequence[int] = (),
) -> Grid:
    """What is to be run: a Networked MoE's tables where nothing is named, else protocols or policies; raises as `compare`."""
    if scenario.protocol == comparison.FILLS_TABLES and not protocols and not policies:
        return tables.grid(scenario, list(partitions), list(clients), seeds)
    return comparison.grid(scenario, protocols, policies, seeds)


def default_directory(scenario: Scenario) -> Path:
    """Where a comparison goes that is not told where."""
    return Path("runs") / f"{scenario.name}-compare"


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that holds something, unless it is to be gone on with.

    Raises:
        InputError: with the remedy.
    """
    check_folder(out, "--out")
    if not resume and not is_free(out):
        raise InputError(f"--out {out}: already holds files; add --resume to go on with it, or name another folder")
