"""A deployment in two network namespaces, whose link the kernel shapes (tbf): a second opinion on what the relay does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_over_machines import MOST_S, Started
from test_over_machines import start as start  # the fixture
from test_process_faults import one_node

from deployed import weights
from fedexperts import run
from fedexperts.deploy.init import init, node_folder
from fedexperts.deploy.place import load
from namespaces import joined

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
pytestmark = pytest.mark.slow
RATE_BPS, BURST_B = 2e6, 16_000
HOSTS, PORT = ("10.218.78.1", "10.218.78.2"), 7400


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    with joined(HOSTS, RATE_BPS, BURST_B) as names:
        yield names


def sent_B(namespace: str) -> int:
    """What has left a namespace over the link."""
    path = "/sys/class/net/link0/statistics/tx_bytes"
    return int(subprocess.run(["ip", "netns", "exec", namespace, "cat", path], capture_output=True, check=True).stdout)


def test_a_deployment_behind_a_link_of_the_kernel_ends_with_the_model_of_the_simulation(
    namespaces: list[str], tmp_path: Path, start: Started
) -> None:
    there, scenario = tmp_path / "there", one_node(tmp_path, cycles=2)
    init(there, scenario, f"{HOSTS[0]}:{PORT}", 200.0)
    node = node_folder(load(there), scenario.cluster[0].name)
    inside = {name: ("ip", "netns", "exec", name) for name in namespaces}
    server, other = namespaces
    start("server", *inside[server], there / "server.sh")
    start.until("server", "Uvicorn running on https")
    start("node", *inside[other], next(node.glob("node-*.sh")))
    start("run", *inside[server], there / "run.sh")
    assert start.children["run"].wait(MOST_S) == 0, start.said("run")

    run(scenario, tmp_path / "here")
    assert weights(there / "run") == weights(tmp_path / "here")
    contacts = [json.loads(line) for line in (there / "contacts.jsonl").read_text().splitlines()]
    assert sent_B(server) > sum(row["down_B"] for row in contacts) > 1e6
    assert sent_B(other) > sum(row["up_B"] for row in contacts) > 5e5
    whole = max(contacts, key=lambda row: row["down_B"])
    assert whole["clock_s"] > (max(whole["down_B"], whole["up_B"]) - BURST_B) * 8 / RATE_BPS > 3, "the link did not shape"
