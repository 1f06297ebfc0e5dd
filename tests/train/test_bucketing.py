"""Batches of samples of similar length without needless padding: every sample once an epoch, the same losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import small
from families import PAD, batch, plain
from fedexperts.data.choice import MultipleChoice
from fedexperts.data.classify import Classification
from fedexperts.data.language import CausalLM
from fedexperts.data.source import ends, lengths, take, trimmed
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.train.batches import POOL, epoch_batches
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task
from text import language_model

LOCAL = LocalTraining(batch_size=4, lr_expert=0.3, lr_gate=0.3, cache_B=0)
TASK = Task(frozenset({"expert:0", "expert:1", "gate", "head"}))


def padded(n: int = 24, longest: int = 12, columns: int = 20) -> dict[str, Tensor]:
    """Sequences of 3 to ``longest`` tokens in more columns than any of them needs."""
    samples = batch(n, columns)
    ends_N = 3 + torch.arange(n) * 7 % (longest - 2)
    samples["attention_mask"] = (torch.arange(columns) < ends_N[:, None]).long()
    samples["input_ids"] = samples["input_ids"].masked_fill(samples["attention_mask"] == 0, PAD)
    return samples


def device(local: LocalTraining, data: dict[str, Tensor], family: str = "mixtral") -> Device:
    view = View(plain(family))
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    return Device("a/0", view, data, model, local, 0, Classification(0, 3))


def chosen(local: LocalTraining, data: dict[str, Tensor], steps: int) -> list[list[int]]:
    one = device(local, data)
    return [one.chosen(step).tolist() for step in range(steps)]


# ---- which samples


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=200), st.integers(1, 7), st.integers(0, 99))
def test_an_epoch_has_every_sample_once_and_repeats(tokens, size, seed):
    samples = len(tokens)
    size = min(size, samples)
    first, again = (epoch_batches(np.random.default_rng(seed), samples, size, torch.tensor(tokens)) for _ in range(2))
    assert first.shape == (samples // size, size)
    assert len(set(first.flatten().tolist())) == first.numel()
    assert torch.equal(first, again)


def test_within_a_pool_batches_are_slices_of_the_sorted_samples():
    lengths_N = torch.arange(4 * POOL).flip(0)
    batches_KB = epoch_batches(np.random.default_rng(0), 4 * POOL, 4, lengths_N)
    spans = lengths_N[batches_KB].amax(dim=1) - lengths_N[batches_KB].amin(dim=1)
    assert spans.tolist() == [3] * POOL


def test_batches_come_in_a_new_order_in_each_epoch_and_not_by_length():
    data = padded(96)
    steps = chosen(LOCAL, data, 48)
    epochs = [sorted(n for step in epoch for n in step) for epoch in (steps[:24], steps[24:])]
    assert epochs == [list(range(96))] * 2
    assert steps[:24] != steps[24:]
    longest = ends(data)[torch.tensor(steps[:24])].amax(dim=1).tolist()
    assert longest != sorted(longest)


def test_less_than_half_of_the_padding_is_left():
    data = padded(96)

    def slots(local):
        return sum(len(group) * int(ends(data)[group].max()) for group in chosen(local, data, 24))

    tokens = int(data["attention_mask"].sum())
    assert slots(LOCAL) - tokens < 0.5 * (slots(replace(LOCAL, bucketing=False)) - tokens)


@pytest.mark.parametrize("masked", [False, True])
def test_with_one_length_the_batches_are_those_of_before(masked):
    data = batch(24)
    if masked:
        data["attention_mask"] = torch.ones_like(data["input_ids"])
    order = np.random.default_rng([*device(LOCAL, data).key, 0, 1]).permutation(24)
    assert chosen(LOCAL, data, 12)[6:] == order.reshape(6, 4).tolist()


def test_questions_are_as_long_as_with_all_their_options():
    mask = {"question_mask": torch.tensor([[0, 1], [1, 1]]), "option_mask": torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]])}
    assert lengths({**mask, "labels": torch.zeros(2)}).tolist() == [4, 3]


def test_bucketed_training_goes_on_bit_equal_when_restored():
    straight, stopped, fresh = (device(LOCAL, padded()) for _ in range(3))
    straight.train(TASK, 9)
    stopped.train(TASK, 4)
    fresh.restore(stopped.state())
    fresh.train(TASK, 5)
    for part in TASK.parts:
        assert all(torch.equal(value, fresh.trained[part][name]) for name, value in straight.trained[part].items())


def test_the_scenario_says_whether():
    for bucketing in (True, False):
        one = small.devices(prepare(small.scenario(train={"bucketing": bucketing, "cache_MB": 2.0})))["plain"][0]
        assert (one.local.bucketing, one.local.cache_B) == (bucketing, 500_000)  # four devices


# ---- trimming


def test_columns_that_all_pad_are_cut_and_nothing_else():
    data = {**padded(), "token_type_ids": torch.zeros(24, 20), "weights": torch.zeros(24, 20)}
    cut = trimmed(data)
    assert {key: value.shape[1] for key, value in cut.items() if value.dim() == 2} == {
        "input_ids": 12,
        "attention_mask": 12,
        "token_type_ids": 12,
        "weights": 20,
    }
    assert torch.equal(cut["input_ids"], data["input_ids"][:, :12])


def test_padding_on_the_left_and_holes_stay():
    data = {
        "input_ids": torch.ones(2, 4),
        "attention_mask": torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0]]),
        "labels": torch.zeros(2),
    }
    assert trimmed(data)["attention_mask"].tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe normalised"])
def test_a_classifiers_loss_and_gradients_are_those_of_the_padded_batch(family):
    view = View(plain(family))
    results = []
    for samples in (padded(), trimmed(padded())):
        leaves = [leaf for _, _, leaf in view.freeze(view.parts)]
        loss = Classification(0, 3).loss(view, samples)
        results.append([loss, *torch.autograd.grad(loss, leaves, allow_unused=True)])
    for plainly, cut in zip(*results, strict=True):
        assert (cut is None and not plainly.any()) or torch.allclose(plainly, cut, rtol=1e-4, atol=1e-6)


def test_a_language_models_loss_is_that_of_the_padded_batch():
    view = View(language_model())
    assert torch.allclose(*(CausalLM().loss(view, samples) for samples in (padded(), trimmed(padded()))), atol=1e-6)


def test_training_and_judging_are_those_of_samples_without_the_columns():
    data = padded()
    wide, narrow = device(LOCAL, data), device(LOCAL, trimmed(data))
    for one in (wide, narrow):
        one.train(TASK, 6)
    for part in TASK.parts:
        assert all(torch.equal(value, narrow.trained[part][name]) for name, value in wide.trained[part].items())
    judged = [one.objective.judge(one.view, one.data) for one in (wide, narrow)]
    assert judged[0] == judged[1]
    assert wide.observe(20)[1] == narrow.observe(20)[1] == int(take(data, _observed(wide))["attention_mask"].sum())


def _observed(one: Device) -> Tensor:
    return torch.from_numpy(np.random.default_rng([*one.key, 1]).permutation(one.samples)[:20])


def test_flops_are_the_epochs_mean():
    """Whatever batch comes next; with one length it is that batch's own."""
    counted = []
    for step in range(6):
        one = device(LOCAL, padded())
        one.steps = step
        counted.append(one.flops_per_step(TASK))
    assert max(counted) < 1.15 * min(counted)
    whole = device(replace(LOCAL, bucketing=False), batch(24, 12)).flops_per_step(TASK)
    assert max(counted) < whole


def test_questions_are_left_as_they_are():
    data = {"question": torch.ones(2, 3), "question_mask": torch.ones(2, 3), "labels": torch.zeros(2)}
    assert trimmed(data).keys() == data.keys()
    assert MultipleChoice().inputs(data)["input_ids"].shape == (2, 3)
