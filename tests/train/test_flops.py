"""FLOPs of a step: equal to 2·m·n·k by hand, and measured without a trace."""

import copy
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import small
from fedexperts.moe.auto import new_model
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.runs.checkpoint import Packer
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.flops import Flops
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


@pytest.mark.parametrize("task", ["all", "one", "gate"])
def test_as_the_librarys_own_counter(task: str) -> None:
    """Forward and backward, attention as its products, with dropout and a gate's noise; under no_grad as well."""
    device = mixtral()
    parts = {"all": set(device.view.parts), "one": {"expert:1"}, "gate": {"gate"}}[task]
    batch = device.batch(device.chosen(0))
    device.enter(parts, None)

    def counted(counter: Any, grad: bool) -> int:
        with sdpa_kernel(SDPBackend.MATH), torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad), counter:
            torch.manual_seed(0)
            device.view.seed_noise(0)
            loss = cross_entropy(device.view(batch), batch["labels"])
            if grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        return int(counter.total if isinstance(counter, Flops) else counter.get_total_flops())

    both = [(counted(Flops(), grad), counted(FlopCounterMode(display=False), grad)) for grad in (True, False)]
    assert all(ours == theirs > 0 for ours, theirs in both)
    assert both[0] > both[1]


def twins(**other: Any) -> tuple[Device, Device]:
    """Two devices on one model, the second with other samples, and with other attributes."""
    one = mixtral(noise_std=0.0)
    random = torch.Generator().manual_seed(1)
    data = other.pop("data", None) or {
        "input_ids": torch.randint(1, 50, (12, 8), generator=random),
        "labels": one.data["labels"],
    }
    local = other.pop("local", one.local)
    return one, Device("b/0", one.view, data, one.held, local, 0, other.pop("objective", one.objective))


def measures(device: Device, task: Task) -> bool:
    """Whether it makes a step to know the FLOPs, which are those of a device alone in either case."""
    with patch.object(Device, "_measured_flops", autospec=True, side_effect=Device._measured_flops) as measured:
        found = device.flops_per_step(task)
    device.view.flops.clear()
    device.flops.clear()
    assert found == device.flops_per_step(task)
    return bool(measured.call_count)


@dataclass(frozen=True)
class Unhashable(Plain):
    notes: list[str] = field(default_factory=list)


EXPERTS = frozenset(f"expert:{m}" for m in range(small.CONFIG["num_local_experts"]))
TWO, OTHERS = frozenset({"expert:0", "expert:1"}), frozenset({"expert:2", "expert:3"})


def test_a_step_that_costs_the_same_whatever_the_samples_is_measured_once() -> None:
    for first, then in (
        (Task(EXPERTS | {"gate"}), Task(EXPERTS | {"gate"})),
        (Task(TWO, route=TWO), Task(OTHERS, route=OTHERS)),
        (Task(frozenset({"gate"}), route=TWO), Task(frozenset({"gate"}), route=OTHERS)),
        (Task(frozenset({"gate"})), Task(frozenset({"gate"}))),
    ):
        one, other = twins()
        assert measures(one, first)
        one.flops_per_step(first)
        assert not measures(other, then)


def test_a_step_that_may_cost_another_is_measured_again() -> None:
    short = {"input_ids": torch.ones(12, 6, dtype=torch.long), "labels": torch.arange(12) % 10}
    masked = {"input_ids": torch.ones(12, 8, dtype=torch.long), "labels": torch.arange(12) % 10}
    masked["attention_mask"] = (torch.arange(8) < 6).long().expand(12, 8).clone()
    every = Task(EXPERTS)
    for first, then, other in (
        (Task(TWO), Task(TWO), {}),  # a gate picks between what is trained and what is not
        (Task(TWO), Task(OTHERS), {}),
        (Task(TWO, route=TWO), Task(TWO, route=EXPERTS), {}),
        (Task(TWO, route=TWO), Task(frozenset({"expert:0"}), route=frozenset({"expert:0"})), {}),
        (every, Task(EXPERTS | {"gate"}), {}),
        (every, every, {"data": short}),
        (every, every, {"data": masked}),
        (every, every, {"local": LocalTraining(2, 3, "adamw")}),
        (every, every, {"objective": Plain(torch.nn.functional.nll_loss)}),
        (every, every, {"objective": Unhashable(cross_entropy)}),
    ):
        one, second = twins(**other)
        one.flops_per_step(first)
        assert measures(second, then), (first, then, other)


def test_masked_experts_that_can_still_win_are_measured_by_each() -> None:
    """The literal mask (39) leaves them a score of zero."""
    one, other = twins()
    for block in one.view.blocks:
        block.router.mask = "zero"
    one.flops_per_step(Task(TWO, route=TWO))
    assert measures(other, Task(TWO, route=TWO))
    one.flops_per_step(Task(EXPERTS))
    assert not measures(other, Task(EXPERTS))


def test_of_questions_with_options_too() -> None:
    one, other = twins()
    for device in (one, other):
        device.data = {**device.data, "question_mask": torch.ones(12, 8), "option_mask": torch.ones(12, 2, 8)}
    with patch.object(Device, "_measured_flops", autospec=True, return_value=1) as measured:
        one.flops_per_step(Task(EXPERTS))
        other.flops_per_step(Task(EXPERTS))
    assert measured.call_count == 2


def test_of_masked_samples_each_device_measures_its_own() -> None:
    def masked(columns: int) -> dict[str, Tensor]:
        mask = (torch.arange(8) < columns).long().expand(12, 8).clone()
        return {"input_ids": torch.ones(12, 8, dtype=torch.long), "attention_mask": mask, "labels": torch.arange(12) % 10}

    one, other = twins(data=masked(4))
    third = Device("c/0", one.view, masked(8), one.held, one.local, 0, one.objective)
    assert 0 < other.flops_per_step(Task(EXPERTS)) < third.flops_per_step(Task(EXPERTS))
