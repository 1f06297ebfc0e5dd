"""Adapters of single experts: against a dense reference, and the algebra of their averages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedexperts.errors import InputError
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.lora import A, B, LoRA, combined, same
from fedexperts.moe.view import View
from lora_models import FAMILIES, build


def scrambled(view: View) -> None:
    """Adapters as training would leave them: B is not zero."""
    generator = torch.Generator().manual_seed(1)
    for part in view.parts:
        for name, leaf in view.leaves[part].items():
            if name.endswith(B):
                with torch.no_grad():
                    leaf.copy_(torch.randn(leaf.shape, generator=generator) * 0.2)


TOKENS = {"input_ids": torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(2))}


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_compute_what_adapters_do(family: str) -> None:
    view = View(build(family))
    plain = view(TOKENS)
    view.adapt(LoRA(4, 8), seed=0)
    torch.testing.assert_close(view(TOKENS), plain)  # B = 0: nothing has changed yet
    scrambled(view)
    adapted = view(TOKENS)
    assert (adapted - plain).abs().max() > 1e-3
    view.merge()
    torch.testing.assert_close(view(TOKENS), adapted, rtol=1e-5, atol=1e-5)
    assert all(not leaf.any() for p in view.parts for n, leaf in view.leaves[p].items() if n.endswith(B))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_dense_weights(family: str) -> None:
    """∂/∂A = s·Bᵀ ∂/∂W and ∂/∂B = s·∂/∂W Aᵀ, where ∂/∂W comes from full-parameter training of the merged model."""
    dense = View(build(family))
    view = View(build(family))
    view.adapt(LoRA(2, 6), seed=0)
    scrambled(view)
    for part in filter(lambda p: p.startswith("expert"), dense.parts):
        dense.install(part, view.merged(part, dense.export(part), view.trained(part)))
    dense.freeze(but=["expert:1"])
    view.freeze(but=["expert:1"])
    for v in (dense, view):
        (v(TOKENS) ** 2).mean().backward()
    checked = 0
    for block in view.blocks:
        for projection in block.projections[1]:
            (adapter,) = projection.adapter
            gradient_OI = dense.parts["expert:1"][projection.weight].grad[projection.rows]
            torch.testing.assert_close(adapter.a_RI.grad, 3.0 * adapter.b_OR.T @ gradient_OI, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(adapter.b_OR.grad, 3.0 * gradient_OI @ adapter.a_RI.T, rtol=1e-3, atol=1e-6)
            checked += 1
    assert checked == (2 if family == "own" else 6)
    assert all(leaf.grad is None for part in ("expert:0", "gate") for leaf in view.leaves[part].values())
    assert all(p.grad is None for p in view.model.parameters())


def test_only_assigned_experts_carry_adapters() -> None:
    view = View(build("mixtral"))
    view.adapt(LoRA(2, 2), seed=0, only={"expert:1", "expert:3"})
    carried = {part: len(view.leaves[part]) for part in view.parts if part.startswith("expert")}
    assert carried == {"expert:0": 0, "expert:1": 12, "expert:2": 0, "expert:3": 12}  # 2 layers × 3 projections × A, B
    assert view(TOKENS).isfinite().all()


def test_adapters_have_the_papers_shapes() -> None:
    view = View(build("mixtral"))
    view.adapt(LoRA(4, 8), seed=0)
    numbers = sum(leaf.numel() for leaf in view.leaves["expert:0"].values())
    assert numbers == 2 * 4 * 3 * (16 + 24)  # layers · rank · projections · (in + out)
    assert {leaf.dtype for leaf in view.leaves["expert:0"].values()} == {torch.float32}


def test_adapters_depend_on_the_seed_alone() -> None:
    views = [View(build("mixtral", seed)) for seed in (0, 1)]
    for view, seed in zip(views, (7, 7), strict=True):
        view.adapt(LoRA(2, 2), seed=seed)
    assert same([view.trained("expert:2") for view in views])
    other = View(build("mixtral"))
    other.adapt(LoRA(2, 2), seed=8)
    assert not same([views[0].trained("expert:2"), other.trained("expert:2")])


def test_a_rank_above_the_dimensions() -> None:
    view = View(build("mixtral"))
    with pytest.raises(InputError, match=r"model\.lora\.rank = 17: must be at most 16.*gate_proj.*lower it"):
        view.adapt(LoRA(17, 17), seed=0)


def test_an_expert_without_a_linear_layer() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    model = nn.ModuleDict({"moe": MoELayer(4, [Scale(), Scale()], top_k=1)})
    with pytest.raises(InputError, match="expert 0 has no linear layer"):
        View(model).adapt(LoRA(1, 1), seed=0)


def test_an_adapter_of_another_model() -> None:
    view, other = View(build("mixtral")), View(build("qwen3_moe"))
    for v, rank in ((view, 2), (other, 3)):
        v.adapt(LoRA(rank, 2), seed=0)
    with pytest.raises(InputError, match=r"expert:0: .*lora_A has shape \(3, 16\) where .*\(2, 16\); it belongs to another"):
        view.install("expert:0", other.export("expert:0"))
    with pytest.raises(InputError, match=r"expert:0: .* is missing"):
        view.install("expert:0", {})


def test_bf16_weights_keep_adapters_in_float32() -> None:
    view = View(build("mixtral").to(torch.bfloat16))
    view.adapt(LoRA(2, 4), seed=0)
    scrambled(view)
    view.freeze(but=["expert:0", "expert:1", "expert:2", "expert:3"])
    logits = view(TOKENS)
    assert logits.dtype == torch.bfloat16
    logits.float().pow(2).mean().backward()
    gradients = [leaf.grad for leaf in view.leaves["expert:0"].values() if leaf.grad is not None]
    assert gradients
    assert all(g.dtype == torch.float32 for g in gradients)
    full = View(build("mixtral"))
    full.adapt(LoRA(2, 4), seed=0)
    scrambled(full)
    torch.testing.assert_close(logits.float(), full(TOKENS), rtol=0.1, atol=0.02)


# The algebra


def factors(seed: int, rank: int = 2, out: int = 6, into: int = 5) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        f"{name}{end}": torch.randn(shape, generator=g)
        for name in ("up", "down")
        for end, shape in ((A, (rank, into)), (B, (out, rank)))
    }


def product(t: Any, name: str = "up") -> torch.Tensor:
    return t[name + B].double() @ t[name + A].double()


def test_a_sum_by_hand() -> None:
    """B·A of rank one each: [[2, 0], [0, 0]] and [[0, 0], [0, 1]]; the mean keeps the larger half."""
    first = {"w" + A: torch.tensor([[1.0, 0.0]]), "w" + B: torch.tensor([[2.0], [0.0]])}
    second = {"w" + A: torch.tensor([[0.0, 1.0]]), "w" + B: torch.tensor([[0.0], [1.0]])}
    result, error = combined([(0.5, first), (0.5, second)])
    torch.testing.assert_close(product(result, "w"), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double())
    assert error == pytest.approx((0.5**2 / (1 + 0.5**2)) ** 0.5)


@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4), rank=st.integers(1, 5))
def test_the_factored_mean_is_the_best_of_its_rank(seeds: list[int], rank: int) -> None:
    given_ = [factors(seed, rank) for seed in seeds]
    result, error = combined([(1 / len(seeds), t) for t in given_])
    lost = total = 0.0
    for name in ("up", "down"):
        mean = sum(product(t, name) for t in given_) / len(given_)
        sigma = torch.linalg.svdvals(mean)
        lost += float((product(result, name) - mean).norm() ** 2)
        total += float(mean.norm() ** 2)
        best = float((sigma[rank:] ** 2).sum())
        assert float((product(result, name) - mean).norm() ** 2) == pytest.approx(best, rel=1e-3, abs=1e-6 * total)
        rows = result[name + A] @ result[name + A].T
        torch.testing.assert_close(rows, torch.eye(rank) / 3, rtol=1e-4, atol=1e-5)  # A as it is drawn: no dead direction
    assert error == pytest.approx((lost / total) ** 0.5, abs=1e-3)


def test_nothing_learnt_stays_nothing() -> None:
    zero = {**factors(0), "up" + B: torch.zeros(6, 2), "down" + B: torch.zeros(6, 2)}
    result, error = combined([(0.5, zero), (0.5, zero)])
    assert error == 0.0
    assert not product(result).any()
    assert result["up" + A].norm() > 0.5  # still able to learn


def test_differences_of_adapters() -> None:
    """One term more, one less: what a device keeps when an earlier snapshot of it has been merged."""
    first, second = factors(1, rank=1), factors(2, rank=1)
    both, _ = combined([(1.0, {k: torch.cat([first[k], second[k]], dim=0 if k.endswith(A) else 1) for k in first})])
    result, _ = combined(
        [(1.0, both), (-1.0, {k: v.repeat(*((2, 1) if k.endswith(A) else (1, 2))) for k, v in second.items()})]
    )
    torch.testing.assert_close(product(result), product(first) - product(second), rtol=1e-4, atol=1e-5)


def test_the_view_leaves_a_copied_model_alone() -> None:
    model = build("mixtral")
    expected = copy.deepcopy(model)(**TOKENS).logits
    view = View(model)
    view.adapt(LoRA(2, 2), seed=0)
    torch.testing.assert_close(view(TOKENS), expected)


def test_a_view_takes_adapters_of_lower_ranks_in_turn_at_one_scale() -> None:
    """The product counts α over the model's rank, whatever its factors' rank; a higher rank is another model's."""
    view = View(build("mixtral"))
    view.adapt(LoRA(2, 4), seed=0)
    scrambled(view)
    whole = view.export("expert:0")
    wanted = view(TOKENS)
    half, full = combined([(1.0, whole)], 1)[0], combined([(1.0, whole)])[0]
    view.install("expert:0", half)
    assert {tuple(leaf.shape) for leaf in view.leaves["expert:0"].values()} == {(1, 16), (16, 1), (1, 24), (24, 1)}
    assert [leaf.requires_grad for _, _, leaf in view.freeze(but=["expert:0"])] == [True] * 12
    cut = view(TOKENS)
    assert not torch.allclose(cut, wanted, atol=1e-4)
    reference = View(build("mixtral"))
    reference.adapt(LoRA(2, 4), seed=0)
    scrambled(reference)
    padded = {n: torch.cat([t, torch.zeros_like(t)], dim=0 if n.endswith(A) else 1) for n, t in half.items()}
    reference.install("expert:0", padded)
    torch.testing.assert_close(cut, reference(TOKENS))
    assert same([half, view.trained("expert:0")])
    view.install("expert:0", full)
    torch.testing.assert_close(view(TOKENS), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"has shape \(4, 16\) where the model has shape \(2, 16\)"):
        view.install("expert:0", {n: torch.cat([t, t], dim=0 if n.endswith(A) else 1) for n, t in full.items()})
