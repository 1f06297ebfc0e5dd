"""Two network namespaces, joined by a link that the kernel shapes (tbf); nothing of this machine's own network is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest


@contextmanager
def joined(hosts: Sequence[str], rate_bps: float, burst_B: int) -> Iterator[list[str]]:
    """Their names, one for each of two addresses; a test that cannot have them here is skipped, and says why."""
    if lost := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        pytest.skip(f"{' and '.join(lost)} not installed (iproute2)")
    names = [f"fedexperts-{os.getpid()}-{i}" for i in range(2)]
    one, other = names
    with ExitStack() as stack:
        for name in names:
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
            _allowed("ip", "netns", "add", name)
        _allowed("ip", "-n", one, "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", other)
        shape = ["rate", f"{rate_bps:.0f}bit", "burst", f"{burst_B}b", "latency", "10s"]
        for name, host in zip(names, hosts, strict=True):
            _allowed("tc", "-n", name, "qdisc", "add", "dev", "link0", "root", "tbf", *shape)
            for words in (
                ["addr", "add", f"{host}/24", "dev", "link0"],
                ["link", "set", "link0", "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *words], check=True)
        yield names


def _allowed(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs root, network namespaces and tbf: {' '.join(words)}: {done.stderr.strip()}")
