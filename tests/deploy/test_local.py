"""A deployment of real processes on this machine: Flower's, and ours; links go down between contacts."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import small
from fedexperts import run
from fedexperts.ledger import read

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
TRAIN = {"cycles": 1, "local_steps": 1, "batch_size": 8, "final_flush": False}
CLUSTERS = [{"name": name, "devices": 1, "data": f"digits:{name}"} for name in ("plain", "rotated")]


def left(folder: Path) -> list[int]:
    """Processes that were started for a deployment: its folder stands in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            text = path.read_bytes()
        except OSError:
            continue
        if f"FLWR_HOME={folder / 'flower'}".encode() in text:
            found.append(int(path.parent.name))
    return found


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(small.scenario(train=TRAIN, cluster=CLUSTERS, evaluation={"target": None}).to_toml())
    return path


def deploy(scenario: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedexperts", "deploy", "local", str(scenario), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_deployment_ends_with_the_model_of_the_simulation_and_leaves_no_process(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed"
    child = deploy(scenario, out)
    told, _ = child.communicate(timeout=300)
    assert child.returncode == 0, told.decode()
    assert left(out) == []
    run(scenario, tmp_path / "here")
    models = [
        hashlib.sha256((at / "model" / "model.safetensors").read_bytes()).hexdigest() for at in (out / "run", tmp_path / "here")
    ]
    assert models[0] == models[1]
    there, here = (list(read(at / "ledger.jsonl")) for at in (out / "run", tmp_path / "here"))
    assert [line["event"] for line in there] == [line["event"] for line in here]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_deployment_that_is_interrupted_leaves_no_process(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed"
    child = deploy(scenario, out)
    until_s = time.monotonic() + 100
    while not any("SuperNode" in path.read_text() for path in (out / "logs").glob("supernode-1.log")):
        assert child.poll() is None, child.communicate()[0].decode()
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert len(left(out)) >= 5
    os.kill(child.pid, signal.SIGINT)
    told, _ = child.communicate(timeout=60)
    assert child.returncode == 130, told.decode()
    assert left(out) == []


def test_a_client_app_loads_no_torch() -> None:
    """It starts anew for each message."""
    code = "import sys, fedexperts.deploy.client_app; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}).returncode == 0
