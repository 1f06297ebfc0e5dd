"""Networked MoE over nodes: experts of others come down with the orders that need them, and all is as in simulation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_breaking import Faulty
from test_runs import Nodes

import pictures
import small
from deployed import losses, weights
from fedexperts import Scenario, run
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.deploy.orders import Call, following, read_call, versions, write_call
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import read
from fedexperts.method.elsewhere import host
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import Piece
from fedexperts.runs import checkpoint
from fedexperts.setup.prepare import Prepared
from fedexperts.train.host import LocalHost
from marks import some_slow
from stopped import KilledError, killed

CLIENTS = 3
MODEL = {"model_type": "networked_moe", "image_size": pictures.SIDE, "width": 8, "expert_hidden": 8, "num_experts": CLIENTS}
CLUSTERS = [
    {"name": "one", "data": "one.npz", "test": "test.npz"},
    {"name": "two", "devices": 2, "data": "two.npz", "test": "test.npz", "partition": "tau", "tau": 0.5},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("one", "two", "test")):
        pictures.npz(path / f"{name}.npz", 40, seed=seed)
    contacts = tuple(Contact(("one", "two")[i % 2], 400.0 * i, 400.0 * i + 600, 1e6, 2e6) for i in range(13))
    plan = ContactPlan(("one", "two"), contacts, 5400.0, (1000.0, 2000.0, 3000.0, 4000.0, 5000.0))
    (path / "plan.json").write_text(json.dumps(plan.to_json()))
    return path


def scenario(folder: Path, plan: str = "file", **tables: Any) -> Scenario:
    plans: dict[str, dict[str, Any]] = {
        "file": {"kind": "file", "path": "plan.json"},
        "slots": {"kind": "round-robin", "slot_s": 600.0},
        "always": {"kind": "always-on", "slot_s": 600.0},
    }
    base: dict[str, Any] = {
        "name": "network",
        "protocol": "networked",
        "plan": plans[plan],
        "model": {"config": MODEL},
        "task": {"kind": "image"},
        "train": {"cycles": 4, "local_steps": 1, "batch_size": 8, "seconds_per_round": 60.0, "max_rounds": 2},
        "networked": {"extractor_cycles": 1, "expert_cycles": 1, "gate_cycles": 2},
        "evaluation": {"every_cycles": 2},
        "cluster": CLUSTERS,
    }
    for key, value in tables.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return Scenario.parse(base, folder)


def told(path: Path) -> list[dict[str, Any]]:
    """A ledger, without what a node cannot tell at once of a phase that ends out of contact: its loss, and what it asked."""
    return [
        {k: v for k, v in line.items() if line["event"] != "train" or k not in ("loss", "peer_B")}
        for line in read(path / "ledger.jsonl")
    ]


ONE = {"config": {**MODEL, "num_experts": 1, "num_experts_per_tok": 1}}
CASES: dict[str, dict[str, Any]] = {
    "fedsc, federated": {"networked": {"extractor": "fedsc"}},
    "fedce, federated, experts fetched, in int8": {
        "networked": {"expert_cache": True},
        "model": {"config": MODEL, "uplink": "int8"},
    },
}
MORE: dict[str, dict[str, Any]] = {
    "local": {"networked": {"control": "local"}},
    "fedce, federated, in slots": {"plan": "slots"},
    "fedce, federated, few picks, balanced": {"networked": {"gate_top_k": 2, "balance": 0.1}},
    "always on": {"plan": "always"},
    "rolling": {"networked": {"gate": "rolling", "gate_patience": 1}},
    "random": {"networked": {"gate": "random"}},
    "fedavg": {"networked": {"control": "fedavg"}, "model": ONE},
}
ALL = CASES | MORE


@pytest.mark.parametrize("case", some_slow(ALL, {"fedsc, federated", *MORE}))
def test_a_network_over_nodes_is_that_of_the_simulation(case: str, folder: Path, tmp_path: Path) -> None:
    given = scenario(folder, **ALL[case])
    run(given, tmp_path / "here")
    run(given, tmp_path / "there", hosts=Nodes(given, tmp_path / "nodes").hosts)
    assert told(tmp_path / "there") == told(tmp_path / "here")
    assert weights(tmp_path / "there") == weights(tmp_path / "here")


def same_losses(path: Path) -> list[dict[str, Any]]:
    """A ledger, without what nobody knew of devices that were away: why, their joules, and what was asked and never told."""
    lines = [line for line in told(path) if line["event"] != "energy"]
    return [{k: v for k, v in line.items() if k not in ("reason", "energy_per_device", "peer_B")} for line in lines]


@pytest.mark.parametrize(
    ("case", "seed"),
    [
        ("fedsc, federated", 10),
        *(pytest.param(case, seed, marks=pytest.mark.slow) for case in ALL for seed in (1, 2)),
    ],
)
def test_on_bad_links_it_is_that_of_a_simulation_with_the_same_losses(
    case: str, seed: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = scenario(folder, **{**ALL[case], "plan": "file"})
    plans: list[ContactPlan] = []

    def seen(prepared: Any) -> Any:
        plans.append(prepared.plan)
        return Faulty(given, tmp_path / "nodes", seed).hosts(prepared)

    run(given, tmp_path / "there", hosts=seen)
    lost = losses(list(read(tmp_path / "there" / "ledger.jsonl")), plans[0])
    assert lost
    monkeypatch.setattr("fedexperts.runs.run.Simulator", partial(Simulator, closes_s=lost))
    run(given, tmp_path / "here")
    assert same_losses(tmp_path / "there") == same_losses(tmp_path / "here")
    assert weights(tmp_path / "there") == weights(tmp_path / "here")


@pytest.mark.parametrize("at", some_slow([45, 20, 60, 75], [20, 60, 75]))
def test_a_server_that_is_killed_goes_on_with_what_clients_had_told(
    at: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    given = scenario(folder, plan="slots")
    run(given, tmp_path / "here")
    nodes = Nodes(given, tmp_path / "nodes")
    with pytest.raises(KilledError):
        run(given, tmp_path / "there", hosts=nodes.hosts, listener=killed(at))
    run(given, tmp_path / "there", hosts=nodes.hosts, resume=True)
    assert told(tmp_path / "there") == told(tmp_path / "here")
    assert weights(tmp_path / "there") == weights(tmp_path / "here")


class Overheard(Nodes):
    """Nodes, and all that goes to them and comes from them."""

    def __init__(self, scenario: Scenario, spool: Path):
        super().__init__(scenario, spool)
        self.calls: list[tuple[str, bytes]] = []
        self.replies: list[tuple[str, bytes]] = []

    def hosts(self, prepared: Prepared) -> Any:
        found: dict[str, Any] = dict(super().hosts(prepared))
        for link, one in found.items():
            one.way.ask = partial(self.overhear, link, one.way.ask)
        return found

    def overhear(self, link: str, ask: Any, message: bytes) -> bytes:
        reply: bytes = ask(message)
        self.calls.append((link, message))
        self.replies.append((link, reply))
        return reply


def test_an_expert_goes_down_once_in_front_of_who_needs_it_and_images_stay_at_home(folder: Path, tmp_path: Path) -> None:
    given = scenario(folder)
    nodes = Overheard(given, tmp_path / "nodes")
    run(given, tmp_path / "there", hosts=nodes.hosts)
    went: Counter[tuple[str, str, int]] = Counter()
    for link, message in nodes.calls:
        call = read_call(message)
        for command in (*call.decided, *call.foreseen, *call.meanwhile):
            went.update((link, part, version) for part, version in versions([command]).items())
    own = {"one": "expert:0", "two/0": "expert:1", "two/1": "expert:2"}
    assert {(link, part) for link, part, _ in went} == {(a, part) for a in own for b, part in own.items() if a != b}
    assert max(went.values()) <= 2, went  # where contacts overlap, what was foreseen may be told anew before it is done
    assert sum(went.values()) <= 1.2 * len(went), went
    with np.load(folder / "one.npz") as file:
        rows = {image[0].tobytes() for image in file[next(name for name in file.files if file[name].ndim == 4)]}
    assert len(next(iter(rows))) >= pictures.SIDE
    assert not any(row in message for row in rows for _, message in (*nodes.calls, *nodes.replies))


def test_a_client_whose_expert_cannot_be_loses_its_contacts_and_others_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = scenario(folder, networked={"gate": "random", "gate_cycles": 0}, train={"cycles": 2})
    tell = LocalHost.own

    def lie(self: LocalHost, parts: Any) -> Any:
        found = tell(self, parts)
        lies = "two/0" in self.devices
        return {part: {n: t * float("nan") if lies else t for n, t in mine.items()} for part, mine in found.items()}

    monkeypatch.setattr(LocalHost, "own", lie)
    run(given, tmp_path / "there", hosts=Nodes(given, tmp_path / "nodes").hosts)
    lost = [line for line in read(tmp_path / "there" / "ledger.jsonl") if line["event"] == "lost"]
    assert {(line["cluster"], line["reason"]) for line in lost} == {("two/0", "the node's file of expert:1 is not finite")}
    first = dict(prepare(given).view.parts)
    saved = load_file(tmp_path / "there" / "model" / "model.safetensors")
    for m, moved in enumerate((True, False, True)):
        assert all(torch.equal(saved[name], tensor) is not moved for name, tensor in first[f"expert:{m}"].items())


def test_a_gate_of_one_s_own_is_judged_as_in_simulation(tmp_path: Path) -> None:
    given = small.scenario(
        protocol="aligned",
        alignment={"gate": "per-client"},
        train={"cycles": 2, "local_steps": 4, "batch_size": 8, "lr_gate": 1.0, "lr_expert": 0.05, "optimizer": "adamw"},
    )
    run(given, tmp_path / "here")
    run(given, tmp_path / "there", hosts=Nodes(given, tmp_path / "nodes").hosts)
    assert told(tmp_path / "there") == told(tmp_path / "here")


def test_what_is_read_lies_in_memory_as_torch_places_it(tmp_path: Path) -> None:
    """Elsewhere a product of matrices has another last bit, and a state that is gone back to is not the one that was left."""
    tensors = {f"{n}": torch.randn(n) for n in (1, 3, 5, 7, 9)}
    checkpoint.save(tmp_path, 1, {"tensors": tensors})
    found = checkpoint.load(tmp_path)
    assert found is not None
    call = read_call(write_call(Call("run", "genesis", (following("genesis", "receive", ([Piece("gate", 1, tensors)],)),))))
    for read_back in (found[1]["tensors"], call.decided[0].args[0][0].tensors):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_back.items())
        assert {tensor.data_ptr() % 64 for tensor in read_back.values()} == {0}


def test_a_client_whose_first_contact_was_lost_is_sent_the_matrix_in_the_next_of_its_round(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contacts = tuple(Contact(("one", "one", "two")[i % 3], 400.0 * i, 400.0 * i + 300, 1e6, 2e6) for i in range(13))
    plan = ContactPlan(("one", "two"), contacts, 5200.0, (1200.0, 2400.0, 3600.0, 4800.0))
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    tables = {"networked": {"extractor": "fedsc", "gate": "random"}}
    given = scenario(folder, **tables).changed(plan={"kind": "file", "path": str(tmp_path / "plan.json")})
    monkeypatch.setattr("fedexperts.runs.run.Simulator", partial(Simulator, closes_s={0: 0.0}))
    run(given, tmp_path / "here")
    lines = [line for line in read(tmp_path / "here" / "ledger.jsonl") if line["event"] in ("contact", "lost", "send", "train")]
    assert [line["event"] for line in lines[:5]] == ["contact", "lost", "contact", "send", "train"]
    assert lines[3]["parts"] == ["correlation"]
    assert lines[4]["goal"] == "contrast"


def test_a_node_reads_the_images_of_its_own_cluster_alone(folder: Path, tmp_path: Path) -> None:
    given = scenario(folder, plan="always", task={"kind": "image", "labels": ["0", "1", "2", "3"]})
    whole = prepare(given).hosts["two/1"]
    shutil.copy(folder / "two.npz", tmp_path)
    alone = host(Scenario.parse(given.model_dump(exclude={"base"}, exclude_none=True), tmp_path), "two/1")
    assert alone.samples == whole.samples
    assert isinstance(alone, LocalHost)
    device = alone.group["two/1"]
    assert device.member is not None
    assert device.member.client.own == 2
