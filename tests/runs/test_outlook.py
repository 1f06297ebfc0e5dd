"""What ``fedexperts plan`` says a contact carries, against ledgers of runs of every protocol; memory, energy and dates."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest

import fingerprints
import pictures
import small
from fedexperts import InputError, InputWarning, Scenario, run
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.drive.simulate import MANY_STEPS
from fedexperts.ledger import read
from fedexperts.moe.parts import is_expert
from fedexperts.planned import described as describe
from fedexperts.report.words import LINKS, link_rows, size
from fedexperts.runs.forecast import forecast
from fedexperts.scenario import Prospect
from fedexperts.works import judged
from marks import some_slow
from plans import document_of, method_of

MERGED = {"model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0, "average": "merge"}, "uplink": "int8"}}
EVEN = {"assignment": {"policy": "balanced", "trial_samples": 8}, "train": {"cycles": 5}}
CASES: dict[str, dict[str, Any]] = {
    "sync": fingerprints.text(EVEN, {"protocol": "sync"}),
    "sync, C rounds": fingerprints.text(EVEN, {"protocol": "sync-c-rounds"}),
    "fedasync": fingerprints.text(EVEN, {"protocol": "fedasync"}),
    "fedbuff": fingerprints.text(EVEN, {"protocol": "fedbuff"}),
    "ems-fl without owners": fingerprints.text(EVEN, {"protocol": "ems-fl", "ems_fl": {"disjoint": False}}),
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


LONG = {"sync, C rounds", "fedasync", "merged adapters in int8", "more parts shared", "networked, FedAvg"}


@pytest.mark.parametrize("case", some_slow(CASES, LONG))
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


@pytest.mark.parametrize("protocol", ["sync", "sync-c-rounds", "fedasync", "fedbuff", "ems-fl", "ems-fl-enhanced"])
def test_a_plan_on_an_orbit_comes_to_what_check_counts_on_the_data(protocol: str) -> None:
    """Up to the end of the last cycle: with the final flush the same, though the simulation goes on for it."""
    scenario = Scenario.parse(fingerprints.on_orbit(fingerprints.text(EVEN, {"protocol": protocol})))
    method, counted = method_of(scenario), forecast(scenario.changed(train={"final_flush": False}))
    assert method["played_cycles"] == counted["cycles"]
    assert method["steps"] == counted["steps"] > 0
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


def over(bps: float | tuple[float, float], **tables: Any) -> dict[str, Any]:
    """What ``plan`` says of contacts of 200 s, each cluster's with a rate of its own if two are given."""
    document = fingerprints.text(EVEN, tables)
    names = [cluster["name"] for cluster in document["cluster"]]
    rates = bps if isinstance(bps, tuple) else (bps,) * len(names)
    contacts = tuple(
        Contact(name, 600.0 * k + 300 * i, 600.0 * k + 300 * i + 200, rate, rate)
        for k in range(6)
        for i, (name, rate) in enumerate(zip(names, rates, strict=True))
    )
    prospect = Prospect.parse(document)
    return describe(prospect, ContactPlan(tuple(names), contacts, 3600.0), None)


def test_a_method_that_trains_nothing_is_no() -> None:
    document = over(8.0, protocol="sync")
    method = document["method"]
    assert all(row["rounds_per_cycle"] == 0 for row in method["links"].values())
    assert (method["works"], method["answer"], method["steps"]) == (False, "no", 0)
    assert method["answers"][0].startswith("sync: no: nothing is trained; ")
    assert f"{size(document['upload_B'])} up fit no contact" in method["why"]
    assert (method["ends"]["t_s"], method["ends"]["utc"]) == (None, None)
    assert not any("ends" in answer for answer in method["answers"])
    assert all("uploads a day" not in row["verdict"] for row in document["clusters"].values())
    assert all("nothing is trained" in row["verdict"] for row in document["clusters"].values())


def test_a_method_that_trains_and_delivers_is_yes() -> None:
    method = document_of(Scenario.parse(fingerprints.on_orbit(fingerprints.text(EVEN))))["method"]
    assert (method["works"], method["answer"]) == (True, "yes")
    assert method["answers"][0] == "ems-fl: yes: every cluster trains, and what it trains arrives"
    assert {row["works"] for row in method["by_cluster"].values()} == {True}


def test_a_cluster_alone_that_cannot_is_partly() -> None:
    method = over((1e8, 8.0), protocol="sync")["method"]
    first, second = method["by_cluster"]
    assert (method["works"], method["answer"]) == (None, "partly")
    assert method["by_cluster"][first]["works"] is True
    assert method["by_cluster"][second]["works"] is False
    assert f"{second}: no, nothing is trained; " in method["answers"][0]
    assert "kB up fit no contact" in method["answers"][0]
    assert any("cycle" in answer and "ends" in answer for answer in method["answers"])


def test_devices_that_are_too_small_are_no_whatever_the_contacts_carry() -> None:
    method = document_of(Scenario.parse(fingerprints.text(EVEN, {"device": {"phone": {"memory_B": 1e5}}})))["method"]
    assert (method["works"], method["answer"]) == (False, "no")
    assert "devices do not hold the model: " in method["answers"][0]


def test_contacts_that_are_lost_are_told_of() -> None:
    method = over(700.0, protocol="ems-fl")["method"]
    lost = {name: row["lost"] for name, row in method["by_cluster"].items() if row["lost"]}
    assert lost
    sentence = next(answer for answer in method["answers"] if answer.startswith("contacts that end before all is done"))
    for name, many in lost.items():
        assert f"{name} {many} of {method['by_cluster'][name]['contacts']}" in sentence
        cells = dict(zip(LINKS, next(row for row in link_rows(method) if row[0] == name), strict=True))
        assert cells["lost"] == f"{many / method['by_cluster'][name]['contacts']:.0%}" != "0%"


def test_the_total_is_the_sum_of_its_uses() -> None:
    method = method_of(Scenario.parse(fingerprints.on_orbit(fingerprints.text(EVEN))))
    for cells in link_rows(method):
        row = method["links"][cells[0]]["energy_J_per_cycle"]
        assert dict(zip(LINKS, cells, strict=True))["total J"] == (
            f"{sum(row.values()):.3g}" if sum(row.values()) < 1000 else f"{sum(row.values()):,.0f}"
        )


def test_steps_are_warned_of_as_they_are_counted_and_stand_in_the_document() -> None:
    """As fast as their class: what trains in gaps makes many steps, and what trains nothing makes none."""
    said = {}
    for protocol, bps in (("ems-fl", 1e8), ("sync", 8.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            document = over(bps, protocol=protocol, train={"cycles": 5, "seconds_per_round": "device"})
        said[protocol] = [text for text in document["warnings"] if "gradient steps" in text]
        steps = document["method"]["steps"]
        assert (steps > MANY_STEPS) if protocol == "ems-fl" else (steps == 0)
    assert said["sync"] == []
    assert len(said["ems-fl"]) == 1


def test_contacts_that_carry_both_ways_may_have_no_room_for_a_round_between() -> None:
    method = over(3000.0, protocol="sync", train={"cycles": 5, "seconds_per_round": 190.0})["method"]
    assert method["works"] is False
    assert "nothing is trained; no contact (3 min 20 s at most) has room for " in method["answers"][0]


def test_few_contacts_or_none_are_not_told_more_of_than_is_known() -> None:
    row = {"cluster": "a", "contacts": 1, "lost": 0, "rounds_per_cycle": 2.0, "updates": 0, "experts_arrive": False}
    found = {"played_cycles": 1, "links": {"a": row}, "devices": [], "stages": {}}
    plan = ContactPlan(("a", "b"), (Contact("a", 0.0, 10.0),), 10.0)
    told = judged(found, plan, ["a", "b"])
    assert (told["works"], told["answer"]) == (None, "not known")
    assert told["by_cluster"]["a"] == {
        "works": None,
        "why": "one contact is too few to tell; give it more cycles or days",
        **COUNTS,
    }
    assert told["by_cluster"]["b"]["why"] == "it is never seen"
    several = {**found, "links": {"a": {**row, "contacts": 9, "lost": 9}}, "stages": {"training": {"a": CARRIED}}}
    told = judged(several, plan, ["a"])
    assert (told["works"], told["answer"]) == (False, "no")
    assert told["why"].startswith("what it trains never arrives; no contact (10 s at most) has room for 5 B down")


FEW = "one contact is too few to tell; give it more cycles or days"
COUNTS = {"contacts": 1, "lost": 0}
CARRIED = {"up": ["expert:0"], "uplink_B": 7, "down": [], "downlink_B": 5}
