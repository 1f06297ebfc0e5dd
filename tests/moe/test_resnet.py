"""Networked MoE's image model: its size, probabilities, gate gradients, checkpoints, and the view over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

from fedexperts.data.classify import Classification
from fedexperts.errors import InputError
from fedexperts.moe.layer import outputs
from fedexperts.moe.parts import BACKBONE, expert
from fedexperts.moe.resnet import (
    NetworkedMoEConfig,
    NetworkedMoEForImageClassification,
    ResNet18,
    all_latents,
    log_mixture,
    picked_alone,
    scaled,
)
from fedexperts.moe.subset import load_full, load_subset
from fedexperts.moe.view import View

M, L, D = 4, 5, 64


def model(top_k: int = 1, **options: Any) -> NetworkedMoEForImageClassification:
    """A narrow model in evaluation mode, whose gate prefers different experts for different images."""
    sizes = {"width": 8, "expert_hidden": 16, "num_experts": M, "num_labels": L, "num_experts_per_tok": top_k}
    torch.manual_seed(0)
    made = NetworkedMoEForImageClassification(NetworkedMoEConfig(**{**sizes, **options})).eval()
    nn.init.normal_(made.moe.gate.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    return made


def images(n: int = 6, channels: int = 3, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


def latents(n: int = 40) -> Tensor:
    """Some that are picked apart by the gate, as those of random images are not."""
    return torch.randn(n, D, generator=torch.Generator().manual_seed(3))


# ---- the extractor


def test_the_full_width_is_resnet_18():
    convolutions_and_norms = 11_689_512 - (512 * 1000 + 1000)  # torchvision's resnet18 without its fc
    stem = (64 * 3 * 3 * 3) - (64 * 3 * 7 * 7)  # 3×3 in place of 7×7
    assert sum(p.numel() for p in ResNet18(3, 64).parameters()) == convolutions_and_norms + stem


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_latents_are_what_is_left_after_pooling(channels, side):
    made = model(in_channels=channels, image_size=side)
    sizes: list[tuple[int, ...]] = []
    made.extractor[-1].register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape)))
    assert made.latents(images(2, channels, side)).shape == (2, D)
    assert sizes == [(2, D, 4, 4)]


def test_a_stem_of_stride_2_halves_the_sides():
    made = model(stem_stride=2)
    sizes: list[tuple[int, ...]] = []
    made.extractor[0].register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[2:])))
    made.extractor[-1].register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[2:])))
    assert made.latents(images(2)).shape == (2, D)
    assert sizes == [(16, 16), (2, 2)]
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in model().parameters())


def test_a_projection_is_of_the_latents_and_goes_with_the_extractor():
    plain, made = model(), model(projection_size=24)
    assert torch.equal(plain.representations(images()), plain.latents(images()))
    by_hand = (
        torch.relu(made.latents(images()) @ made.projection[0].weight.T) @ made.projection[2].weight.T
    )  # biases are 0 at first
    assert torch.allclose(made.representations(images()), by_hand, atol=1e-6)
    assert made.representations(images()).shape == (6, 24)
    view = View(made)
    assert {name for name in view.parts[BACKBONE] if name.startswith("projection")} == {
        f"projection.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_an_image_is_normalised_by_itself():
    made = model()
    together, alone = made.latents(images()), made.latents(images()[:1])
    assert torch.allclose(together[:1], alone, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())
    assert together.std(dim=0).max() > 1e-3  # and images do differ


def test_bytes_are_scaled_and_floats_are_not():
    assert scaled(torch.tensor([0, 255, 51], dtype=torch.uint8)).tolist() == pytest.approx([-1, 1, -0.6])
    made, x = model(), images()
    assert torch.allclose(made(pixel_values=x).logits, made(pixel_values=(x / 255 - 0.5) / 0.5).logits, atol=1e-5)


def test_he_initialisation_keeps_the_scale_of_signals():
    made = model(width=16)
    assert 0.05 < made.latents(images()).std() < 5
    assert model()(pixel_values=images()).logits.std(dim=1).min() > 0.01


# ---- the mixture


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_logits_are_the_log_of_combined_probabilities(top_k):
    made, h_TD = model(top_k), latents()
    top_TK, indices_TK = made.moe.gate(h_TD).topk(top_k)
    q_TEL = torch.stack([F.softmax(nn.Sequential(*list(body)[:-1])(h_TD), dim=-1) for body in made.moe.experts], dim=1)
    weights_TE = torch.zeros(len(h_TD), M).scatter(1, indices_TK, top_TK.softmax(dim=-1))
    expected_TL = (weights_TE.unsqueeze(-1) * q_TEL).sum(dim=1)
    logits_TL = made(latents=h_TD).logits
    assert len(set(indices_TK[:, 0].tolist())) > 1
    assert torch.allclose(logits_TL.exp(), expected_TL, atol=1e-6)
    assert torch.allclose(F.cross_entropy(logits_TL, torch.ones(40).long()), -expected_TL[:, 1].log().mean(), atol=1e-5)


def test_one_pick_is_that_experts_log_softmax_to_the_bit():
    made, h_TD = model(1), latents()
    logits_TL = made(latents=h_TD).logits
    for m in range(M):
        mine = made.moe.gate(h_TD).argmax(dim=1) == m
        assert torch.equal(logits_TL[mine], made.moe.experts[m](h_TD[mine]))


@pytest.mark.parametrize("top_k", [1, 2])
def test_all_parts_learn(top_k):
    made = model(top_k)
    F.cross_entropy(made(pixel_values=images()).logits, torch.arange(6) % L).backward()
    assert made.moe.gate.weight.grad.abs().max() > 1e-5
    assert made.extractor[0].weight.grad.abs().max() > 1e-5
    assert any(body[0].weight.grad is not None and body[0].weight.grad.abs().max() > 1e-5 for body in made.moe.experts)


def test_the_gate_of_one_pick_moves_towards_an_expert_that_is_right_and_away_from_one_that_is_wrong():
    for label, sign in [(0, 1), (1, -1)]:
        gate_TE = torch.zeros(1, 2, requires_grad=True)
        p_T1 = gate_TE.softmax(dim=-1)[:, :1]
        log_q_TL = torch.tensor([[0.9, 0.06, 0.04]]).log()
        mixed = picked_alone(log_q_TL, 1 + p_T1 - p_T1.detach(), p_T1, "straight-through")
        F.cross_entropy(mixed, torch.tensor([label])).backward()
        assert torch.sign(-gate_TE.grad[0, 0]) == sign


def mixed_with_a_guess(log_q_TL: Tensor, p_T1: Tensor) -> Tensor:
    return (p_T1 * log_q_TL.exp() + (1 - p_T1) / log_q_TL.shape[1]).log()


def some_picks() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, the gate's logits, and the pick's probability, in double precision."""
    log_q_TL = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(dim=-1)
    gate_TE = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    return log_q_TL, gate_TE, gate_TE.softmax(dim=-1)[:, :1]


@pytest.mark.parametrize("label", [0, 1, 2])
def test_straight_through_has_the_gradient_of_a_mixture_with_a_guess(label):
    grads = []
    for straight in (True, False):
        log_q_TL, gate_TE, p_T1 = some_picks()
        ours = picked_alone(log_q_TL, 1 + p_T1 - p_T1.detach(), p_T1, "straight-through")
        assert torch.allclose(ours, log_q_TL, atol=1e-12)
        (ours if straight else mixed_with_a_guess(log_q_TL, p_T1))[:, label].sum().backward()
        grads.append(gate_TE.grad)
    assert grads[0].abs().max() > 1e-2
    assert torch.allclose(*grads, atol=1e-12)


def test_switch_is_the_mixture_with_a_guess():
    log_q_TL, _, p_T1 = some_picks()
    ours = picked_alone(log_q_TL, p_T1, p_T1, "switch")
    assert torch.allclose(ours, mixed_with_a_guess(log_q_TL, p_T1), atol=1e-12)
    assert torch.allclose(ours.exp().sum(dim=1), torch.ones(7, dtype=torch.float64))
    made = View(model(1), top1="switch")({"latents": latents()})
    assert torch.allclose(made.exp().sum(dim=1), torch.ones(40))
    assert torch.equal(made.argmax(dim=1), model(1)(latents=latents()).logits.argmax(dim=1))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_switch_at_the_ends_of_probability_is_finite(p):
    p_T1 = torch.tensor([[p]], requires_grad=True)
    ours = picked_alone(torch.tensor([[0.0, -200.0]]), p_T1, p_T1, "switch")
    ours.sum().backward()
    assert ours.isfinite().all()
    assert p_T1.grad.isfinite().all()


@pytest.mark.parametrize(
    ("right", "label", "by_p"), [(0.99, 0, -4.709), (0.99, 1, 1.097), (0.55, 0, -3.103)], ids=["right", "wrong", "unsure"]
)
def test_the_loss_that_is_used_has_the_gradient_of_the_mixture_with_a_guess(right, label, by_p):
    """Ten experts alike to the gate, p = 1/10 each; ten labels. By hand: −(q − 1/10) / (q/10 + 0.09) of the label's q."""
    made = model(1, num_experts=10, num_labels=10)
    nn.init.zeros_(made.moe.gate.weight)
    wrong = (1 - right) / 9
    for body in made.moe.experts:
        nn.init.zeros_(body[-2].weight)
        body[-2].bias.data = torch.tensor([right, *[wrong] * 9]).log()
    view = View(made)
    view.freeze(but=["gate"])
    batch = {"latents": torch.ones(1, D), "labels": torch.tensor([label])}
    Classification(0, 10).loss(view, batch).backward()
    pick = int(made.moe.gate(batch["latents"]).topk(1).indices)
    # the softmax of ten equal logits has dp/dlogit = p (1 − p) for its own
    assert float(made.moe.gate.weight.grad[pick, 0]) / (0.1 * 0.9) == pytest.approx(by_p, abs=2e-3)


def test_an_extractor_learns_nothing_through_a_frozen_gate():
    """FedCE trains it with the client's own expert: its gradient is that of this expert alone, to the bit."""
    for top1, top_k in (("straight-through", 1), ("switch", 1), ("straight-through", 2)):
        made = model(top_k)
        view = View(made, top1=top1)
        found = []
        for through_gate in (True, False):
            view.freeze(but=[BACKBONE])
            made.zero_grad()
            seen_TD = made.latents(images())
            if not through_gate:
                made.moe.gate.weight.requires_grad_(False)
                logits_TE = made.moe.gate(seen_TD.detach())
                weights_TK, indices_TK = made.moe.router(logits_TE, True)
                q_TKL = outputs(seen_TD, indices_TK, list(made.moe.experts))
                p_T1 = logits_TE.softmax(-1).gather(-1, indices_TK)[:, :1]
                alone = top_k == 1
                log_q_TL = picked_alone(q_TKL[:, 0], weights_TK, p_T1, top1) if alone else log_mixture(q_TKL, weights_TK)
            else:
                log_q_TL = made.train()(latents=seen_TD).logits
            F.nll_loss(log_q_TL, torch.arange(6) % L).backward()
            found.append(made.extractor[0].weight.grad.clone())
        assert found[0].abs().max() > 1e-4
        assert torch.equal(*found), (top1, top_k)


def test_an_expert_that_is_sure_and_wrong_makes_no_huge_gradient():
    gate_TE = torch.zeros(1, 2, requires_grad=True)
    p_T1 = gate_TE.softmax(dim=-1)[:, :1]
    mixed = picked_alone(torch.tensor([[0.0, -200.0]]), 1 + p_T1 - p_T1.detach(), p_T1, "straight-through")
    F.cross_entropy(mixed, torch.tensor([1])).backward()
    assert 0.1 < gate_TE.grad.abs().max() <= 1


@pytest.mark.parametrize("gap", [5.0, 15.0, 16.6, 17.5, 20.0, 40.0])
def test_nor_where_the_gate_is_sure_of_it(gap):
    """p rounds to 1 from a gap of about 17 on; the true gradients are within 1, and float32's 1 − p is half again off."""
    gate_TE = torch.tensor([[gap, 0.0]], requires_grad=True)
    p_T1 = gate_TE.softmax(dim=-1)[:, :1]
    mixed = picked_alone(torch.tensor([[0.0, -60.0]]), 1 + p_T1 - p_T1.detach(), p_T1, "straight-through")
    F.nll_loss(mixed, torch.tensor([1])).backward()
    assert gate_TE.grad.abs().max() <= 1.5


def test_paper_leaves_the_gate_alone():
    log_q_TL, _, p_T1 = some_picks()
    assert not picked_alone(log_q_TL, torch.ones_like(p_T1), p_T1, "paper").requires_grad


def test_a_weight_of_zero_does_no_harm():
    weights_TK = torch.tensor([[1.0, 0.0]], requires_grad=True)
    mixed = log_mixture(torch.tensor([[[0.5, 0.5], [0.1, 0.9]]]).log(), weights_TK)
    mixed.sum().backward()
    assert torch.allclose(mixed.exp(), torch.tensor([[0.5, 0.5]]))
    assert weights_TK.grad.isfinite().all()


def test_cached_latents_give_the_same():
    made = model(2)
    cached = all_latents(made, images(), at_once=4)
    assert not cached.requires_grad
    assert torch.allclose(made(latents=cached).logits, made(pixel_values=images()).logits, atol=1e-5)


# ---- view and checkpoints


def test_parts_of_the_view_and_freezing():
    view = View(model())
    assert set(view.parts) == {"backbone", "gate", *(expert(m) for m in range(M))}
    assert (view.experts, view.top_k, view.layers) == (M, 1, 1)
    assert all(name.startswith("extractor.") for name in view.parts["backbone"])
    leaves = view.freeze({"gate", expert(2)})
    view.route({expert(2)})
    F.cross_entropy(view({"pixel_values": images(), "labels": torch.zeros(6).long()}), torch.zeros(6).long()).backward()
    assert {part for part, _, leaf in leaves if leaf.grad is not None} == {"gate", expert(2)}
    assert all(p.grad is None for p in view.model.extractor.parameters())


def test_the_view_routes_and_observes():
    view = View(model(2))
    view.route({expert(1), expert(3)})
    counts_LM, seen = view.observe([{"latents": latents()}])
    assert (seen, counts_LM.tolist()) == (40, [[0, 40, 0, 40]])
    for x in (images(), scaled(images())):
        assert view.observe([{"pixel_values": x}])[1] == 6
    view.route({expert(1)})
    assert torch.equal(view({"latents": latents()}), view.model.moe.experts[1](latents()))


def test_saved_and_loaded_again(tmp_path: Path):
    made = model(2)
    made.save_pretrained(tmp_path)
    expected = made(pixel_values=images()).logits
    exact = load_full(tmp_path, AutoModelForImageClassification).eval()
    assert torch.equal(exact(pixel_values=images()).logits, expected)
    for kind in (NetworkedMoEForImageClassification, AutoModelForImageClassification):
        loaded = kind.from_pretrained(tmp_path).eval()
        assert all(torch.equal(weight, made.state_dict()[name]) for name, weight in loaded.state_dict().items())
        # its weights lie in the mapped file, unaligned, where some machines add in another order
        assert torch.allclose(loaded(pixel_values=images()).logits, expected, atol=1e-5)


def test_a_client_loads_its_expert_alone(tmp_path: Path):
    made = model()
    made.save_pretrained(tmp_path)
    part = load_subset(tmp_path, [2], AutoModelForImageClassification)
    assert torch.equal(part(latents=latents()).logits, made.moe.experts[2](latents()))
    assert set(View(part, kept=(2,)).parts) == {"backbone", "gate", expert(2)}


# ---- wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width = 12: must be a multiple of 8"),
        ({"width": 0}, "width = 0"),
        ({"num_experts_per_tok": 5}, r"num_experts_per_tok = 5: must lie in 1…4"),
        ({"num_labels": 1}, "num_labels = 1: must be at least 2"),
        ({"stem_stride": 3}, "stem_stride = 3: must be 1, or 2"),
        ({"projection_size": -1}, "projection_size = -1: must be at least 0"),
        ({"image_size": 4}, "image_size = 4: must be at least 8"),
    ],
)
def test_a_config_out_of_bounds_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        model(**options)


def test_inputs_that_do_not_fit_are_refused():
    made = model()
    with pytest.raises(InputError, match="give one of them"):
        made()
    with pytest.raises(InputError, match="give one of them"):
        made(pixel_values=images(), latents=latents())
    with pytest.raises(InputError, match=r"takes \[images, 3, 32, 32\]"):
        made(pixel_values=images(2, 1, 28))
    with pytest.raises(InputError, match=r"must be \[images, 64\]"):
        made(latents=torch.zeros(2, 63))
