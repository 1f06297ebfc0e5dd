"""Sums over a ledger, worked out by hand."""

from typing import Any

import pytest

from fedexperts.ledger import _alignment, _plateau


def test_the_plateau_begins_where_nothing_better_comes() -> None:
    def points(*values: float) -> list[dict[str, Any]]:
        return [{"event": "evaluate", "cycle": 2 * i, "accuracy": value} for i, value in enumerate(values)]

    # 0.10 to 0.12 stay together for five evaluations, and then it goes on: no plateau there
    rising = points(0.10, 0.11, 0.10, 0.11, 0.10, 0.12, 0.30, 0.50, 0.503, 0.49, 0.50)
    assert _plateau(rising, 3, 0.005) == 14
    assert _plateau(rising, 4, 0.005) is None  # too few evaluations follow
    assert _plateau(points(0.5, 0.5, 0.5), 2, 0.005) == 0
    assert _plateau([], 2, 0.005) is None


def test_loads_and_counts_of_a_run_by_hand() -> None:
    lines = [
        {"event": "align", "assigned": {"a": [0], "b": [1]}, "sat_out": {}},
        {"event": "round", "load": [10.0, 30.0]},
        {"event": "align", "assigned": {"a": [0, 1]}, "sat_out": {"b": "away"}},
        {"event": "round", "load": [10.0, 10.0]},
        {"event": "align", "assigned": {}, "sat_out": {"a": "memory", "b": "away"}},
        {"event": "round", "load": [0.0, 0.0]},
    ]
    found = _alignment(lines, ["a", "b"], {})
    assert found["assignment_counts"] == [[2, 1], [0, 1]]
    assert found["sat_out"] == {"b": {"away": 2}, "a": {"memory": 1}}
    # loads of 20 and 40: mean 30, deviation 10; by round 1/2 and 0, and a round without load says nothing
    assert found["load_cv"] == pytest.approx(1 / 3)
    assert found["load_cv_by_round"] == pytest.approx(0.25)
    assert _alignment([], ["a"], {}) == {}
