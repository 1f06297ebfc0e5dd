"""Deployments of real processes that are killed: who is started again goes on, and nobody is left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clocks import wrong_clocks
from test_deploy_init import scenario_in
from test_local import deploy
from test_local import scenario as scenario  # the fixture

import small
from deployed import left, losses, weights
from fedexperts import Scenario, run
from fedexperts.deploy.orders import read_call
from fedexperts.deploy.place import Place, create, write
from fedexperts.deploy.serving import SERVING, Watch
from fedexperts.deploy.status import status
from fedexperts.deploy.switch import switch
from fedexperts.drive.simulate import Simulator
from fedexperts.errors import RunError
from fedexperts.ledger import read
from fedexperts.setup.plan import network_plan

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
slow = pytest.mark.slow
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
LINK = "rotated"


def until(is_so: Callable[[], Any], child: subprocess.Popen[bytes], most_s: float = 300) -> None:
    """Wait until something is so, as long as a program lives."""
    until_s = time.monotonic() + most_s
    while not is_so():
        assert child.poll() is None, child.communicate()[0].decode()
        assert time.monotonic() < until_s
        time.sleep(0.02)


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


def one_node(folder: Path, cycles: int = 4) -> Scenario:
    """One cluster, whose uploads take a while on a slow link, and whose training does too."""
    rows = [
        {"cluster": LINK, "start_s": 120.0 * i, "end_s": 120.0 * i + 60, "uplink_bps": 1e7, "downlink_bps": 1e7}
        for i in range(2 * cycles + 2)
    ]
    sizes = {"hidden_size": 64, "intermediate_size": 256}
    return scenario_in(
        folder,
        rows=rows,
        train={"cycles": cycles, "local_steps": 20, "batch_size": 8, "final_flush": False, "seconds_per_round": 40.0},
        cluster=[{"name": LINK, "devices": 1, "data": f"digits:{LINK}"}],
        model={"config": {**small.CONFIG, **sizes}},
    )


def begun(scenario: Scenario, out: Path, patience_s: float, links: str = "") -> Place:
    """A deployment that nobody works in."""
    place = create(out, scenario.to_toml(), scenario.base, tuple(one.name for one in scenario.cluster), patience_s)
    if links:
        (out / "links.toml").write_text(links)
    return place


def gone_on(out: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedexperts", "deploy", "resume", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)


def ended_well(child: subprocess.Popen[bytes], out: Path) -> str:
    told, _ = child.communicate(timeout=500)
    assert child.returncode == 0, told.decode()
    assert left(out) == []
    return told.decode()


def repeated(scenario: Scenario, out: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """A deployment has the model of the simulation with the losses that its ledger has; these are returned."""
    lost = losses(list(read(out / "run" / "ledger.jsonl")), network_plan(scenario, scenario.train.cycles + 1))
    monkeypatch.setattr("fedexperts.runs.run.Simulator", partial(Simulator, closes_s=lost))
    run(scenario, here)
    assert weights(out / "run") == weights(here)
    return lost


def sent_B(out: Path) -> int:
    """What has passed a node's link to the server so far."""
    return (switch(out, LINK) or {"up_B": 0})["up_B"]


def uploads(out: Path) -> bool:
    """Whether a node is sending what is larger than what it asks for and says all the time."""
    before_B = sent_B(out)
    time.sleep(0.1)
    return sent_B(out) > before_B + 20_000


def over(out: Path) -> int:
    """How many contacts are; of this there is a line at once."""
    path = out / "contacts.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def one_more(out: Path, child: subprocess.Popen[bytes]) -> None:
    """Wait until a contact is over."""
    known = over(out)
    until(lambda: over(out) > known, child)


class Disk:
    """A node's disk that can be full: a small file system of its own, or else files that cannot be written any more."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.filler = folder, folder / "filler"
        words = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        self.own = subprocess.run(words, capture_output=True, check=False).returncode == 0

    def fill(self, worker: int) -> None:
        if not self.own:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            return
        with suppress(OSError), self.filler.open("wb", buffering=0) as file:  # there is no space left
            while True:
                file.write(bytes(1 << 16))

    def free(self, worker: int) -> None:
        if not self.own:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return
        self.filler.unlink()

    def end(self) -> None:
        if self.own:
            subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "deployed" / "nodes" / "0" / "spool")
    yield found
    found.end()


@slow
def test_a_node_whose_clock_is_wrong_is_killed_in_training_and_in_upload_and_its_disk_is_full(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scenario = tmp_path / "deployed", one_node(tmp_path)
    write(Place(out, "run", str(tmp_path), (LINK,), 90.0), scenario.to_toml())
    (out / "links.toml").write_text("[default]\nrate_bps = 4e6\n")
    # of all but the SuperNode, whose signatures Flower refuses then, also where there are no keys: test_over_machines.py
    env = wrong_clocks(tmp_path / "clocks", {"flwr-clientapp": 3600.0, "fedexperts.deploy.worker": -3600.0})
    child = gone_on(out, env)
    calls = out / "nodes" / "0" / "spool" / "calls"

    def training() -> bool:
        """Whether the node has just been called for training, which takes it seconds."""
        known = set(calls.glob("[0-9]*"))
        until(lambda: set(calls.glob("[0-9]*")) - known, child)
        call = read_call(max(calls.glob("[0-9]*")).read_bytes())
        return any(command.verb == "train" for command in (*call.decided, *call.foreseen))

    until(calls.is_dir, child)
    until(training, child)
    os.kill(running(out, "fedexperts.deploy.worker")[0], signal.SIGKILL)

    until(partial(uploads, out), child)
    os.kill(running(out, "fedexperts.deploy.supernode")[0], signal.SIGKILL)

    one_more(out, child)
    worker = running(out, "fedexperts.deploy.worker")[0]
    disk.fill(worker)
    one_more(out, child)
    disk.free(worker)

    told = ended_well(child, out)
    assert "worker-0 was killed by signal 9" in told
    assert "supernode-0 was killed by signal 9" in told
    lines = list(read(out / "run" / "ledger.jsonl"))
    assert all("make room there" in line["reason"] for line in lines if line["event"] == "lost"), lines
    assert repeated(scenario, out, tmp_path / "here", monkeypatch)  # one contact, or more if the disk is freed late


@slow
def test_servers_that_are_killed_end_all_and_are_gone_on_with(scenario: Path, tmp_path: Path) -> None:
    """Whoever has started all, as soon as it has; then the SuperLink, and the server process, while they train."""
    out = tmp_path / "deployed"
    told = {"superlink": b"superlink has ended with -9", "server": b"the server process was killed; the same command goes on"}
    for who in ("all", "superlink", "server"):
        lines = len(events(out))
        child = deploy(scenario, out, *(["--resume"] if out.exists() else []))
        until(lambda: len(left(out)) >= 6, child)
        if who != "all":
            until(lambda: (out / SERVING).exists() and len(events(out)) > lines, child)  # noqa: B023  # it ends in this turn
        victim = {
            "all": lambda: child.pid,  # noqa: B023
            "superlink": lambda: running(out, "flower-superlink")[0],
            "server": lambda: int((out / SERVING).read_text()),
        }[who]()
        os.kill(victim, signal.SIGKILL)
        said, _ = child.communicate(timeout=300)
        if who == "all":
            until_s = time.monotonic() + 100
            while left(out) and time.monotonic() < until_s:
                time.sleep(0.1)
        else:
            assert child.returncode == 1, said.decode()
            assert told[who] in b" ".join(said.split()), said.decode()
        assert left(out) == []
    ended_well(deploy(scenario, out, "--resume"), out)
    assert "lost" not in events(out)
    run(scenario, tmp_path / "here")
    assert weights(out / "run") == weights(tmp_path / "here")


def test_a_server_process_that_was_killed_is_told_from_one_that_has_ended(tmp_path: Path) -> None:
    place = begun(scenario_in(tmp_path), tmp_path / "there", 10.0)
    watch = Watch(place)
    watch()  # it has not begun
    env = {**os.environ, "FLWR_HOME": str((place.folder / "flower").resolve())}
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
    )
    assert child.stdout is not None
    child.stdout.readline()  # it runs, and has its environment
    (place.folder / SERVING).write_text(str(child.pid))
    watch()
    child.kill()
    child.communicate()
    with pytest.raises(RunError, match="was killed; the same command goes on"):
        watch()
    place.end(None)
    watch()
    assert status(place)["processes"] == []


def test_a_server_process_that_does_not_begin_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(begun(scenario_in(tmp_path), tmp_path / "there", 10.0))
    clock_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock_s + 121)
    with pytest.raises(RunError, match="has not started the server process in 120 s"):
        watch()
