"""Scores by hand, and what limits a client."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.assign.scores import (
    Capacity,
    Need,
    desirability,
    estimated_rate,
    experts_that_fit,
    normed,
    reward,
    updated_fitness,
    updated_usage,
)
from fedexperts.errors import InputError

NAN = math.nan
NEED = Need(
    base_memory_B=100,
    expert_memory_B=50,
    base_flops=1000,
    expert_flops=200,
    base_up_B=10,
    expert_up_B=5,
    base_down_B=20,
    expert_down_B=5,
)


def test_reward_by_hand():
    r = reward(np.array([[0.2, 1.5], [-0.5, NAN]]), np.array([[0.6, 0.4], [1.0, 0.3]]), 0.25)
    assert np.allclose(r[0], [0.25 * 0.8 + 0.75 * 0.6, 0.75 * 0.4])  # a loss above a uniform guess's counts as 1
    assert r[1, 0] == 1.0
    assert np.isnan(r[1, 1])


def test_a_reward_needs_no_share_of_untrained_pairs():
    assert np.isnan(reward(np.array([[NAN]]), np.array([[NAN]]))).all()


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(InputError, match="share_NM"):
        reward(np.array([[0.5]]), np.array([[share]]))


def test_fitness_by_hand():
    fitness = updated_fitness(np.array([[0.4, 0.9, 0.5]]), np.array([[1.0, NAN, NAN]]))
    assert np.allclose(fitness, [[0.7 * 0.4 + 0.3 * 1.0, 0.9 + 0.05 * (0.5 - 0.9), 0.5]])


def test_untouched_fitness_drifts_to_the_prior():
    fitness = np.array([[0.0, 1.0]])
    for _ in range(200):
        fitness = updated_fitness(fitness, np.full((1, 2), NAN), prior=0.3)
    assert np.allclose(fitness, 0.3, atol=1e-4)


def test_usage_by_hand():
    assert np.allclose(updated_usage(np.array([0.5, 0.1]), np.array([30, 10])), [0.8 * 0.5 + 0.2 * 0.75, 0.08 + 0.2 * 0.25])


def test_usage_of_a_round_without_load_decays():
    assert np.allclose(updated_usage(np.array([0.5, 0.1]), np.zeros(2), 0.5), [0.25, 0.05])


def test_desirability_by_hand():
    D = desirability(np.array([[0.2, 0.4, 0.6], [0.5, 0.5, 0.5]]), np.array([0.1, 0.3, 0.2]), 0.6)
    assert np.allclose(D, [[0, 0.6 * 0.5 - 0.4, 0.6 - 0.4 * 0.5], [0, -0.4, -0.2]])


def test_desirability_of_constant_scores_is_0():
    assert not desirability(np.full((2, 3), 0.5), np.full(3, 0.2)).any()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
def test_min_max_spans_0_to_1(values):
    scaled = normed(np.array(values))
    assert scaled.min() == 0
    assert scaled.max() in (0, 1)


@pytest.mark.parametrize("value", [-0.01, 1.01, NAN])
@pytest.mark.parametrize("name", ["loss_weight", "rate", "drift", "prior", "decay", "balance"])
def test_weights_outside_0_to_1_are_refused_by_name(name, value):
    F, U = np.full((1, 2), 0.5), np.full(2, 0.5)
    calls = {
        "loss_weight": lambda: reward(F, F, value),
        "rate": lambda: updated_fitness(F, F, rate=value),
        "drift": lambda: updated_fitness(F, F, drift=value),
        "prior": lambda: updated_fitness(F, F, prior=value),
        "decay": lambda: updated_usage(U, U, value),
        "balance": lambda: desirability(F, U, value),
    }
    with pytest.raises(InputError, match=rf"{name} = {value}: must lie in \[0, 1\]"):
        calls[name]()


@pytest.mark.parametrize("bad", [-1.0, NAN, math.inf])
def test_bad_loads_and_scores_are_refused(bad):
    with pytest.raises(InputError, match="load_M"):
        updated_usage(np.zeros(2), np.array([1, bad]))
    if bad != -1.0:
        with pytest.raises(InputError, match="fitness_NM"):
            desirability(np.array([[bad, 0.0]]), np.zeros(2))


@pytest.mark.parametrize(
    ("capacity", "fit"),
    [
        (Capacity(), (8, "experts")),
        (Capacity(memory_B=260), (3, "memory")),  # (260 - 100) / 50 = 3.2
        (Capacity(memory_B=250), (3, "memory")),
        (Capacity(memory_B=99), (0, "memory")),
        (Capacity(memory_B=100), (0, "memory")),
        (Capacity(up_bps=16), (2, "uplink")),  # 16 bit/s · 10 s = 20 B
        (Capacity(down_bps=24), (2, "downlink")),  # 30 B
        (Capacity(flops_per_s=150), (2, "compute")),  # 1,500 FLOPs
        (Capacity(memory_B=200, flops_per_s=150, up_bps=12), (1, "uplink")),
        (Capacity(memory_B=150, flops_per_s=120), (1, "memory")),  # alike: the first is named
        (Capacity(memory_B=1e9, up_bps=1e9, down_bps=1e9, flops_per_s=1e9), (8, "experts")),
    ],
)
def test_experts_that_fit_by_hand(capacity, fit):
    assert experts_that_fit(capacity, NEED, 10, 8) == fit


def test_an_expert_that_needs_nothing_fits_as_soon_as_the_base_does():
    free = replace(NEED, expert_memory_B=0)
    assert experts_that_fit(Capacity(memory_B=100), free, 10, 8) == (8, "experts")
    assert experts_that_fit(Capacity(memory_B=99), free, 10, 8) == (0, "memory")


def test_a_quotient_that_is_whole_but_for_rounding_counts_whole():
    need = replace(NEED, base_memory_B=0, expert_memory_B=0.1)
    assert 0.3 / 0.1 < 3
    assert experts_that_fit(Capacity(memory_B=0.3), need, 10, 8) == (3, "memory")


@pytest.mark.parametrize("field", ["memory_B", "flops_per_s", "up_bps", "down_bps"])
@pytest.mark.parametrize("value", [0, -1, NAN])
def test_capacities_must_be_above_0(field, value):
    with pytest.raises(InputError, match=f"{field} = {value}: must be above 0"):
        Capacity(**{field: value})


@pytest.mark.parametrize("value", [-1, NAN, math.inf])
def test_needs_must_be_finite(value):
    with pytest.raises(InputError, match="expert_up_B"):
        replace(NEED, expert_up_B=value)


def test_deadline_and_experts_are_checked():
    with pytest.raises(InputError, match="deadline_s = 0"):
        experts_that_fit(Capacity(), NEED, 0, 8)
    with pytest.raises(InputError, match="experts = 0"):
        experts_that_fit(Capacity(), NEED, 1, 0)


@settings(deadline=None, max_examples=60)
@given(*[st.floats(1, 1e4)] * 4, st.floats(0.1, 100), st.integers(1, 20))
def test_what_fits_keeps_every_limit_and_one_more_would_break_the_binding_one(memory, flops, up, down, deadline, experts):
    fit, limit = experts_that_fit(Capacity(memory, flops, up, down), NEED, deadline, experts)
    over = {
        "memory": lambda k: 100 + 50 * k - memory,
        "compute": lambda k: 1000 + 200 * k - flops * deadline,
        "uplink": lambda k: 10 + 5 * k - up * deadline / 8,
        "downlink": lambda k: 20 + 5 * k - down * deadline / 8,
    }
    assert fit == 0 or all(excess(fit) <= 1e-5 for excess in over.values())
    assert fit == experts if limit == "experts" else over[limit](fit + 1) > 0


def test_a_rate_is_the_median_of_the_last_tasks():
    assert estimated_rate([(10, 1), (20, 1), (60, 2)]) == 20
    assert estimated_rate([(1, 1)] * 50 + [(8, 2)] * 3, window=3) == 4


def test_a_stalled_task_does_not_move_the_rate():
    assert estimated_rate([(10, 1)] * 5 + [(10, 1e6)] * 4) == 10


@pytest.mark.parametrize(
    ("tasks", "window", "names"),
    [([], 9, "tasks"), ([(1, 0)], 9, "seconds"), ([(NAN, 1)], 9, "work"), ([(-1, 1)], 9, "work"), ([(1, 1)], 0, "window = 0")],
)
def test_rates_need_completed_tasks(tasks, window, names):
    with pytest.raises(InputError, match=names):
        estimated_rate(tasks, window)
