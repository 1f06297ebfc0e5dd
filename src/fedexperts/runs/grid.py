"""The engine of all comparisons: a grid of scenarios over seeds is run, as far as it has not been, and collected.

Runs may be the start of others, which begin from their models or with what was chosen by them: a grid has two stages then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..scenario import Scenario
from .parallel import HERE, Progress, Workers, folder, run_many

Key = tuple[Any, ...]
"""What a run is called, one or more names, and its seed: ``("sync", 3)``."""


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    directory: Path
    summary: dict[str, Any]


Then = Callable[[Mapping[Key, Done]], Mapping[Key, Scenario]]
"""From the runs of the first stage to those of the second."""


@dataclass(frozen=True)
class Grid:
    """A comparison: what is run, and what is made of it.

    Attributes:
        kind: what is compared, the key of its rows in ``fedexperts compare --json``.
        jobs: the scenarios.
        fill: from all runs, in the order of the jobs, to what that prints.
        then: the second stage, if there is one.
        metric: what the runs' accuracies are called while they train.
        tunes: whether the first stage only chooses what the second reports. A run of it that diverges is a result then: its
            summary has the one key ``diverged``.
    """

    kind: Literal["protocols", "policies", "tables"]
    jobs: Mapping[Key, Scenario]
    fill: Callable[[Mapping[Key, Done]], dict[str, Any]]
    then: Then | None = None
    metric: str = "accuracy"
    tunes: bool = False

    def reported(self, done: Mapping[Key, Done]) -> dict[str, list[Done]]:
        """The runs of each row, in the order of their seeds."""
        return by_name({key: one for key, one in done.items() if not (self.tunes and key in self.jobs)})


def over_seeds(named: Mapping[tuple[str, ...], Scenario], seeds: int, more: int = 0) -> dict[Key, Scenario]:
    """Every scenario with so many seeds, from its own upwards, or from ``more`` above that."""
    return {
        (*names, seed): scenario.changed(seed=seed)
        for names, scenario in named.items()
        for seed in range(scenario.seed + more, scenario.seed + more + seeds)
    }


def check_apart(jobs: Mapping[Key, Scenario]) -> None:
    """Refuse runs that would be one and the same, and names that differ in nothing that a folder shows.

    Raises:
        InputError: with both names.
    """
    same: dict[str, str] = {}
    for key, job in jobs.items():
        name = job_name(key)
        for what, of in (("the same scenario and seed", job.to_toml()), ("of the same folder", folder(name))):
            if (other := same.setdefault(of, name)) != name:
                raise InputError(f"{other!r} and {name!r}: are {what}; give each value once, or leave one of them out")


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


def run_grid(
    grid: Grid, out: Path, resume: bool = False, progress: Progress | None = None, workers: Workers = HERE
) -> dict[Key, Done]:
    """Run both stages, each job into a folder of its own in ``out``; the first stage's runs come first.

    With ``resume`` those that have ended are left alone, others go on. Errors: see `run_many`.
    """

    def ran(jobs: Mapping[Key, Scenario], tunes: bool = False) -> dict[Key, Done]:
        named = {job_name(key): job for key, job in jobs.items()}
        summaries = run_many(named, out, resume=resume, progress=progress, workers=workers, diverging=tunes)
        return {key: Done(out / folder(job_name(key)), summaries[job_name(key)]) for key in jobs}

    first = ran(grid.jobs, grid.tunes)
    second = grid.then(first) if grid.then else {}
    return first | (ran(second) if second else {})
