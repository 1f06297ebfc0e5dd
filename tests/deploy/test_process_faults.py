"""Deployments of real processes that are killed: who is started again goes on, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_local import deploy, left
from test_local import scenario as scenario  # the fixture
from test_runs import weights

from fedexperts import run
from fedexperts.ledger import read

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")]


def until(is_so: Callable[[], bool], child: object, most_s: float = 200) -> None:
    until_s = time.monotonic() + most_s
    while not is_so():
        assert child.poll() is None, child.communicate()[0].decode()  # type: ignore[attr-defined]
        assert time.monotonic() < until_s
        time.sleep(0.05)


def running(out: Path, *words: str) -> list[int]:
    """Processes of a deployment whose command line has these words."""
    found = []
    for pid in left(out):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if all(any(word in part for part in command) for word in words):
            found.append(pid)
    return sorted(found)


def events(out: Path) -> list[str]:
    ledger = out / "run" / "ledger.jsonl"
    return [line["event"] for line in read(ledger)] if ledger.exists() else []


def test_a_worker_and_a_supernode_that_are_killed_are_started_again(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed"
    child = deploy(scenario, out)
    until(lambda: len(events(out)) >= 3, child)
    os.kill(running(out, "fedexperts.deploy.worker", "plain")[0], signal.SIGKILL)
    os.kill(running(out, "flower-supernode", 'link="rotated"')[0], signal.SIGKILL)
    told, _ = child.communicate(timeout=500)
    assert child.returncode == 0, told.decode()
    assert b"worker-0 was killed by signal 9" in told
    assert b"supernode-1 was killed by signal 9" in told
    assert left(out) == []
    assert "lost" not in events(out)
    run(scenario, tmp_path / "here")
    assert weights(out / "run") == weights(tmp_path / "here")


def test_a_deployment_that_is_killed_leaves_no_process_and_is_gone_on_with(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed"
    child = deploy(scenario, out)
    until(lambda: len(events(out)) >= 3, child)
    assert len(left(out)) >= 6
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    until_s = time.monotonic() + 20
    while left(out) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert left(out) == []
    again = deploy(scenario, out, "--resume")
    told, _ = again.communicate(timeout=500)
    assert again.returncode == 0, told.decode()
    run(scenario, tmp_path / "here")
    assert weights(out / "run") == weights(tmp_path / "here")
