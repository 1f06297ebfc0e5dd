"""What the server gets of a device's training, through codecs and adapters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import toy
from fedexperts.moe.lora import B, LoRA
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.protocol.admission import differs
from fedexperts.protocol.aggregate import Averaging, averaged, changed
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task
from lora_models import build

DATA = {
    "input_ids": torch.randint(1, 50, (12, 6), generator=torch.Generator().manual_seed(3)),
    "labels": torch.zeros(12, dtype=torch.long),
}
TASK = Task(frozenset({"expert:0", "expert:1"}))


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.float() ** 2).mean()


def devices(n: int, lora: LoRA | None, codec: Any = "exact", family: str = "mixtral") -> list[Device]:
    view = View(build(family))
    if lora:
        view.adapt(lora, seed=0)
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    local = LocalTraining(local_steps=3, batch_size=4, optimizer="adamw", lr_expert=1e-2)
    return [Device(f"d{i}", view, DATA, model, local, seed=i, objective=toy.Plain(loss), codec=codec) for i in range(n)]


def logits(device: Device, pieces: dict[str, Piece]) -> torch.Tensor:
    for part, piece in pieces.items():
        device.view.install(part, piece.tensors)
    device.view.model.eval()
    with torch.no_grad():
        return device.view(DATA)


def local_logits(device: Device) -> torch.Tensor:
    device.enter(frozenset(), None)
    device.view.model.eval()
    with torch.no_grad():
        return device.view(DATA)


@pytest.mark.parametrize("family", ["mixtral", "own"])
@pytest.mark.parametrize("average", ["refactor", "merge", "factors"])
def test_one_device_with_adapters_changes_nothing_in_aggregation(average, family: str) -> None:
    """The server's model is the device's model, whatever the rule; two rounds, so that it holds from a trained start too."""
    (device,) = devices(1, LoRA(2, 4, average), family=family)
    model = dict(device.held)
    for _ in range(2):
        device.train(TASK, 2)
        trained = local_logits(device)
        updates = device.snapshot(TASK.parts)
        for update in updates:
            model[update.piece.part], _ = averaged(model, [update], Averaging(device.view.lora))
            device.delivered(update)
        torch.testing.assert_close(logits(device, model), trained, rtol=1e-4, atol=1e-5)
        device.receive(list(model.values()))
        torch.testing.assert_close(local_logits(device), trained, rtol=1e-4, atol=1e-5)
        assert not device.trained


@pytest.mark.parametrize(("average", "kept"), [("refactor", False), ("merge", False), ("factors", True), (None, True)])
def test_moments_belong_to_the_factors_that_they_were_made_of(average, kept: bool) -> None:
    """`python benchmarks/moments.py`: kept across factors of another basis, they cost the baseline ten points."""
    (device,) = devices(1, LoRA(2, 4, average) if average else None)
    device.train(TASK, 1)
    for update in device.snapshot(TASK.parts):
        device.delivered(update)
    assert set(device.optimizer_state) == TASK.parts
    device.receive([replace(piece, version=1) for part, piece in device.held.items() if part in TASK.parts])
    assert set(device.optimizer_state) == (TASK.parts if kept else set())


@pytest.mark.parametrize("average", ["refactor", "merge"])
def test_merge_and_refactor_agree_at_full_rank(average) -> None:
    """Against the mean of the local models' weights, which is what (31) says."""
    group = devices(2, LoRA(16, 16, average))
    dense = View(build("mixtral"))
    base = {part: dense.export(part) for part in dense.parts}
    for device in group:
        device.train(TASK, 2)
    model = dict(group[0].held)
    for part in sorted(TASK.parts):
        local = [d.view.merged(part, base[part], d.trained[part]) for d in group]
        dense.install(part, {name: (local[0][name] + local[1][name]) / 2 for name in local[0]})
        updates = [u for d in group for u in d.snapshot([part])]
        model[part], facts = averaged(model, updates, Averaging(group[0].view.lora))
        assert facts.get("truncation", 0.0) < 1e-6
    dense.model.eval()
    with torch.no_grad():
        expected = dense(DATA)
    torch.testing.assert_close(logits(group[0], model), expected, rtol=1e-4, atol=1e-5)


def test_refactoring_reports_what_it_loses() -> None:
    group = devices(2, LoRA(1, 1))
    for device in group:
        device.train(TASK, 2)
    updates = [u for d in group for u in d.snapshot(["expert:0"])]
    piece, facts = averaged(group[0].held, updates, Averaging(group[0].view.lora))
    assert 0 < facts["truncation"] < 1
    assert piece.tensors.keys() == updates[0].piece.tensors.keys()


@pytest.mark.parametrize("average", ["refactor", "merge", "factors"])
def test_changes_add_up_when_somebody_else_was_faster(average) -> None:
    """Two devices train the same version; the second one's change is put on top of the first one's result."""
    group = devices(2, LoRA(16, 16, average))
    sent = dict(group[0].held)
    model = dict(sent)
    for device in group:
        device.train(TASK, 1)
        for update in device.snapshot(["expert:0"]):
            model["expert:0"], _ = changed(model, sent["expert:0"], [update], Averaging(device.view.lora))
    assert model["expert:0"].version == 2
    if average == "factors":
        return  # A and B apart: not a sum of products
    view = group[0].view
    base = View(build("mixtral")).export("expert:0")
    total = dict(base)
    for device in group:
        local = view.merged("expert:0", base, device.trained["expert:0"])
        total = {name: total[name] + local[name] - base[name] for name in base}
    piece = model["expert:0"].tensors
    result = piece if average == "merge" else view.merged("expert:0", base, piece)
    for name in base:
        torch.testing.assert_close(result[name], total[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("average", ["refactor", "merge", "factors"])
def test_rounds_after_a_snapshot_are_kept(average) -> None:
    """The server has a snapshot, the device has trained on: it goes on from the server's model with what came after."""
    (device,) = devices(1, LoRA(16, 16, average))
    device.train(TASK, 1)
    (early,) = device.snapshot(["expert:0"])
    device.train(TASK, 1)
    expected = local_logits(device)
    device.delivered(early)
    model, _ = averaged(device.held, [early], Averaging(device.view.lora))
    device.receive([model])
    assert device.pending["expert:0"] == 1
    tolerance = {"factors": 1e-5, "refactor": 1e-4, "merge": 1e-4}[average]
    torch.testing.assert_close(local_logits(device), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (50.0, 50.0), (500.0, 0.0), (0.0, 500.0), (500.0, 500.0)])
@pytest.mark.parametrize("average", ["refactor", "merge", "factors", None])
def test_what_the_gate_would_refuse_is_what_has_diverged(average, a: float, b: float) -> None:
    """The gate sees weights where adapters are merged: then it is their products that have a bound, and not the factors."""
    (device,) = devices(1, LoRA(16, 16, average) if average else None)
    device.train(TASK, 1)
    values = {name: torch.full_like(t, b if name.endswith(B) else a) for name, t in device.trained["expert:0"].items()}
    device.trained["expert:0"] = values
    (update,) = device.snapshot(["expert:0"])
    refused = differs(update.piece.tensors, device.held["expert:0"])
    assert (refused is not None) == {"merge": a * b > 100, None: a > 100}.get(average, max(a, b) > 100)
    assert device.diverged(["expert:0"]) == (["expert:0"] if refused else [])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("average", ["refactor", "merge", "factors", None])
def test_one_number_that_is_not_finite_has_diverged_wherever_it_stands(average, number: float) -> None:
    """A norm that is none compares with no bound; and zeros in the other factor do not hide it in a product."""
    (device,) = devices(1, LoRA(2, 2, average) if average else None)
    device.train(TASK, 1)
    started = {name: tensor.clone() for name, tensor in device.trained["expert:0"].items()}
    for name in started:
        values = {n: torch.zeros_like(t) if n != name else t.clone() for n, t in started.items()}
        assert device.diverged(["expert:0"]) == []
        values[name].view(-1)[-1] = number
        device.trained["expert:0"] = values
        assert device.diverged(["expert:0"]) == ["expert:0"], name
        device.trained["expert:0"] = started


@pytest.mark.parametrize(("codec", "share"), [("exact", 4.0), ("bf16", 2.0), ("int8", 1.0)])
def test_bytes_are_those_of_the_file(codec, share: float) -> None:
    (device,) = devices(1, None, codec)
    device.train(TASK, 1)
    (update,) = device.snapshot(["expert:0"])
    numbers = sum(t.numel() for t in device.view.leaves["expert:0"].values())
    assert update.size_B == device.upload_B("expert:0")
    assert share * numbers < update.size_B < share * numbers + 1500  # header and scales


@pytest.mark.parametrize(("codec", "within"), [("bf16", 2**-8), ("int8", 0.5 / 127)])
def test_a_change_is_rounded_not_the_value(codec, within: float) -> None:
    (device,) = devices(1, None, codec)
    device.train(TASK, 1)
    (update,) = device.snapshot(["expert:0"])
    for name, arrived in update.piece.tensors.items():
        change = device.trained["expert:0"][name] - device.held["expert:0"].tensors[name]
        assert (arrived - device.trained["expert:0"][name]).abs().max() <= within * change.abs().max() + 1e-7
        assert change.abs().max() < 0.1


def test_error_feedback_by_hand() -> None:
    """int8 of one number is exact, so the expert has two: 127 and 0.4 steps. What is lost goes with the next upload."""
    view, model, _ = toy.make({"a": [toy.samples(0, 1.0)]})
    device = Device("a/0", view, toy.samples(0, 1.0), model, toy.HALF, 0, toy.Plain(toy.half_square), "int8")
    name = "moe.experts.0.value"
    pair = torch.tensor([[0.0, 0.0]])
    server = Piece("expert:0", 0, {name: pair})
    device.view.leaves["expert:0"] = {name: pair}
    arrived = []
    for _ in range(3):
        device.receive([server])
        device.trained["expert:0"] = {name: server.tensors[name] + torch.tensor([[1.27, 0.004]])}
        device.pending["expert:0"] = 1
        (update,) = device.snapshot(["expert:0"])
        device.delivered(update)
        arrived.append([round(x, 4) for x in (update.piece.tensors[name] - server.tensors[name]).flatten().tolist()])
        server = Piece("expert:0", server.version + 1, update.piece.tensors)
    assert arrived == [[1.27, 0.0], [1.27, 0.01], [1.27, 0.0]]  # 0.004; 0.008 rounds up; 0.002
    device.receive([server])
    assert device.residual["expert:0"][name].flatten().tolist() == pytest.approx([0.0, 0.002], abs=1e-5)


def test_a_second_upload_from_the_same_version_replaces_the_first() -> None:
    """The residual of older versions goes with both, since the server keeps only the later one."""
    (device,) = devices(1, None, "int8")
    device.residual["expert:0"] = {n: torch.full_like(t, 0.5) for n, t in device.held["expert:0"].tensors.items()}
    for _ in range(2):
        device.train(TASK, 1)
        (update,) = device.snapshot(["expert:0"])
        device.delivered(update)
        for name, arrived in update.piece.tensors.items():
            assert (arrived - device.trained["expert:0"][name] - 0.5).abs().max() < 0.01
    assert "expert:0" in device.lost


def test_factors_that_are_factored_again_carry_no_residual() -> None:
    (device,) = devices(1, LoRA(2, 2, "refactor"), "int8")
    device.train(TASK, 1)
    (update,) = device.snapshot(["expert:0"])
    device.delivered(update)
    assert not device.lost
