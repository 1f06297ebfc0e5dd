"""A model that is computed on another device than the one where data, pieces and states are: whole runs, and what they left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fingerprints
import pictures
import small
from elsewhere import THERE, Elsewhere, second_device
from fedexperts import InputError, Scenario, run
from fedexperts.data.classify import Classification
from fedexperts.data.digits import DOMAINS
from fedexperts.ledger import read
from fedexperts.method import elsewhere
from fedexperts.moe.auto import new_model
from fedexperts.moe.lora import LoRA
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.setup import prepare
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.task import Task

SHORT: dict[str, Any] = {
    "train": {"cycles": 2, "local_steps": 1, "batch_size": 8},
    "evaluation": {"every_cycles": 3},
    "cluster": [{"name": name, "devices": 1, "data": f"digits:{name}"} for name in DOMAINS[:2]],
}
ROLLING = {
    "networked": {"extractor": "fedsc", "extractor_cycles": 1, "expert_cycles": 1, "gate": "rolling", "gate_cycles": 1},
    "train": {**fingerprints.NETWORKED["train"], "cycles": 3, "local_steps": 1},
    "evaluation": {"every_cycles": 4},
}
DROPPED = {"data": ["digits:plain"], "samples": 40, "steps": 2, "token_dropout": 0.5, "gate_fit": 0.5}
ADAPTED = {"config": small.CONFIG, "uplink": "int8", "noise_std": 0.1, "lora": {"rank": 2, "alpha": 4.0, "average": "merge"}}
BATCHED = {
    "train": {"cycles": 2, "local_steps": 2, "batch_size": 8, "optimizer": "adamw", "cohort": "batched"},
    "cluster": [{"name": name, "devices": 2, "data": f"digits:{name}"} for name in DOMAINS[:2]],
}
RUNS: dict[str, dict[str, Any]] = {
    "warmed up with dropped tokens": fingerprints.text(SHORT, {"warmup": DROPPED}),
    "adapters, merged, in int8, under noise": fingerprints.text(SHORT, {"protocol": "ems-fl-enhanced", "model": ADAPTED}),
    "devices in one batch": fingerprints.text(SHORT, BATCHED),
    "networked, a rolling gate": fingerprints.merged(fingerprints.NETWORKED, ROLLING),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_second_device_ends_as_on_the_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "activations_B", lambda *_: 1000)  # counts storages, which tensors of this device have not
    pictures.npz(tmp_path / "train.npz", 60)
    pictures.npz(tmp_path / "test.npz", 60, seed=1)
    scenario = Scenario.parse(RUNS[name], tmp_path)
    here = run(scenario, tmp_path / "here").directory
    with second_device():
        there = run(scenario, tmp_path / "there").directory
    for path in sorted(here.rglob("*.safetensors")):
        if "checkpoints" not in path.parts:
            wanted, found = load_file(path), load_file(there / path.relative_to(here))
            for key, tensor in wanted.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-3, msg=f"{path.name}: {key}")
    steps = [[line.get("steps") for line in read(at / "ledger.jsonl")] for at in (here, there)]
    assert steps[0] == steps[1]


def test_the_second_device_refuses_what_a_gpu_would() -> None:
    with second_device():
        there = torch.ones(2, 3).to(THERE)
        assert isinstance(there + torch.zeros(3, device=THERE) + 1.0, Elsewhere)
        assert (there @ torch.ones(3).to(THERE)).tolist() == [3, 3]
        assert there[torch.tensor([0])].shape == (1, 3)  # an index may lie here
        for mixed in (
            lambda: there + torch.ones(3),
            lambda: nn.Linear(3, 1)(there),
            lambda: torch.ones(2)[torch.zeros(1, dtype=torch.long).to(THERE)],
            lambda: torch.rand(2, device=THERE, generator=torch.Generator()),
            lambda: torch.where(torch.ones(3) > 0, 0.0, there),
            lambda: there.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()


def test_what_a_device_keeps_lies_beside_the_data() -> None:
    samples = {"input_ids": torch.ones(8, 4, dtype=torch.long), "labels": torch.zeros(8, dtype=torch.long)}
    with second_device():
        view = View(new_model(small.CONFIG, 0).to(THERE))
        view.adapt(LoRA(2, 4.0), seed=0)
        model = {part: Piece(part, 0, view.export(part)) for part in view.parts}
        local = LocalTraining(local_steps=2, batch_size=4, optimizer="adamw")
        device = Device("a/0", view, samples, model, local, 0, Classification(0, 10))
        device.train(Task(frozenset({"expert:1", "gate"}), route=frozenset({"expert:1"})), rounds=1)
        kept = [t for of in device.trained.values() for t in of.values()]
        states = [t for part in device.optimizer_state.values() for of in part.values() for t in of.values()]
    assert kept
    assert states
    assert {tensor.device.type for tensor in [*kept, *states]} == {"cpu"}


def saved(tmp_path: Path) -> Scenario:
    new_model(small.CONFIG, 0).save_pretrained(tmp_path / "model")
    return small.scenario(model={"config": None, "path": str(tmp_path / "model")})


@pytest.mark.parametrize("load", ["own", "stream"])
def test_part_of_a_model_is_computed_where_the_scenario_says(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, batch = saved(tmp_path), {"input_ids": torch.tensor([[1, 2, 3, 4]])}
    here = elsewhere.partial_view(scenario, ["expert:1", "expert:2"], load)
    with second_device(), torch.no_grad():
        monkeypatch.setattr(elsewhere, "accelerator", lambda table: torch.device(THERE))
        there = elsewhere.partial_view(scenario, ["expert:1", "expert:2"], load)
        assert there.device == torch.device(THERE)
        found = there({"input_ids": batch["input_ids"].to(THERE)}).cpu()
        torch.testing.assert_close(found, here(batch))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("load", ["own", "stream"])
def test_part_of_a_model_is_refused_a_gpu_that_is_not_there(load: Any, tmp_path: Path) -> None:
    scenario = saved(tmp_path).changed(model={"accelerator": "cuda"})
    with pytest.raises(InputError, match="no GPU that torch can use"):
        elsewhere.partial_view(scenario, ["expert:1"], load)


def test_preparing_looks_for_the_model_where_the_second_device_puts_it() -> None:
    with second_device():
        assert prepare.prepare(small.scenario()).view.device == torch.device(THERE)
