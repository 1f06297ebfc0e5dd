"""The rules of protocols to compare with, written again from the papers in float64 and played beside ours on the toy.

FedAsync (Xie et al. 2019, Algorithm 1), FedBuff (Nguyen et al. 2022, Algorithm 1), server optimisers (Reddi et al. 2021,
Algorithm 2; FedAvgM: Hsu et al. 2019), FedProx (Li et al. 2020, (2)), and means of adapters (FlexLoRA, Bai et al. 2024). In a
round robin of C clusters each trains C rounds between two contacts; its last ones end with training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import toy
from fedexperts.contact.plan import Contact, ContactPlan, always_on, round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger
from fedexperts.moe.lora import A, B, LoRA
from fedexperts.moe.parts import Piece
from fedexperts.protocol.asynchronous import FedAsync, FedBuff
from fedexperts.protocol.ems_fl import EmsFl
from fedexperts.protocol.link import Start
from fedexperts.protocol.step import Step
from fedexperts.protocol.sync import Sync
from fedexperts.train.device import LocalTraining
from fedexperts.train.task import Update

PARTS = ("expert:0", "expert:1", "head")
START, LR, CYCLES = (1.5, -0.5, 0.0), np.array([0.11, 0.11, 0.07]), 3
Data = dict[str, list[tuple[Any, Any]]]
"""Of each cluster its devices: which expert each sample picks, and its label."""


def drawn(clusters: int) -> Data:
    rng = np.random.default_rng(clusters)
    return {"abcd"[c]: [(rng.integers(0, 2, n), rng.normal(0, 5, n)) for n in rng.integers(2, 6, 3)] for c in range(clusters)}


def play(kind: Any, plan: ContactPlan, data: Data, path: Path, mu: float = 0.0, cycles: int = CYCLES, **told: Any) -> Any:
    batches = {
        name: [{"x": torch.eye(2)[torch.tensor(m)], "labels": torch.tensor(y, dtype=torch.float32)} for m, y in devices]
        for name, devices in data.items()
    }
    local = LocalTraining(1, None, "sgd", lr_expert=LR[0], lr_gate=LR[2], proximal_mu=mu)
    closes_s, owned = told.pop("closes_s", None), told.pop("owned", dict.fromkeys(data, frozenset()))
    _, model, devices = toy.make(batches, START[:2], local)
    protocol = toy.protocol(kind, model, owned, cycles, **told)
    with closing(Ledger(path / "ledger.jsonl")) as ledger:
        Simulator(plan, toy.hosts(devices), Pace(1.0), cycles, ledger, lambda *_: {}, closes_s=closes_s).run(protocol)
    return protocol


def values(protocol: Any) -> Any:
    return [toy.value(protocol.model, part) for part in PARTS]


# ---- from the papers


def local(received: Any, device: tuple[Any, Any], rounds: int, mu: float, begin: Any = None, rates: Any = LR) -> Any:
    """Gradient steps on F(w) + μ/2·‖w − received‖², from there or from ``begin``."""
    w, (picks, labels) = np.array(received if begin is None else begin), device
    for _ in range(rounds):
        error = w[picks] + w[2] - labels
        gradient = np.array([error[picks == 0].sum(), error[picks == 1].sum(), error.sum()]) / len(labels)
        w = w - rates * (gradient + mu * (w - received))
    return w


def mean_of(received: Any, devices: list[tuple[Any, Any]], rounds: int, mu: float = 0.0) -> Any:
    """n_j / n of each."""
    return np.average([local(received, d, rounds, mu) for d in devices], axis=0, weights=[len(d[1]) for d in devices])


def visits(clusters: int) -> Iterator[tuple[int, int]]:
    """Which cluster is met, and the rounds that it has made since the last time."""
    for cycle in range(CYCLES):
        yield from ((c, clusters if cycle else 0) for c in range(clusters))
    yield from ((c, clusters - c) for c in range(clusters))  # the flush


def fedasync(data: Data, alpha: float, a: float, mu: float) -> Any:
    x, t, received = np.array(START), 0, dict[int, Any]()
    for c, rounds in visits(len(data)):
        if rounds:
            sent, tau = received[c]
            alpha_t = alpha * (t - tau + 1.0) ** -a
            x, t = (1 - alpha_t) * x + alpha_t * mean_of(sent, [*data.values()][c], rounds, mu), t + 1
        received[c] = x, t
    return x


def fedbuff(data: Data, size: int, server: Any) -> Any:
    x, t, received, buffer = np.array(START), 0, dict[int, Any](), list[Any]()
    for c, rounds in visits(len(data)):
        if rounds:
            sent, tau = received[c]
            buffer.append((mean_of(sent, [*data.values()][c], rounds) - sent) / (1 + t - tau) ** 0.5)
            if len(buffer) == size:
                x, t, buffer = x + server(sum(buffer) / size), t + 1, []
        received[c] = x, t
    return x


def ems_fl(data: Data, mu: float) -> Any:
    """Algorithm 2 with FedProx, where cluster c owns expert c: what is trained is held to what came down last."""
    x, kept, head = np.array(START), dict[int, Any](), np.arange(3) == 2
    for visit, (c, rounds) in enumerate(visits(2)):
        mine, devices = np.arange(3) == c, [*data.values()][c]
        share = [len(labels) for _, labels in devices]
        if rounds:  # the first was in contact
            received, made = kept[c]
            made = [local(received, d, rounds - 1, mu, w, LR * mine) for d, w in zip(devices, made, strict=True)]
            x = np.where(mine, np.average(made, axis=0, weights=share), x)  # (31)
        if visit < 2 * CYCLES:
            made = [local(x, d, 1, mu, rates=LR * (mine | head)) for d in devices]  # (34), (36)
            x = np.where(head, np.average(made, axis=0, weights=share), x)  # (32)
            kept[c] = x, [np.where(head, x, w) for w in made]
    return x


class Opt:
    """FedAvg with η, FedAvgM, FedAdam and FedYogi: what a mean change moves the model by."""

    def __init__(self, name: str, lr: float, beta1: float, beta2: float, tau: float):
        self.name, self.lr, self.beta1, self.beta2, self.tau = name, lr, beta1, beta2, tau
        self.m, self.v = np.zeros(3), np.full(3, tau**2)

    def __call__(self, change: Any) -> Any:
        if self.name == "sgd":
            return self.lr * change
        if self.name == "momentum":
            self.m = self.beta1 * self.m + change
            return self.lr * self.m
        self.m = self.beta1 * self.m + (1 - self.beta1) * change
        if self.name == "adam":
            self.v = self.beta2 * self.v + (1 - self.beta2) * change**2
        else:
            self.v = self.v - (1 - self.beta2) * change**2 * np.sign(self.v - change**2)
        return self.lr * self.m / (np.sqrt(self.v) + self.tau)


# ---- and ours


@pytest.mark.parametrize(("alpha", "a", "mu"), [(0.6, 0.5, 0.0), (0.9, 0.0, 0.0), (0.6, 0.5, 0.8)])
def test_fedasync(alpha: float, a: float, mu: float, tmp_path: Path) -> None:
    data = drawn(3)
    kind = partial(FedAsync, mixing=alpha, staleness_exponent=a)
    protocol = play(kind, round_robin([*data], CYCLES + 1, 1.0), data, tmp_path, mu, weights="samples")
    assert values(protocol) == pytest.approx(fedasync(data, alpha, a, mu), abs=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.8])
def test_ems_fl_with_fedprox(mu: float, tmp_path: Path) -> None:
    data, owned = drawn(2), {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}
    protocol = play(EmsFl, round_robin([*data], CYCLES + 1, 1.0), data, tmp_path, mu, weights="samples", owned=owned)
    assert values(protocol) == pytest.approx(ems_fl(data, mu), abs=1e-5)


SERVERS = [("sgd", 0.7), ("momentum", 0.3), ("adam", 0.3), ("yogi", 0.3)]


@pytest.mark.parametrize(("name", "lr"), SERVERS)
@pytest.mark.parametrize("size", [1, 2])
def test_fedbuff(name: Any, lr: float, size: int, tmp_path: Path) -> None:
    data, numbers = drawn(3), (lr, 0.8, 0.95, 0.05)
    kind = partial(FedBuff, buffer=size, step=Step(name, *numbers))
    protocol = play(kind, round_robin([*data], CYCLES + 1, 1.0), data, tmp_path, weights="samples")
    assert values(protocol) == pytest.approx(fedbuff(data, size, Opt(name, *numbers)), abs=1e-5)


@pytest.mark.parametrize(("name", "lr"), SERVERS)
@pytest.mark.parametrize("all_at_once", [False, True])
def test_server_optimisers(name: Any, lr: float, all_at_once: bool, tmp_path: Path) -> None:
    data, numbers = drawn(3), (lr, 0.8, 0.95, 0.05)
    server, x = Opt(name, *numbers), np.array(START)
    for _ in range(CYCLES):
        for group in [[*chain(*data.values())]] if all_at_once else data.values():
            x = x + server(mean_of(x, group, 1) - x)
    plan = (always_on if all_at_once else round_robin)([*data], CYCLES + 1, 1.0)
    overlap = "mean" if all_at_once else "add"
    protocol = play(partial(Sync, step=Step(name, *numbers)), plan, data, tmp_path, weights="samples", overlap=overlap)
    assert values(protocol) == pytest.approx(x, abs=1e-5)


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi"])
def test_who_returns_late_turns_no_newer_step_back(name: Any, tmp_path: Path) -> None:
    """b is lost with what it made of θ_0; a makes a step more before b is met again, and m and v have that step too."""
    data, numbers = drawn(2), (0.3, 0.8, 0.95, 0.05)
    times = (("a", 0, 1), ("b", 0, 2), ("a", 5, 6), ("b", 8, 9))
    plan = ContactPlan(("a", "b"), tuple(Contact(name, start, end) for name, start, end in times), 10.0)
    kind = partial(Sync, step=Step(name, *numbers))
    protocol = play(kind, plan, data, tmp_path, cycles=2, weights="samples", overlap="mean", closes_s={1: 1.5})
    server, x = Opt(name, *numbers), np.array(START)
    change = mean_of(x, data["a"], 1) - x
    first = server(change)
    x = x + first
    x = x + server(mean_of(x, data["a"], 1) - x)
    # b's round of θ_0: the first step becomes that of both
    again = Opt(name, *numbers)
    x = x + again(mean_of(START, data["a"] + data["b"], 1) - START) - first
    x = x + server(mean_of(x, data["b"], 1) - x)
    assert values(protocol) == pytest.approx(x, abs=1e-5)


def adapter(*diagonal: float) -> dict[str, torch.Tensor]:
    """Of rank one: only one number is not zero."""
    return {"w" + A: torch.tensor([[float(d != 0) for d in diagonal]]), "w" + B: torch.tensor([[d] for d in diagonal])}


@pytest.mark.parametrize("order", ["abc", "bac", "cab"])
def test_clusters_in_view_together_are_one_mean_of_products_factored_once(order: str) -> None:
    """3, 2 and 5 on the diagonal: the mean (1, 7/3) has 7/3 at rank one, whatever rank one has left out on the way."""
    made = {"a": adapter(3, 0), "b": adapter(0, 2), "c": adapter(0, 5)}
    model = {"expert:0": Piece("expert:0", 0, adapter(0, 0))}
    protocol = Sync(Start(model, ("a", "b", "c"), frozenset(), {}, 1, lora=LoRA(1, 2.0), overlap="mean"))
    protocol.sent = {name: dict(protocol.model) for name in made}
    for name in order:
        link: Any = SimpleNamespace(cluster=name, log=lambda event, **facts: None)
        protocol.accept(link, [Update(f"{name}/0", Piece("expert:0", 0, made[name]), 1, 1, 0)])
    found = protocol.model["expert:0"].tensors
    torch.testing.assert_close(found["w" + B] @ found["w" + A], torch.diag(torch.tensor([0, 7 / 3])), atol=1e-5, rtol=1e-5)
