"""A small trained network of experts, and its clients as processes, which the tests of a module share."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pictures
from fedexperts import Scenario
from fedexperts.cli.main import main
from fedexperts.peer.address import free_ports
from fedexperts.peer.home import Home
from fedexperts.peer.local import Local
from fedexperts.peer.network import init, peers_text
from fedexperts.peer.peers_file import Tls
from fedexperts.runs.run import run
from processes import CONTEXT

CLIENTS = 4
PATIENCE = {"deadline_s": 10.0, "timeout_after_k_min_s": 10.0, "suspect_s": 0.5}


def scenario(folder: Path, **model: object) -> Scenario:
    config = {
        "model_type": "networked_moe",
        "image_size": pictures.SIDE,
        "width": 8,
        "expert_hidden": 8,
        "num_experts": CLIENTS,
    }
    return Scenario.parse(
        {
            "name": "network",
            "protocol": "networked",
            "plan": {"kind": "always-on", "slot_s": 600.0},
            "model": {"config": {**config, **model}},
            "task": {"kind": "image"},
            "train": {"cycles": 6, "local_steps": 4, "batch_size": 8, "seconds_per_round": 60.0, "max_rounds": 1},
            "networked": {"extractor_cycles": 2, "expert_cycles": 2, "gate_cycles": 2},
            "evaluation": {"every_cycles": 6},
            "cluster": [
                {"name": "c", "devices": CLIENTS, "data": "train.npz", "test": "test.npz", "partition": "tau", "tau": 0.5}
            ],
        },
        folder,
    )


@pytest.fixture(scope="session", autouse=True)
def _patient() -> Iterator[None]:
    """Whoever is started or asked how he is fails to answer here for want of a processor alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedexperts.peer.user.HEALTH_S", 60.0)
        patch.setattr("fedexperts.peer.local.MOST_START_S", 300.0)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that has ended."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    pictures.npz(folder / "train.npz", 160)
    pictures.npz(folder / "test.npz", 80, seed=1)
    return run(scenario(folder), folder / "run").directory


@pytest.fixture(scope="session")
def files(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """peers.toml with certificates, of clients whose ports are free."""
    out = tmp_path_factory.mktemp("network") / "network"
    init(trained, out, ["127.0.0.1"], 7300, 1)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(CLIENTS)]
    (out / "peers.toml").write_text(peers_text(Home(trained, None).run, addresses, Tls(), PATIENCE))
    return out / "peers.toml"


def ports(files: Path) -> dict[int, int]:
    from fedexperts.scenario import read_toml

    return {row["client"]: int(row["address"].rpartition(":")[2]) for row in read_toml(files)["peer"]}


@pytest.fixture(scope="module")
def network(trained: Path, files: Path) -> Iterator[Local]:
    """Clients 1 to 3 as processes; a test that ends one starts it again."""
    with Local(trained, dict.fromkeys(range(CLIENTS), files), ports(files), context=CONTEXT) as local:
        local.start(range(1, CLIENTS))
        yield local
        for client in local.processes:
            local.signal(client, signal.SIGCONT)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    x, _ = pictures.images(40, seed=2)
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def fedexperts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The command with these words: exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    return int(str(ended.value.code)), shown.out, shown.err
