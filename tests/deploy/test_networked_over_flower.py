"""Networked MoE over Flower's own processes: all three stages, and the simulation's model and ledger at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pictures
from deployed import weights
from fedexperts import Scenario, run
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.ledger import read

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")]
NAMES = ("north", "south")
MODEL = {"model_type": "networked_moe", "image_size": pictures.SIDE, "width": 8, "expert_hidden": 8, "num_experts": 2}


def written(folder: Path, extractor: str) -> Path:
    contacts = tuple(Contact(NAMES[i % 2], 400.0 * i, 400.0 * i + 350, 1e6, 2e6) for i in range(10))
    plan = ContactPlan(NAMES, contacts, 4000.0, (800.0, 1600.0, 2400.0, 3200.0))
    (folder / "plan.json").write_text(json.dumps(plan.to_json()))
    for seed, name in enumerate((*NAMES, "test")):
        pictures.npz(folder / f"{name}.npz", 32, seed=seed)
    document: dict[str, Any] = {
        "name": "network",
        "protocol": "networked",
        "plan": {"kind": "file", "path": "plan.json"},
        "model": {"config": MODEL},
        "task": {"kind": "image"},
        "train": {"cycles": 4, "local_steps": 1, "batch_size": 8, "seconds_per_round": 60.0, "max_rounds": 1},
        "networked": {"extractor": extractor, "extractor_cycles": 1, "expert_cycles": 1, "gate_cycles": 2},
        "evaluation": {"every_cycles": 2},
        "cluster": [{"name": name, "data": f"{name}.npz", "test": "test.npz"} for name in NAMES],
    }
    (folder / "network.toml").write_text(Scenario.parse(document, folder).to_toml())
    return folder / "network.toml"


@pytest.mark.parametrize("extractor", ["fedsc", "fedce"])
def test_a_network_over_flower_is_that_of_the_simulation(extractor: str, tmp_path: Path) -> None:
    scenario, out = written(tmp_path, extractor), tmp_path / "deployed"
    command = [sys.executable, "-m", "fedexperts", "deploy", "local", str(scenario), "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1500)
    assert done.returncode == 0, done.stdout.decode()
    run(scenario, tmp_path / "here")
    there, here = (list(read(at / "ledger.jsonl")) for at in (out / "run", tmp_path / "here"))
    for line in (*there, *here):
        if line["event"] == "train":  # what of a phase that ends out of contact is told in the next
            line.pop("loss", None), line.pop("peer_B", None)
    assert there == here
    assert there[-1]["peer_B"] > 0
    assert weights(out / "run") == weights(tmp_path / "here")
