"""Numbers that leave the finite: a device that diverges is left out, and a run that has nothing finite left stops."""

from pathlib import Path
from typing import Any

import pytest
import torch

import small
import toy
from fedexperts import run
from fedexperts.contact.plan import round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.errors import Diverged
from fedexperts.ledger import Ledger, read
from fedexperts.moe.parts import Piece
from fedexperts.protocol.aggregate import averaged
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl
from fedexperts.protocol.link import Start
from fedexperts.protocol.sync import Sync
from fedexperts.train.task import Update

INF = float("inf")
OWNED = {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}


def play(protocol_class: Any, labels: dict[str, list[float]], path: Path) -> tuple[Any, list[dict[str, Any]]]:
    data = {c: [toy.samples("ab".index(c), label) for label in found] for c, found in labels.items()}
    _, model, devices = toy.make(data)
    protocol = protocol_class(Start(model, tuple(data), frozenset({"head"}), OWNED, cycles=2))
    ledger = Ledger(path / "ledger.jsonl")
    try:
        Simulator(
            round_robin(list(data), 3, 1.0), toy.hosts(devices), Pace(1.0), 2, ledger, lambda model, cycle: {"accuracy": 0.0}
        ).run(protocol)
    finally:
        ledger.close()
    return protocol, list(read(path / "ledger.jsonl"))


@pytest.mark.parametrize("protocol_class", [Sync, EmsFl, EnhancedEmsFl])
def test_a_device_that_diverges_is_left_out_and_the_ledger_says_so(protocol_class: Any, tmp_path: Path) -> None:
    broken, lines = play(protocol_class, {"a": [8.0, INF], "b": [5.0]}, tmp_path)
    alone, _ = play(protocol_class, {"a": [8.0], "b": [5.0]}, tmp_path)
    refused = [line for line in lines if line["event"] == "refuse"]
    assert refused
    assert {(x["cluster"], x["device"], x["reason"]) for x in refused} == {("a", "a/1", "diverged")}
    for part in ("expert:0", "expert:1", "head"):  # as if the device were not there
        assert toy.value(broken.model, part) == toy.value(alone.model, part)
    assert toy.value(broken.model, "expert:0") != 0


@pytest.mark.parametrize("protocol_class", [Sync, EmsFl, EnhancedEmsFl])
def test_a_run_stops_when_no_device_of_a_part_is_left(protocol_class: Any, tmp_path: Path) -> None:
    with pytest.raises(
        Diverged,
        match=r"expert:0 has diverged in local training on all devices \(cluster a, cycle 1\): it is not finite, or .*; lower",
    ):
        play(protocol_class, {"a": [INF, INF], "b": [5.0]}, tmp_path)
    lines = list(read(tmp_path / "ledger.jsonl"))
    assert [line["device"] for line in lines if line["event"] == "refuse"] == ["a/0", "a/1"]


def test_a_cluster_whose_devices_all_diverge_does_not_stop_the_others(tmp_path: Path) -> None:
    """All train every part in the baseline; b has finite numbers of it, and goes on."""
    protocol, lines = play(Sync, {"b": [5.0], "a": [INF]}, tmp_path)
    assert {(x["cluster"], x["device"]) for x in lines if x["event"] == "refuse"} == {("a", "a/0")}
    assert lines[-1]["event"] == "end"
    assert torch.isfinite(torch.tensor([toy.value(protocol.model, part) for part in protocol.model])).all()
    assert toy.value(protocol.model, "expert:1") != 0


def test_what_was_trained_before_counts_again_after_a_divergence() -> None:
    _, model, devices = toy.make({"a": [toy.samples(0, 8.0)]})
    (device,) = devices["a"]
    device.trained["head"] = {name: torch.full_like(t, float("nan")) for name, t in model["head"].tensors.items()}
    device.pending["head"] = 3
    assert device.diverged(["expert:0", "head"]) == ["head"]
    assert not device.trained
    assert not device.pending
    assert device.snapshot(["head"]) == []


def test_a_mean_beyond_the_range_is_no_version() -> None:
    piece = Piece("head", 0, {"x": torch.zeros(1)})
    updates = [Update(f"a/{j}", Piece("head", 0, {"x": torch.tensor([3e38])}), 1, 4, 92) for j in range(2)]
    with pytest.raises(Diverged, match=r"head is not finite after aggregation \(version 1\)"):
        averaged({"head": piece}, updates)


def test_rates_that_are_too_large_stop_a_run_with_a_ledger_that_is_json(tmp_path: Path) -> None:
    given = small.scenario(train={"cycles": 3, "optimizer": "sgd", "lr_expert": 1e30, "lr_gate": 1e30})
    with pytest.raises(Diverged, match=r"lower train\.lr_expert or train\.lr_gate"):
        run(given, tmp_path / "run")
    text = (tmp_path / "run" / "ledger.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert [line["event"] for line in read(tmp_path / "run" / "ledger.jsonl")][-1] in ("refuse", "evaluate", "aggregate")
    assert not (tmp_path / "run" / "model").exists()
