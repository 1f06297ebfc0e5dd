"""Medians, their intervals and paired differences: by hand, by all resamples, against scipy, and over drawn seeds."""

import itertools
import math
import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from fedexperts.statistics import Cost, Paired, covers, interval, median, paired, paired_costs, rank

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
SEEDS = st.lists(st.none() | NUMBERS, min_size=3, max_size=12)

# by hand


def test_medians_count_what_was_not_reached_as_later_than_all_others() -> None:
    assert median([5, None, 1]) == 5
    assert median([None, 7, None]) is None
    assert median([1, 2, 3, None]) == 2.5
    assert median([1, 2, None, None]) is None  # half of it is not reached
    assert median([4]) == 4


def test_the_interval_of_few_seeds_is_their_range_and_says_how_much_that_is_worth() -> None:
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert interval([3.0, None, 2.0]) == (2.0, None)  # its upper end was not reached
    assert interval([None, None, None]) == (None, None)
    assert interval([1, 2, 3, 4, 5, 6, 7]) == (2, 6)
    assert interval([1.0, 2.0]) is None
    assert covers(2) is None
    # the true median lies outside the range only if all n are on one side of it: 2 · ½ⁿ
    assert [covers(n) for n in (3, 4, 5, 6)] == [0.75, 0.875, 0.9375, 0.96875]
    assert covers(7) == pytest.approx(1 - 2 * (1 + 7) / 2**7)  # second to sixth: not at most one below


def test_nothing_and_what_is_no_number_are_refused() -> None:
    for values in ([], [1.0, math.nan, 2.0]):
        with pytest.raises(ValueError, match="must be numbers"):
            median(values)
        with pytest.raises(ValueError, match="must be numbers"):
            interval(values)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        paired([1.0], [1.0, 2.0], lower=False)


def test_differences_are_of_the_same_seed_and_better_goes_by_the_direction() -> None:
    ours, others = [0.9, 0.5, 0.7], [0.8, 0.6, 0.4]
    found = paired(ours, others, lower=False)
    assert found.difference == pytest.approx(0.1)
    assert found.interval == pytest.approx((-0.1, 0.3))
    assert (found.ahead, found.behind, found.of) == (2, 1, 3)
    assert (paired(ours, others, lower=True).ahead, paired(ours, others, lower=True).behind) == (1, 2)
    assert statistics.median(ours) - statistics.median(others) == pytest.approx(0.1)
    assert paired([1.0, 5.0, 9.0], [9.0, 5.0, 1.0], lower=False).difference == 0.0
    assert paired([2.0], [2.0], lower=True) == Paired(0.0, None, 0, 0, 1)  # level


def reached(*spent: float) -> list[Cost]:
    return [Cost(one, reached=True) for one in spent]


def test_costs_that_all_reached_differ_like_other_figures() -> None:
    assert paired_costs(reached(2, 3, 4), reached(4, 4, 4)) == Paired(-1, (-2, 0), 2, 0, 3)


@pytest.mark.parametrize(
    ("ours", "other", "ahead", "behind"),
    [
        (Cost(5, True), Cost(8, False), 1, 0),  # the other had spent 8 in vain
        (Cost(8, True), Cost(8, False), 1, 0),
        (Cost(9, True), Cost(8, False), 0, 0),  # it ended too early to know
        (Cost(8, False), Cost(5, True), 0, 1),
        (Cost(8, False), Cost(9, True), 0, 0),
        (Cost(8, False), Cost(3, False), 0, 0),  # nobody got there
    ],
)
def test_of_what_was_not_reached_only_what_is_known_counts(ours: Cost, other: Cost, ahead: int, behind: int) -> None:
    found = paired_costs([ours, *reached(1, 1)], [other, *reached(1, 1)])
    assert found == Paired(None, None, ahead, behind, 3)


# against all resamples, and a library's


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_the_rank_is_that_of_all_resamples(n: int) -> None:
    middle = (n + 1) // 2 - 1  # of an even number the lower of the two
    times = Counter(sorted(draws)[middle] + 1 for draws in itertools.product(range(n), repeat=n))
    shares = list(itertools.accumulate(times[k] / n**n for k in range(1, n + 1)))
    assert rank(n) == next(k for k, share in enumerate(shares, start=1) if share >= 0.025)


@pytest.mark.parametrize("n", [5, 9, 15, 25])
def test_the_interval_is_that_of_a_library_which_draws(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    drawn = bootstrap((values,), np.median, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert interval(values.tolist()) == pytest.approx((drawn.low, drawn.high), abs=1e-9)


@pytest.mark.parametrize("n", [3, 5, 8, 10, 20])
@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
def test_the_interval_holds_the_true_median_as_often_as_it_says(n: int, draw: str) -> None:
    times = 4000
    truth = math.log(2) if draw == "exponential" else 0.0
    samples = getattr(np.random.default_rng(7), draw)(size=(times, n))
    held = 0
    for values in samples.tolist():
        low, high = interval(values) or (None, None)
        held += low is not None and high is not None and low <= truth <= high
    said = covers(n) or 0
    assert abs(held / times - said) < 4 * math.sqrt(said * (1 - said) / times)


# over drawn seeds


@settings(deadline=None)
@given(SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_seeds_changes_nothing(values: list[float | None], chance: object) -> None:
    shuffled = list(values)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert (median(shuffled), interval(shuffled)) == (median(values), interval(values))


@settings(deadline=None)
@given(SEEDS, st.integers(-1000, 1000), st.sampled_from([0.5, 2.0, 4.0]))
def test_a_shift_and_another_unit_shift_and_scale_the_ends(values: list[float | None], shift: int, unit: float) -> None:
    whole = [None if value is None else float(round(value)) for value in values]  # on which sums are exact
    other = [None if value is None else unit * value + shift for value in whole]
    ends = interval(whole)
    assert ends is not None
    assert interval(other) == tuple(None if end is None else unit * end + shift for end in ends)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=3, max_size=12))
def test_the_other_way_round_it_is_the_same_interval(values: list[float]) -> None:
    low, high = interval(values) or (None, None)
    assert low is not None
    assert high is not None
    assert interval([-value for value in values]) == (-high, -low)
    assert low <= (median(values) or 0.0) <= high


@settings(deadline=None)
@given(SEEDS, st.integers(0, 11))
def test_a_run_that_no_longer_gets_there_makes_nothing_earlier(values: list[float | None], which: int) -> None:
    later = [None if i == which % len(values) else value for i, value in enumerate(values)]

    def as_number(value: float | None) -> float:
        return math.inf if value is None else value

    before, after = interval(values), interval(later)
    assert before is not None
    assert after is not None
    assert as_number(median(later)) >= as_number(median(values))
    assert all(as_number(b) >= as_number(a) for a, b in zip(before, after, strict=True))


COSTS = st.lists(st.tuples(*[st.builds(Cost, st.integers(0, 9), st.booleans())] * 2), min_size=1, max_size=9)


@settings(deadline=None)
@given(COSTS)
def test_who_is_ahead_one_way_is_behind_the_other(pairs: list[tuple[Cost, Cost]]) -> None:
    ours, others = (list(costs) for costs in zip(*pairs, strict=True))
    one, other = paired_costs(ours, others), paired_costs(others, ours)
    assert (one.ahead, one.behind) == (other.behind, other.ahead)
    assert one.ahead + one.behind <= one.of == len(pairs)
    assert (one.difference is None) == (not all(cost.reached for cost in [*ours, *others]))
