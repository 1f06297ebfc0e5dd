"""A deployment of real processes on this machine: Flower's, and ours; links go down between contacts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

import small
from deployed import left, weights
from fedexperts import run
from fedexperts.deploy import supernode
from fedexperts.ledger import read

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
TRAIN = {"cycles": 1, "local_steps": 1, "batch_size": 8, "final_flush": False}
CLUSTERS = [{"name": name, "devices": 1, "data": f"digits:{name}"} for name in ("plain", "rotated")]


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
    assert weights(out / "run") == weights(tmp_path / "here")
    there, here = (list(read(at / "ledger.jsonl")) for at in (out / "run", tmp_path / "here"))
    assert [line["event"] for line in there] == [line["event"] for line in here]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_deployment_that_is_interrupted_leaves_no_process(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed"
    child = deploy(scenario, out)
    until_s = time.monotonic() + 300
    while not any("SuperNode" in path.read_text() for path in (out / "logs").glob("supernode-1.log")):
        assert child.poll() is None, child.communicate()[0].decode()
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert len(left(out)) >= 5
    os.kill(child.pid, signal.SIGINT)
    told, _ = child.communicate(timeout=300)
    assert child.returncode == 130, told.decode()
    assert left(out) == []


def test_a_supernode_without_a_link_asks_again_each_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a constant of Flower's, which might be called otherwise one day."""
    from flwr.supercore.retry import http_retry, make_simple_http_retry_invoker
    from flwr.supernode import cli

    waits_s: list[float] = []

    def look() -> None:
        waits_s.extend(islice(make_simple_http_retry_invoker().wait_gen_factory(), 8))

    monkeypatch.setattr(http_retry, "MAX_RETRY_DELAY", http_retry.MAX_RETRY_DELAY)  # which is put back
    monkeypatch.setattr(cli, "flower_supernode", look)
    look()
    assert waits_s[-1] == 20, "Flower's own"
    waits_s.clear()
    supernode.main()
    assert waits_s == [1.0] * 8


def test_a_client_app_loads_no_torch() -> None:
    """It starts anew for each message."""
    code = "import sys, fedexperts.deploy.client_app; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}).returncode == 0
