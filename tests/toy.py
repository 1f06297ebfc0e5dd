"""A toy whose numbers a person checks by hand: two experts that are single numbers, and a gate that picks by the input.

The model's output for a sample is the value of the picked expert plus the gate's bias; the loss is half its square
distance to the label. A full-batch SGD step with learning rate 1/2 then moves expert and bias by half the mean error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedexperts.data.objective import Judged
from fedexperts.ledger import read
from fedexperts.moe.layer import MoELayer
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.protocol.ems_fl import EnhancedEmsFl, ExpertOwners, Resplit, Split
from fedexperts.protocol.link import Start
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.host import Host, LocalHost

FILE_B = 92
"""Every part of the toy is one number, and a file of this size on the link (names are as long as that takes)."""


class Constant(nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([[value]]))

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.value.expand(len(x_TD), 1)


class Toy(nn.Module):
    """Input x_TD is one-hot over experts: expert m is picked where x = e_m. ``head`` is one number that is added."""

    def __init__(self, values: tuple[float, ...] = (0.0, 0.0)):
        super().__init__()
        self.moe = MoELayer(len(values), [Constant(v) for v in values], top_k=1, top1="paper")
        with torch.no_grad():
            self.moe.gate.weight.copy_(torch.eye(len(values)))
        self.head = nn.ParameterDict({"added_to_every_one": nn.Parameter(torch.zeros(1))})

    def forward(self, x: Tensor) -> Tensor:
        return (self.moe(x) + self.head["added_to_every_one"]).squeeze(-1)


def judged(values: dict[str, float]) -> dict[str, Any]:
    """Any numbers of a model, as facts of an evaluation."""
    return {"metrics_by_cluster": {"server": values}}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A ledger, with those numbers as facts of their own."""
    return [{**line, **line.get("metrics_by_cluster", {}).get("server", {})} for line in read(path)]


def half_square(output: Tensor, label: Tensor) -> Tensor:
    return 0.5 * ((output - label) ** 2).mean()


@dataclass(frozen=True)
class Plain:
    """An objective that is any function of logits and labels."""

    function: Callable[[Tensor, Tensor], Tensor]
    metric: str = "accuracy"

    def loss(self, view, batch):
        return self.function(view(batch), batch["labels"])

    def inputs(self, samples):
        return samples

    def guess(self, view, samples):
        return float(self.function(torch.zeros(len(samples["labels"])), samples["labels"]))

    def judge(self, view, samples):
        with torch.no_grad():
            loss = float(self.loss(view, samples))
        return Judged(len(samples["labels"]), loss, -loss, {})


HALF = LocalTraining(local_steps=1, batch_size=None, optimizer="sgd", lr_expert=0.5, lr_gate=0.5)


def samples(expert: int, label: float, n: int = 2, experts: int = 2) -> dict[str, Tensor]:
    x = torch.zeros(n, experts)
    x[:, expert] = 1
    return {"x": x, "labels": torch.full((n,), label)}


def make(
    data: dict[str, list[dict[str, Tensor]]], values: tuple[float, ...] = (0.0, 0.0), local: LocalTraining = HALF
) -> tuple[View, dict[str, Piece], dict[str, list[Device]]]:
    """View, θ_0 and the devices of each cluster, one per data set given."""
    view = View(Toy(values))
    model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
    devices = {
        cluster: [Device(f"{cluster}/{j}", view, d, model, local, 0, Plain(half_square)) for j, d in enumerate(sets)]
        for cluster, sets in data.items()
    }
    return view, model, devices


def value(model: dict[str, Piece], part: str) -> float:
    return float(next(iter(model[part].tensors.values())).flatten()[0])


def hosts(devices: dict[str, list[Device]]) -> dict[str, Host]:
    """Each cluster's devices behind a Host."""
    return {name: LocalHost(group) for name, group in devices.items()}


def protocol(
    kind: Any,
    model: dict[str, Piece],
    owned: dict[str, frozenset[str]],
    cycles: int,
    gate_tail_cycles: int = 1,
    split: Split | None = None,
    every_cycles: int = 0,
    trial_samples: int = 0,
    **start: Any,
) -> Any:
    """A protocol whose devices train ``head`` together, with what is said of the start and of splits."""
    told = Start(model, tuple(owned), frozenset({"head"}), owned, cycles=cycles, **start)
    whose = kind.func if isinstance(kind, partial) else kind
    if not issubclass(whose, ExpertOwners):
        return kind(told)
    resplit = Resplit(split, every_cycles, trial_samples)
    return kind(told, resplit, gate_tail_cycles) if issubclass(whose, EnhancedEmsFl) else kind(told, resplit)
