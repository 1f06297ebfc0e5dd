"""FLOPs of a step: equal to 2·m·n·k by hand, and measured without a trace."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import small
from fedexperts.moe.auto import new_model
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.runs.checkpoint import Packer
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task
from toy import Plain

CROSS_ENTROPY = Plain(cross_entropy)
N, D, F, M = 6, 5, 3, 2  # samples, features, outputs, experts


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.moe = MoELayer(D, [nn.Linear(D, F, bias=False) for _ in range(M)], top_k=1, top1="switch")
        with torch.no_grad():
            self.moe.gate.weight.copy_(torch.eye(M, D))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.moe(x)
        return y


def linear(batch_size: int | None = None) -> Device:
    view = View(Linear())
    x = torch.zeros(N, D)
    x[:4, 0] = x[4:, 1] = 1.0  # four samples go to expert 0, two to expert 1
    data = {"x": x, "labels": torch.zeros(N, dtype=torch.long)}
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    return Device(
        "a/0", view, data, model, LocalTraining(batch_size=batch_size, optimizer="sgd"), seed=0, objective=CROSS_ENTROPY
    )


FORWARD = 2 * N * D * M + 2 * N * D * F  # gate and experts
COUNTS = {
    ("expert:0",): FORWARD + 2 * 4 * D * F,  # and the weights' gradient from the four samples that met it
    ("expert:0", "expert:1"): FORWARD + 2 * N * D * F,
    ("gate",): FORWARD + 2 * N * D * M,
}


@pytest.mark.parametrize("parts", COUNTS)
def test_a_linear_model_by_hand(parts: tuple[str, ...]) -> None:
    assert linear().flops_per_step(Task(frozenset(parts))) == COUNTS[parts]


def test_a_route_counts_for_itself_and_the_batch_size_counts() -> None:
    device, parts = linear(), frozenset({"expert:0"})
    assert device.flops_per_step(Task(parts, route=parts)) == FORWARD + 2 * N * D * F  # all six samples go there
    assert device.flops_per_step(Task(parts)) == COUNTS["expert:0",]
    assert linear(batch_size=2).flops_per_step(Task(parts, route=parts)) * 3 == FORWARD + 2 * N * D * F


def mixtral(noise_std: float = 0.1) -> Device:
    view = View(new_model({**small.CONFIG, "attention_dropout": 0.2}, seed=0), noise_std=noise_std)
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    random = torch.Generator().manual_seed(0)
    data = {"input_ids": torch.randint(1, 50, (12, 8), generator=random), "labels": torch.arange(12) % 10}
    return Device("a/0", view, data, model, LocalTraining(2, 4, "adamw"), seed=0, objective=CROSS_ENTROPY)


def test_attention_is_counted() -> None:
    device, parts = mixtral(noise_std=0.0), frozenset({"gate"})
    counted = device.flops_per_step(Task(parts))
    short = mixtral(noise_std=0.0)
    short.data = {"input_ids": short.data["input_ids"][:, :4], "labels": short.data["labels"]}
    assert counted > 2 * short.flops_per_step(Task(parts))  # twice the tokens; attention's products grow with their square


def contents(device: Device) -> tuple[Any, dict[str, Tensor]]:
    """The device's whole state but the counts, as a checkpoint has it."""
    packer = Packer()
    return packer.pack({**device.state(), "flops": {}}), packer.tensors


def same(a: tuple[Any, dict[str, Tensor]], b: tuple[Any, dict[str, Tensor]]) -> bool:
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][name], b[1][name]) for name in a[1])


def test_measuring_leaves_no_trace() -> None:
    """Twin devices, one measured before each training: same tensors, optimiser and random state, bit for bit."""
    plain, measured = mixtral(), mixtral()
    tasks = [Task(frozenset({"expert:1", "gate"})), Task(frozenset({"expert:1"}), route=frozenset({"expert:0", "expert:1"}))]
    for task in tasks:
        before, random = copy.deepcopy(contents(measured)), torch.get_rng_state()
        assert measured.flops_per_step(task) > 0
        assert torch.equal(torch.get_rng_state(), random)
        assert same(contents(measured), before)
        assert all(leaf.grad is None for tensors in measured.view.parts.values() for leaf in tensors.values())
        assert plain.train(task, 2) == measured.train(task, 2)
        assert same(contents(measured), contents(plain))
