"""A whole deployment on this machine: SuperLink, SuperNodes, workers and relays as processes on loopback, all of them ended."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError
from ..peer.address import answers, free_ports
from ..peer.relay import Shape
from ..runs.lock import claimed
from ..writing import write_whole
from .app import connection, environment, submit, write_app
from .hand import SOCKET
from .place import LINKS, OUTCOME, PARENT, PROCESSES, Place
from .serving import Watch
from .shapes import shapes
from .switch import Switches

log = logging.getLogger(__name__)
MOST_START_S = 120.0
END_S = 10.0
MOST_LOG_B = 10_000_000
"""A log of that size becomes the one before, which is kept; at most twice as much lies on disk for each process."""
GUARDS = "FEDEXPERTS_GUARD=1"
AGAIN = 3
"""So often a node's process that was killed while a run is under way is started again."""
LASTING = ("worker", "supernode")
"""Whose processes: they find in their folder what the one before has done."""
GUARD = f"""import glob, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
mark = ("{PARENT}=" + os.environ["{PARENT}"]).encode()
groups = sys.stdin.read().split()
if groups[-1:] == ["end"]:
    sys.exit()
for group in groups:
    try:
        os.killpg(int(group), signal.SIGKILL)
    except OSError:
        pass
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        pid = int(path.split("/")[2])
        if pid != os.getpid() and mark in open(path, "rb").read().split(b"\\0"):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
"""
"""A process beside the others: its input, where it is told of them, ends with whoever started all; if that was killed, it ends
what is left."""


def check_flower() -> None:
    """Raises: InputError, where Flower is not installed."""
    try:
        import flwr  # noqa: F401  # whether it is there
    except ImportError as error:
        raise InputError(f"deploy: needs Flower ({error}); pip install 'fedexperts[flower]'") from error


def deploy_local(place: Place, show: Callable[[dict[str, Any]], None] = lambda line: None) -> None:
    """Run a deployment on this machine, to its end.

    Args:
        place: its folder; what a deployment before this has left there is gone on with.
        show: called with every line of the ledger.

    Raises:
        InputError, RunError: why the run ended, if not as it should.
    """
    shaped, seed = (
        shapes(place.folder / LINKS, place.links)
        if (place.folder / LINKS).exists()
        else (dict.fromkeys(place.links, Shape()), 0)
    )
    with ExitStack() as stack:
        stack.enter_context(claimed(place.folder))
        (place.folder / OUTCOME).unlink(missing_ok=True)
        start = stack.enter_context(processes(place))
        for link in place.links:
            (place.node(link) / SOCKET).unlink(missing_ok=True)
            start(
                f"worker-{place.links.index(link)}", [sys.executable, "-m", "fedexperts.deploy.worker", str(place.folder), link]
            )
        server, *ports = free_ports(1 + len(place.links))
        start("superlink", flower_superlink(server))
        switches = stack.enter_context(Switches(place.folder, ("127.0.0.1", server), shaped, seed))
        until("the SuperLink listens", lambda: answers("127.0.0.1", server), start)
        for link, port in zip(place.links, ports, strict=True):
            config = f'link="{link}" folder="{place.node(link)}"'
            command = our_supernode(f"127.0.0.1:{switches.port(link)}", port, "--insecure", "--node-config", config)
            start(f"supernode-{place.links.index(link)}", command)
        for link in place.links:
            until(f"the worker of {link} is ready", (place.node(link) / SOCKET).exists, start, most_s=math.inf)
        watch = Watch(place)
        _submit(place, server)
        follow = Tail(place.run / "ledger.jsonl", show)
        while (outcome := place.outcome()) is None:
            follow()
            start.check(AGAIN)
            watch()
            time.sleep(0.2)
        follow()
    if outcome["error"] is not None:
        raise RunError(f"{outcome['error']} (logs: {place.folder / 'logs'})")


def _submit(place: Place, server: int) -> None:
    """Hand the thin app to the SuperLink."""
    write_app(place.folder, connection(f"127.0.0.1:{server}"))
    submit(place.folder)


class Tail:
    """Lines of a growing file, each once, when it is whole."""

    def __init__(self, path: Path, show: Callable[[dict[str, Any]], None]):
        self.path, self.show, self.at = path, show, 0

    def __call__(self) -> None:
        """Show what is new."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.at)
            for line in file:
                if line.endswith(b"\n"):
                    self.at += len(line)
                    self.show(json.loads(line))


class Processes:
    """Children of this process, each with its log; all are ended with what they have started."""

    def __init__(self, place: Place):
        self.logs = place.folder / "logs"
        self.logs.mkdir(exist_ok=True)
        self.environment = {**environment(place.folder), PARENT: str(os.getpid())}
        self.path = place.folder / PROCESSES
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.commands: dict[str, list[str]] = {}
        self.again: dict[str, int] = {}
        guard = ["env", GUARDS, sys.executable, "-S", "-c", GUARD]
        self.guard = self._started(guard, subprocess.DEVNULL, subprocess.PIPE)

    def __call__(self, name: str, command: list[str]) -> None:
        """Start one, as the leader of a session of its own, so that signals of a terminal do not reach it."""
        self.commands[name] = command
        with (self.logs / f"{name}.log").open("ab") as log:
            child = self.children[name] = self._started(command, log, subprocess.DEVNULL)
        self._tell(str(child.pid))
        write_whole(self.path, json.dumps({name: child.pid for name, child in self.children.items()}) + "\n")

    def _tell(self, word: str) -> None:
        assert self.guard.stdin is not None
        with suppress(BrokenPipeError):  # somebody has killed it
            self.guard.stdin.write(f"{word}\n".encode())
            self.guard.stdin.flush()

    def _started(self, command: list[str], output: Any, given: int) -> subprocess.Popen[bytes]:
        program = shutil.which(command[0], path=self.environment["PATH"]) or command[0]
        return subprocess.Popen(
            [program, *command[1:]], env=self.environment, stdout=output, stderr=output, stdin=given, start_new_session=True
        )

    def check(self, again: int = 0, but: str = "") -> None:
        """Look whether all are there, but for one that may end; a node's that was killed is started again, so often.

        Raises:
            RunError: one has ended otherwise.
        """
        for name, child in list(self.children.items()):
            self._turn(self.logs / f"{name}.log")
            if name == but or (code := child.poll()) is None:
                continue
            if code < 0 and name.startswith(LASTING) and self.again.get(name, 0) < again:
                self.again[name] = self.again.get(name, 0) + 1
                log.warning(
                    "warning: %s was killed by signal %d; started again, for the %d. time", name, -code, self.again[name]
                )
                _signal(child.pid, signal.SIGKILL)  # what it has started itself
                self(name, self.commands[name])
                continue
            text = (self.logs / f"{name}.log").read_text(errors="replace").strip().splitlines()
            raise RunError(
                f"{name} has ended with {code}: {text[-1] if text else 'it said nothing'} (log: {self.logs / name}.log)"
            )

    def _turn(self, log: Path) -> None:
        """Keep a log from growing for ever: what is in it goes to another, and its process writes on at its beginning."""
        if log.stat().st_size > MOST_LOG_B:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)

    def end(self) -> None:
        """End them all, and whatever they have started: at first with a word, then without."""
        for number, wait_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
            for child in self.children.values():
                _signal(child.pid, number)
            until_s = time.monotonic() + wait_s
            while time.monotonic() < until_s and any(_lives(child) for child in self.children.values()):
                time.sleep(0.05)
        for pid in _strays():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._tell("end")
        self.guard.communicate()
        self.path.unlink(missing_ok=True)


@contextmanager
def processes(place: Place) -> Iterator[Processes]:
    """Children that are ended however the block ends, also by SIGTERM."""
    started = Processes(place)

    def ended(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield started
    finally:
        started.end()
        signal.signal(signal.SIGTERM, before)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _strays() -> list[int]:
    """What Flower has started in sessions of its own, where the system shows it: this process stands in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if f"{PARENT}={os.getpid()}".encode() in words and GUARDS.encode() not in words:
                found.append(int(path.parent.name))
    return found


def _lives(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child, or anything of its group, is there."""
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return False
    return True


def flower_superlink(port: int) -> list[str]:
    """The command of a SuperLink of this machine, in the open."""
    return ["flower-superlink", "--insecure", *_at(port), "--disable-runtime-dependency-installation"]


def flower_supernode(server: str, port: int, *options: str) -> list[str]:
    """The command of a SuperNode as Flower has it, whose own programs find it at a port of this machine."""
    return ["flower-supernode", "--superlink", server, *options, *_at(port)]


def our_supernode(server: str, port: int, *options: str) -> list[str]:
    """The same that is soon there when its link is, see `supernode`."""
    return [sys.executable, "-m", "fedexperts.deploy.supernode", *flower_supernode(server, port, *options)[1:]]


def _at(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port)]


def until(what: str, is_so: Callable[[], bool], started: Processes, most_s: float = MOST_START_S) -> None:
    """Wait until something is so, as long as those that were started live; whoever waits long is told.

    Raises:
        RunError: one has ended, or it was not so in time.
    """
    began_s, told = time.monotonic(), 0
    while not is_so():
        started.check()
        waited_s = time.monotonic() - began_s
        if waited_s > most_s:
            raise RunError(f"{what}: not within {most_s:g} s; {started.logs} says what each process was at")
        if waited_s > MOST_START_S * (told + 1):
            told += 1
            log.warning("warning: %s: not yet after %d s; %s says what each process is at", what, waited_s, started.logs)
        time.sleep(0.05)
