"""(27)-(29), Remark 2 and the ratios of (35) on numbers small enough to check by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.assign.relevance import (
    advice,
    assignment_probability,
    default_threshold,
    expert_classes,
    relevance,
    relevant_ratios,
    truncate,
)

# two clusters with 10 and 20 tokens, two layers, three experts, K = 2
COUNTS_CLM = np.array([[[10, 10, 0], [10, 5, 5]], [[0, 20, 20], [20, 0, 20]]])
TOKENS_C = np.array([10, 20])


def test_relevance_is_the_share_of_layer_token_pairs_that_picked_the_expert():
    p_MC = relevance(COUNTS_CLM, TOKENS_C)
    assert np.allclose(p_MC, [[1.0, 0.5], [0.75, 0.5], [0.25, 1.0]])


def test_layer_granularity_keeps_the_layers_apart():
    p_LMC = relevance(COUNTS_CLM, TOKENS_C, "layer")
    assert p_LMC.shape == (2, 3, 2)
    assert np.allclose(p_LMC[0], [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert np.allclose(p_LMC[1], [[1.0, 1.0], [0.5, 0.0], [0.5, 1.0]])


def test_mean_over_layers_of_layer_relevance_is_the_global_relevance():
    per_layer, grouped = relevance(COUNTS_CLM, TOKENS_C, "layer"), relevance(COUNTS_CLM, TOKENS_C)
    assert np.allclose(per_layer.mean(axis=0), grouped)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    clusters=st.integers(1, 4),
    layers=st.integers(1, 3),
    experts=st.integers(1, 6),
    tokens=st.integers(1, 30),
    data=st.data(),
)
def test_columns_sum_to_k_and_entries_are_probabilities(seed, clusters, layers, experts, tokens, data):
    top_k = data.draw(st.integers(1, experts))
    rng = np.random.default_rng(seed)
    counts_CLM = np.zeros((clusters, layers, experts), dtype=np.int64)
    for c in range(clusters):
        for layer in range(layers):
            for _ in range(tokens):
                counts_CLM[c, layer, rng.choice(experts, top_k, replace=False)] += 1
    p_MC = relevance(counts_CLM, np.full(clusters, tokens))
    assert np.allclose(p_MC.sum(axis=0), top_k)
    assert np.all((p_MC >= 0) & (p_MC <= 1))


@pytest.mark.parametrize("tokens", [[0, 20], [10, -1]])
def test_a_cluster_without_tokens_is_refused_with_its_number(tokens):
    with pytest.raises(ValueError, match=rf"tokens_C = \[{tokens[0]}, {tokens[1]}\]"):
        relevance(COUNTS_CLM, np.array(tokens))


def test_default_threshold_is_half_of_an_indifferent_gate():
    assert default_threshold(2, 8) == 0.125
    assert default_threshold(1, 4) == 0.125


def test_truncation_keeps_entries_at_the_threshold():
    assert truncate(np.array([[0.3, 0.29], [0.0, 0.9]]), 0.3).tolist() == [[0.3, 0.0], [0.0, 0.9]]


def test_truncation_at_zero_changes_nothing():
    p_MC = np.array([[0.0, 0.2], [1.0, 0.8]])
    assert truncate(p_MC, 0.0).tolist() == p_MC.tolist()


def test_assignment_probability_normalises_the_truncated_row():
    p_MC = np.array([[0.6, 0.2, 0.1], [0.4, 0.3, 0.3]])
    probability_MC = assignment_probability(p_MC, 0.2)
    assert np.allclose(probability_MC, [[0.75, 0.25, 0.0], [0.4, 0.3, 0.3]])


def test_where_nobody_passes_the_threshold_the_untruncated_row_counts():
    assert np.allclose(assignment_probability(np.array([[0.03, 0.01]]), 0.2), [[0.75, 0.25]])


def test_an_expert_that_nobody_uses_keeps_a_row_of_zeros():
    assert assignment_probability(np.array([[0.0, 0.0], [0.5, 0.5]]), 0.2).tolist() == [[0.0, 0.0], [0.5, 0.5]]


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6), threshold=st.floats(0, 1))
def test_every_used_expert_has_a_distribution_without_mass_below_the_threshold(rows, threshold):
    p_MC = np.array(rows)
    probability_MC = assignment_probability(p_MC, threshold)
    used_M = p_MC.sum(axis=1) > 0
    assert np.allclose(probability_MC[used_M].sum(axis=1), 1)
    assert not probability_MC[~used_M].any()
    passing_M = (p_MC >= threshold).any(axis=1) & used_M & (threshold > 0)
    assert not probability_MC[passing_M][p_MC[passing_M] < threshold].any()


def test_ratios_by_hand():
    p_MC = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.2, 0.8]])
    alpha_C, beta_C, gamma_C = relevant_ratios(p_MC, [[0, 1], [2, 3]], top_k=2)
    assert np.allclose(alpha_C, [0.8, 0.8])  # (0.9 + 0.7) / 2 and (0.8 + 0.8) / 2
    assert np.allclose(beta_C, [0.5, 0.5])  # means of 0.8, 0.2 and of 0.2, 0.8
    assert np.allclose(gamma_C, [1.6, 1.6])


def test_ratios_of_groups_of_different_size():
    p_MC = np.array([[0.5, 0.25], [0.25, 0.25], [0.25, 0.5]])
    alpha_C, beta_C, gamma_C = relevant_ratios(p_MC, [[0, 1], [2]], top_k=1)
    assert np.allclose(alpha_C, [0.75, 0.5])
    assert np.allclose(beta_C, [0.625, 0.375])
    assert np.allclose(gamma_C, [1.2, 4 / 3])


def test_gamma_can_lie_below_one():
    _, _, gamma_C = relevant_ratios(np.array([[0.25, 0.75], [0.75, 0.25]]), [[0], [1]], top_k=1)
    assert np.allclose(gamma_C, [0.5, 0.5])


@settings(deadline=None, max_examples=40)
@given(column=st.lists(st.floats(0.01, 1), min_size=4, max_size=4), clusters=st.integers(1, 4))
def test_gamma_is_one_where_all_clusters_route_alike(column, clusters):
    p_MC = np.tile(np.array(column)[:, None], clusters)
    owned = [list(range(c, 4, clusters)) for c in range(clusters)]
    assert np.allclose(relevant_ratios(p_MC, owned, top_k=2)[2], 1.0)


@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_gamma_is_the_number_of_clusters_where_nobody_else_uses_the_group(clusters):
    alpha_C, beta_C, gamma_C = relevant_ratios(np.eye(clusters), [[c] for c in range(clusters)], top_k=1)
    assert np.allclose(alpha_C, 1)
    assert np.allclose(beta_C, 1 / clusters)
    assert np.allclose(gamma_C, clusters)


def test_a_cluster_without_experts_has_ratio_zero_and_no_warning():
    alpha_C, beta_C, gamma_C = relevant_ratios(np.array([[1.0, 1.0], [0.0, 0.0]]), [[0, 1], []], top_k=1)
    assert (alpha_C[1], beta_C[1], gamma_C[1]) == (0, 0, 0)


def test_a_group_that_nobody_uses_has_gamma_zero():
    assert relevant_ratios(np.array([[1.0, 1.0], [0.0, 0.0]]), [[0], [1]], top_k=1)[2].tolist() == [1.0, 0.0]


def test_remark_2_classes():
    p_MC = np.array(
        [
            [0.5, 0.5, 0.5, 0.5],  # everybody
            [0.5, 0.5, 0.5, 0.0],  # three of four: almost all
            [0.5, 0.5, 0.0, 0.0],  # half
            [0.0, 0.0, 0.2, 0.0],  # one, at the threshold
            [0.1, 0.1, 0.1, 0.1],  # seldom
        ]
    )
    assert expert_classes(p_MC, 0.2) == ["shared", "shared", "domain", "domain", "rare"]


def test_of_two_clusters_both_must_use_a_shared_expert():
    assert expert_classes(np.array([[0.5, 0.5], [0.5, 0.0], [0.0, 0.0]]), 0.2) == ["shared", "domain", "rare"]


@pytest.mark.parametrize(
    ("gamma", "says"),
    [
        (4.0, "specialised"),
        (2.0, "specialised"),
        (1.99, "some specialisation"),
        (1.3, "some specialisation"),
        (1.29, "no edge"),
        (0.5, "no edge"),
    ],
)
def test_advice_follows_mean_gamma_and_states_it(gamma, says):
    text = advice(np.array([gamma, gamma]))
    assert says in text
    assert f"γ = {gamma:.2f}" in text


def test_advice_without_an_edge_names_the_baseline():
    assert 'protocol = "sync"' in advice(np.array([1.0, 1.0]))


def test_advice_takes_the_mean_over_clusters():
    assert "mean γ = 2.00" in advice(np.array([1.0, 3.0]))
