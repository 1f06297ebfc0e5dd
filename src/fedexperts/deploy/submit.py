"""A run handed to the SuperLink of a deployment, and followed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import InputError, RunError
from ..peer.address import split_address
from ..runs.lock import is_held
from .app import submit
from .keys import register
from .local import Tail
from .place import OUTCOME, Place, listens, local_address

LOOK_S = 5.0


def train(place: Place, say: Callable[[str], None], show: Callable[[dict[str, Any]], None] = lambda line: None) -> None:
    """Let the nodes in, hand the run over, or what is left of it, and follow it to its end.

    Raises:
        InputError: it is running already.
        RunError: there is no SuperLink, it refuses, or the run ended as it should not.
    """
    if is_held(place.run):
        raise InputError(f"{place.folder}: is running already; see fedexperts deploy status {place.folder}")
    _check_server(place)
    for link in register(place):
        say(f"{link}: its key is let in")
    (place.folder / OUTCOME).unlink(missing_ok=True)
    submit(place.folder)
    say(f"handed over; waiting for {len(place.links)} nodes, for {place.patience_s:g} s at most")
    follow, looked_s = Tail(place.run / "ledger.jsonl", show), time.monotonic()
    while (outcome := place.outcome()) is None:
        follow()
        if time.monotonic() > looked_s + LOOK_S:
            _check_server(place)
            looked_s = time.monotonic()
        time.sleep(0.5)
    follow()
    if outcome["error"] is not None:
        raise RunError(f"{outcome['error']} (log: what {place.folder / 'server.sh'} printed)")


def _check_server(place: Place) -> None:
    if not _answers(local_address(str(place.server))):
        _, port = listens(str(place.server))
        raise RunError(f"no SuperLink listens at port {port}; start {place.folder / 'server.sh'}, and then this again")


def _answers(address: str) -> bool:
    """Whether anybody listens at HOST:PORT."""
    host, port = split_address("server", address)
    with suppress(OSError), socket.create_connection((host, port), timeout=5.0):
        return True
    return False
