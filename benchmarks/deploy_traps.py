"""What Flower does when nodes go and come, seen with its own programs: SuperLink, SuperNodes and a run, each trap a line.

    python benchmarks/deploy_traps.py

The table of docs/guide/flower.md has what this prints. Three minutes, most of them waiting for Flower to notice that a node is
gone. Asserted is nothing: a version that does otherwise shows it here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import flwr

from fedexperts import Scenario
from fedexperts.deploy import keys, local
from fedexperts.deploy.app import APP, HERE, connection, environment, write_app
from fedexperts.deploy.app import flwr as flower
from fedexperts.deploy.init import init, node_folder
from fedexperts.deploy.place import Place, create, load
from fedexperts.deploy.standing import supernode
from fedexperts.deploy.switch import Switches, switch
from fedexperts.errors import RunError
from fedexperts.peer.address import answers, free_ports
from fedexperts.peer.relay import Shape

LINKS = ("a", "b")
SERVER = """import json
import os
import socket

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    way = socket.create_connection(("127.0.0.1", int(context.run_config["port"])))
    with way, way.makefile("rw") as lines:
        for line in lines:
            order = json.loads(line)
            try:
                found = done(grid, order)
            except Exception as error:
                found = {"raised": f"{type(error).__name__}: {error}"}
            lines.write(json.dumps(found) + "\\n")
            lines.flush()


def done(grid, order):
    match order["do"]:
        case "who":
            here = os.path.dirname(__file__)
            names = [os.path.join(at, name) for at, _, names in os.walk(here) for name in names]
            return {"pid": os.getpid(), "files": sorted(os.path.relpath(name, here) for name in names)}
        case "nodes":
            return {"nodes": sorted(grid.get_node_ids())}
        case "push":
            content = RecordDict({"order": ConfigRecord({"sleep_s": float(order.get("sleep_s", 0))})})
            more = {"ttl": order["ttl"]} if "ttl" in order else {}
            return {"ids": list(grid.push_messages([Message(content, order["node"], "query.echo", **more)]))}
        case "pull":
            replies = list(grid.pull_messages([order["id"]]))
            return {"replies": [dict(one.content["reply"]) if one.has_content() else one.error.reason for one in replies]}
"""
CLIENT = """import os
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
SEEN = []


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    SEEN.append(1)
    began_s = time.time()
    time.sleep(message.content["order"]["sleep_s"])
    facts = {"pid": os.getpid(), "began_s": began_s, "ended_s": time.time(), "seen": len(SEEN)}
    return Message(RecordDict({"reply": ConfigRecord(facts)}), reply_to=message)
"""
FILES = {
    "fedexperts_traps/__init__.py": "",
    "fedexperts_traps/server.py": SERVER,
    "fedexperts_traps/client.py": CLIENT,
    "fedexperts_traps/lib/kept.py": "",
    "fedexperts_traps/build/kept.py": "",
    "fedexperts_traps/test_kept.py": "",
    "fedexperts_traps/kept_test.py": "",
    "fedexperts_traps/kept.py": "",
    "fedexperts_traps/weights.safetensors": "",
}


def tell(trap: str, expected: str, seen: str) -> None:
    print(f"{trap}\n    1.41: {expected}\n    {flwr.__version__}: {seen}", flush=True)


class Run:
    """A run whose ServerApp does what it is told over a socket."""

    def __init__(self, place: Place):
        self.place = place
        self.app = place.folder / "app"
        top = APP["pyproject.toml"].replace("fedexperts_app", "fedexperts_traps").replace('deployment = ""', "port = 0")
        for name, text in {**FILES, "pyproject.toml": top}.items():
            (self.app / name).parent.mkdir(parents=True, exist_ok=True)
            (self.app / name).write_text(text)

    @contextmanager
    def handed(self) -> Iterator[Callable[..., Any]]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(120)
            port = listening.getsockname()[1]
            flower(["run", str(self.app), HERE, "--run-config", f"port={port}"], self.place.folder)
            way, _ = listening.accept()
        with way, way.makefile("rw") as lines:

            def ask(do: str, **more: Any) -> Any:
                lines.write(json.dumps({"do": do, **more}) + "\n")
                lines.flush()
                return json.loads(lines.readline() or '{"gone": true}')

            yield ask


def until(is_so: Callable[[], Any], most_s: float = 150.0) -> tuple[Any, float]:
    """What something is when it is so, or None, and after how many seconds."""
    began_s = time.monotonic()
    while not (found := is_so()) and time.monotonic() - began_s < most_s:
        time.sleep(0.25)
    return found or None, time.monotonic() - began_s


def answer(ask: Callable[..., Any], number: str, most_s: float = 60.0) -> Any:
    found, _ = until(lambda: ask("pull", id=number)["replies"], most_s)
    return found[0] if found else None


def short(found: Any) -> str:
    return " ".join(str(found).split())[:160]


def in_the_open(folder: Path) -> None:
    """A SuperLink without keys, two nodes, one of them behind a link."""
    place = create(folder / "open", scenario(folder).to_toml(), Path(), LINKS, 60.0)
    server, at_a, at_b = free_ports(3)
    write_app(place.folder, connection(f"127.0.0.1:{server}"))
    run = Run(place)
    with (
        local.processes(place) as start,
        Switches(place.folder, ("127.0.0.1", server), dict.fromkeys(LINKS, Shape())) as switches,
    ):
        start("superlink", local.flower_superlink(server))
        local.until("the SuperLink listens", lambda: answers("127.0.0.1", server), start)
        start("a", local.flower_supernode(f"127.0.0.1:{switches.port('a')}", at_a, "--insecure"))
        with run.handed() as ask:
            (a,), _ = until(lambda: ask("nodes")["nodes"])
            start("b", local.flower_supernode(f"127.0.0.1:{switches.port('b')}", at_b, "--insecure"))
            until(lambda: len(ask("nodes")["nodes"]) == 2)
            (b,) = set(ask("nodes")["nodes"]) - {a}
            app_bundle(run, ask)
            messages(ask, b)
            offline(ask, a, place, start)
            status_without_keys(ask, b, start, switches.port("b"))
            server_process(ask, place)
        superlink(place, start, server, run)


def app_bundle(run: Run, ask: Callable[..., Any]) -> None:
    files = ask("who")["files"]
    lost = [name for name in (one.partition("/")[2] for one in FILES) if name not in files]
    large, taken = run.app / "fedexperts_traps" / "large.json", []
    for size_MB in (5, 11):
        large.write_text(os.urandom(size_MB * 500_000).hex())
        try:
            flower(["run", str(run.app), HERE, "--run-config", "port=1"], run.place.folder)
            taken.append(f"{size_MB} MB: taken")
        except RunError as error:
            taken.append(f"{size_MB} MB: {short(error)}")
    large.unlink()
    tell(
        "what of an app travels",
        "drops lib/, build/, test_*.py; at most 10 MB",
        f"did not arrive: {', '.join(lost) or 'nothing'}; a file of {', of '.join(taken)}",
    )


def messages(ask: Callable[..., Any], node: int) -> None:
    first, second = (answer(ask, ask("push", node=node)["ids"][0]) for _ in range(2))
    tell(
        "a process for each message",
        "a fresh one",
        f"processes {'differ' if first['pid'] != second['pid'] else 'are the same'}, each has seen {second['seen']} message",
    )
    ids = [ask("push", node=node, sleep_s=2)["ids"][0] for _ in range(2)]
    one, other = sorted((answer(ask, number) for number in ids), key=lambda reply: reply["began_s"])
    tell(
        "two messages to a node at once",
        "one after the other",
        f"the second began {other['began_s'] - one['ended_s']:+.1f} s after the end of the first",
    )
    number = ask("push", node=node, sleep_s=8, ttl=4)["ids"][0]
    tell("a reply that comes after the time to live of its message", "refused", f"{short(answer(ask, number, 20))!r}")
    number = ask("push", node=12345678901234567)
    tell("a message to a node that never was", "refused, no id", short(number))


def offline(ask: Callable[..., Any], node: int, place: Place, start: local.Processes) -> None:
    """The link goes down when the reply is at the SuperLink, and comes back."""
    number = ask("push", node=node)["ids"][0]
    log = start.logs / "a.log"
    until(lambda: "Sent successfully" in log.read_text(errors="replace"))
    time.sleep(1)
    switch(place.folder, "a", False)
    _, lag_s = until(lambda: node not in ask("nodes")["nodes"])
    tell("a node whose link is down counts as there", "up to 60 s", f"{lag_s:.0f} s")
    first = ask("pull", id=number)
    queued = ask("push", node=node)
    switch(place.folder, "a", True)
    back, back_s = until(lambda: node in ask("nodes")["nodes"])
    again = answer(ask, number, 5) or short(ask("pull", id=number))
    tell(
        "the reply of a node that is away now, asked for",
        "an error, and the reply is destroyed",
        f"{short(first.get('replies', first))}; when the node is back ({back_s:.0f} s, {bool(back)}): {short(again)}",
    )
    found = answer(ask, queued["ids"][0], 60) if queued.get("ids") and queued["ids"][0] else None
    tell("a message to a node that is away", "waits, and is delivered", f"{short(queued)}; then {short(found)}")


def status_without_keys(ask: Callable[..., Any], node: int, start: local.Processes, port: int) -> None:
    os.killpg(start.children["b"].pid, signal.SIGKILL)
    start.children["b"].wait()
    before = set(ask("nodes")["nodes"])
    start("b", local.flower_supernode(f"127.0.0.1:{port}", free_ports(1)[0], "--insecure"))
    new, new_s = until(lambda: set(ask("nodes")["nodes"]) - before)
    old = node in ask("nodes")["nodes"]
    tell(
        "a node without a key of its own that was killed and started again",
        "has a new number",
        f"{'a new number' if new else 'no new number'} after {new_s:.0f} s; the old one counts as there: {old}",
    )


def server_process(ask: Callable[..., Any], place: Place) -> None:
    os.kill(ask("who")["pid"], signal.SIGKILL)
    listed, took_s = until(
        lambda: status_of(place) if status_of(place) not in ("running", "pending", "starting") else None, 100
    )
    tell(
        "a ServerApp that was killed",
        "its run is not gone on with",
        f"its run is {listed!r} after {took_s:.0f} s; nothing is started again",
    )


def status_of(place: Place) -> str:
    return str(json.loads(flower(["list", HERE, "--format", "json"], place.folder))["runs"][0]["status"])


def superlink(place: Place, start: local.Processes, server: int, run: Run) -> None:
    os.killpg(start.children["superlink"].pid, signal.SIGKILL)
    start.children.pop("superlink").wait()
    time.sleep(1)
    start("superlink", local.flower_superlink(server))
    until(lambda: answers("127.0.0.1", server))
    codes, took_s = until(
        lambda: (found := [start.children[name].poll() for name in LINKS]) and None not in found and found, 100
    )
    runs = json.loads(flower(["list", HERE, "--format", "json"], place.folder))["runs"]
    tell(
        "a SuperLink that was killed and started again, without a database",
        "knows no run and no node",
        f"runs: {len(runs)}; " + f"SuperNodes have ended after {took_s:.0f} s with {codes}",
    )


def scenario(folder: Path) -> Scenario:
    """Of what is deployed nothing is run here."""
    rows = [
        {"cluster": link, "start_s": 60.0 * i, "end_s": 60.0 * i + 60, "uplink_bps": 1e6, "downlink_bps": 1e6}
        for i, link in enumerate(LINKS)
    ]
    (folder / "plan.json").write_text(json.dumps({"contacts": rows}))
    document = {
        "name": "traps",
        "protocol": "sync",
        "model": {"config": {"model_type": "mixtral", "vocab_size": 32}},
        "train": {"cycles": 1},
        "plan": {"kind": "file", "path": "plan.json"},
        "cluster": [{"name": link, "devices": 1, "data": "digits:plain"} for link in LINKS],
    }
    return Scenario.parse(document, folder)


def with_keys(folder: Path) -> None:
    """A SuperLink as `deploy init` makes it, and one node."""
    (server,) = free_ports(1)
    init(folder / "keyed", scenario(folder), f"127.0.0.1:{server}", 60.0)
    place = load(folder / "keyed")
    node = load(node_folder(place, "a"))
    with local.processes(place) as start:
        start("superlink", [sys.executable, "-m", "fedexperts.deploy.superlink", str(place.folder)])
        local.until("the SuperLink listens", lambda: answers("127.0.0.1", server), start)
        keys.register(place)

        def states() -> tuple[int | None, str]:
            row = keys.listed(place)[0]
            return row["node"], row["state"]

        start("a", supernode(node))
        log = start.logs / "a.log"
        until(lambda: states()[1] == "online")
        number, _ = states()
        os.killpg(start.children["a"].pid, signal.SIGKILL)
        start.children.pop("a").wait()
        began_s, tries = time.monotonic(), 0
        while time.monotonic() - began_s < 120:
            tries += 1
            at = log.stat().st_size
            start("a", supernode(node))
            until(lambda at=at: start.children["a"].poll() is not None or b"SuperNode ID" in log.read_bytes()[at:], 60)
            said = log.read_bytes()[at:].decode(errors="replace")
            if "SuperNode ID" in said:
                break
            why = said
            start.children.pop("a")
            time.sleep(5)
        took_s = time.monotonic() - began_s
        reason = next((line.strip() for line in why.splitlines() if "code:" in line), "") if tries > 1 else "at once"
        tell(
            "a node with a key that was killed and started again",
            "keeps its number, and is refused for up to 60 s",
            f"{'the same' if states()[0] == number else 'another'} number, let in after {took_s:.0f} s; {short(reason)}",
        )
        wrong_clock(node, number, server)


def wrong_clock(node: Place, number: int | None, server: int) -> None:
    """Signed as Flower's SuperNode signs, by its own classes, with another time."""
    from datetime import timedelta

    import httpx
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.date import now
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supernode import node_auth_http_interceptor as signing
    from flwr.supernode.fleet_http_client import FleetHttpClient

    key: Any = load_ssh_private_key((node.folder / keys.KEY).read_bytes(), None)
    said = []
    for off_s in (-3600, -310, -300, 4, 7, 3600):
        with (
            patch.object(signing, "now", lambda: now() + timedelta(seconds=off_s)),  # noqa: B023
            FleetHttpClient.from_server_address(
                f"127.0.0.1:{server}",
                False,
                str(node.folder / "ca.pem"),
                [RuntimeVersionHttpInterceptor("SuperNode"), signing.NodeAuthHttpInterceptor(key, key.public_key())],
            ) as client,
        ):
            try:
                client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=Node(node_id=number), heartbeat_interval=30))
                said.append(f"{off_s:+d} s: let through")
            except httpx.HTTPStatusError as error:
                said.append(f"{off_s:+d} s: {error.response.status_code}")
    tell("a node whose clock is wrong", "(not measured)", "; ".join(said))


def options(folder: Path) -> None:
    """What Flower says of keys without TLS."""
    env = environment(folder)
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "flower-superlink"),
            "--insecure",
            "--enable-supernode-auth",
            "--port",
            str(free_ports(1)[0]),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    tell("keys without TLS", "refused", f"code {done.returncode}: {short((done.stderr + done.stdout)[-300:])}")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        in_the_open(folder)
        with_keys(folder)
        options(folder)


if __name__ == "__main__":
    main()
