"""A deployment over machines of real processes, started by its own scripts: TLS, keys, and who is not let in."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clocks import wrong_clocks
from test_deploy_init import NAMES, scenario_in
from test_process_faults import events, over

from deployed import weights
from fedexperts import run
from fedexperts.deploy import keys
from fedexperts.deploy.app import HERE, asked, environment
from fedexperts.deploy.init import init, node_folder
from fedexperts.deploy.place import load
from fedexperts.deploy.serving import SERVING
from fedexperts.deploy.standing import supernode
from fedexperts.errors import RunError
from fedexperts.peer.address import free_ports
from fedexperts.peer.tls import ssh_pair

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
pytestmark = pytest.mark.slow
MOST_S = 300.0


def own_address() -> str:
    """Of this machine, by which it is another to itself; loopback where it has none."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # nothing is sent
        return str(way.getsockname()[0])
    return "127.0.0.1"


class Started:
    """Programs, each with its output, all ended with what they have started."""

    def __init__(self, folder: Path):
        self.folder, self.children = folder, dict[str, subprocess.Popen[bytes]]()

    def __call__(self, name: str, *command: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / name).open("wb") as out:
            self.children[name] = subprocess.Popen(command, stdout=out, stderr=out, env=env, start_new_session=True)
        return self.children[name]

    def said(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def until(self, name: str, words: str) -> None:
        """Until a program has said something."""
        _until(lambda: re.search(words, self.said(name)) is not None, lambda: f"{name}: {self.said(name)[-2000:]}")

    def kill(self, name: str) -> None:
        """With what it has started itself, where that is not for others to end."""
        os.killpg(self.children[name].pid, signal.SIGKILL)
        self.children[name].wait()

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in self.children.values():
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
            for child in self.children.values():
                with suppress(subprocess.TimeoutExpired):
                    child.wait(15)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    (tmp_path / "said").mkdir()
    found = Started(tmp_path / "said")
    yield found
    found.end()


def _until(is_so: Callable[[], bool], told: Callable[[], str]) -> None:
    until_s = time.monotonic() + MOST_S
    while not is_so():
        assert time.monotonic() < until_s, told()
        time.sleep(0.2)


def test_a_deployment_that_was_made_ends_with_the_model_of_the_simulation_and_lets_nobody_else_in(
    tmp_path: Path, start: Started
) -> None:
    with socket.socket() as free:
        free.bind(("", 0))
        server = f"{own_address()}:{free.getsockname()[1]}"
    there, scenario = tmp_path / "there", scenario_in(tmp_path)
    init(there, scenario, server, 200.0)
    place = load(there)
    start("server", there / "server.sh")
    start.until("server", "Uvicorn running on https")

    # from elsewhere `flwr` is not answered: nobody lets himself in, or has code run
    if not server.startswith("127."):
        (tmp_path / "stranger" / "flower").mkdir(parents=True)
        config = (there / "flower" / "config.toml").read_text().replace("127.0.0.1:", f"{own_address()}:")
        (tmp_path / "stranger" / "flower" / "config.toml").write_text(config)
        with pytest.raises(RunError, match=r"403|machine alone"):
            asked(["list", HERE], tmp_path / "stranger")

    # one with a key that nobody has let in, and one that talks in the open
    (tmp_path / "stranger.key").write_bytes(ssh_pair()[0])
    command = supernode(load(node_folder(place, "plain")))
    stranger = [str(tmp_path / "stranger.key") if word.endswith("node.key") else word for word in command]
    start("stranger", *stranger, env=environment(tmp_path / "stranger"))
    at = command.index("--root-certificates")
    command[command.index("--port") + 1] = str(free_ports(1)[0])
    bare = [*command[:at], "--insecure", "--max-retries", "1", *command[command.index("--node-config") :]]
    start("in the open", *bare, env=environment(tmp_path / "open"))

    for link in NAMES:
        start(link, next(node_folder(place, link).glob("node-*.sh")))
    start.until("plain", "is not let in .the server does not know its key: its run.sh lets")
    start("run", there / "run.sh")
    start.until("plain", "plain: is let in")
    _until(lambda: over(there) >= len(NAMES), lambda: start.said("run"))  # the trial passes are

    # in a contact the server process is killed, and the SuperLink, and a whole node, which comes back with the same key
    os.kill(int((there / SERVING).read_text()), signal.SIGKILL)
    assert start.children["run"].wait(MOST_S) == 1
    assert "the server process was killed; the same command goes on" in " ".join(start.said("run").split())
    for name, script in (("server", there / "server.sh"), ("plain", next(node_folder(place, "plain").glob("node-*.sh")))):
        start.kill(name)
        start(name, script)
    start.until("server", "Uvicorn running on https")
    start("run", there / "run.sh")
    assert start.children["run"].wait(MOST_S) == 0, start.said("run")
    assert "lost" not in events(there)
    start.until("plain", "plain: is let in")
    run(scenario, tmp_path / "here")
    assert weights(place.run) == weights(tmp_path / "here")

    start.until("stranger", r"\[code: 2004\] Failed to activate SuperNode")
    assert start.children["stranger"].wait(MOST_S) != 0
    start.until("in the open", "Connection attempt failed")
    assert "SuperNode ID" not in start.said("in the open") + start.said("stranger")
    assert sorted((keys.nodes_of(place) or {}).values()) == sorted(NAMES)
    _until(lambda: {row["state"] for row in keys.listed(place)} == {"online"}, lambda: start.said("plain"))

    # out at once, and in again with another key
    keys.revoke(place, "plain")
    start.until("plain", "(?s)does not know its key.*does not know its key")
    keys.rotate(place, "plain", node_folder(place, "plain"))
    _until(lambda: keys.listed(place)[0]["state"] == "online", lambda: start.said("plain"))

    # a clock that is an hour off; Flower's own program says nothing then, and ends as if all were well
    ahead = (
        rf"this machine's clock is 3,6.. s ahead of that of {server}, which refuses its signatures then: set it; trying again"
    )
    for shift_s, said in ((3600, ahead), (-3600, r"ca\.pem: is good from .* on; correct this machine's clock")):
        os.killpg(start.children["rotated"].pid, signal.SIGTERM)
        start.children["rotated"].wait()
        env = {**wrong_clocks(tmp_path / "clocks", {}), "CLOCK_S": str(shift_s)}
        start("rotated", next(node_folder(place, "rotated").glob("node-*.sh")), env=env)
        start.until("rotated", said)
