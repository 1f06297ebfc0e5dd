"""Frozen layers that are computed once: training is the same as with all layers in every step, but for rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import PAD, D, batch, plain
from fedexperts.data.classify import Classification
from fedexperts.data.language import CausalLM
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.lora import LoRA
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task
from text import language_model

DENSE_BELOW: dict[str, Any] = {"num_hidden_layers": 4, "mlp_only_layers": [0, 1]}
TASK = Classification(0, 3)


def padded(n: int = 11, length: int = 9) -> dict[str, Tensor]:
    """Sequences of 3 to ``length`` tokens, so that batches are padded."""
    samples = batch(n, length)
    ends_N = 3 + torch.arange(n) * 5 % (length - 2)
    samples["attention_mask"] = (torch.arange(length) < ends_N[:, None]).long()
    samples["input_ids"] = samples["input_ids"].masked_fill(samples["attention_mask"] == 0, PAD)
    return samples


def view(granularity: str = "layer", **options: Any) -> View:
    return View(plain("qwen3_moe normalised", **{"num_hidden_layers": 4, **options}), granularity=granularity)


def device(of: View, data: dict[str, Tensor] | None = None, cache_B: int = 10**6, objective: Any = TASK) -> Device:
    model = {part: Piece(part, 0, of.export(part)) for part in of.parts}
    local = LocalTraining(2, 4, "sgd", 0.3, 0.3, cache_B=cache_B)
    return Device("a/0", of, data or padded(), model, local, 0, objective)


def task(*parts: str, route: frozenset[str] | None = None) -> Task:
    return Task(frozenset(parts), route=route)


def close(a: Device, b: Device) -> bool:
    assert a.trained.keys() == b.trained.keys()
    pairs = [(a.trained[part][name], b.trained[part][name]) for part in a.trained for name in a.trained[part]]
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in pairs)


def moved(of: Device) -> bool:
    return all(
        any(not torch.equal(value, of.held[part].tensors[name]) for name, value in tensors.items())
        for part, tensors in of.trained.items()
    )


@pytest.mark.parametrize("data", [batch(11, 9), padded()], ids=["one length", "padded"])
@pytest.mark.parametrize(
    ("parts", "options", "below"),
    [
        (["head"], {}, 4),
        (["expert:3.1", "head"], {}, 3),
        ([f"expert:{layer}.{m}" for layer in (1, 2) for m in range(6)], {}, 1),
        (["gate"], DENSE_BELOW, 2),
        ([*(f"expert:{layer}.{m}" for layer in (0, 1) for m in range(6)), "gate"], DENSE_BELOW, 2),
    ],
    ids=["head", "experts of the last layer", "experts from the second layer", "gate", "experts and gate over dense layers"],
)
def test_training_is_the_same_without_the_layers_below(parts, options, below, data):
    plainly, cached = device(view(**options), data, cache_B=0), device(view(**options), data)
    for rounds in (2, 4):
        plainly.train(task(*parts), rounds)
        cached.train(task(*parts), rounds)
    assert plainly._kept is None
    assert len(cached._kept.layers.modules) == below
    assert moved(plainly)
    assert close(plainly, cached)


def test_a_language_model_trains_the_same():
    model = {"family": "qwen3_moe", "num_hidden_layers": 3, "mlp_only_layers": [0]}
    devices = [device(View(language_model(**model)), padded(), cache_B, CausalLM()) for cache_B in (0, 10**6)]
    for one in devices:
        one.train(task("expert:0", "gate"), 4)
    assert devices[1]._kept is not None
    assert close(*devices)


def test_adapters_train_the_same():
    devices = []
    for cache_B in (0, 10**6):
        of = view(**DENSE_BELOW, granularity="global")
        of.adapt(LoRA(2, 4.0), seed=0)
        devices.append(device(of, cache_B=cache_B))
        devices[-1].train(task("expert:0", "expert:1"), 4)
    assert devices[1]._kept is not None
    assert close(*devices)


def test_the_layers_below_run_once_for_each_sample():
    of = view(**DENSE_BELOW, granularity="global")
    rows = []
    of.model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    one = device(of)
    one.train(task("gate"), 2)
    first = sum(rows)
    one.train(task("gate"), 20)
    assert sum(rows) == first <= 11 + 2 * 4  # the samples, and a few twice to see whether the layers can be left out


def test_the_mask_of_gates_below_counts():
    devices = [device(view(), cache_B=cache_B) for cache_B in (0, 10**6)]
    for route in (frozenset({"expert:0.1", "expert:0.2"}), None, frozenset({"expert:0.3", "expert:1.4"})):
        for one in devices:
            one.train(task("expert:3.0", "expert:3.1", "expert:3.2", "head", route=route), 4)
    assert devices[1]._kept.layers.route == route
    assert close(*devices)


@pytest.mark.parametrize("changed", ["backbone", "gate", "expert:0.0"])
def test_parts_below_that_arrive_are_computed_anew(changed):
    devices = [device(view(), cache_B=cache_B) for cache_B in (0, 10**6)]
    for one in devices:
        one.train(task("head"), 3)
        tensors = {name: value * 1.5 for name, value in one.held[changed].tensors.items()}
        one.receive([Piece(changed, 1, tensors)])
        one.train(task("head"), 3)
    assert close(*devices)


def test_parts_below_that_were_trained_are_computed_anew():
    devices = [device(view(), cache_B=cache_B) for cache_B in (0, 10**6)]
    for one in devices:
        one.train(task("expert:3.0", "expert:3.1", "expert:3.2", "head"), 3)
        one.train(task(*(f"expert:0.{m}" for m in range(6)), "gate"), 3)
        one.train(task("head"), 3)
    assert close(*devices)


def test_a_change_that_lasts_less_than_an_epoch_is_not_kept():
    one = device(view())
    one.receive([Piece("gate", 1, one.held["gate"].tensors)])
    one.train(task("head"), 1)  # 2 steps of 4 samples
    assert one._kept is None
    one.train(task("head"), 2)
    assert one._kept is not None


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_restored_device_computes_the_same_bits(rounds):
    """In other batches, after other steps: what is kept depends on neither."""
    straight, stopped, fresh = (device(view()) for _ in range(3))
    straight.train(task("expert:3.0", "head"), rounds)
    straight.train(task("expert:3.0", "head"), 4)
    stopped.train(task("expert:3.0", "head"), rounds)
    fresh.restore(stopped.state())
    fresh.train(task("expert:3.0", "head"), 4)
    assert fresh._kept is not None
    for part, tensors in straight.trained.items():
        assert all(torch.equal(value, fresh.trained[part][name]) for name, value in tensors.items())


def test_flops_do_not_depend_on_what_is_kept():
    """A ledger tells what a step costs a device that keeps nothing."""
    one, other = device(view(), cache_B=0), device(view())
    other.train(task("head"), 3)
    other.steps = 0
    assert one.flops_per_step(task("head")) == other.flops_per_step(task("head"))


class Skipping(nn.Module):
    """A list of layers whose first output is also added to the last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(PAD + 1, D)
        layers = [nn.Linear(D, D), nn.Linear(D, D), MoELayer(D, [nn.Linear(D, D) for _ in range(3)], 2)]
        self.layers, self.head, self.skip = nn.ModuleList(layers), nn.Linear(D, 3), 1.0

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        first = x = torch.tanh(self.layers[0](x))
        for layer in self.layers[1:]:
            x = layer(x)
        return self.head((x + self.skip * first).mean(dim=1))


@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_a_model_that_is_no_chain_of_layers_is_computed_in_full(skip):
    devices = []
    for cache_B in (0, 10**6):
        model = Skipping()
        model.skip = skip
        devices.append(device(View(model), batch(11), cache_B))
        devices[-1].train(task("expert:0", "gate", "head"), 4)
    assert (devices[1]._kept is None) == (skip == 1.0)
    assert close(*devices)


def noisy(of: View) -> None:
    of.blocks[0].router.noise_std = 0.1


def dropping(of: View) -> None:
    of.model.model.layers[1].self_attn.attention_dropout = 0.1


def dropping_above(of: View) -> None:
    of.model.model.layers[3].self_attn.attention_dropout = 0.1


@pytest.mark.parametrize(("change", "kept"), [(noisy, False), (dropping, False), (dropping_above, True)])
def test_layers_that_are_random_are_not_kept(change, kept):
    devices = []
    for cache_B in (0, 10**6):
        devices.append(device(view(), cache_B=cache_B))
        change(devices[-1].view)
        devices[-1].train(task("expert:3.0", "head"), 3)
    assert (devices[1]._kept is not None) == kept
    assert close(*devices)


@pytest.mark.parametrize("parts", [["gate"], ["expert:0.0"], ["backbone"], ["backbone", "head"]])
def test_with_a_trained_tensor_at_the_bottom_nothing_is_kept(parts):
    one = device(view())
    one.train(task(*parts), 2)
    assert one._kept is None


def test_what_does_not_fit_is_not_kept():
    tokens = int(padded()["attention_mask"].sum())
    for cache_B, kept in ((4 * D * tokens - 1, False), (4 * D * tokens, True)):
        one = device(view(), cache_B=cache_B)
        one.train(task("head"), 3)
        assert (one._kept is not None) == kept
        assert not kept or one._kept.hidden_TD.nbytes == cache_B
