"""Warm-up on a tiny Mixtral: the gate loss pulls each domain to its group of experts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexperts.data.classify import Classification
from fedexperts.moe.auto import new_model
from fedexperts.moe.view import View
from fedexperts.train.warmup import WarmUp, domain_groups, gate_fit_loss, warm_up

PAD = 20
CONFIG = {
    "model_type": "mixtral",
    "vocab_size": 21,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "pad_token_id": PAD,
    "num_labels": 3,
}


FIT = WarmUp(steps=60, batch_size=16, lr=1e-2, gate_fit=1.0)


def classified(sets):
    return [(samples, Classification(0, 3)) for samples in sets]


def tiny(**options) -> View:
    return View(new_model({**CONFIG, **options}, seed=0))


def domain(d: int, n: int = 12, length: int = 6) -> dict[str, torch.Tensor]:
    """Domains with token ranges of their own."""
    generator = torch.Generator().manual_seed(d)
    ids = torch.randint(10 * d, 10 * d + 10, (n, length), generator=generator)
    return {"input_ids": ids, "labels": torch.randint(0, 3, (n,), generator=generator)}


def share_in_group(view: View, samples: dict[str, torch.Tensor], group: list[int]) -> float:
    counts_LM, _ = view.observe([samples])
    return counts_LM[:, group].sum() / counts_LM.sum()


def test_experts_are_dealt_evenly_and_in_order():
    assert domain_groups(8, 4) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert domain_groups(4, 1) == [[0, 1, 2, 3]]


@settings(deadline=None, max_examples=40)
@given(experts=st.integers(1, 64), domains=st.integers(1, 16))
def test_groups_cover_every_expert_once_with_sizes_that_differ_by_one_at_most(experts, domains):
    groups = domain_groups(experts, domains)
    assert [m for group in groups for m in group] == list(range(experts))
    assert len(groups) == domains
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_the_gate_loss_of_an_indifferent_gate_is_the_logarithm_of_the_experts():
    target_DE = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
    loss = gate_fit_loss([torch.zeros(3, 4), torch.zeros(3, 4)], torch.tensor([0, 1, 0]), target_DE)
    assert loss.item() == pytest.approx(math.log(4))


def test_the_gate_loss_is_least_for_a_uniform_choice_within_the_group():
    target_DE = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    best, uneven, wrong = ([9.0, 9.0, -9.0, -9.0], [9.0, 0.0, -9.0, -9.0], [-9.0, -9.0, 9.0, 9.0])
    losses = [gate_fit_loss([torch.tensor([row])], torch.tensor([0]), target_DE).item() for row in (best, uneven, wrong)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses == sorted(losses)


def test_the_gate_loss_is_the_mean_over_layers():
    target_DE, domain_T = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    layers = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    each = [gate_fit_loss([layer], domain_T, target_DE).item() for layer in layers]
    assert gate_fit_loss(layers, domain_T, target_DE).item() == pytest.approx(sum(each) / 2)


def test_gate_fit_pulls_each_domains_tokens_to_its_experts():
    view, domains = tiny(), [domain(0), domain(1)]
    before = [share_in_group(view, domains[d], group) for d, group in enumerate(domain_groups(4, 2))]
    warm_up(view, classified(domains), FIT, seed=0)
    after = [share_in_group(view, domains[d], group) for d, group in enumerate(domain_groups(4, 2))]
    assert min(before) < 0.7
    assert min(after) > 0.95


def test_the_group_follows_the_order_of_the_domains():
    view, domains = tiny(), [domain(1), domain(0)]
    warm_up(view, classified(domains), FIT, seed=0)
    assert share_in_group(view, domain(1), [0, 1]) > 0.95


def test_padding_takes_no_part_in_the_loss():
    losses = []
    for padding in (0, 5):
        domains = [domain(0), domain(1)]
        for samples in domains:
            samples["input_ids"] = torch.nn.functional.pad(samples["input_ids"], (0, padding), value=PAD)
            samples["attention_mask"] = (samples["input_ids"] != PAD).long()
        losses.append(warm_up(tiny(), classified(domains), WarmUp(steps=2, batch_size=16, gate_fit=1.0), seed=0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_warm_up_lowers_the_tasks_loss():
    view, domains = tiny(), [domain(0, n=8)]
    first = warm_up(view, classified(domains), WarmUp(steps=1, batch_size=8, lr=1e-2), seed=0)
    last = warm_up(view, classified(domains), WarmUp(steps=60, batch_size=8, lr=1e-2), seed=0)
    assert last < 0.5 * first


def test_warm_up_trains_every_part_and_ends_frozen_and_unwatched():
    view = tiny(num_experts_per_tok=2)
    before = {part: view.export(part) for part in view.parts}
    warm_up(view, classified([domain(0), domain(1)]), WarmUp(steps=3, batch_size=16, gate_fit=1.0), seed=0)
    for part, old in before.items():
        assert any(not torch.equal(value, old[name]) for name, value in view.export(part).items()), part
    assert not any(leaf.requires_grad for tensors in view.parts.values() for leaf in tensors.values())
    assert all(block.router.logits_TE is None and not block.router.keep_logits for block in view.blocks)


def test_one_seed_gives_one_result_whatever_the_global_generator():
    results = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(noise)
        view = tiny()
        warm_up(view, classified([domain(0), domain(1)]), WarmUp(steps=4, batch_size=4, gate_fit=0.5, token_dropout=0.2), seed)
        results.append(torch.cat([t.flatten() for part in view.parts for t in view.export(part).values()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_domains_of_different_length_are_pooled():
    loss = warm_up(tiny(), classified([domain(0, length=4), domain(1, length=7)]), WarmUp(steps=2, gate_fit=1.0), seed=0)
    assert math.isfinite(loss)


def test_without_gate_fit_there_may_be_more_domains_than_experts():
    view = tiny(num_local_experts=2)
    loss = warm_up(view, classified([domain(0), domain(1), domain(0, n=4)]), WarmUp(steps=2, gate_fit=0.0), seed=0)
    assert math.isfinite(loss)


def moved(recipe: WarmUp) -> float:
    """How far one run moves the head from where it starts (AdamW's steps are as long as its learning rates)."""
    view = tiny()
    before = view.export("head")["score.weight"]
    warm_up(view, classified([domain(0)]), recipe, seed=0)
    return (view.export("head")["score.weight"] - before).abs().max().item()


def test_the_learning_rate_falls_linearly_to_zero():
    """The first step is as long as the rate; two steps are one and a half rates long at most."""
    assert moved(WarmUp(steps=1, lr=1e-3)) == pytest.approx(1e-3, rel=1e-2)
    assert moved(WarmUp(steps=2, lr=1e-3)) <= 1.51e-3


def test_weight_decay_shrinks_the_model():
    def norm(decay: float) -> float:
        view = tiny()
        warm_up(view, classified([domain(0)]), WarmUp(steps=10, lr=1e-2, weight_decay=decay), seed=0)
        return sum(leaf.norm().item() for leaf in view.parts["expert:0"].values())

    assert norm(5.0) < 0.9 * norm(0.0)


def test_token_dropout_changes_the_run_and_not_the_samples():
    samples = domain(0)
    before = samples["input_ids"].clone()
    losses = [warm_up(tiny(), classified([samples]), WarmUp(steps=3, token_dropout=share), seed=0) for share in (0.0, 0.5, 0.5)]
    assert losses[0] != losses[1] == losses[2]
    assert torch.equal(samples["input_ids"], before)
