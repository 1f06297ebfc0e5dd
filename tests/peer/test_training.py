"""A gate trained against remote experts: the same gate, and the bytes that a simulated run counts."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLIENTS, scenario

import small
from fedexperts.method.methods import prepare
from fedexperts.moe.auto import AUTO
from fedexperts.moe.parts import BACKBONE, GATE, STATISTICS, Piece, expert
from fedexperts.moe.subset import load_full
from fedexperts.moe.view import View
from fedexperts.peer.local import Local
from fedexperts.peer.peers_file import Patience
from fedexperts.peer.training import Peers
from fedexperts.train.member import call_B
from fedexperts.train.task import Task


def trainer(trained: Path, folder: Path, gate_top_k: int) -> Any:
    """A device of client 0 with the run's extractor and experts, about to train its gate."""
    prepared = prepare(scenario(folder))
    device = small.devices(prepared)["c/0"][0]
    whole = View(load_full(trained / "model", AUTO["image-classifier"]))
    for part in whole.parts:
        device.held[part] = Piece(part, 1, whole.export(part))
    size = prepared.view.model.config.latent_size
    told = {"mean": torch.zeros(size), "spread": torch.ones(size), "load": torch.full((CLIENTS,), 1 / CLIENTS)}
    device.held[STATISTICS] = Piece(STATISTICS, 1, told)
    device.member.client = replace(device.member.client, gate_top_k=gate_top_k)
    return device, prepared.view


def gate_of(trained: Path, folder: Path, k: int, peers: Any = None) -> tuple[dict[str, torch.Tensor], int, Any]:
    device, view = trainer(trained, folder, k)
    others = {expert(m): device.held[expert(m)] for m in range(CLIENTS)}
    task = Task(frozenset({GATE, STATISTICS}), goal="gate", peers=True, unit_gradient=True)
    if peers is None:
        device.train(task, 2, peers=others)
        return dict(device.trained[GATE]), device.member.peer_B, None
    with peers(view.model) as door:
        device.train(task, 2, peers=others)
        return dict(device.trained[GATE]), device.member.peer_B, door


def test_a_gate_trained_over_the_network_is_that_of_one_process_and_costs_the_bytes_that_were_counted(
    trained: Path, files: Path, network: Local
) -> None:
    here, counted_B, _ = gate_of(trained, trained.parent, CLIENTS)
    there, also_B, door = gate_of(trained, trained.parent, CLIENTS, lambda model: Peers(trained, 0, files, model))
    assert counted_B == also_B > 0
    assert door.numbers_B == counted_B
    assert door.fallbacks == 0
    assert all(torch.equal(there[name], tensor) for name, tensor in here.items())


def test_picks_that_are_sent_cost_what_a_call_costs(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    view = View(load_full(trained / "model", AUTO["image-classifier"]))
    view.model.eval()
    with torch.no_grad():
        expected = view.model(images).logits
        picks = view.model.moe.gate(view.model.latents(images)).argmax(dim=1)
        with Peers(trained, 0, files, view.model) as door:
            found = view.model(images).logits
        assert torch.equal(view.model(images).logits, expected), "the model was not put together again"
    assert torch.equal(found, expected)
    assert door.numbers_B == int((picks != 0).sum()) * call_B(view) > 0


def test_an_expert_that_is_away_is_stood_in_for_and_training_goes_on(trained: Path, files: Path, network: Local) -> None:
    patience = Patience(deadline_s=1.0, timeout_after_k_min_s=1.0)
    network.signal(3, signal.SIGSTOP)
    try:
        gate, _, door = gate_of(
            trained, trained.parent, CLIENTS, lambda model: Peers(trained, 0, files, model, patience=patience)
        )
    finally:
        network.signal(3, signal.SIGCONT)
    assert door.fallbacks > 0
    assert all(tensor.isfinite().all() for tensor in gate.values())


def test_the_models_other_experts_are_not_here(trained: Path, files: Path, images: torch.Tensor, network: Local) -> None:
    """Changing them changes nothing while others are asked."""
    view = View(load_full(trained / "model", AUTO["image-classifier"]))
    view.model.eval()
    with torch.no_grad():
        expected = view.model(images).logits
        for m in range(1, CLIENTS):
            for tensor in view.parts[expert(m)].values():
                tensor.zero_()
        with Peers(trained, 0, files, view.model):
            assert torch.equal(view.model(images).logits, expected)
        assert not torch.equal(view.model(images).logits, expected)
    assert BACKBONE in view.parts
    with pytest.raises(Exception, match="is none of the others"), Peers(trained, 0, files, view.model) as door:
        door.traffic(0)
