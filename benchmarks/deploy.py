"""Deployments on this machine: a contact against the bare transfer of its bytes and Flower's own round; memory; a rehearsal.

    python benchmarks/deploy.py [--throughput] [--memory] [--rehearsal] [--cycles 4] [--rate-Mbps 0] [--toy]

The parts that are named run, or the first. ``--throughput``: the baseline protocol with two nodes, whose experts and gate, some
50 MB in float32, travel both ways in every contact: over Flower, by the same calls without a network, and by Flower's strategy
FedAvg with the same arrays, nodes, links and training. Links are relays of this machine, unlimited or of a rate; the bare
transfer is TCP through the same relay. ``--memory``: peak memory of a node's worker by what it loads, see deploy_memory.py.
``--rehearsal``: thirty devices on six SuperNodes, two days of an orbit, with churn, see deploy_rehearsal.py; minutes.

Asserted: a contact moved what the ledger says that it does, and no less; the bytes of the bare transfer arrived; the model over
Flower is that without a network, to the byte; Flower's rounds moved as many bytes of arrays as ours; no process is left.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from deploy_flower import FILES
from deploy_memory import remember
from deploy_rehearsal import CONFIG, alive, rehearse, weights

from fedexperts import Scenario, run
from fedexperts.deploy import local
from fedexperts.deploy.app import APP, HERE, connection
from fedexperts.deploy.links import links_of
from fedexperts.deploy.node import Node
from fedexperts.deploy.place import create
from fedexperts.deploy.remote import RemoteHost
from fedexperts.deploy.switch import Switches
from fedexperts.ledger import read
from fedexperts.method.elsewhere import host
from fedexperts.peer.address import answers, free_ports
from fedexperts.peer.relay import Relay, Shape
from fedexperts.setup.prepare import Prepared
from fedexperts.train.host import Host, LocalHost

LINKS = ("plain", "rotated")


def scenario(args: argparse.Namespace) -> Scenario:
    """Two nodes, and a Mixtral of which some 50 MB are trained."""
    width, inner, layers = (16, 16, 1) if args.toy else (256, 512, 8)
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return Scenario.parse(
        {
            "name": "throughput",
            "seed": 1,
            "protocol": "sync",
            "model": {"config": {**CONFIG, **sizes}, "uplink": "exact"},
            "train": {
                "cycles": args.cycles,
                "local_steps": 1,
                "batch_size": 8,
                "optimizer": "adamw",
                "shared": ["gate"],
                "final_flush": False,
                "max_rounds": 1,
            },
            "assignment": {"trial_samples": 8},
            "evaluation": {"target": None, "every_cycles": 100},
            "cluster": [{"name": name, "devices": 1, "data": f"digits:{name}", "test_samples": 20} for name in LINKS],
        }
    )


class Direct:
    """Calls to a node of this process, and what they take."""

    quiet_s = 0.0

    def __init__(self, node: Node, contacts: list[dict[str, Any]]):
        self.node, self.contacts = node, contacts
        self.begin(0, 0)

    def begin(self, start_s: float, end_s: float) -> None:
        self.line: dict[str, Any] = {"clock_s": 0.0, "messages": 0, "down_B": 0, "up_B": 0}

    def ask(self, message: bytes) -> bytes:
        began_s = time.perf_counter()
        reply = self.node.handle(message)
        self.line["clock_s"] += time.perf_counter() - began_s
        self.line["messages"] += 1
        self.line["down_B"] += len(message)
        self.line["up_B"] += len(reply)
        self.node.go_on()
        return reply

    def end(self) -> None:
        self.contacts.append(self.line)


def direct(given: Scenario, folder: Path) -> list[dict[str, Any]]:
    """Contacts without a network: what nodes do of themselves."""
    contacts: list[dict[str, Any]] = []

    def hosts(prepared: Prepared) -> Mapping[str, Host]:
        found: dict[str, Host] = {}
        for link, known in prepared.hosts.items():
            devices = host(given, link)
            assert isinstance(devices, LocalHost)
            way = Direct(Node(devices, "run", folder / f"node-{link}"), contacts)
            found[link] = RemoteHost(link, way, "run", known, prepared.view, prepared.model, "exact")
        return found

    run(given, folder / "direct", hosts=hosts)
    return contacts


def deployed(given: Scenario, folder: Path) -> list[dict[str, Any]]:
    """Contacts over Flower."""
    place = create(folder / "deployed", given.to_toml(), Path(), links_of(given), 300.0)
    local.deploy_local(place)
    assert not alive(place.folder), f"processes left: {alive(place.folder)}"
    assert weights(place.run) == weights(folder / "direct"), "another model than without a network"
    return [json.loads(line) for line in (place.folder / "contacts.jsonl").read_text().splitlines()]


def flower(given: Scenario, folder: Path, rounds: int) -> tuple[list[float], int]:
    """Seconds of each of Flower's rounds, and the bytes of its arrays."""
    place = create(folder / "flower", given.to_toml(), Path(), links_of(given), 300.0)
    out, app = folder / "rounds.jsonl", folder / "app"
    top = (
        APP["pyproject.toml"]
        .replace("fedexperts_app", "fedexperts_bench")
        .replace('deployment = ""', 'nodes = 2\nrounds = 2\nout = ""')
    )
    for name, text in {**FILES, "pyproject.toml": top}.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)
    home = place.folder / "flower"
    home.mkdir()
    server, *ports = free_ports(1 + len(LINKS))
    (home / "config.toml").write_text(connection(f"127.0.0.1:{server}"))
    with patch.dict(os.environ, {"FEDEXPERTS_BENCH_MODEL": json.dumps(given.model.config)}), local.processes(place) as start:
        start("superlink", local.flower_superlink(server))
        with local.Switches(place.folder, ("127.0.0.1", server), dict.fromkeys(LINKS, Shape())) as switches:
            local.until("the SuperLink listens", lambda: answers("127.0.0.1", server), start)
            for link, port in zip(LINKS, ports, strict=True):
                start(f"supernode-{link}", local.flower_supernode(f"127.0.0.1:{switches.port(link)}", port, "--insecure"))
            config = f'nodes={len(LINKS)} rounds={rounds} out="{out}"'
            subprocess.run(
                ["flwr", "run", str(app), HERE, "--run-config", config],
                env=start.environment,
                check=True,
                capture_output=True,
            )
            until_s = time.monotonic() + 600
            while not out.exists() or len(out.read_text().splitlines()) < rounds + 1:
                start.check()
                assert time.monotonic() < until_s, f"Flower's rounds: not within 600 s, see {start.logs}"
                time.sleep(0.2)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return [after["s"] - before["s"] for before, after in itertools.pairwise(lines)], lines[-1]["size_B"]


async def bare(down_B: int, up_B: int, shape: Shape) -> float:
    """Seconds for these bytes one way and then the other, over one connection through a relay."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(up_B)
        writer.write(bytes(down_B))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22)
    async with server, Relay(("127.0.0.1", 0), ("127.0.0.1", server.sockets[0].getsockname()[1]), shape) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, limit=1 << 22)
        began_s = time.perf_counter()
        writer.write(bytes(up_B))
        await writer.drain()
        got_B = 0
        while data := await reader.read(1 << 20):
            got_B += len(data)
        took_s = time.perf_counter() - began_s
        writer.close()
    assert got_B == down_B, f"{got_B} of {down_B} B arrived"
    return took_s


def throughput(args: argparse.Namespace) -> None:
    given = scenario(args)
    shape = Shape(rate_bps=args.rate_Mbps * 1e6) if args.rate_Mbps else Shape()

    class Shaped(Switches):
        def __init__(self, folder: Path, server: tuple[str, int], shapes: Mapping[str, Shape], seed: int = 0):
            super().__init__(folder, server, dict.fromkeys(shapes, shape), seed)

    with tempfile.TemporaryDirectory() as name, patch.object(local, "Switches", Shaped):
        folder = Path(name).resolve()
        alone = direct(given, folder)
        lines = list(read(folder / "direct" / "ledger.jsonl"))
        uploaded_B = [line["uplink_B"] for line in lines if line["event"] == "collect"]
        full = [one for one in alone if one["up_B"] > 0.9 * max(uploaded_B) and one["down_B"] > 0.5 * max(uploaded_B)]
        assert full, f"no contact moved the model both ways: {alone}"
        moved = full[-1]
        assert moved["up_B"] >= max(uploaded_B), f"{moved} is less than the ledger's {max(uploaded_B)} B"
        rate = f"{args.rate_Mbps:g} Mb/s" if args.rate_Mbps else "unlimited"
        print(
            f"links of this machine, {rate}; a contact moves {moved['down_B'] / 1e6:.1f} MB down and "
            f"{moved['up_B'] / 1e6:.1f} MB up; load {os.getloadavg()[0]:.1f}; medians (min-max)"
        )
        floor = [asyncio.run(bare(moved["down_B"], moved["up_B"], shape)) for _ in range(3)]
        base = statistics.median(floor)
        row("bare transfer", floor, base)
        row("our nodes, no network", [one["clock_s"] for one in full], base)
        if args.toy:
            return
        over = [
            one
            for one in deployed(given, folder)
            if one["up_B"] >= moved["up_B"] * 0.9 and one["down_B"] >= moved["down_B"] * 0.9
        ]
        row(
            "our contact over Flower",
            [one["clock_s"] for one in over],
            base,
            f"{statistics.median(one['messages'] for one in over):g} messages",
        )
        ours_s = statistics.median(one["clock_s"] for one in over) * len(LINKS)
        rounds, size_B = flower(given, folder, args.cycles)
        assert abs(size_B - moved["down_B"]) < 0.02 * size_B, f"Flower's arrays have {size_B} B"
        row("Flower's round, both nodes", rounds, base)
        print(f"our round, {len(LINKS)} contacts one after the other, is {ours_s / statistics.median(rounds):.2f} x Flower's")


def row(name: str, seconds: Sequence[float], base: float, more: str = "") -> None:
    middle = statistics.median(seconds)
    print(f"{name:28}{middle:8.2f} s ({min(seconds):.2f}-{max(seconds):.2f}) {middle / base:7.2f} x bare  {more}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("--cycles", type=int, default=4)
    parser.add_argument("--rate-Mbps", type=float, default=0.0, dest="rate_Mbps")
    parser.add_argument(
        "--toy", action="store_true", help="smallest size, without Flower's processes; the figures mean nothing"
    )
    args = parser.parse_args(argv)
    if args.throughput or not (args.memory or args.rehearsal):
        throughput(args)
    if args.memory:
        remember(args.toy)
    if args.rehearsal:
        rehearse()


if __name__ == "__main__":
    main()
