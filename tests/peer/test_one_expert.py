"""A client's model holds extractor, gate and its own expert, and has read nothing else."""

from pathlib import Path

import pytest
import torch
from conftest import CLIENTS

from fedexperts.errors import InputError
from fedexperts.moe.auto import AUTO
from fedexperts.moe.checkpoint import Checkpoint
from fedexperts.moe.one_expert import load_one_expert, shared_digest
from fedexperts.moe.subset import load_full


def test_the_others_tensors_are_neither_read_nor_held(trained: Path) -> None:
    checkpoint = Checkpoint(trained / "model")
    model = load_one_expert(checkpoint, 2)
    held = model.state_dict()
    assert {name.split(".")[2] for name in held if name.startswith("moe.experts.")} == {"2"}
    assert checkpoint.read_B == sum(tensor.numel() * 4 for tensor in held.values())
    expert_B = sum(t.numel() * 4 for name, t in held.items() if name.startswith("moe.experts."))
    whole = Checkpoint(trained / "model")
    load_full(whole, AUTO["image-classifier"])
    assert checkpoint.read_B == whole.read_B - (CLIENTS - 1) * expert_B


def test_its_tensors_are_those_of_the_whole_model(trained: Path) -> None:
    whole = load_full(trained / "model", AUTO["image-classifier"]).state_dict()
    for name, tensor in load_one_expert(trained / "model", 1).state_dict().items():
        assert torch.equal(tensor, whole[name])


def test_an_expert_that_is_elsewhere_cannot_be_asked_here(trained: Path) -> None:
    model = load_one_expert(trained / "model", 0)
    with pytest.raises(RuntimeError, match="held by another client"):
        model.moe.experts[1](torch.zeros(1, 64))


def test_the_digest_is_of_what_is_shared_alone(trained: Path) -> None:
    found = {shared_digest(load_one_expert(trained / "model", own)) for own in (None, 0, 3)}
    assert len(found) == 1
    for name in ("moe.gate.weight", "extractor.0.weight"):
        model = load_one_expert(trained / "model", 0)
        model.get_parameter(name).data[0] += 1
        assert shared_digest(model) not in found
    model = load_one_expert(trained / "model", 0)
    model.moe.experts[0][0].weight.data += 1
    assert shared_digest(model) in found


def test_a_client_that_is_not_there_is_refused(trained: Path) -> None:
    for own in (-1, CLIENTS):
        with pytest.raises(InputError, match=f"has experts 0…{CLIENTS - 1}"):
            load_one_expert(trained / "model", own)
