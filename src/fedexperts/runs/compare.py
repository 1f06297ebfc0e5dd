"""A comparison from beginning to end: which grid it is, and the call that runs it."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import InputError
from ..scenario import Scenario
from ..writing import check_folder
from . import comparison
from . import networked_tables as tables
from .grid import Done, Grid, run_grid
from .lock import is_free
from .parallel import Progress, Workers

PARTITIONS = ("iid", "0.5", "0.3", "0.2")


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        directory: of all runs.
        document: what ``fedexperts compare --json`` prints: medians over seeds with intervals, paired
            differences, and every seed's values.
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
    vary: Mapping[str, Sequence[Any]] | None = None,
    tune: int = 0,
    baseline: str | None = None,
    jobs: int | None = None,
    ray: str | None = None,
) -> Comparison:
    """Run a scenario with several protocols or policies, and values, over several seeds, each run in a process of its own.

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
        vary: keys of the scenario and the values to cross, as ``{"train.lr_expert": [1e-3, 3e-3]}``: each protocol or policy is
            run with every combination.
        tune: so many seeds above those reported choose among these values, for each protocol or policy by the same validation
            data; the best is then run with ``seeds``, and judged on test data once.
        baseline: what the others' differences are from, seed by seed; default the first.
        jobs: processes at a time; default one for each processor.
        ray: the address of a Ray cluster that makes the runs, ``"auto"`` or HOST:PORT, or ``"local"`` to start one here.

    Raises:
        InputError: a scenario cannot work, a value of ``vary`` cannot be, ``out`` holds something else, or there is no such
            Ray cluster.
        RunError: the machine refuses, as a full disk does; ``resume`` goes on.
    """
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    directory = default_directory(scenario) if out is None else Path(out)
    varied = {key: tuple(map(_text, values)) for key, values in (vary or {}).items()}
    wanted = grid(scenario, protocols, policies, seeds, partitions, clients, varied, tune, baseline)
    workers = on(jobs, ray)
    check_out(directory, resume)
    done = run_grid(wanted, directory, resume, progress, workers)
    return Comparison(directory, wanted.fill(done), wanted.reported(done))


def _text(value: Any) -> str:
    """As --grid has it, which reads TOML."""
    return value if isinstance(value, str) else tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def grid(
    scenario: Scenario,
    protocols: Sequence[str],
    policies: Sequence[str],
    seeds: int,
    partitions: Sequence[str] = PARTITIONS,
    clients: Sequence[int] = (),
    varied: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    tune: int = 0,
    baseline: str | None = None,
) -> Grid:
    """What is to be run: a Networked MoE's tables where nothing is named, else protocols or policies; raises as `compare`."""
    if seeds < 1 or tune < 0:
        raise InputError(f"--seeds {seeds}, --tune {tune}: must be at least 1 and 0; correct them")
    if scenario.protocol == comparison.FILLS_TABLES and not protocols and not policies:
        if varied or tune or baseline is not None:
            raise InputError(
                "--grid, --tune, --baseline: are of protocols or policies; a Networked MoE's tables have neither, name "
                "--protocol networked"
            )
        return tables.grid(scenario, list(partitions), list(clients), seeds)
    return comparison.grid(scenario, protocols, policies, seeds, varied, tune, baseline)


def on(jobs: int | None, ray: str | None) -> Workers:
    """Where the runs are made.

    Raises:
        InputError: both are given, or there are no processes.
    """
    if jobs is not None and (jobs < 1 or ray is not None):
        raise InputError(f"--jobs {jobs}: must be at least 1, and is for this machine alone; leave out --jobs or --ray")
    return Workers(jobs, ray)


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
