"""Peers as processes of this machine: for the demo, benchmarks and tests, which end, stop and start them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from ..errors import InputError, RunError
from .address import answers

PRELOAD = ("fedexperts.peer.serve",)
MOST_START_S = 60.0


class Local:
    """Peers of one run, each a process; as a context manager it leaves none behind, however the block ends.

    They are forked from a process that has imported what they need and nothing else, so that ten start in the time of one. If
    this process is killed, a guard beside it ends them, be they frozen or not.

    Args:
        run: a run directory.
        files: client → its ``peers.toml``; one for all, or one each where relays lie between them.
        ports: client → where it listens on 127.0.0.1.
        insecure: talk in the open.
        context: of multiprocessing, where another forks processes that have imported all this.
    """

    def __init__(self, run: Path, files: dict[int, Path], ports: dict[int, int], insecure: bool = False, context: Any = None):
        self.run, self.files, self.ports, self.insecure = run, files, ports, insecure
        self.processes: dict[int, BaseProcess] = {}
        self._context = context
        if context is None:
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload(list(PRELOAD))

    def __enter__(self) -> Self:
        """Only the guard is started yet."""
        told, self._tell = self._context.Pipe(duplex=False)
        self._guard = self._context.Process(target=_guard, args=(told,), daemon=True)
        self._guard.start()
        told.close()
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody is left."""
        self.end(list(self.processes))
        self._tell.close()
        self._guard.join()
        self._guard.close()

    def start(self, clients: Iterable[int]) -> None:
        """Start these, and wait until they listen.

        Raises:
            RunError: one ended before.
        """
        clients = list(clients)
        for client in clients:
            arguments = (self.run, client, self.files[client], f"127.0.0.1:{self.ports[client]}", self.insecure)
            self.processes[client] = self._context.Process(target=_main, args=arguments, daemon=True)
            self.processes[client].start()
            self._tell.send((self.processes[client].pid, True))
        until_s = time.monotonic() + MOST_START_S
        for client in clients:
            while not answers("127.0.0.1", self.ports[client]):
                if self.processes[client].exitcode is not None or time.monotonic() > until_s:
                    raise RunError(f"client {client}: its process ended or did not listen within {MOST_START_S:g} s; see above")
                time.sleep(0.02)

    def address(self, client: int) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.ports[client]}"

    def signal(self, client: int, number: int) -> None:
        """Send it a signal, as SIGKILL, SIGSTOP and SIGCONT."""
        pid = self.processes[client].pid
        assert pid is not None
        os.kill(pid, number)

    def end(self, clients: Iterable[int]) -> None:
        """End these at once; those that are stopped too."""
        gone = [self.processes.pop(client) for client in clients if client in self.processes]
        for process in gone:
            with suppress(OSError):
                process.kill()
        for process in gone:
            process.join()
            self._tell.send((process.pid, False))
            process.close()


def _guard(told: Any) -> None:
    """For a process of its own: when who started it has gone, end what is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    alive: set[int] = set()
    with suppress(EOFError):
        while True:
            pid, lives = told.recv()
            (alive.add if lives else alive.discard)(pid)
    for pid in alive:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _main(run: Path, client: int, peers: Path, listen: str, insecure: bool) -> None:
    """For a process of its own: a peer."""
    from .serve import serve

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal; who started it ends it
    try:
        asyncio.run(serve(run, client, peers, listen, insecure))
    except InputError as error:
        print(f"client {client}: {error}", file=sys.stderr)
        sys.exit(2)
