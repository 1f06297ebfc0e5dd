"""The view against plain transformers models: same function, same gradients, every parameter in exactly one part."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

import families
from families import FAMILIES, PAD, PER_EXPERT, SIZES, K, L, batch
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.parts import NotMoEError, is_expert
from fedexperts.moe.view import View

M = 4


def plain(family: str, **options) -> nn.Module:
    """A tiny model with random weights and four experts."""
    return families.plain(family, experts=M, **options)


def padded() -> dict[str, Tensor]:
    samples = batch()
    samples["attention_mask"] = torch.ones_like(samples["input_ids"])
    for row, length in enumerate((7, 3, 5, 1, 6)):
        samples["input_ids"][row, length:] = PAD
        samples["attention_mask"][row, length:] = 0
    return samples


def inputs(samples: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in samples.items() if key != "labels"}


def loss_of(logits: Tensor) -> Tensor:
    """Any scalar that depends on every logit."""
    return (logits**2).mean() + logits.mean()


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


# ---- the same function


@pytest.mark.parametrize("samples", [batch(), padded()], ids=["unpadded", "padded"])
def test_logits_equal_those_of_the_plain_model(family, samples):
    reference = plain(family)
    view = View(copy.deepcopy(reference))
    expected = reference(**inputs(samples)).logits
    assert torch.allclose(view(samples), expected, atol=1e-5)
    assert expected.std() > 1e-2


def test_a_mixtral_with_one_pick_computes_what_plain_transformers_computes():
    reference = plain("mixtral", num_experts_per_tok=1)
    view = View(copy.deepcopy(reference))
    assert torch.allclose(view(batch()), reference(**inputs(batch())).logits, atol=1e-5)


def test_the_size_of_the_model_is_read_from_it(family):
    view = View(plain(family))
    assert (view.experts, view.top_k, view.layers) == (M, K, L)


# ---- the same gradients


def test_gradients_of_expert_parts_are_slices_of_the_fused_gradients(family):
    reference = plain(family)
    view = View(copy.deepcopy(reference))
    loss_of(reference(**inputs(batch())).logits).backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    leaves = view.freeze(but=view.parts)
    loss_of(view(batch())).backward()
    largest = 0.0
    for part, name, leaf in leaves:
        full = expected[name]
        theirs = full[int(part.removeprefix("expert:"))] if is_expert(part) else full
        ours = torch.zeros_like(theirs) if leaf.grad is None else leaf.grad
        assert torch.allclose(ours, theirs, atol=1e-5), (part, name)
        largest = max(largest, theirs.abs().max().item() if is_expert(part) else 0.0)
    assert largest > 1e-3


def test_the_gate_of_a_one_pick_mixtral_gets_a_gradient_where_plain_transformers_gives_none():
    reference = plain("mixtral", num_experts_per_tok=1)
    view = View(copy.deepcopy(reference))
    loss_of(reference(**inputs(batch())).logits).backward()
    view.freeze(but={"gate"})
    loss_of(view(batch())).backward()
    theirs = max(p.grad.abs().max() for n, p in reference.named_parameters() if n.endswith("gate.weight"))
    ours = max(leaf.grad.abs().max() for leaf in view.parts["gate"].values())
    assert theirs < 1e-6
    assert ours > 1e-3


def test_under_a_frozen_gate_experts_get_the_gradient_of_34_at_one_pick():
    """A weight of 1 has no gradient, so that the layers below see nothing through the gate: as in plain transformers."""
    reference = plain("mixtral", num_experts_per_tok=1)
    view = View(copy.deepcopy(reference))
    loss_of(reference(**inputs(batch())).logits).backward()
    expected = {name: p.grad for name, p in reference.named_parameters()}
    leaves = view.freeze(but=set(filter(is_expert, view.parts)))
    loss_of(view(batch())).backward()
    for part, name, leaf in leaves:
        theirs = expected[name][int(part.removeprefix("expert:"))]
        ours = torch.zeros_like(theirs) if leaf.grad is None else leaf.grad
        assert torch.allclose(ours, theirs, atol=1e-6), (part, name)
    assert max(leaf.grad.abs().max() for _, _, leaf in leaves if leaf.grad is not None) > 1e-3


def test_frozen_parts_get_no_gradient():
    view = View(plain("mixtral"))
    view.freeze(but={"expert:1"})
    loss_of(view(batch())).backward()
    for part, tensors in view.parts.items():
        assert all((leaf.grad is not None) == (part == "expert:1") for leaf in tensors.values()), part


def test_freezing_the_same_parts_again_undoes_what_others_have_set_since():
    view = View(plain("mixtral"))
    first = view.freeze(but={"expert:1"})
    view.model.requires_grad_(True)  # whoever has the model may
    first[0][2].requires_grad_(False)
    for block in view.blocks:
        block.router.gate_trained = True
    again = view.freeze(but={"expert:1"})
    assert [(part, name) for part, name, _ in again] == [(part, name) for part, name, _ in first]
    assert all(leaf.requires_grad is (part == "expert:1") for part in view.parts for leaf in view.parts[part].values())
    assert not any(parameter.requires_grad for parameter in view.model.parameters())
    assert not any(block.router.gate_trained for block in view.blocks)


def test_freezing_but_an_unknown_part_is_an_error():
    with pytest.raises(KeyError, match="expert:9"):
        View(plain("mixtral")).freeze(but={"expert:9"})


# ---- parts


@pytest.mark.parametrize("granularity", ["global", "layer"])
def test_parts_cover_every_parameter_exactly_once(family, granularity):
    model = plain(family)
    view = View(model, granularity=granularity)
    intervals = sorted(
        (leaf.data_ptr(), leaf.data_ptr() + leaf.numel() * leaf.element_size())
        for tensors in view.parts.values()
        for leaf in tensors.values()
    )
    assert all(before[1] <= after[0] for before, after in pairwise(intervals))
    assert sum(end - start for start, end in intervals) == sum(p.numel() * p.element_size() for p in model.parameters())


def test_global_parts_are_experts_gate_backbone_and_head(family):
    assert set(View(plain(family)).parts) == {*(f"expert:{m}" for m in range(M)), "gate", "backbone", "head"}


def test_layer_granularity_makes_a_part_of_each_expert_of_each_layer():
    parts = View(plain("mixtral"), granularity="layer").parts
    assert {part for part in parts if is_expert(part)} == {f"expert:{ell}.{m}" for ell in range(L) for m in range(M)}


def test_the_gate_part_holds_every_layers_router(family):
    gate = View(plain(family)).parts["gate"]
    assert len(gate) == L
    assert all(tensor.shape == (M, SIZES["hidden_size"]) for tensor in gate.values())


def test_the_head_of_a_classifier_is_its_score():
    assert [name.split(".")[0] for name in View(plain("mixtral")).parts["head"]] == ["score"]


@pytest.mark.parametrize("part", ["expert:2", "gate", "backbone", "head"])
def test_install_undoes_a_change_to_its_part_and_to_nothing_else(part):
    view = View(plain("mixtral"))
    before = {name: view.export(name) for name in view.parts}
    scrambled = {name: tensor + 1 for name, tensor in before[part].items()}
    view.install(part, scrambled)
    for name in view.parts:
        now = view.export(name)
        assert all(torch.equal(now[k], (scrambled if name == part else before[name])[k]) for k in now), name
    view.install(part, before[part])
    assert all(torch.equal(value, before[part][k]) for k, value in view.export(part).items())


def test_exported_tensors_are_copies():
    view = View(plain("mixtral"))
    exported = view.export("expert:0")
    kept = {name: tensor.clone() for name, tensor in exported.items()}
    view.install("expert:0", {name: tensor + 1 for name, tensor in exported.items()})
    assert all(torch.equal(exported[name], kept[name]) for name in kept)


def test_installing_changes_what_the_model_computes():
    view = View(plain("mixtral"))
    before = view(batch())
    view.install("expert:0", {name: 2 * tensor for name, tensor in view.export("expert:0").items()})
    assert (view(batch()) - before).abs().max() > 1e-3


def test_training_an_expert_part_changes_only_its_slice_of_the_fused_parameters(family):
    model = plain(family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    view = View(model)
    optimizer = torch.optim.SGD([leaf for _, _, leaf in view.freeze(but={"expert:1"})], lr=0.1)
    loss_of(view(batch(20))).backward()
    optimizer.step()
    for name, now in model.named_parameters():
        fused = name.endswith(PER_EXPERT[:2])
        changed = (now != before[name]).flatten(1).any(dim=1) if fused else (now != before[name]).any()
        assert changed.tolist() == ([m == 1 for m in range(M)] if fused else False), name


def test_an_installed_part_is_not_mistaken_for_resident_after_training():
    view = View(plain("mixtral"))
    start = view.export("expert:0")
    optimizer = torch.optim.SGD([leaf for _, _, leaf in view.freeze(but={"expert:0"})], lr=0.1)
    loss_of(view(batch(20))).backward()
    optimizer.step()
    view.install("expert:0", start)
    assert all(torch.equal(leaf, start[name]) for name, leaf in view.parts["expert:0"].items())


def test_a_saved_model_reloads_with_plain_transformers_to_the_same_logits(tmp_path):
    view = View(plain("mixtral"))
    view.install("expert:3", {name: tensor * 1.5 for name, tensor in view.export("expert:3").items()})
    view.install("gate", {name: tensor + 0.1 for name, tensor in view.export("gate").items()})
    view.model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(loaded(**inputs(batch())).logits, view(batch()), atol=1e-5)


# ---- watching and masking


def test_observed_counts_sum_to_k_per_token_and_layer(family):
    view = View(plain(family))
    counts_LM, tokens = view.observe([batch(5), batch(3)])
    assert tokens == 8 * 7
    assert counts_LM.shape == (L, M)
    assert counts_LM.sum(axis=1).tolist() == [K * tokens] * L


def test_padding_is_not_counted(family):
    counts_LM, tokens = View(plain(family)).observe([padded()])
    assert tokens == 7 + 3 + 5 + 1 + 6
    assert counts_LM.sum(axis=1).tolist() == [K * tokens] * L


def test_a_padded_sample_counts_as_the_same_sample_alone():
    view = View(plain("mixtral"))
    samples = padded()
    together, _ = view.observe([samples])
    lengths = samples["attention_mask"].sum(dim=1).tolist()
    rows = [{"input_ids": samples["input_ids"][i : i + 1, :n]} for i, n in enumerate(lengths)]
    alone, _ = view.observe(rows)
    assert np.array_equal(together, alone)


def test_observed_counts_are_those_of_the_routers_own_logits():
    view = View(plain("mixtral"))
    with view.gate_logits() as logits, torch.no_grad():
        view(batch())
        expected = [torch.bincount(layer.topk(K).indices.flatten(), minlength=M).tolist() for layer in logits()]
    assert view.observe([batch()])[0].tolist() == expected


def test_after_observing_the_model_is_no_longer_watched():
    view = View(plain("mixtral"))
    expected = view(batch(3))
    view.observe([padded()])
    assert torch.equal(view(batch(3)), expected)  # the mask of another batch would not fit
    assert all(block.router.counts_E is None for block in view.blocks)


def test_observing_twice_gives_the_same_counts():
    view = View(plain("mixtral"))
    assert np.array_equal(view.observe([padded()])[0], view.observe([padded()])[0])


def test_routing_is_masked_to_the_allowed_experts(family):
    view = View(plain(family))
    free = view(batch())
    view.route({"expert:0", "expert:3"})
    counts_LM, tokens = view.observe([batch()])
    assert counts_LM[:, [1, 2]].sum() == 0
    assert counts_LM[:, [0, 3]].sum() == K * tokens * L
    assert (view(batch()) - free).abs().max() > 1e-4
    view.route(None)
    assert torch.equal(view(batch()), free)


def test_one_allowed_expert_takes_every_token_once():
    view = View(plain("mixtral"))
    view.route({"expert:2"})
    counts_LM, tokens = view.observe([batch()])
    assert counts_LM.tolist() == [[0, 0, tokens, 0]] * L


def test_masked_experts_do_not_influence_the_output():
    view = View(plain("mixtral"))
    view.route({"expert:0", "expert:3"})
    before = view(batch())
    view.install("expert:1", {name: tensor * 100 for name, tensor in view.export("expert:1").items()})
    assert torch.equal(view(batch()), before)


def test_layer_parts_mask_their_layer_only():
    view = View(plain("mixtral"), granularity="layer")
    view.route({"expert:0.1", "expert:0.2", "expert:1.0", "expert:1.3"})
    counts_LM, _ = view.observe([batch()])
    assert (counts_LM > 0).tolist() == [[False, True, True, False], [True, False, False, True]]


def test_a_layer_without_an_allowed_expert_stays_unmasked_and_no_expert_at_all_is_refused():
    view = View(plain("mixtral"), granularity="layer")
    view.route({"expert:0.1"})
    assert view.blocks[0].router.allowed_E.tolist() == [m == 1 for m in range(view.experts)]
    assert view.blocks[1].router.allowed_E is None
    with pytest.raises(ValueError, match="without any expert"):
        view.route(set())


def test_the_zero_mask_is_passed_on_to_the_routers():
    view = View(plain("mixtral"), mask="zero")
    view.route({"expert:2"})
    counts_LM, tokens = view.observe([batch()])
    assert counts_LM.sum() == K * tokens * L  # K is kept, so masked experts are picked too


def test_noise_repeats_with_its_seed_and_is_off_in_evaluation():
    view = View(plain("mixtral"), noise_std=3.0)
    assert torch.equal(view(batch()), view(batch()))
    view.model.train()
    outputs = []
    for seed in (1, 1, 2):
        view.seed_noise(seed)
        outputs.append(view(batch()))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_gate_logits_are_those_of_each_layers_last_pass_and_carry_gradients():
    view = View(plain("mixtral"))
    view.freeze(but={"gate"})
    with view.gate_logits() as logits:
        view(batch(2))
        view(batch(5))
        layers = logits()
        assert [tuple(layer.shape) for layer in layers] == [(5 * 7, M)] * L
        F.cross_entropy(layers[0], torch.zeros(35, dtype=torch.long)).backward()
    assert next(iter(view.parts["gate"].values())).grad.abs().max() > 1e-3


# ---- models that are not such


def test_a_dense_model_is_refused_by_its_name():
    config = AutoConfig.for_model("llama", **{k: v for k, v in SIZES.items() if k != "num_experts_per_tok"})
    with pytest.raises(NotMoEError, match=r"LlamaForSequenceClassification: no Mixture-of-Experts layer"):
        View(AutoModelForSequenceClassification.from_config(config))


def test_layers_with_different_numbers_of_experts_are_refused():
    layers = [MoELayer(3, [nn.Linear(3, 3) for _ in range(n)], 1) for n in (2, 3)]
    with pytest.raises(NotMoEError, match=r"\[2, 3\]"):
        View(nn.Sequential(*layers))


def test_our_own_layer_is_viewed_without_changing_it():
    model = nn.Sequential(nn.Linear(3, 3), MoELayer(3, [nn.Linear(3, 3) for _ in range(3)], 2), nn.Linear(3, 2))
    x_TD = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    expected = model(x_TD)
    view = View(model)
    assert torch.equal(model(x_TD), expected)
    assert set(view.parts) == {"expert:0", "expert:1", "expert:2", "gate", "backbone"}
    covered = sum(leaf.numel() for tensors in view.parts.values() for leaf in tensors.values())
    assert covered == sum(p.numel() for p in model.parameters())
