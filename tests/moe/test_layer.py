"""The weighted sum (8) against a dense reference that runs every expert on every token."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fedexperts.moe.layer import MoELayer, combine

D, F, E = 5, 3, 4


def experts(dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, F)).to(dtype) for _ in range(E)]


def tokens(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def picks(n: int, top_k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    indices_TK = torch.rand(n, E, generator=generator).argsort(dim=1)[:, :top_k]
    return torch.rand(n, top_k, generator=generator, dtype=torch.float64), indices_TK


def dense(x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor, bodies: list[nn.Module]) -> Tensor:
    """(8), literally: weight 0 for what was not picked."""
    weights_TE = torch.zeros(len(x_TD), len(bodies), dtype=weights_TK.dtype).scatter(1, indices_TK, weights_TK)
    return sum(weights_TE[:, m : m + 1] * body(x_TD) for m, body in enumerate(bodies))


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 9])
def test_combine_equals_the_dense_sum(top_k, n):
    bodies, x_TD, (weights_TK, indices_TK) = experts(), tokens(n), picks(n, top_k)
    expected_TF = dense(x_TD, weights_TK, indices_TK, bodies)
    assert torch.allclose(combine(x_TD, weights_TK, indices_TK, bodies), expected_TF, atol=1e-12, rtol=0)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_gradients_of_combine_equal_those_of_the_dense_sum(top_k):
    gradients = []
    for function in (combine, dense):
        bodies, x_TD, (weights_TK, indices_TK) = experts(), tokens(9).requires_grad_(), picks(9, top_k)
        weights_TK.requires_grad_()
        (function(x_TD, weights_TK, indices_TK, bodies) ** 2).sum().backward()
        parameters = [p.grad for body in bodies for p in body.parameters()]
        gradients.append([x_TD.grad, weights_TK.grad, *parameters])
    assert all(torch.allclose(a, b, atol=1e-10, rtol=0) for a, b in zip(*gradients, strict=True))
    assert all(g.abs().max() > 1e-3 for g in gradients[0])


def test_combine_passes_a_numerical_gradient_check():
    bodies, x_TD, (weights_TK, indices_TK) = experts(), tokens(4).requires_grad_(), picks(4, 2)
    weights_TK.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: combine(x, w, indices_TK, bodies), (x_TD, weights_TK))


def test_an_expert_without_tokens_does_not_run():
    ran: list[int] = []

    def body(m: int):
        def run(x_TD: Tensor) -> Tensor:
            ran.append(m)
            return x_TD

        return run

    indices_TK = torch.tensor([[2], [0], [2]])
    combine(tokens(3), torch.ones(3, 1), indices_TK, [body(m) for m in range(E)])
    assert ran == [0, 2]


def test_each_expert_sees_its_tokens_in_their_order():
    seen: dict[int, list[float]] = {}
    x_TD = torch.arange(4.0)[:, None]

    def body(m: int):
        def run(x: Tensor) -> Tensor:
            seen[m] = x[:, 0].tolist()
            return x

        return run

    combine(x_TD, torch.ones(4, 2), torch.tensor([[1, 0], [0, 2], [2, 1], [1, 0]]), [body(m) for m in range(3)])
    assert seen == {0: [0.0, 1.0, 3.0], 1: [0.0, 2.0, 3.0], 2: [1.0, 2.0]}


@pytest.mark.parametrize("top_k", [2, 3, 4])
def test_the_layer_equals_8_with_the_weights_of_9(top_k):
    layer = MoELayer(D, experts(torch.float32), top_k)
    x_TD = tokens(20, torch.float32)
    top_TK, indices_TK = layer.gate(x_TD).topk(top_k)
    expected_TF = dense(x_TD, top_TK.softmax(dim=-1), indices_TK, list(layer.experts))
    assert torch.allclose(layer(x_TD), expected_TF, atol=1e-6)


def test_with_every_expert_picked_the_layer_is_the_dense_mixture_7():
    layer = MoELayer(D, experts(torch.float32), E)
    x_TD = tokens(20, torch.float32)
    p_TE = layer.gate(x_TD).softmax(dim=-1)
    expected_TF = sum(p_TE[:, m : m + 1] * body(x_TD) for m, body in enumerate(layer.experts))
    assert torch.allclose(layer(x_TD), expected_TF, atol=1e-6)


def test_gradients_of_the_layer_equal_those_of_the_dense_mixture():
    layer = MoELayer(D, experts(torch.float32), 2)
    reference = copy.deepcopy(layer)
    x_TD = tokens(20, torch.float32)
    (layer(x_TD) ** 2).sum().backward()
    top_TK, indices_TK = reference.gate(x_TD).topk(2)
    (dense(x_TD, top_TK.softmax(dim=-1), indices_TK, list(reference.experts)) ** 2).sum().backward()
    for ours, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)
        assert ours.grad.abs().max() > 1e-4


def test_a_top_1_layer_computes_the_picked_expert_alone_and_trains_its_gate():
    layer = MoELayer(D, experts(torch.float32), 1)
    x_TD = tokens(6, torch.float32)
    y_TF = layer(x_TD)
    for t, m in enumerate(layer.gate(x_TD).argmax(dim=1).tolist()):
        assert torch.allclose(y_TF[t], layer.experts[m](x_TD[t]), atol=1e-6)
    (y_TF**2).sum().backward()
    assert layer.gate.weight.grad.abs().max() > 1e-4


def test_leading_dimensions_are_kept():
    layer = MoELayer(D, experts(torch.float32), 2)
    x = tokens(6, torch.float32)
    assert torch.equal(layer(x.view(2, 3, D)), layer(x).view(2, 3, F))


def test_noise_of_the_layer_follows_train_and_eval():
    layer = MoELayer(D, experts(torch.float32), 1, noise_std=5.0)
    x_TD = tokens(50, torch.float32)
    torch.manual_seed(0)
    layer.eval()
    assert torch.equal(layer(x_TD), layer(x_TD))
    layer.train()
    assert not torch.equal(layer(x_TD), layer(x_TD))


def test_a_gate_with_an_input_of_its_own():
    layer = MoELayer(2, experts(torch.float32), 2)
    x_TD, seen = tokens(6, torch.float32), torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
    top_TK, indices_TK = layer.gate(seen).topk(2)
    expected_TF = dense(x_TD, top_TK.softmax(dim=-1), indices_TK, list(layer.experts))
    assert torch.allclose(layer(x_TD, seen), expected_TF, atol=1e-6)
    assert torch.equal(layer(x_TD.view(2, 3, D), seen.view(2, 3, 2)), layer(x_TD, seen).view(2, 3, F))
