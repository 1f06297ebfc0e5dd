"""The part ``--memory`` of deploy.py: peak memory of the process of a node, by what its devices load.

A Mixtral of 8 experts is written to a folder, and each way runs with two nodes whose workers are processes of their own, handed
their calls as a SuperNode does: enhanced EMS-FL with ``load = "own"``, which streams experts for the trial pass and then loads
those that it trains, and the baseline, which has them all. The peak is VmHWM of the worker. The interpreter is the same worker
with a model of a megabyte. The floor is what `moe.size.memory` says must be there, without temporaries: weights, adapters,
gradients, AdamW's moments, and what autograd saves.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy_rehearsal import CONFIG

from fedexperts import Scenario, run
from fedexperts.data.digits import DOMAINS, POSITIONS
from fedexperts.deploy.hand import SOCKET, hand
from fedexperts.deploy.place import Place, create
from fedexperts.deploy.remote import RemoteHost
from fedexperts.ledger import read
from fedexperts.method.methods import prepare
from fedexperts.moe.size import Training, Work, memory
from fedexperts.moe.sized import named
from fedexperts.setup.prepare import Prepared
from fedexperts.train.host import Host

EXPERTS, RANK, BATCH = 8, 4, 4
MOST = 1.10


def scenario(protocol: str, load: str, model: dict[str, Any]) -> Scenario:
    return Scenario.parse(
        {
            "name": "memory",
            "seed": 1,
            "protocol": protocol,
            "model": {**model, "lora": {"rank": RANK, "alpha": 8.0}},
            "train": {"cycles": 2, "local_steps": 1, "batch_size": BATCH, "optimizer": "adamw", "max_rounds": 1}
            | ({"gate_tail_cycles": 0} if protocol == "ems-fl-enhanced" else {}),
            "assignment": {"trial_samples": BATCH},
            "evaluation": {"target": None, "every_cycles": 100},
            "device": {"phone": {"load": load}},
            "cluster": [{"name": name, "devices": 1, "data": f"digits:{name}", "test_samples": 8} for name in DOMAINS[:2]],
        }
    )


def written(folder: Path, hidden: int, inner: int, layers: int) -> dict[str, Any]:
    """A model as a checkpoint, as a scenario names it."""
    config = {
        **CONFIG,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_local_experts": EXPERTS,
    }
    model: Any = prepare(scenario("sync", "all", {"config": config})).view.model
    model.save_pretrained(folder)
    return {"path": str(folder)}


class Handed:
    """Calls to a worker of this machine."""

    quiet_s = 3600.0

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, start_s: float, end_s: float) -> None:
        pass

    def end(self) -> None:
        pass

    def ask(self, message: bytes) -> bytes | None:
        return hand(self.folder, message, 600.0)


def peaks_B(given: Scenario, folder: Path) -> tuple[dict[str, int], dict[str, list[Any]]]:
    """Of each node the most that its worker had, and who owned what."""
    place = create(folder, given.to_toml(), Path(), tuple(cluster.name for cluster in given.cluster), 600.0)
    workers: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for link in place.links:
            command = [sys.executable, "-m", "fedexperts.deploy.worker", str(folder), link]
            workers[link] = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for link in place.links:
            while not (place.node(link) / SOCKET).exists():
                assert workers[link].poll() is None, f"the worker of {link} has ended"
                time.sleep(0.05)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of loads, which do not count for devices in this process
            run(given, place.run, hosts=lambda prepared: remote(place, prepared))
        status = {link: Path(f"/proc/{worker.pid}/status").read_text() for link, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.terminate()
            worker.wait()
    found = {}
    for link, text in status.items():
        found[link] = 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM"))
    lines = list(read(place.run / "ledger.jsonl"))
    assert not [line for line in lines if line["event"] in ("refuse", "lost")], "an upload was refused, or a contact lost"
    trained = {line["cluster"] for line in lines if line["event"] == "train"}
    assert trained == set(place.links), f"only {trained} have trained"
    return found, next(line["assignment"] for line in lines if line["event"] == "assignment")


def remote(place: Place, prepared: Prepared) -> Mapping[str, Host]:
    codec = prepared.scenario.model.uplink
    return {
        link: RemoteHost(link, Handed(place.node(link)), place.id, known, prepared.view, prepared.model, codec)
        for link, known in prepared.hosts.items()
    }


def remember(toy: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = written(folder / "tiny", 32, 32, 2)
        model = tiny if toy else written(folder / "model", 512, 1792, 4)
        outline = named(model["path"])
        size_B = sum(path.stat().st_size for path in Path(model["path"]).glob("*.safetensors"))
        work = Work(BATCH, POSITIONS, "float32")
        base, _ = peaks_B(scenario("ems-fl-enhanced", "own", tiny), folder / "base")
        ground_B = statistics.median(base.values())
        print(
            f"checkpoint {size_B / 1e6:.0f} MB, {EXPERTS} experts, rank {RANK}; peak of a worker, MB; interpreter "
            f"{ground_B / 1e6:.0f} MB"
        )
        print(f"{'protocol, load, node: experts':40}{'peak':>8}{'floor':>8}{'(peak - interpreter) / floor':>30}")
        worst = 0.0
        for protocol, load in (("ems-fl-enhanced", "own"), *(() if toy else (("sync", "all"),))):
            found, owned = peaks_B(scenario(protocol, load, model), folder / f"{protocol}-{load}")
            for link, peak_B in found.items():
                experts = list(range(EXPERTS)) if protocol == "sync" else owned[link]
                phases = memory(outline, experts, work, Training(RANK, None if protocol == "sync" else load))[protocol]
                floor_B = max(phase["total_B"] - phase["working_B"] for phase in phases.values())
                ratio = (peak_B - ground_B) / floor_B
                worst = max(worst, ratio) if load == "own" else worst
                what = f"{protocol}, {load}, {link}: {len(experts)}"
                print(f"{what:40}{peak_B / 1e6:8.0f}{floor_B / 1e6:8.0f}{ratio:30.2f}", flush=True)
        print(f"own: at most {worst:.2f} x the floor; asked: {MOST:.2f}")
