"""Whole runs in which classes of devices have adapters of a rank of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import small
from fedexperts import InputError, Scenario, run
from fedexperts.data.digits import DOMAINS
from fedexperts.ledger import read
from fedexperts.method.capacity import need
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import is_expert
from fedexperts.planned import plan
from fedexperts.runs.allowed import sizes
from fedexperts.runs.forecast import forecast
from fedexperts.scenario import Prospect
from fedexperts.setup.clients import device_classes
from fedexperts.train.codec import payload_B
from fedexperts.train.task import Task
from marks import some_slow
from plans import method_of

PLAIN, OTHER = DOMAINS[:2]
CLASSES = {PLAIN: "laptop", OTHER: "phone"}
LORA = {"rank": 4, "alpha": 8.0}


def document(rank: int | None = 1, **tables: Any) -> dict[str, Any]:
    """Cluster plain has laptops, with the model's rank; the other phones, with one of their own."""
    base = small.document(
        model={"config": small.CONFIG, "lora": LORA},
        cluster=[{"name": name, "devices": 2, "data": f"digits:{name}", "device": CLASSES[name]} for name in CLASSES],
        device={} if rank is None else {"phone": {"lora_rank": rank}},
        assignment={"policy": "balanced", "trial_samples": 8},
        train={"cycles": 4},
    )
    for key, value in tables.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return base


def numbers(rank: int) -> int:
    return 2 * rank * 3 * (16 + 16)  # layers · rank · projections · (in + out)


def lines_of(directory: Path) -> list[dict[str, Any]]:
    return list(read(directory / "ledger.jsonl"))


@pytest.mark.parametrize("protocol", ["sync", "sync-c-rounds", "ems-fl", "ems-fl-enhanced"])
def test_what_travels_has_the_devices_rank_and_a_plan_says_so(protocol: str, tmp_path: Path) -> None:
    """The ledger's bytes against factors of each cluster's rank, and against plan and check, contact by contact."""
    scenario = Scenario.parse(document(protocol=protocol))
    lines = lines_of(run(scenario, tmp_path / "run").directory)
    assert lines[0]["ranks"] == {PLAIN: 4, OTHER: 1}
    seen = set()
    for line in lines:
        many = sum(map(is_expert, line.get("parts", ()))) if line["event"] in ("send", "collect") else 0
        if not many:
            continue
        name = line["cluster"]
        size_B = line["downlink_B"] if line["event"] == "send" else line["uplink_B"] / 2  # two devices
        if "gate" in line["parts"]:
            size_B -= lines[0]["parts_B" if line["event"] == "send" else "upload_B"]["gate"]
        each = 4 if line["event"] == "send" else 2  # float32 down, bf16 up
        least_B = each * numbers(lines[0]["ranks"][name])
        assert least_B < size_B / many < least_B + 2000
        seen.add((name, line["event"]))
    assert {(name, "collect") for name in CLASSES} <= seen
    method, counted = method_of(scenario), forecast(scenario)
    for name in CLASSES:
        mine = [line for line in lines if line.get("cluster") == name]
        for way in ("uplink_B", "downlink_B"):
            assert counted["links"][name][way] == sum(line.get(way, 0) for line in mine)
        told = [links[name] for links in method["stages"].values() if name in links]
        for event, way in (("send", "downlink_B"), ("collect", "uplink_B")):
            contacts: list[int] = []
            for line in mine:
                if line["event"] in ("contact", "flush"):
                    contacts.append(0)
                elif line["event"] == event:
                    contacts[-1] += line[way]
            share = 1 if event == "send" else 2
            assert max(one[way] for one in told) == max(contacts[1:]) / share


@pytest.mark.parametrize("protocol", ["sync", "ems-fl"])
def test_bounds_know_what_each_cluster_sends(protocol: str, tmp_path: Path) -> None:
    scenario = Scenario.parse(document(protocol=protocol, train={"cycles": 1}))
    head = lines_of(run(scenario, tmp_path / "run").directory)[0]
    known, _ = sizes(Prospect.parse(scenario.model_dump(exclude_none=True, exclude={"base"})))
    assert known.upload_B == {part: head["upload_B"][part] for part in known.upload_B}
    assert known.piece_B == {part: head["parts_B"][part] for part in known.piece_B}
    assert known.up_B(OTHER, ["expert:0"]) < known.up_B(PLAIN, ["expert:0"]) == head["upload_B"]["expert:0"]


def test_the_servers_expert_is_the_product_of_its_owner(tmp_path: Path) -> None:
    """Of the model's rank in form: the mean of an owner's two devices has two directions if they are of rank one, else four."""
    lines = lines_of(run(Scenario.parse(document()), tmp_path / "run").directory)
    owned = next(line["assignment"] for line in lines if line["event"] == "assignment")
    saved = load_file(tmp_path / "run" / "adapters.safetensors")
    found = {}
    for name, experts in owned.items():
        for m in experts:
            a_RI, b_OR = saved_factors(saved, m)
            assert a_RI.shape[0] == 4
            found.setdefault(name, set()).add(int(torch.linalg.matrix_rank(b_OR @ a_RI, rtol=1e-4)))
    assert found == {PLAIN: {4}, OTHER: {2}}


def saved_factors(saved: dict[str, torch.Tensor], m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the last layer's down projection of an expert."""
    (a,) = [name for name in saved if f"expert:{m}" in name and "layers.1" in name and "down_proj.lora_A" in name]
    return saved[a], saved[a.replace("lora_A", "lora_B")]


@pytest.mark.parametrize("protocol", ["sync", "ems-fl", "ems-fl-enhanced"])
@pytest.mark.parametrize("plan", some_slow(["round-robin", "always-on"], ["always-on"]))
def test_the_models_own_rank_for_a_class_changes_nothing(protocol: str, plan: str, tmp_path: Path) -> None:
    table = {"protocol": protocol, "plan": {"kind": plan}, "train": {"cycles": 3}}
    for name, rank in (("without", None), ("with", 4)):
        run(Scenario.parse(document(rank, **table)), tmp_path / name)
    lines = {name: lines_of(tmp_path / name) for name in ("without", "with")}
    assert lines["with"][0].pop("ranks") == {PLAIN: 4, OTHER: 4}
    assert lines["with"] == lines["without"]
    for file in ("adapters.safetensors", "model/model.safetensors"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


def test_both_clusters_learn_and_shared_experts_keep_what_one_of_them_never_had(tmp_path: Path) -> None:
    """The baseline, where both train all experts: with phones of rank one every expert still has four directions."""
    lines = lines_of(run(Scenario.parse(document(protocol="sync")), tmp_path / "run").directory)
    saved = load_file(tmp_path / "run" / "adapters.safetensors")
    for m in range(4):
        a_RI, b_OR = saved_factors(saved, m)
        assert int(torch.linalg.matrix_rank(b_OR @ a_RI, rtol=1e-4)) == 4
    assert lines[-1]["loss"] < next(line["loss"] for line in lines if line["event"] == "evaluate")
    assert not [line for line in lines if line["event"] == "refuse"]


def test_devices_compute_and_hold_at_their_own_rank() -> None:
    prepared = prepare(Scenario.parse(document()))
    prepared.begin()
    uploads_B = {name: host.upload_B("expert:0") for name, host in prepared.hosts.items()}  # before anything is trained
    task = Task(frozenset({"expert:0"}))
    flops = {name: host.flops(task)[0] for name, host in prepared.hosts.items()}
    assert flops[OTHER] < flops[PLAIN]
    laptop, phone = (need(prepared, frozenset({"gate"}), name) for name in (PLAIN, OTHER))
    assert phone.expert_memory_B < laptop.expert_memory_B
    assert (phone.expert_up_B, phone.base_up_B) == (uploads_B[OTHER], laptop.base_up_B)
    assert phone.expert_down_B < laptop.expert_down_B
    held = {name: group[0].held["expert:0"] for name, group in small.devices(prepared).items()}
    assert sum(value.numel() for value in held[OTHER].tensors.values()) == numbers(1)
    assert uploads_B == {name: payload_B(one.tensors, "bf16") for name, one in held.items()}
    needs = {row["class"]: row["needs_B"]["training"] for row in method_of(Scenario.parse(document()))["devices"]}
    for kind, rank in (("laptop", 4), ("phone", 1)):
        assert needs[kind]["adapters_B"] == 4 * 4 * numbers(rank)  # four experts in float32


def test_a_plan_of_ranks_is_that_of_scenarios_of_one_rank_cluster_by_cluster() -> None:
    mixed = plan(Scenario.parse(document(train={"seconds_per_round": "device", "max_rounds": 2})), bound=True)
    for name, rank in ((PLAIN, 4), (OTHER, 1)):
        lora = {"model": {"config": small.CONFIG, "lora": {"rank": rank, "alpha": 8.0}}}
        even = plan(Scenario.parse(document(None, train={"seconds_per_round": "device", "max_rounds": 2}, **lora)), bound=True)
        assert mixed["method"]["links"][name] == even["method"]["links"][name]
        for key in ("upload_B", "download_B", "round_s"):
            assert mixed["bound"]["clusters"][name][key] == even["bound"]["clusters"][name][key]
    assert [row["change"] for row in mixed["bound"]["helps"] if row["change"].startswith("rank")] == []


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"model": {"config": small.CONFIG, "lora": None}}, "no adapters are trained; set model.lora"),
        (
            {"model": {"lora": {**LORA, "average": "merge"}}},
            'average = "merge" sends whole weights down, which',
        ),
        ({"model": {"lora": {**LORA, "average": "factors"}}}, 'average = "factors" averages A and B number by number'),
        ({"device": {"phone": {"lora_rank": 5}}}, r"phone\.lora_rank = 5: must be at most model\.lora\.rank = 4"),
        ({"device": {"phone": {"lora_rank": 0}}}, r"device\.phone\.lora_rank = 0: input should be greater than or equal to 1"),
        ({"device": {"phone": {"lora_rank": 1.5}}}, r"device\.phone\.lora_rank = 1\.5: input should be a valid integer"),
        ({"protocol": "fedasync"}, "protocol = 'fedasync' takes adapters of one rank; use sync, sync-c-rounds, ems-fl or"),
        ({"protocol": "fedbuff"}, "protocol = 'fedbuff' takes adapters of one rank"),
        ({"protocol": "aligned"}, "protocol = 'aligned' takes adapters of one rank"),
        ({"protocol": "central"}, "protocol = 'central' takes adapters of one rank"),
        ({"protocol": "local"}, "protocol = 'local' takes adapters of one rank"),
        ({"protocol": "my_protocol:Mine"}, "protocol = 'my_protocol:Mine' takes adapters of one rank"),
        ({"ems_fl": {"disjoint": False}}, r"ems_fl\.disjoint = false experts have no owner whose rank would count"),
    ],
)
def test_what_ranks_are_not_for_is_refused_with_the_reason(tables: dict[str, Any], said: str) -> None:
    for kind in (Scenario, Prospect):
        given = {key: value for key, value in document(**tables).items() if key in {*kind.model_fields}}
        if given["model"].get("lora", ...) is None:
            given["model"] = {"config": small.CONFIG}
        with pytest.raises(InputError, match=said):
            kind.parse(given)


def test_a_plan_without_a_model_has_no_rank_to_compare() -> None:
    given = {key: value for key, value in document().items() if key in {*Prospect.model_fields} - {"model"}}
    assert Prospect.parse(given).device["phone"].lora_rank == 1


def test_what_a_class_loads_and_keeps_is_no_number_of_the_class() -> None:
    """`cache_experts` beside `load` ended in a traceback."""
    table = {"device": {"phone": {"load": "stream", "cache_experts": 2, "memory_B": 1e9}}}
    assert device_classes(Scenario.parse(document(**table, protocol="ems-fl-enhanced")))["phone"].memory_B == 1e9
