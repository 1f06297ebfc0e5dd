"""The cells of a grid of values: a scenario with each combination of what --grid names."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from ..errors import InputError
from ..scenario import Scenario

MOST_RUNS = 10_000
NOT_VARIED = {"seed": "--seeds", "protocol": "--protocol", "name": "--out"}
"""Keys that other options are for."""


def cells(scenario: Scenario, varied: Mapping[str, Sequence[str]]) -> dict[str, Scenario]:
    """The scenario with every combination of values, by what was changed: ``"train.lr_expert=1e-3"``; as it is by ``""``.

    Raises:
        InputError: a key is unknown or for another option, a value cannot be.
    """
    found = {}
    for key, option in NOT_VARIED.items():
        if key in varied:
            raise InputError(f"--grid {key}: is not varied like this; use {option}")
    for name, values in combinations(varied).items():
        found[name] = scenario.overridden([f"{key}={value}" for key, value in values.items()], "--grid")
    return found


def combinations(varied: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Every combination of values, by what is shown of it: ``"train.lr_expert=1e-3"``; nothing for none."""
    each = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    return {", ".join(f"{key}={value}" for key, value in one.items()): one for one in each}


def check_number(names: int, varied: Mapping[str, Sequence[str]], seeds: int, tune: int) -> None:
    """Refuse a grid that nobody means.

    Raises:
        InputError: with the number of its runs.
    """
    many = names * math.prod(map(len, varied.values()))
    runs = many * tune + names * seeds if tune else many * seeds
    if runs > MOST_RUNS:
        raise InputError(f"--grid: {runs:,} runs; at most {MOST_RUNS:,}: give fewer values or seeds")
