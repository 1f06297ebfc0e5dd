"""Gates: the mix of RollGate's labels, RanGate's draws against their prior, gradients of unit norm."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from fedexperts.errors import InputError
from fedexperts.train.gating import (
    answers_loss,
    balance_loss,
    normalise_gradients,
    pooled,
    random_picks,
    roll_loss,
    roll_targets,
    spread_of,
)


def targets(n: int = 9000, own: int = 2, experts: int = 4, **options: float) -> Tensor:
    return roll_targets(np.random.default_rng(0), n, own, experts, **options)


def test_own_ids_are_an_exact_share_and_the_others_uniform():
    counts = torch.bincount(targets(), minlength=4).tolist()
    assert counts[2] == 6300
    assert all(abs(counts[m] - 900) < 3 * (2700 * (1 / 3) * (2 / 3)) ** 0.5 for m in (0, 1, 3))


def test_own_ids_are_spread_over_the_samples():
    assert abs(int((targets()[:4500] == 2).sum()) - 3150) < 3 * (4500 * 0.7 * 0.3) ** 0.5


def test_targets_depend_on_the_seed_and_share_alone():
    assert torch.equal(targets(), targets())
    assert not torch.equal(targets(), roll_targets(np.random.default_rng(1), 9000, 2, 4))
    assert set(targets(share=1.0).tolist()) == {2}
    assert 2 not in targets(share=0.0).tolist()
    assert roll_targets(np.random.default_rng(0), 5, 0, 1, share=1.0).tolist() == [0] * 5


def test_a_gate_learns_whose_samples_these_are():
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.cat([torch.randn(300, 3, generator=generator) + 4 * torch.eye(3)[m] for m in range(3)])
    targets_T = torch.cat([roll_targets(np.random.default_rng(m), 300, m, 3) for m in range(3)])
    gate_ED = torch.zeros(3, 3, requires_grad=True)
    for _ in range(100):
        gate_ED.grad = None
        loss = roll_loss(x_TD @ gate_ED.T, targets_T)
        loss.backward()
        gate_ED.data -= 0.1 * gate_ED.grad
    own_T = torch.arange(900) // 300
    assert ((x_TD @ gate_ED.T).argmax(dim=1) == own_T).float().mean() > 0.9
    assert 0.7 < loss.item() < 1.0  # the labels' own entropy is 0.82 nats


@pytest.mark.parametrize(("q", "by_p"), [(0.99, -4.709), (0.01 / 9, 1.097), (0.1, 0.0)], ids=["right", "wrong", "a guess"])
def test_one_pick_has_the_gradient_of_mixing_it_with_a_guess(q, by_p):
    logits_TE = torch.zeros(1, 10, requires_grad=True)
    answers_loss(logits_TE, torch.full((1, 10), q).log(), 1, 10).backward()
    assert float(logits_TE.grad.abs().max()) == pytest.approx(abs(by_p) * 0.1 * 0.9, abs=1e-4)
    pick = int(torch.zeros(1, 10).topk(1).indices)
    assert float(logits_TE.grad[0, pick]) / (0.1 * 0.9) == pytest.approx(by_p, abs=2e-3)


@pytest.mark.parametrize(("gap", "log_q"), [(2.0, -1.0), (20.0, -20.0), (20.0, -60.0), (40.0, -60.0), (40.0, -110.0)])
def test_a_sure_gate_learns_from_a_sure_expert_that_is_wrong(gap, log_q):
    """Against float64 by hand, −log (p·q + r/10) with r = 1 − p: p rounds to 1 in float32, but r and the gradient must not."""
    logits_TE = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    loss = answers_loss(logits_TE, torch.tensor([[log_q, -0.1, -0.1]]), 1, 10)
    loss.backward()
    r = 2 * math.exp(-gap) / (1 + 2 * math.exp(-gap))
    q, mixed = math.exp(log_q), (1 - r) * math.exp(log_q) + r / 10
    by_logit = (0.1 - q) / mixed * (1 - r) * r
    assert float(loss.detach()) == pytest.approx(-math.log(mixed), rel=1e-5)
    assert logits_TE.grad.tolist() == [pytest.approx([by_logit, -by_logit / 2, -by_logit / 2], rel=1e-4)]


def test_a_single_expert_leaves_nothing_to_a_guess():
    logits_TE = torch.tensor([[0.3], [-2.0]], requires_grad=True)
    loss = answers_loss(logits_TE, torch.tensor([[-1.0], [-3.0]]), 1, 10)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2.0)
    assert logits_TE.grad.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("top_k", [2, 4])
def test_several_picks_are_combined_as_probabilities(top_k):
    generator = torch.Generator().manual_seed(0)
    logits_TE, q_TE = torch.randn(6, 4, generator=generator), torch.rand(6, 4, generator=generator)
    w_TE = torch.full((6, 4), float("-inf")).scatter(1, (top := logits_TE.topk(top_k)).indices, top.values).softmax(dim=1)
    expected = -(w_TE * q_TE).sum(dim=1).log().mean()
    assert float(answers_loss(logits_TE, q_TE.log(), top_k, 3)) == pytest.approx(float(expected), abs=1e-6)


def test_balance_is_over_all_clients_and_spares_the_diagonal():
    """Two clients that each ask their own expert: all together are balanced, whatever each does alone."""
    own = [torch.tensor([[9.0, 0.0]] * 5), torch.tensor([[0.0, 9.0]] * 5)]
    both_E = torch.tensor([0.5, 0.5])
    assert [float(balance_loss(logits_TE, both_E)) for logits_TE in own] == pytest.approx([1.0, 1.0])
    leaf = own[0].clone().requires_grad_()
    balance_loss(leaf, both_E).backward()
    assert leaf.grad.abs().max() < 1e-7
    assert float(balance_loss(own[0], torch.tensor([1.0, 0.0]))) > 1.9  # all to one: nearly E


def test_pooled_statistics_are_those_of_all_latents():
    generator = torch.Generator().manual_seed(0)
    groups = [torch.randn(n, 3, generator=generator) * s + m for n, s, m in ((10, 1.0, 0.0), (30, 2.0, 5.0), (5, 0.1, -1.0))]
    whole = torch.cat(groups)
    found = pooled([len(g) / len(whole) for g in groups], *zip(*map(spread_of, groups), strict=True))
    assert torch.allclose(found[0], whole.mean(dim=0), atol=1e-5)
    assert torch.allclose(found[1], whole.std(dim=0, correction=0), atol=1e-5)
    constant = torch.zeros(4, 2)
    constant[:, 0] = torch.arange(4.0)
    assert pooled([1.0], *zip(spread_of(constant), strict=True))[1].tolist() == pytest.approx([1.118, 0.01118], rel=1e-3)


def test_draws_follow_the_prior():
    weights_TK, indices_TK = random_picks(0, 20_000, 4, prior_E=[1, 2, 0, 5])
    share_E = torch.bincount(indices_TK[:, 0], minlength=4) / 20_000
    assert torch.allclose(share_E, torch.tensor([1, 2, 0, 5]) / 8, atol=3 * (0.25 / 20_000) ** 0.5)
    assert share_E[2] == 0
    assert torch.equal(weights_TK, torch.ones(20_000, 1))
    uniform_E = torch.bincount(random_picks(0, 20_000, 4)[1][:, 0]) / 20_000
    assert torch.allclose(uniform_E, torch.full((4,), 0.25), atol=3 * (0.19 / 20_000) ** 0.5)


def test_several_picks_are_different_and_drawn_one_after_another():
    p_E = np.array([1, 2, 5]) / 8
    weights_TK, indices_TK = random_picks(1, 20_000, 3, 2, p_E.tolist())
    assert bool((indices_TK[:, 0] != indices_TK[:, 1]).all())
    assert torch.equal(weights_TK, torch.full((20_000, 2), 0.5))
    for a, b in permutations(range(3), 2):
        found = float(((indices_TK[:, 0] == a) & (indices_TK[:, 1] == b)).float().mean())
        assert found == pytest.approx(p_E[a] * p_E[b] / (1 - p_E[a]), abs=3 * (0.25 / 20_000) ** 0.5)


def test_draws_repeat_with_the_seed():
    assert torch.equal(random_picks(3, 50, 4)[1], random_picks(3, 50, 4)[1])
    assert not torch.equal(random_picks(3, 50, 4)[1], random_picks(4, 50, 4)[1])


def with_gradients(*values: list[float] | None) -> list[Tensor]:
    leaves = []
    for value in values:
        leaf = torch.zeros(2, requires_grad=True)
        leaf.grad = None if value is None else torch.tensor(value)
        leaves.append(leaf)
    return leaves


def test_gradients_get_the_global_norm_1():
    leaves = with_gradients([3.0, 0.0], None, [0.0, -4.0])
    assert normalise_gradients(iter(leaves)) == pytest.approx(5)
    assert torch.allclose(leaves[0].grad, torch.tensor([0.6, 0.0]))
    assert torch.allclose(leaves[2].grad, torch.tensor([0.0, -0.8]))
    assert leaves[1].grad is None


def test_small_gradients_grow_unless_they_are_clipped():
    leaves = with_gradients([3e-4, 4e-4])
    assert normalise_gradients(leaves, clip=True) == pytest.approx(5e-4)
    assert leaves[0].grad.tolist() == pytest.approx([3e-4, 4e-4])
    normalise_gradients(leaves)
    assert leaves[0].grad.tolist() == pytest.approx([0.6, 0.8])
    large = with_gradients([30.0, 40.0])
    normalise_gradients(large, clip=True)
    assert large[0].grad.tolist() == pytest.approx([0.6, 0.8])


def test_gradients_of_zero_and_none_stay():
    leaves = with_gradients([0.0, 0.0])
    assert normalise_gradients(leaves) == 0
    assert leaves[0].grad.tolist() == [0, 0]
    assert normalise_gradients(with_gradients(None)) == 0


def test_a_gradient_that_is_not_finite_is_shown_and_left():
    leaves = with_gradients([float("inf"), 1.0])
    assert normalise_gradients(leaves) == float("inf")
    assert leaves[0].grad[1] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: targets(own=4), "own = 4: must be an id in 0…3"),
        (lambda: targets(share=1.2), "share = 1.2: must lie in 0…1"),
        (lambda: targets(own=0, experts=1), "a single client has no others"),
        (lambda: random_picks(0, 3, 2, prior_E=[1.0]), "must be 2 numbers"),
        (lambda: random_picks(0, 3, 2, prior_E=[0.0, 0.0]), "not all 0"),
        (lambda: random_picks(0, 3, 2, prior_E=[-1.0, 2.0]), "at least 0"),
        (lambda: random_picks(0, 3, 3, 2, [1, 0, 0]), r"top_k = 2: must lie in 1…1"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
