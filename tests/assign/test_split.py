"""Algorithm 1: what holds for every relevance matrix, and how its draws are distributed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.assign.relevance import assignment_probability, default_threshold
from fedexperts.assign.split import Split, split

INVARIANT = settings(deadline=None, max_examples=80)


@st.composite
def relevances(draw, min_experts=1, max_clusters=5):
    """(p_MC, K): any matrix of probabilities, with zeros likely."""
    experts = draw(st.integers(min_experts, 8))
    clusters = draw(st.integers(1, max_clusters))
    entry = st.one_of(st.just(0.0), st.floats(0, 1))
    rows = draw(st.lists(st.lists(entry, min_size=clusters, max_size=clusters), min_size=experts, max_size=experts))
    return np.array(rows), draw(st.integers(1, experts))


def run(p, top_k, seed=0, **options) -> Split:
    return split(np.asarray(p, dtype=float), top_k, np.random.default_rng(seed), **options)


def owners(result: Split) -> dict[int, int]:
    return {m: c for c, group in enumerate(result.owned) for m in group}


@INVARIANT
@given(relevances(), st.integers(0, 2**32 - 1), st.sampled_from(["shuffled", "literal"]), st.booleans(), st.floats(0, 1))
def test_every_expert_has_exactly_one_cluster(given_p, seed, order, repair, threshold):
    p_MC, top_k = given_p
    result = run(p_MC, top_k, seed, order=order, repair=repair, threshold=threshold)
    assert len(result.owned) == p_MC.shape[1]
    assert sorted(m for group in result.owned for m in group) == list(range(len(p_MC)))


@INVARIANT
@given(relevances(), st.integers(0, 2**32 - 1))
def test_groups_are_ascending(given_p, seed):
    assert all(list(group) == sorted(group) for group in run(*given_p, seed).owned)


@INVARIANT
@given(relevances(min_experts=5, max_clusters=5), st.integers(0, 2**32 - 1))
def test_with_enough_experts_the_repair_leaves_no_cluster_idle(given_p, seed):
    result = run(*given_p, seed)
    assert all(result.owned)
    assert result.idle == ()


@INVARIANT
@given(relevances(), st.integers(0, 2**32 - 1), st.booleans())
def test_idle_names_exactly_the_empty_clusters(given_p, seed, repair):
    result = run(*given_p, seed, repair=repair)
    assert set(result.idle) == set(range(len(result.owned))) - set(owners(result).values())


@pytest.mark.parametrize("repair", [True, False])
def test_fewer_experts_than_clusters_leave_idle_clusters(repair):
    result = run(np.full((2, 5), 0.4), 1, repair=repair)
    assert len(result.idle) == 3
    assert result.moved == ()


def test_without_repair_a_cluster_that_nobody_sends_anything_idles():
    result = run([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0]], 2, repair=False)
    assert result.owned == ((0, 1, 2), ())
    assert result.idle == (1,)
    assert result.moved == ()


def test_repair_moves_the_least_relevant_surplus_expert():
    result = run([[0.9, 0.0], [0.3, 0.0], [0.7, 0.0]], 2)
    assert result.owned == ((0, 2), (1,))
    assert result.moved == ((1, 0, 1),)


def test_repair_never_takes_a_clusters_last_expert():
    result = run([[0.1, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.8, 0.0]], 2)
    assert result.owned == ((0,), (1,), (2,))  # expert 0 is the least relevant of all, but cluster 0's only one
    assert result.moved == ((2, 1, 2),)


@INVARIANT
@given(relevances(), st.integers(0, 2**32 - 1))
def test_moves_explain_the_difference_to_the_unrepaired_split(given_p, seed):
    repaired, plain = run(*given_p, seed), run(*given_p, seed, repair=False)
    owner = owners(plain)
    for m, from_cluster, to_cluster in repaired.moved:
        assert owner[m] == from_cluster
        owner[m] = to_cluster
    assert owner == owners(repaired)
    assert {to for _, _, to in repaired.moved} <= set(plain.idle)


@INVARIANT
@given(relevances(), st.integers(0, 2**32 - 1))
def test_each_literal_draw_obeys_algorithm_1(given_p, seed):
    """A feasible cluster with mass, if there is one; else any with mass; else the least loaded."""
    p_MC, top_k = given_p
    probability_MC = assignment_probability(p_MC, default_threshold(top_k, len(p_MC)))
    owner = owners(run(p_MC, top_k, seed, order="literal", repair=False))
    load_C = np.zeros(p_MC.shape[1], dtype=int)
    for m in range(len(p_MC)):
        c = owner[m]
        open_C = (load_C < top_k) & (probability_MC[m] > 0)
        if open_C.any():
            assert open_C[c]
        elif probability_MC[m].any():
            assert probability_MC[m, c] > 0
        else:
            assert load_C[c] == load_C.min()
        load_C[c] += 1


@INVARIANT
@given(experts=st.integers(1, 8), clusters=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_with_mass_everywhere_no_cluster_exceeds_k_before_all_are_full(experts, clusters, seed, data):
    top_k = data.draw(st.integers(1, experts))
    sizes = [len(group) for group in run(np.full((experts, clusters), 0.5), top_k, seed, repair=False).owned]
    assert max(sizes) <= top_k or min(sizes) >= top_k


@INVARIANT
@given(relevances(), st.integers(0, 2**32 - 1))
def test_one_seed_gives_one_result(given_p, seed):
    assert run(*given_p, seed) == run(*given_p, seed)


def test_seeds_matter():
    assert len({run(np.full((6, 3), 0.5), 2, seed).owned for seed in range(20)}) > 1


def test_literal_order_favours_low_indices_and_the_shuffle_does_not():
    """Three experts want cluster 0, which takes K = 1 of them; the others go to cluster 1."""
    p_MC = np.array([[0.9, 0.0]] + [[0.9, 0.001]] * 3)  # expert 0 has no alternative
    literal = {run(p_MC, 1, s, order="literal", repair=False, threshold=0.0).owned for s in range(20)}
    assert all(0 in owned[0] for owned in literal)
    shuffled = [run(p_MC[1:], 1, s, repair=False, threshold=0.0) for s in range(300)]
    first_kept = [sum(m in r.owned[0] for r in shuffled) for m in range(3)]
    literals = [run(p_MC[1:], 1, s, repair=False, threshold=0.0, order="literal") for s in range(300)]
    assert sum(0 in r.owned[0] for r in literals) > 290  # 0.9 / 0.901 of the draws
    assert max(first_kept) < 290
    assert min(first_kept) > 60


N = 4000


def share_of(p, m: int, top_k: int, **options) -> np.ndarray:
    """How often expert m goes to each cluster, over N seeds with the literal order."""
    counts_C = np.zeros(np.shape(p)[1])
    for seed in range(N):
        counts_C[owners(run(p, top_k, seed, order="literal", repair=False, **options))[m]] += 1
    return counts_C / N


def close(share_C: np.ndarray, expected_C) -> bool:
    """Within four standard deviations of the binomial."""
    expected_C = np.asarray(expected_C)
    return bool(np.all(np.abs(share_C - expected_C) <= 4 * np.sqrt(expected_C * (1 - expected_C) / N)))


def test_the_first_draw_follows_29():
    p = [[0.6, 0.3, 0.1], [0.1, 0.1, 0.1]]
    assert close(share_of(p, 0, top_k=1, threshold=0.0), [0.6, 0.3, 0.1])


def test_the_first_draw_follows_the_truncated_relevance():
    assert close(share_of([[0.6, 0.3, 0.1], [0.1, 0.1, 0.1]], 0, top_k=1, threshold=0.2), [2 / 3, 1 / 3, 0.0])


def test_a_later_draw_follows_29_restricted_to_feasible_clusters():
    p = [[0.9, 0.0, 0.0], [0.6, 0.3, 0.1]]  # with K = 1, expert 0 closes cluster 0
    assert close(share_of(p, 1, top_k=1, threshold=0.0), [0.0, 0.75, 0.25])


def test_a_cluster_below_k_stays_feasible():
    p = [[0.9, 0.0, 0.0], [0.6, 0.3, 0.1]]
    assert close(share_of(p, 1, top_k=2, threshold=0.0), [0.6, 0.3, 0.1])


def test_without_mass_among_the_feasible_the_draw_is_over_all():
    p = [[0.9, 0.0, 0.0], [0.0, 0.9, 0.0], [0.6, 0.2, 0.0]]  # clusters 0 and 1 are full, 2 has no mass
    assert close(share_of(p, 2, top_k=1, threshold=0.0), [0.75, 0.25, 0.0])


def test_below_the_threshold_the_draw_follows_the_untruncated_relevance():
    assert close(share_of([[0.03, 0.01]], 0, top_k=1, threshold=0.2), [0.75, 0.25])


def test_an_expert_that_nobody_uses_goes_to_the_least_loaded_cluster():
    p = [[0.9, 0.0, 0.0], [0.0, 0.0, 0.9], [0.0, 0.0, 0.0]]
    for seed in range(10):
        assert owners(run(p, 3, seed, order="literal", repair=False))[2] == 1


def test_the_default_threshold_is_half_of_k_over_m():
    p = [[0.24, 0.25], [0.5, 0.5]]  # K / 2M = 0.25 cuts 0.24 off
    assert {owners(run(p, 1, seed, order="literal", repair=False))[0] for seed in range(60)} == {1}


@pytest.mark.parametrize(
    ("p", "top_k", "options", "names"),
    [
        ([[0.5, 0.5]], 0, {}, "top_k = 0"),
        ([[0.5, 0.5]], 2, {}, "top_k = 2"),
        ([[0.5, -0.1]], 1, {}, "p_MC"),
        ([[0.5, 1.1]], 1, {}, "p_MC"),
        ([[0.5, np.nan]], 1, {}, "p_MC"),
        ([[0.5, 0.5]], 1, {"threshold": -0.1}, "threshold = -0.1"),
        ([[0.5, 0.5]], 1, {"threshold": 1.5}, "threshold = 1.5"),
    ],
)
def test_bad_input_is_refused_by_name(p, top_k, options, names):
    with pytest.raises(ValueError, match=names):
        run(p, top_k, **options)
