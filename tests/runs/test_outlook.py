"""What ``fedexperts plan`` says a contact carries, against ledgers of runs of every protocol; memory, energy and dates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import fingerprints
import pictures
import small
from fedexperts import InputError, Scenario, run
from fedexperts.ledger import read
from fedexperts.moe.parts import is_expert
from fedexperts.runs.forecast import forecast
from fedexperts.scenario import Prospect
from plans import document_of, method_of

MERGED = {"model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0, "average": "merge"}, "uplink": "int8"}}
EVEN = {"assignment": {"policy": "balanced", "trial_samples": 8}, "train": {"cycles": 5}}
CASES: dict[str, dict[str, Any]] = {
    "sync": fingerprints.text(EVEN, {"protocol": "sync"}),
    "ems-fl": fingerprints.text(EVEN, {"protocol": "ems-fl"}),
    "ems-fl-enhanced": fingerprints.text(EVEN, {"protocol": "ems-fl-enhanced"}),
    "adapters": fingerprints.text(EVEN, fingerprints.LORA, {"protocol": "ems-fl-enhanced"}),
    "merged adapters in int8": fingerprints.text(EVEN, MERGED),
    "layer by layer": fingerprints.text(EVEN, {"assignment": {"granularity": "layer"}}),
    "more parts shared": fingerprints.text(EVEN, {"train": {"shared": ["gate", "head", "backbone"]}}),
    "bf16": fingerprints.text(EVEN, {"model": {"config": small.CONFIG, "precision": "bfloat16", "uplink": "exact"}}),
    "aligned": fingerprints.text(fingerprints.ALIGNED),
    "networked": fingerprints.NETWORKED,
    "networked, FedSC": fingerprints.merged(fingerprints.NETWORKED, {"networked": {"extractor": "fedsc"}}),
    "networked, rolling gate": fingerprints.merged(fingerprints.NETWORKED, {"networked": {"gate": "rolling"}}),
    "networked, FedAvg": fingerprints.merged(
        fingerprints.NETWORKED,
        {
            "networked": {"control": "fedavg"},
            "model": {"config": {**fingerprints.NETWORKED["model"]["config"], "num_experts": 1, "num_labels": 4}},
        },
    ),
}


def contacts(lines: list[dict[str, Any]], devices: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """What each contact of a ledger carried, by link; bytes of one device."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["event"] == "contact":
            found.setdefault(line["cluster"], []).append({"up": [], "uplink_B": 0, "down": [], "downlink_B": 0})
        elif line["event"] == "flush":
            break
        elif line["event"] in ("send", "collect"):
            way, at = ("down", 1) if line["event"] == "send" else ("up", devices[line["cluster"]])
            found[line["cluster"]][-1][way] += line["parts"]
            found[line["cluster"]][-1][f"{way}link_B"] += line[f"{way}link_B"] // at
    return found


def kinds(parts: list[str]) -> tuple[int, list[str]]:
    """How many experts, and what else."""
    return len([part for part in parts if is_expert(part)]), sorted(part for part in parts if not is_expert(part))


@pytest.mark.parametrize("case", CASES)
def test_bytes_of_a_contact_are_those_of_a_run(case: str, tmp_path: Path) -> None:
    pictures.npz(tmp_path / "train.npz", 120)
    pictures.npz(tmp_path / "test.npz", 60, seed=1)
    scenario = Scenario.parse(CASES[case], tmp_path)
    method = method_of(scenario)
    lines = list(read(run(scenario, tmp_path / "run").directory / "ledger.jsonl"))
    start = next(line for line in lines if line["event"] == "run")
    devices = {name: len(samples) for name, samples in start["clusters"].items()}
    said = [one for links in method["stages"].values() for one in links.values()]
    seen = [one for mine in contacts(lines, devices).values() for one in (mine[1:] if not scenario.by_client else mine)]
    for way in ("up", "down"):
        most = max(one[f"{way}link_B"] for one in seen)
        assert max(one[f"{way}link_B"] for one in said) == most > 0
        told = {(*map(str, kinds(one[way])), one[f"{way}link_B"]) for one in said}
        found = {(*map(str, kinds(one[way])), one[f"{way}link_B"]) for one in seen}
        assert {one for one in found if one[-1] == most} <= told
    prices = method["parts"]
    for one in seen:
        if not {"correlation", "statistics"} & {*one["up"], *one["down"]}:
            assert one["uplink_B"] == sum(prices[part]["upload_B"] for part in one["up"])
            assert one["downlink_B"] == sum(prices[part]["piece_B"] for part in one["down"])


@pytest.mark.parametrize("protocol", ["sync", "ems-fl", "ems-fl-enhanced"])
def test_a_plan_on_an_orbit_comes_to_what_check_counts_on_the_data(protocol: str) -> None:
    scenario = Scenario.parse(fingerprints.on_orbit(fingerprints.text(EVEN, {"protocol": protocol})))
    method, counted = method_of(scenario), forecast(scenario)
    assert method["played_cycles"] == counted["cycles"]
    for name, row in method["links"].items():
        found = counted["links"][name]
        assert row["contacts"] == found["contacts"]
        assert round(row["rounds_per_cycle"] * counted["cycles"]) == found["rounds"]
        assert row["uplink_B_per_cycle"] == pytest.approx(found["uplink_B"] / counted["cycles"] / 2, abs=1)
        joules = sum(row["energy_J_per_cycle"].values()) * counted["cycles"]
        assert joules == pytest.approx(found["energy_J_per_device"], rel=1e-3)


def test_the_cycle_asked_for_has_a_date() -> None:
    scenario = Scenario.parse(fingerprints.on_orbit(fingerprints.text(EVEN)))
    document = document_of(scenario)
    ends, counted = document["method"]["ends"], forecast(scenario)
    assert ends["cycle"] == 3
    assert ends["utc"].startswith("2026-01-0")
    assert ends["t_s"] <= counted["ends_s"]
    assert any(f"cycle 3 ends {ends['utc']} UTC" in answer for answer in document["method"]["answers"])


def test_a_device_that_is_too_small_does_not_fit() -> None:
    table = {"device": {"phone": {"memory_B": 1e5}}}
    small_, large = (method_of(Scenario.parse(fingerprints.text(EVEN, more)))["devices"][0] for more in (table, {}))
    assert (small_["holds"], large["holds"]) == (False, True)
    assert small_["needs_B"] == large["needs_B"]
    for phase in large["needs_B"].values():
        assert phase["total_B"] == sum(size for key, size in phase.items() if key != "total_B")


def test_full_training_holds_weights_gradients_and_moments() -> None:
    """By hand: two experts of 2 layers × 3 matrices of 16 × 16 float32, the gate of 2 × 4 × 16."""
    training = method_of(Scenario.parse(fingerprints.text(EVEN)))["devices"][0]["needs_B"]["training"]
    trained = 2 * 2 * 3 * 16 * 16 + 2 * 4 * 16
    assert (training["gradients_B"], training["optimizer_B"], training["adapters_B"]) == (4 * trained, 8 * trained, 0)
    sgd = method_of(Scenario.parse(fingerprints.text(EVEN, {"train": {"optimizer": "sgd"}})))["devices"][0]["needs_B"]
    assert sgd["training"]["optimizer_B"] == 0


def test_what_is_not_known_is_said_to_be_not_known(tmp_path: Path) -> None:
    method = method_of(Scenario.parse(fingerprints.NETWORKED, tmp_path))
    device = method["devices"][0]
    assert (device["activations_known"], device["holds"]) == (False, None)
    assert any("at least" in answer and "not known" in answer for answer in method["answers"])


def test_shared_parts_that_the_model_does_not_have_are_refused() -> None:
    config = {**small.CONFIG, "architectures": ["MixtralForCausalLM"], "tie_word_embeddings": True}
    tables = {"model": {"config": config}, "train": {"shared": ["head"]}, "task": {"kind": "causal-lm", "text": "t"}}
    with pytest.raises(InputError, match=r"train\.shared = \['head'\]: the model has no such part"):
        method_of(Scenario.parse(fingerprints.text(tables)))


def test_a_plan_without_training_takes_the_defaults() -> None:
    network = {key: value for key, value in fingerprints.text().items() if key in ("name", "plan", "model", "cluster")}
    method = method_of(Prospect.parse(network))
    assert method["protocol"] == "ems-fl"
    assert math.isclose(method["links"]["plain"]["energy_J_per_cycle"]["radio_J"], 0.0)
