"""Whole runs with devices on nodes: every protocol, adapters, coded uploads, and a server that is killed and goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import small
from deployed import weights
from fedexperts import Scenario, run
from fedexperts.deploy.node import Node
from fedexperts.deploy.remote import RemoteHost
from fedexperts.errors import InputWarning
from fedexperts.ledger import read
from fedexperts.method.elsewhere import host
from fedexperts.method.methods import prepare
from fedexperts.moe.parts import is_expert
from fedexperts.setup.prepare import Prepared
from fedexperts.train.host import Host, LocalHost
from marks import some_slow
from stopped import KilledError, killed

RANKS: dict[str, Any] = {
    "device": {"phone": {"lora_rank": 1}},
    "cluster": [
        {**cluster, "device": kind} for cluster, kind in zip(small.document()["cluster"], ("laptop", "phone"), strict=True)
    ],
}
LORA = {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0}, "uplink": "int8"}
ORBITAL = {"plan": {"kind": "round-robin", "slot_s": 200.0}, "train": {"cycles": 2, "local_steps": 1, "batch_size": 8}}


class Nodes:
    """Nodes in this process, each with a model of its own, as `elsewhere.host` builds it."""

    quiet_s = 0.0

    def __init__(self, scenario: Scenario, spool: Path):
        self.scenario, self.spool = scenario, spool
        self.nodes: dict[str, Node] = {}

    def hosts(self, prepared: Prepared) -> Mapping[str, Host]:
        for number, link in enumerate(prepared.hosts):
            if link not in self.nodes:
                devices = host(self.scenario, link)
                assert isinstance(devices, LocalHost)
                self.nodes[link] = Node(devices, "run", self.spool / str(number))
        codec = self.scenario.model.uplink
        return {
            link: RemoteHost(link, Way(self.nodes[link]), "run", known, prepared.view, prepared.model, codec)
            for link, known in prepared.hosts.items()
        }


class Way:
    quiet_s = 0.0

    def __init__(self, node: Node):
        self.node = node

    def begin(self, start_s: float, end_s: float) -> None:
        pass

    def ask(self, message: bytes) -> bytes | None:
        reply = self.node.handle(message)
        self.node.go_on()
        return reply

    def end(self) -> None:
        pass


RANK_2 = {"lora": {"rank": 2, "alpha": 4.0}}
LONG = {"sync, C rounds", "ems-fl-enhanced", "split again", "adapters merged", "ranks by class"}
CASES: dict[str, dict[str, Any]] = {
    "sync": {"protocol": "sync"},
    "ems-fl": {"protocol": "ems-fl"},
    "ems-fl-enhanced": {"protocol": "ems-fl-enhanced"},
    "fedbuff": {"protocol": "fedbuff", "server": {"optimizer": "adam"}, "train": {"proximal_mu": 0.1}},
    "sync, C rounds": {"protocol": "sync-c-rounds"},
    "aligned": {"protocol": "aligned"},
    "adapters in int8": {"protocol": "ems-fl", "model": LORA},
    "ranks by class": {"protocol": "ems-fl", "model": LORA, **RANKS},
    "adapters merged": {"protocol": "ems-fl", "model": {**LORA, "lora": {"rank": 2, "alpha": 4.0, "average": "merge"}}},
    "split again": {"protocol": "ems-fl", "assignment": {"trial_samples": 8, "every_cycles": 1}},
    "bf16, device speed": {
        "protocol": "ems-fl",
        "model": {"config": small.CONFIG, "uplink": "bf16"},
        "train": {"seconds_per_round": 60.0},
    },
}


@pytest.mark.parametrize("case", some_slow(CASES, LONG))
def test_runs_end_with_the_model_of_the_simulation(case: str, tmp_path: Path) -> None:
    scenario = small.scenario(**{"train": {"cycles": 2, "local_steps": 1, "batch_size": 8}, **CASES[case]})
    run(scenario, tmp_path / "here")
    run(scenario, tmp_path / "there", hosts=Nodes(scenario, tmp_path / "nodes").hosts)
    assert weights(tmp_path / "there") == weights(tmp_path / "here")


@pytest.mark.parametrize("at", some_slow([3, 12, 25, 40], [12, 25]))
def test_a_server_that_is_killed_goes_on_from_its_checkpoint(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    scenario = small.scenario(train={"cycles": 3, "local_steps": 1, "batch_size": 8})
    run(scenario, tmp_path / "here")
    nodes = Nodes(scenario, tmp_path / "nodes")
    with pytest.raises(KilledError):
        run(scenario, tmp_path / "there", hosts=nodes.hosts, listener=killed(at))
    run(scenario, tmp_path / "there", hosts=nodes.hosts, resume=True)
    assert weights(tmp_path / "there") == weights(tmp_path / "here")


@pytest.mark.parametrize(
    ("load", "lora"),
    [
        ("own", {}),
        ("stream", RANK_2),
        pytest.param("own", RANK_2, marks=pytest.mark.slow),
        pytest.param("stream", {}, marks=pytest.mark.slow),
    ],
)
def test_a_node_loads_only_what_it_trains(load: str, lora: dict[str, Any], tmp_path: Path) -> None:
    """In full, or through adapters of a rank of its own."""
    folder = tmp_path / "initial"
    prepare(small.scenario()).view.model.save_pretrained(folder)  # type: ignore[operator]
    document = small.document(
        protocol="ems-fl-enhanced",
        device={"phone": {"load": load, **({"lora_rank": 1} if lora else {})}},
        train={"cycles": 3, "gate_tail_cycles": 0},
    )
    given = Scenario.parse({**document, "model": {"path": str(folder), **lora}})
    nodes = Nodes(given, tmp_path / "nodes")
    with pytest.warns(InputWarning, match="share the whole model"):
        run(given, tmp_path / "here")
    with pytest.warns(InputWarning, match="share the whole model"):
        run(given, tmp_path / "there", hosts=nodes.hosts)
    owned = next(line for line in read(tmp_path / "there" / "ledger.jsonl") if line["event"] == "assignment")["assignment"]
    for name, node in nodes.nodes.items():
        (device, *_) = node.host.group.values()
        assert {part for part in device.view.parts if is_expert(part)} == {f"expert:{m}" for m in owned[name]}
        assert (device.view.stream is None) == (load == "own")
    for file in ("model/model.safetensors", *(["adapters.safetensors"] if lora else [])):
        ours, theirs = (load_file(tmp_path / at / file) for at in ("here", "there"))
        for name, tensor in ours.items():
            assert torch.allclose(theirs[name], tensor, atol=1e-5), name
    here, there = (list(read(tmp_path / at / "ledger.jsonl")) for at in ("here", "there"))
    assert [[line.get(key) for key in ("event", "cluster", "t_s", "uplink_B", "downlink_B")] for line in here] == [
        [line.get(key) for key in ("event", "cluster", "t_s", "uplink_B", "downlink_B")] for line in there
    ]
