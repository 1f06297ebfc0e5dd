"""Medians over seeds, their intervals, and differences seed by seed; numbers alone, of runs it knows nothing.

A cost of getting somewhere, as rounds to a target, is None where a run ended before: it is censored. Such a value counts as
later than all that were reached and is never left out.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

LEVEL = 0.95
FEWEST = 3
"""Seeds that an interval needs; of fewer there is none."""
Ends = tuple[float | None, float | None]
"""The ends of an interval; None is an end that was not reached."""


@dataclass(frozen=True)
class Cost:
    """What a run had spent when it got somewhere; else what it had spent by its end, without getting there."""

    spent: float
    reached: bool


@dataclass(frozen=True)
class Paired:
    """A group of runs against another with the same seeds.

    Attributes:
        difference: the median over seeds of the difference, ours less the other's; None where it cannot be told.
        interval: of that median; None where there is none.
        ahead: seeds on which ours is better.
        behind: seeds on which the other is better; on the rest they are level, or it is not known.
        of: seeds.
    """

    difference: float | None
    interval: Ends | None
    ahead: int
    behind: int
    of: int


def median(values: Sequence[float | None]) -> float | None:
    """The median, of an even number the mean of the two in the middle; None where it was not reached.

    Raises:
        ValueError: there are no values, or one is NaN.
    """
    return _found(statistics.median(_ordered(values)))


def interval(values: Sequence[float | None], level: float = LEVEL) -> Ends | None:
    """The bootstrap interval of the median by percentiles, without chance: see `rank`. None of fewer than `FEWEST` values.

    Raises:
        ValueError: there are no values, or one is NaN.
    """
    ordered = _ordered(values)
    if len(ordered) < FEWEST:
        return None
    k = rank(len(ordered), level)
    return _found(ordered[k - 1]), _found(ordered[-k])


@cache
def rank(n: int, level: float = LEVEL) -> int:
    """Which value, counted from 1 at the lowest and at the highest of ``n``, is the end of the median's bootstrap interval.

    The median of n draws with replacement is at most the k-th value if at least half of the draws are, which has a binomial
    probability: the distribution that resampling only estimates is known. Where n is even it is the lower of the two in the
    middle for the low end and the upper for the high one, so that ends are values that were measured.
    """
    tail, half = (1 - level) / 2, (n + 1) // 2

    def at_most(k: int) -> float:
        """How probable it is that at least half of the draws are among the first k; whole numbers until the last step."""
        ways: int = sum(math.comb(n, i) * k**i * (n - k) ** (n - i) for i in range(half, n + 1))
        return ways / int(n**n)

    return 1 + bisect_left(range(1, n + 1), tail, key=at_most)


def covers(n: int, level: float = LEVEL) -> float | None:
    """How often the interval of ``n`` values holds the median of what they are drawn from, if that has no steps.

    Exact, whatever they are drawn from; with steps it is not below. None of fewer than `FEWEST`.
    """
    return None if n < FEWEST else 1 - 2 * sum(math.comb(n, i) for i in range(rank(n, level))) / 2**n


def paired(ours: Sequence[float], others: Sequence[float], lower: bool) -> Paired:
    """The differences of values of the same seeds; ``lower``: whether the lower one is better.

    Raises:
        ValueError: the two have not equally many values, or none.
    """
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    gains = [-d if lower else d for d in differences]
    ahead, behind = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
    return Paired(median(differences), interval(differences), ahead, behind, len(differences))


def paired_costs(ours: Sequence[Cost], others: Sequence[Cost]) -> Paired:
    """The differences of costs of the same seeds, of which the lower is better.

    Where a run did not get there the difference is not known, nor is a median of differences: it is None, and what is left is
    who was ahead. A run that got there is ahead of one that had spent as much or more without; of one that ended having spent
    less, and of two that did not get there, nothing is known.

    Raises:
        ValueError: the two have not equally many costs, or none.
    """
    both = list(zip(ours, others, strict=True))
    if all(a.reached and b.reached for a, b in both):
        return paired([a.spent for a, _ in both], [b.spent for _, b in both], lower=True)
    ahead, behind = sum(_before(a, b) for a, b in both), sum(_before(b, a) for a, b in both)
    return Paired(None, None, ahead, behind, len(both))


def _before(one: Cost, other: Cost) -> bool:
    """Whether the one is known to be there for less than the other."""
    return one.reached and (one.spent < other.spent or (one.spent == other.spent and not other.reached))


def _ordered(values: Sequence[float | None]) -> list[float]:
    found = sorted(math.inf if value is None else value for value in values)
    if not found or any(map(math.isnan, found)):
        raise ValueError(f"{list(values)}: must be numbers, or None where not reached, at least one")
    return found


def _found(value: float) -> float | None:
    return None if value == math.inf else value
