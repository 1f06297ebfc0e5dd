"""Tuning before a comparison: each protocol over the same grid of values, by validation data, on seeds that are not reported.

Each makes equally many runs. The values whose runs end best on validation data are then run with the seeds that are reported,
and these are judged on test data, once, at their end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..scenario import Scenario
from ..statistics import median
from .cells import combinations
from .grid import Done, Grid, Key, over_seeds
from .measures import better

TUNING = "tuning"
"""The first name of runs that only choose."""
JUDGES = ("evaluation", "task", "cluster")
"""Tables that say which data decide, and by what."""
Cells = Mapping[str, Mapping[str, Scenario]]
"""Of each protocol or policy its scenarios, by the values that they were given."""


@dataclass(frozen=True)
class Score:
    """What values came to: the metric at the end of each tuning run, on validation data; None where a run diverged."""

    by_seed: list[float | None]
    metric: str

    @property
    def median(self) -> float | None:
        """Over the seeds; a run that diverged is worse than all others."""
        return None if self.order == math.inf else self._sign * self.order

    @property
    def order(self) -> float:
        """The best is the lowest; without end where most runs diverged."""
        found = median([None if value is None else self._sign * value for value in self.by_seed])
        return math.inf if found is None else found

    @property
    def _sign(self) -> int:
        return 1 if better(self.metric) == "lower" else -1


def check(cells: Cells, varied: Mapping[str, Sequence[str]]) -> None:
    """Refuse what cannot be tuned fairly.

    Raises:
        InputError: nothing varies, there are no validation data, or cells would be judged by different data.
    """
    if not varied:
        raise InputError("--tune: needs --grid, the values to choose from, such as --grid train.lr_expert=1e-3,3e-3")
    if judging := [key for key in varied if key.split(".")[0] in JUDGES]:
        raise InputError(f"--grid {judging[0]}: would be judged by other data, so that --tune cannot choose; leave it out")
    scenario = next(iter(next(iter(cells.values())).values()))
    lacking = [cluster.name for cluster in scenario.cluster if cluster.validation is None]
    if not scenario.evaluation.validation and lacking:
        raise InputError(
            f"evaluation.validation = 0: --tune chooses by validation data, and there are none of {', '.join(lacking)}; set a "
            "share, as --set evaluation.validation=0.2, or a file"
        )


def tuned(reported: Grid, cells: Cells, varied: Mapping[str, Sequence[str]], seeds: int, tune: int) -> Grid:
    """The grid of a comparison whose values are chosen first, on ``tune`` seeds above those that are ``reported``.

    Filled in, ``tuned`` has ``judged_on``, ``metric`` and its direction ``better``, ``seeds``, the ``grid``, of each name what
    was ``chosen``, and its ``cells``: ``values``, ``by_seed`` and their median ``score``, None where it diverged.

    Raises:
        InputError: as `check`.
    """
    check(cells, varied)
    named: dict[tuple[str, ...], Scenario] = {
        (TUNING, name, cell): job for name, group in cells.items() for cell, job in group.items()
    }
    jobs = over_seeds(named, tune, more=seeds)

    def then(done: Mapping[Key, Done]) -> dict[Key, Scenario]:
        best = {name: _best(name, found) for name, found in _scores(done).items()}
        return over_seeds({(name,): cells[name][cell] for name, cell in best.items()}, seeds)

    def fill(done: Mapping[Key, Done]) -> dict[str, Any]:
        first = {key: one for key, one in done.items() if key in jobs}
        rest = {key: one for key, one in done.items() if key not in jobs}
        facts = {"grid": {key: list(values) for key, values in varied.items()}, **_told(_scores(first), varied)}
        return {**reported.fill(rest), "tuned": {"seeds": sorted({key[-1] for key in first}), **facts}}

    return replace(reported, jobs=jobs, fill=fill, then=then, tunes=True)


def _scores(done: Mapping[Key, Done]) -> dict[str, dict[str, Score]]:
    """By name and cell.

    Raises:
        InputError: a run was judged by test data.
    """
    runs: dict[str, dict[str, list[Done]]] = {}
    for (_, name, cell, _), one in done.items():
        runs.setdefault(name, {}).setdefault(cell, []).append(one)
    return {name: {cell: _score(group) for cell, group in found.items()} for name, found in runs.items()}


def _score(group: Sequence[Done]) -> Score:
    ended = [one.summary for one in group if "diverged" not in one.summary]
    if wrong := [one for one in group if one.summary.get("judged_on", "validation") != "validation"]:
        raise InputError(f"{wrong[0].directory}: has no validation data to be chosen by; raise evaluation.validation")
    values = [None if "diverged" in one.summary else one.summary["history"][-1]["accuracy"] for one in group]
    return Score(values, ended[0]["metric"] if ended else "accuracy")


def _best(name: str, scores: Mapping[str, Score]) -> str:
    """The values that end best, of equals the first.

    Raises:
        InputError: none did not diverge.
    """
    best = min(scores, key=lambda cell: scores[cell].order)
    if scores[best].median is None:
        raise InputError(f"--grid: {name} has diverged with each of {'; '.join(scores)}; give lower learning rates")
    return best


def _told(scores: Mapping[str, Mapping[str, Score]], varied: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    metric = next(score.metric for found in scores.values() for score in found.values() if score.median is not None)
    best = {name: _best(name, found) for name, found in scores.items()}
    values = combinations(varied)
    return {
        "judged_on": "validation",
        "metric": metric,
        "better": better(metric),
        "chosen": {name: values[cell] for name, cell in best.items()},
        "cells": {
            name: [
                {"values": values[cell], "score": score.median, "by_seed": score.by_seed, "chosen": cell == best[name]}
                for cell, score in found.items()
            ]
            for name, found in scores.items()
        },
    }
