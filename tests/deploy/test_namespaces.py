"""A deployment in two network namespaces, whose link the kernel shapes (tbf): a second opinion on what the relay does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_over_machines import MOST_S, Started, weights
from test_over_machines import start as start  # the fixture
from test_process_faults import one_node

from fedexperts import run
from fedexperts.deploy.init import init, node_folder
from fedexperts.deploy.place import load

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
pytestmark = pytest.mark.slow
RATE_BPS, BURST_B = 2e6, 16_000
HOSTS, PORT = ("10.218.78.1", "10.218.78.2"), 7400


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Of the server and of a node, with a shaped link between them; nothing of this machine's own network is touched."""
    if lost := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        pytest.skip(f"{' and '.join(lost)} not installed (iproute2)")
    names = [f"fedexperts-{os.getpid()}-{i}" for i in ("server", "node")]
    server, node = names
    with ExitStack() as stack:
        for name in names:
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
            allowed("ip", "netns", "add", name)
        allowed("ip", "-n", server, "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", node)
        shape = ["rate", f"{RATE_BPS:.0f}bit", "burst", f"{BURST_B}b", "latency", "10s"]
        for name, host in zip(names, HOSTS, strict=True):
            allowed("tc", "-n", name, "qdisc", "add", "dev", "link0", "root", "tbf", *shape)
            for words in (
                ["addr", "add", f"{host}/24", "dev", "link0"],
                ["link", "set", "link0", "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *words], check=True)
        yield names


def allowed(*words: str) -> None:
    """Do it, or say why it cannot be done here."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root, network namespaces and tbf: {' '.join(words)}: {done.stderr.strip()}")


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
