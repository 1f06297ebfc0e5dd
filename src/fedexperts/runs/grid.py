"""The engine of all comparisons: a grid of scenarios over seeds is run, as far as it has not been, and collected.

A run may be the start of others, which begin from its model when it has ended: a grid has two stages then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..scenario import Scenario
from .parallel import Progress, folder, run_many

Key = tuple[Any, ...]
"""What a run is called, one or more names, and its seed: ``("sync", 3)``."""


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    directory: Path
    summary: dict[str, Any]


Then = Callable[[Key, Scenario, Path], Mapping[Key, Scenario]]
"""From a run, its scenario and its directory to the runs that start from its model."""


@dataclass(frozen=True)
class Grid:
    """A comparison: what is run, and what is made of it.

    Attributes:
        kind: what is compared, the key of its rows in ``fedexperts compare --json``.
        jobs: the scenarios.
        fill: from all runs, in the order of the jobs, to what that prints.
        then: the second stage, if there is one.
        metric: what the runs' accuracies are called while they train.
    """

    kind: Literal["protocols", "policies", "tables"]
    jobs: Mapping[Key, Scenario]
    fill: Callable[[Mapping[Key, Done]], dict[str, Any]]
    then: Then | None = None
    metric: str = "accuracy"


def over_seeds(named: Mapping[tuple[str, ...], Scenario], seeds: int) -> dict[Key, Scenario]:
    """Every scenario with so many seeds, from its own upwards."""
    return {
        (*names, seed): scenario.changed(seed=seed)
        for names, scenario in named.items()
        for seed in range(scenario.seed, scenario.seed + seeds)
    }


def by_name(done: Mapping[Key, Done]) -> dict[str, list[Done]]:
    """The runs of each name, in the order of their seeds."""
    found: dict[str, list[Done]] = {}
    for (*names, _), one in done.items():
        found.setdefault(", ".join(names), []).append(one)
    return found


def job_name(key: Key) -> str:
    """A run's name in progress bars, and what its folder is called after."""
    *names, seed = key
    return ", ".join([*names, f"seed {seed}"])


def run_grid(grid: Grid, out: Path, resume: bool = False, progress: Progress | None = None) -> dict[Key, Done]:
    """Run both stages, each job into a folder of its own in ``out``; the first stage's runs come first.

    With ``resume`` those that have ended are left alone, others go on. Errors: see `run_many`.
    """
    first = _run(grid.jobs, out, resume, progress)
    then = grid.then or (lambda *_: {})
    second = {key: job for one, done in first.items() for key, job in then(one, grid.jobs[one], done.directory).items()}
    return first | (_run(second, out, resume, progress) if second else {})


def _run(jobs: Mapping[Key, Scenario], out: Path, resume: bool, progress: Progress | None) -> dict[Key, Done]:
    summaries = run_many({job_name(key): job for key, job in jobs.items()}, out, resume=resume, progress=progress)
    return {key: Done(out / folder(job_name(key)), summaries[job_name(key)]) for key in jobs}
