"""Routing (9), the mask (39), noise and the load-balance loss."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedexperts.moe.routing import Router, load_balance_loss

LOGITS_TE = torch.tensor([[2.0, 0.0, 1.0, -1.0], [-3.0, 0.5, 0.25, 4.0]])


def logits(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, requires_grad=True)


def only(router: Router, *experts: int) -> Router:
    router.allowed_E = torch.zeros(router.experts, dtype=torch.bool)
    router.allowed_E[list(experts)] = True
    return router


@st.composite
def logit_matrices(draw):
    experts, tokens = draw(st.integers(2, 8)), draw(st.integers(1, 6))
    values = draw(
        st.lists(
            st.lists(st.integers(-2000, 2000), min_size=experts, max_size=experts, unique=True),
            min_size=tokens,
            max_size=tokens,
        )
    )
    return torch.tensor(values, dtype=torch.float32) / 100, draw(st.integers(2, experts))


@settings(deadline=None, max_examples=60)
@given(logit_matrices())
def test_from_two_picks_on_the_weights_are_the_softmax_over_the_top_logits(given_logits):
    logits_TE, top_k = given_logits
    weights_TK, indices_TK = Router(logits_TE.shape[1], top_k)(logits_TE, training=False)
    top_TK, expected_TK = logits_TE.topk(top_k)
    assert torch.equal(indices_TK, expected_TK)
    assert torch.allclose(weights_TK, top_TK.softmax(dim=-1), atol=1e-6)  # the literal (9)


def test_gradient_of_renormalised_weights_is_that_of_9():
    ours, literal = logits([2.0, 0.0, 1.0, -1.0]), logits([2.0, 0.0, 1.0, -1.0])
    Router(4, 2)(ours, training=True)[0][0, 0].backward()
    literal.topk(2).values.softmax(dim=-1)[0, 0].backward()
    assert torch.allclose(ours.grad, literal.grad, atol=1e-6)
    assert literal.grad.abs().max() > 0.1


def test_without_renormalising_the_weights_are_plain_softmax_values():
    weights_TK, indices_TK = Router(4, 2, renormalise=False)(LOGITS_TE, training=False)
    assert torch.allclose(weights_TK, LOGITS_TE.softmax(dim=-1).gather(1, indices_TK))


def test_a_single_pick_weighs_one_and_passes_the_gradient_of_p():
    ours, plain = logits([2.0, 0.0, 1.0]), logits([2.0, 0.0, 1.0])
    weights_TK, indices_TK = Router(3, 1)(ours, training=True)
    assert weights_TK.tolist() == [[1.0]]
    assert indices_TK.tolist() == [[0]]
    weights_TK.sum().backward()
    plain.softmax(dim=-1)[0, 0].backward()
    assert torch.allclose(ours.grad, plain.grad)
    assert ours.grad.abs().max() > 0.1


def test_a_frozen_gate_weighs_a_single_pick_with_one():
    ours, router = logits([2.0, 0.0, 1.0]), Router(3, 1)
    router.gate_trained = False
    weights_TK, _ = router(ours, training=True)
    assert weights_TK.tolist() == [[1.0]]
    assert not weights_TK.requires_grad


def test_switch_weighs_with_p():
    ours, plain = logits([2.0, 0.0, 1.0]), logits([2.0, 0.0, 1.0])
    weights_TK, _ = Router(3, 1, top1="switch")(ours, training=True)
    p = plain.softmax(dim=-1)[0, 0]
    assert torch.allclose(weights_TK, p)
    weights_TK.sum().backward()
    p.backward()
    assert torch.allclose(ours.grad, plain.grad)


def test_the_papers_single_pick_gives_the_gate_no_gradient():
    ours = logits([2.0, 0.0, 1.0])
    weights_TK, _ = Router(3, 1, top1="paper")(ours, training=True)
    assert weights_TK.tolist() == [[1.0]]
    (weights_TK.sum() + 0 * ours.sum()).backward()
    assert not ours.grad.any()


def test_under_the_mask_a_single_pick_takes_the_gradient_of_the_unmasked_softmax():
    ours, plain = logits([2.0, 0.0, 1.0]), logits([2.0, 0.0, 1.0])
    weights_TK, indices_TK = only(Router(3, 1), 1)(ours, training=True)
    assert indices_TK.tolist() == [[1]]
    assert weights_TK.tolist() == [[1.0]]
    weights_TK.sum().backward()
    plain.softmax(dim=-1)[0, 1].backward()
    assert torch.allclose(ours.grad, plain.grad)


@pytest.mark.parametrize("top1", ["straight-through", "switch", "paper"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_minus_infinity_mask_never_picks_a_masked_expert(top1, top_k):
    logits_TE = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    _, indices_TK = only(Router(4, top_k, top1), 1, 3)(logits_TE, training=True)
    assert set(indices_TK.flatten().tolist()) <= {1, 3}


def test_not_even_where_the_softmax_of_an_allowed_expert_underflows():
    for big, small in itertools.permutations(range(8), 2):
        row = torch.zeros(1, 8)
        row[0, small] = -150.0
        _, indices_TK = only(Router(8, 2), big, small)(row, training=False)
        assert indices_TK.tolist() == [[big, small]]


def test_picks_follow_the_logits_where_the_softmax_underflows():
    for first, second in itertools.permutations(range(8), 2):
        row = torch.full((1, 8), -300.0)
        row[0, first], row[0, second] = 0.0, -150.0
        _, indices_TK = Router(8, 2)(row, training=False)
        assert indices_TK.tolist() == [[first, second]]


def test_the_literal_zero_mask_can_pick_masked_experts():
    row = torch.tensor([[9.0, -1.0, 9.0, -2.0]])  # the allowed logits are below the zero of the masked ones
    _, indices_TK = only(Router(4, 1, mask="zero"), 1, 3)(row, training=False)
    assert set(indices_TK.flatten().tolist()) <= {0, 2}
    _, indices_TK = only(Router(4, 1, mask="zero"), 1, 3)(-row, training=False)
    assert indices_TK.tolist() == [[3]]


def test_k_is_clamped_to_the_experts_that_the_mask_leaves():
    weights_TK, indices_TK = only(Router(4, 3), 0, 2)(LOGITS_TE, training=False)
    assert indices_TK.shape == (2, 2)
    assert torch.allclose(weights_TK, LOGITS_TE[:, [0, 2]].softmax(dim=-1).sort(descending=True).values)


def test_k_clamped_to_one_still_gives_the_gate_a_gradient():
    ours = logits([2.0, 0.0, 1.0])
    weights_TK, _ = only(Router(3, 2), 1)(ours, training=True)
    assert weights_TK.tolist() == [[1.0]]
    weights_TK.sum().backward()
    assert ours.grad.abs().max() > 0.01


def test_the_literal_zero_mask_keeps_k():
    assert only(Router(4, 3, mask="zero"), 0)(LOGITS_TE, training=False)[1].shape == (2, 3)


def test_noise_acts_in_training_only():
    logits_TE = torch.zeros(500, 4)
    logits_TE[:, 0] = 0.1
    router = Router(4, 1, noise_std=1.0)
    router.generator = torch.Generator().manual_seed(0)
    assert set(router(logits_TE, training=False)[1].flatten().tolist()) == {0}
    assert set(router(logits_TE, training=True)[1].flatten().tolist()) == {0, 1, 2, 3}


def test_noise_has_the_given_standard_deviation():
    """Two logits a apart swap when the difference of two noises, deviation √2·σ, exceeds a."""
    n, sigma, gap = 20_000, 0.5, 0.7
    router = Router(2, 1, noise_std=sigma)
    router.generator = torch.Generator().manual_seed(1)
    _, indices_T1 = router(torch.tensor([[gap, 0.0]]).expand(n, 2), training=True)
    expected = 1 - torch.distributions.Normal(0.0, 2**0.5 * sigma).cdf(torch.tensor(gap)).item()
    assert abs(indices_T1.float().mean().item() - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_noise_repeats_with_its_generator():
    router = Router(4, 2, noise_std=1.0)
    runs = []
    for _ in range(2):
        router.generator = torch.Generator().manual_seed(3)
        runs.append(router(torch.zeros(50, 4), training=True)[1])
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], router(torch.zeros(50, 4), training=True)[1])


@pytest.mark.parametrize("top_k", [0, 5, -1])
def test_k_outside_the_experts_is_refused(top_k):
    with pytest.raises(ValueError, match=rf"top_k = {top_k}: must lie between 1 and the number of experts, 4"):
        Router(4, top_k)


def test_counts_are_over_picks_of_valid_tokens():
    router = Router(4, 2)
    router.counts_E = torch.zeros(4, dtype=torch.long)
    router(LOGITS_TE, training=False)  # picks 0, 2 and 3, 1
    assert router.counts_E.tolist() == [1, 1, 1, 1]
    router.valid_T = torch.tensor([True, False])
    router(LOGITS_TE, training=False)
    assert router.counts_E.tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (6, 3), (1, 1)])
def test_the_load_balance_loss_is_one_at_uniform_routing(experts, top_k):
    tokens = torch.arange(experts)[:, None]
    indices_TK = (tokens + torch.arange(top_k)) % experts
    assert load_balance_loss(torch.zeros(experts, experts), indices_TK).item() == pytest.approx(1.0)


def test_the_load_balance_loss_is_the_number_of_experts_at_collapse():
    logits_TE = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).repeat(3, 1)
    assert load_balance_loss(logits_TE, torch.zeros(3, 1, dtype=torch.long)).item() == pytest.approx(4.0)


def test_the_load_balance_loss_by_hand():
    logits_TE = torch.log(torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.25]]))
    loss = load_balance_loss(logits_TE, torch.tensor([[0], [1], [0], [0]]))
    assert loss.item() == pytest.approx(2 * (0.75 * 0.625 + 0.25 * 0.375))


def test_the_load_balance_loss_pushes_the_overused_expert_down():
    ours = logits([1.0, 0.0], [1.0, 0.0])
    load_balance_loss(ours, torch.tensor([[0], [0]])).backward()
    assert ours.grad[0, 0] > 0
    assert ours.grad[0, 1] < 0
