"""Assignments: capacities and bounds hold, the optimal one is, nobody starves, and clusters own experts."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from fedexperts.assign.policies import balanced, coverage, greedy, load_bounds, optimal, owners, random_assignment
from fedexperts.assign.scores import desirability, updated_usage
from fedexperts.assign.transport import gap, solve
from fedexperts.errors import InputError

INVARIANT = settings(deadline=None, max_examples=60)
SEEDS = st.integers(0, 2**32 - 1)


def rng(seed=0):
    return np.random.default_rng(seed)


@st.composite
def rounds(draw, max_clients=12, max_experts=7):
    """(fitness_NM, usage_M, capacity_N, samples_N): with ties and idle clients likely."""
    clients, experts = draw(st.integers(1, max_clients)), draw(st.integers(1, max_experts))
    chance = rng(draw(SEEDS))
    levels = draw(st.sampled_from([1, 2, 5, 10**6]))
    fitness_NM = chance.integers(0, levels, (clients, experts)) / levels
    usage_M = chance.integers(0, levels, experts) / levels
    return fitness_NM, usage_M, chance.integers(0, experts + 2, clients), chance.integers(1, 50, clients)


def variation(x_NM) -> float:
    load_M = x_NM.sum(axis=0)
    return float(load_M.std() / load_M.mean())


# -- capacity and the simple policies ------------------------------------------------------------------------------------


@INVARIANT
@given(rounds(), SEEDS)
def test_every_policy_uses_each_clients_capacity_and_no_more(given_round, seed):
    fitness_NM, usage_M, capacity_N, samples_N = given_round
    clients, experts = fitness_NM.shape
    for x_NM in (
        random_assignment(capacity_N, experts, rng(seed)),
        greedy(fitness_NM, capacity_N, rng(seed)),
        greedy(fitness_NM, capacity_N),
        balanced(fitness_NM, usage_M, capacity_N, samples_N, rng(seed), overdue_M=np.arange(experts) % 2),
        coverage(capacity_N, experts, seed % experts),
        optimal(desirability(fitness_NM, usage_M), capacity_N, 0, clients),
        optimal(desirability(fitness_NM, usage_M), capacity_N, *load_bounds(capacity_N, experts)),
    ):
        assert x_NM.dtype == bool
        assert x_NM.sum(axis=1).tolist() == np.minimum(capacity_N, experts).tolist()


def test_random_assignment_favours_no_expert():
    counts_M = sum(random_assignment([2, 1], 4, rng(seed)).sum(axis=0) for seed in range(1000))
    assert np.all(np.abs(counts_M - 750) < 4 * np.sqrt(750))


def test_greedy_takes_each_clients_best():
    assert greedy(np.array([[0.1, 0.9, 0.5], [0.7, 0.2, 0.6]]), [2, 1]).tolist() == [[False, True, True], [True, False, False]]


def test_literal_greedy_collapses_on_ties_and_a_generator_spreads_them():
    literal = greedy(np.full((200, 4), 0.5), np.ones(200))
    assert literal.sum(axis=0).tolist() == [200, 0, 0, 0]
    assert greedy(np.full((200, 4), 0.5), np.ones(200), rng()).sum(axis=0).min() > 25


@INVARIANT
@given(st.lists(st.integers(0, 9), min_size=1, max_size=10), st.integers(1, 8), st.integers(0, 20))
def test_coverage_reaches_every_expert_and_loads_differ_by_at_most_one(capacity_N, experts, start):
    load_M = coverage(capacity_N, experts, start).sum(axis=0)
    assert load_M.max() - load_M.min() <= 1
    assert load_M.all() == (np.minimum(capacity_N, experts).sum() >= experts)


def test_coverage_goes_on_where_it_ended():
    assert coverage([2, 1], 5, 3).tolist() == [[False, False, False, True, True], [True, False, False, False, False]]


# -- balanced ------------------------------------------------------------------------------------------------------------


def test_balanced_by_hand():
    """Client 0 prefers expert 0, client 1 as well but less so; whoever comes second finds it used."""
    for seed in range(6):
        x_NM = balanced(np.array([[1.0, 0.0], [1.0, 0.0]]), np.zeros(2), [1, 1], [1, 1], rng(seed), balance=0.4)
        assert x_NM.sum(axis=0).tolist() == [1, 1]
    x_NM = balanced(np.array([[1.0, 0.0], [1.0, 0.0]]), np.zeros(2), [1, 1], [1, 1], rng(), balance=0.6)
    assert x_NM.sum(axis=0).tolist() == [2, 0]  # fitness outweighs usage


def test_clients_do_not_herd_to_the_idle_expert():
    usage_M = np.array([0.3, 0.3, 0.3, 0.0])
    x_NM = balanced(np.full((40, 4), 0.5), usage_M, np.ones(40), np.ones(40), rng(), decay=0.5)
    assert x_NM.sum(axis=0).max() < 40
    assert x_NM[:, 3].sum() == x_NM.sum(axis=0).max()
    alone = greedy(desirability(np.full((40, 4), 0.5), usage_M), np.ones(40))
    assert alone[:, 3].sum() == 40


def test_projected_usage_counts_samples():
    """With one expert taken by a client of 99 samples, single samples go to the other until it has caught up."""
    x_NM = balanced(np.full((50, 2), 0.5), np.zeros(2), np.ones(50), [99] + [1] * 49, rng(3))
    mate_M = x_NM[0]
    assert x_NM[:, mate_M].sum() < x_NM[:, ~mate_M].sum()


def test_the_most_holds_and_clients_without_room_train_fewer():
    x_NM = balanced(np.full((5, 3), 0.5), np.zeros(3), [2] * 5, np.ones(5), rng(), most_M=[1, 2, 3])
    assert x_NM.sum(axis=0).tolist() == [1, 2, 3]


def test_an_overdue_expert_goes_to_the_fittest_client_with_room():
    fitness_NM = np.array([[0.9, 0.8], [0.9, 0.7], [0.9, 0.1]])
    x_NM = balanced(fitness_NM, np.zeros(2), [0, 1, 1], np.ones(3), rng(), balance=1, overdue_M=[0, 1])
    assert x_NM.tolist() == [[False, False], [False, True], [True, False]]


def test_of_overdue_experts_the_longest_waiting_comes_first():
    for seed in range(5):
        x_NM = balanced(np.full((1, 3), 0.5), np.zeros(3), [1], [1], rng(seed), overdue_M=[1, 3, 2])
        assert x_NM.tolist() == [[False, True, False]]


@INVARIANT
@given(rounds(), SEEDS)
def test_one_seed_gives_one_result(given_round, seed):
    fitness_NM, usage_M, capacity_N, samples_N = given_round
    experts = fitness_NM.shape[1]

    def once():
        D_NM = desirability(fitness_NM, usage_M)
        return [
            random_assignment(capacity_N, experts, rng(seed)),
            greedy(fitness_NM, capacity_N, rng(seed)),
            balanced(fitness_NM, usage_M, capacity_N, samples_N, rng(seed)),
            optimal(D_NM, capacity_N, *load_bounds(capacity_N, experts)),
        ]

    assert all(np.array_equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_seeds_matter():
    assert len({balanced(np.full((5, 5), 0.5), np.zeros(5), [1] * 5, [1] * 5, rng(s)).tobytes() for s in range(9)}) > 1


# -- optimal -------------------------------------------------------------------------------------------------------------


def brute_force(D_NM, capacity_N, least_M, most_M):
    """(pairs, Σ D) of the best assignment: most pairs first; None where the bounds cannot be kept."""
    experts = D_NM.shape[1]
    rows = [[np.isin(range(experts), c) for k in range(K + 1) for c in combinations(range(experts), k)] for K in capacity_N]
    best = None
    for choice in product(*rows):
        x_NM = np.array(choice)
        load_M = x_NM.sum(axis=0)
        if np.all(load_M >= least_M) and np.all(load_M <= most_M):
            found = (int(x_NM.sum()), float((D_NM * x_NM).sum()))
            best = found if best is None or found > best else best
    return best


@settings(deadline=None, max_examples=120)
@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 3, 1000]))
def test_optimal_equals_brute_force(seed, clients, experts, levels):
    chance = rng(seed)
    D_NM = chance.integers(-levels, levels + 1, (clients, experts)) / levels
    capacity_N = chance.integers(0, experts + 1, clients)
    least_M = chance.integers(0, 2, experts)
    most_M = least_M + chance.integers(0, clients + 1, experts)
    best = brute_force(D_NM, capacity_N, least_M, most_M)
    if best is None:
        with pytest.raises(InputError, match="least_M"):
            optimal(D_NM, capacity_N, least_M, most_M)
        return
    x_NM = optimal(D_NM, capacity_N, least_M, most_M)
    assert np.all(x_NM.sum(axis=1) <= capacity_N)
    assert np.all((x_NM.sum(axis=0) >= least_M) & (x_NM.sum(axis=0) <= most_M))
    assert x_NM.sum() == best[0]
    assert (D_NM * x_NM).sum() == pytest.approx(best[1], abs=1e-7)


def linear_programme(D_NM, K_N, least_M, most_M) -> float:
    """The peer: scipy's HiGHS on the plain programme."""
    clients, experts = D_NM.shape
    rows = np.kron(np.eye(clients), np.ones(experts))
    columns = np.kron(np.ones(clients), np.eye(experts))
    constraints = [LinearConstraint(rows, K_N, K_N), LinearConstraint(columns, least_M, most_M)]
    return -milp(-D_NM.ravel(), constraints=constraints, bounds=Bounds(0, 1)).fun


@pytest.mark.parametrize("kind", ["uniform", "constant", "same rows", "popular", "near ties"])
@pytest.mark.parametrize("slack", [0.0, 0.4])
def test_optimal_equals_scipys_linear_programme(kind, slack):
    chance = rng(7)
    D_NM = {
        "uniform": chance.random((60, 9)),
        "constant": np.full((60, 9), 0.25),
        "same rows": np.tile(chance.random(9), (60, 1)),
        "popular": chance.random((60, 9)) + 3 * (np.arange(9) == 4),
        "near ties": 1e-7 * chance.random((60, 9)) + chance.integers(0, 2, (60, 9)),
    }[kind]
    K_N = chance.integers(0, 10, 60)
    bounds = load_bounds(K_N, 9, slack)
    x_NM = optimal(D_NM, K_N, *bounds)
    peer = linear_programme(D_NM, K_N, *bounds)
    assert peer - 1e-6 <= (x_NM * D_NM).sum() <= peer + 1e-5  # HiGHS stops at reduced costs of 1e-7, we at 1e-9


@INVARIANT
@given(rounds(), SEEDS)
def test_optimal_is_never_worse_than_balanced_under_the_same_bounds(given_round, seed):
    fitness_NM, usage_M, capacity_N, samples_N = given_round
    x_NM = balanced(fitness_NM, usage_M, capacity_N, samples_N, rng(seed))
    load_M = x_NM.sum(axis=0)
    D_NM = desirability(fitness_NM, usage_M)
    best = optimal(D_NM, capacity_N, load_M.min(), load_M.max())
    assert (D_NM * best).sum() >= (D_NM * x_NM).sum() - 1e-7


@INVARIANT
@given(rounds(), SEEDS)
def test_the_order_of_clients_does_not_change_the_optimum(given_round, seed):
    fitness_NM, usage_M, capacity_N, _ = given_round
    D_NM = desirability(fitness_NM, usage_M)
    bounds = load_bounds(capacity_N, D_NM.shape[1])
    order = rng(seed).permutation(len(D_NM))
    here, there = optimal(D_NM, capacity_N, *bounds), optimal(D_NM[order], capacity_N[order], *bounds)
    assert (D_NM * here).sum() == pytest.approx((D_NM[order] * there).sum(), abs=1e-7)


def test_the_gap_proves_the_optimum_and_shows_what_is_missing():
    D_NM, K_N, bound = rng().random((30, 5)), np.full(30, 2), (np.full(5, 12), np.full(5, 12))
    x_NM, price_M = solve(D_NM, K_N, *bound)
    assert abs(gap(D_NM, K_N, *bound, x_NM, price_M)) < 1e-7
    worse_NM = coverage(K_N, 5)
    missing = (D_NM * x_NM).sum() - (D_NM * worse_NM).sum()
    assert gap(D_NM, K_N, *bound, worse_NM, price_M) == pytest.approx(missing, abs=1e-7)
    assert gap(D_NM, K_N, *bound, x_NM, price_M + np.arange(5)) > 0.1  # other prices prove nothing


@INVARIANT
@given(rounds(), st.floats(-100, 100), st.floats(0.01, 100))
def test_scale_and_origin_of_the_values_do_not_matter(given_round, shift, factor):
    fitness_NM, _, capacity_N, _ = given_round
    bounds = load_bounds(capacity_N, fitness_NM.shape[1], 0.3)
    x_NM = optimal(fitness_NM, capacity_N, *bounds)
    moved_NM = optimal(shift + factor * fitness_NM, capacity_N, *bounds)
    assert (fitness_NM * moved_NM).sum() == pytest.approx((fitness_NM * x_NM).sum(), abs=1e-6)


def test_without_room_as_many_pairs_as_fit_are_assigned():
    D_NM = np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.3]])
    assert optimal(D_NM, [1, 1, 1], 0, 1).tolist() == [[True, False], [False, True], [False, False]]


def test_exact_balance_against_greedy_on_a_popular_expert():
    fitness_NM = rng().random((100, 8)) + 2 * (np.arange(8) == 3)
    usage_M, K_N = np.zeros(8), np.full(100, 2)
    x_NM = optimal(desirability(fitness_NM, usage_M), K_N, *load_bounds(K_N, 8))
    assert variation(x_NM) == 0
    assert variation(greedy(fitness_NM, K_N)) > 0.9


@pytest.mark.parametrize(
    ("capacity_N", "least_M", "most_M", "says"),
    [
        ([1, 1], [3, 0], [3, 3], r"least_M\[0\] = 3: only 2 clients"),
        ([1, 0], [2, 0], [3, 3], r"least_M\[0\] = 2: only 1 clients"),
        ([1, 1], [2, 1], [2, 2], "adds up to 3, but all capacity is 2"),
        ([2, 0], [1, 2], [1, 1], r"least_M\[1\] = 2: is above most_M\[1\] = 1"),
        ([1, 1], [-1, 0], [1, 1], r"least_M\[0\] = -1"),
        ([1, 1], [0, 0], [1, 0.5], r"most_M\[1\] = 0.5"),
        ([1, -1], [0, 0], [1, 1], r"capacity_N\[1\] = -1"),
        ([1, np.nan], [0, 0], [1, 1], r"capacity_N\[1\] = nan"),
        ([1], [0, 0], [1, 1], "capacity_N: has shape"),
        ([1, 1], [0], [1, 1], "least_M: has shape"),
    ],
)
def test_bounds_that_cannot_hold_are_refused_by_name(capacity_N, least_M, most_M, says):
    with pytest.raises(InputError, match=says):
        optimal(np.zeros((2, 2)), capacity_N, least_M, most_M)


def test_leasts_that_no_assignment_meets_are_refused():
    """Three clients with room for (3, 0, 1) can not give two clients to each of two experts."""
    with pytest.raises(InputError, match="no assignment gives every expert"):
        optimal(np.zeros((3, 3)), [3, 0, 1], [2, 2, 0], [3, 3, 3])


def test_desirability_must_be_finite():
    with pytest.raises(InputError, match="desirability_NM"):
        optimal(np.array([[np.nan, 0.0]]), [1], 0, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"balance": 1.1}, "balance = 1.1"),
        ({"decay": -1}, "decay = -1"),
        ({"samples_N": [1, -1]}, "samples_N"),
        ({"samples_N": [1]}, "samples_N"),
        ({"most_M": [1, -1]}, r"most_M\[1\] = -1"),
        ({"overdue_M": [0, np.nan]}, "overdue_M"),
        ({"usage_M": np.array([0, np.inf])}, "usage_M"),
        ({"fitness_NM": np.array([[0, np.nan], [0, 0]])}, "fitness_NM"),
        ({"least_M": 2, "most_M": 1}, "least_M"),
    ],
)
def test_balanced_refuses_bad_input_by_name(options, says):
    given_ = {"fitness_NM": np.zeros((2, 2)), "usage_M": np.zeros(2), "capacity_N": [1, 1], "samples_N": [1, 1]} | options
    with pytest.raises(InputError, match=says):
        balanced(**given_, rng=rng())


# -- bounds on loads, and nobody starves ----------------------------------------------------------------------------------


@INVARIANT
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 8), st.floats(0, 1))
def test_load_bounds_can_always_be_kept_without_losing_capacity(capacity_N, experts, slack):
    least_M, most_M = load_bounds(capacity_N, experts, slack)
    K_N = np.minimum(capacity_N, experts)
    assert np.all(least_M <= K_N.sum() / experts)
    assert np.all(most_M >= K_N.sum() / experts)
    assert optimal(np.zeros((len(K_N), experts)), K_N, least_M, most_M).sum() == K_N.sum()


def test_load_bounds_by_hand():
    assert [b.tolist() for b in load_bounds([2, 2, 1], 2)] == [[2, 2], [3, 3]]
    assert [b.tolist() for b in load_bounds([4] * 5, 10, 0.5)] == [[1] * 10, [3] * 10]
    assert [b.tolist() for b in load_bounds([1, 1], 4, 0, [0, 1, 5, 2])] == [[0, 0, 1, 1], [1] * 4]


@pytest.mark.parametrize("policy", ["balanced", "optimal"])
@pytest.mark.parametrize(("clients", "room", "experts"), [(3, 1, 10), (4, 2, 9), (2, 2, 9)])
def test_no_expert_waits_longer_than_stated(policy, clients, room, experts):
    """Clients come and go, and all of them prefer expert 0 by far."""
    chance, limit, longest = rng(5), 4, 0
    fitness_NM = chance.random((clients, experts)) * 0.01 + (np.arange(experts) == 0)
    usage_M, waited_M = np.zeros(experts), np.zeros(experts, dtype=int)
    for t in range(150):
        capacity_N = chance.integers(0, room + 1, clients)
        capacity_N[t % clients] = room  # somebody is there
        overdue_M = np.maximum(waited_M - limit, 0)
        if policy == "balanced":
            x_NM = balanced(fitness_NM, usage_M, capacity_N, np.ones(clients), chance, balance=1.0, overdue_M=overdue_M)
        else:
            bounds = load_bounds(capacity_N, experts, 1.0, overdue_M)
            x_NM = optimal(desirability(fitness_NM, usage_M, 1.0), capacity_N, *bounds)
        usage_M = updated_usage(usage_M, x_NM.sum(axis=0))
        waited_M = np.where(x_NM.any(axis=0), 0, waited_M + 1)
        longest = max(longest, int(waited_M.max()))
    assert limit < longest <= limit + -(-experts // room)


def test_exact_balance_trains_every_expert_in_every_round():
    fitness_NM = np.tile(np.arange(5.0), (6, 1))
    x_NM = optimal(fitness_NM, np.ones(6), *load_bounds(np.ones(6), 5))
    assert x_NM.any(axis=0).all()


# -- experts over clusters -----------------------------------------------------------------------------------------------


@INVARIANT
@given(st.integers(1, 12), st.integers(1, 6), SEEDS, st.sampled_from(["balanced", "optimal"]), st.booleans())
def test_every_expert_gets_one_cluster_within_caps(experts, clusters, seed, policy, capped):
    chance = rng(seed)
    most_C = None
    if capped:
        most_C = chance.integers(1, experts + 1, clusters)
        most_C[0] = max(most_C[0], experts - most_C[1:].sum())
    split = owners(policy, chance.integers(0, 4, (experts, clusters)) / 4, most_C, rng(seed))
    assert len(split.owned) == clusters
    assert sorted(m for group in split.owned for m in group) == list(range(experts))
    sizes = np.array([len(group) for group in split.owned])
    if experts >= clusters:
        assert split.idle == ()
    if capped:
        assert np.all(sizes <= most_C)
    else:
        assert sizes.min() == experts // clusters
        assert sizes.max() == -(-experts // clusters)


@pytest.mark.parametrize("policy", ["balanced", "optimal"])
def test_specialised_clusters_get_their_own_experts(policy):
    p_MC = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.7], [0.8, 0.3]])
    assert owners(policy, p_MC, None, rng()).owned == ((0, 3), (1, 2))


def test_the_rest_is_shared_alike_where_a_cap_is_tight():
    split = owners("optimal", rng().random((11, 3)), [1, 9, 9], rng())
    assert [len(group) for group in split.owned] == [1, 5, 5]


def test_optimal_owners_have_the_most_relevance():
    p_MC = rng(1).random((6, 3))

    def relevance(split):
        return sum(p_MC[m, c] for c, group in enumerate(split.owned) for m in group)

    best = max(
        sum(p_MC[m, c] for m, c in enumerate(choice))
        for choice in product(range(3), repeat=6)
        if all(choice.count(c) == 2 for c in range(3))
    )
    assert relevance(owners("optimal", p_MC, None, rng())) == pytest.approx(best)
    assert relevance(owners("balanced", p_MC, None, rng())) <= best + 1e-9


def test_caps_below_the_number_of_experts_are_refused():
    with pytest.raises(InputError, match=r"most_C = \[1, 2\]: adds up to 3, but 4 experts"):
        owners("balanced", np.full((4, 2), 0.5), [1, 2], rng())
