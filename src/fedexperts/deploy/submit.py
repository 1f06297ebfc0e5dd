"""A run handed to the SuperLink of a deployment, and followed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import InputError, RunError
from ..runs.lock import claimed, is_held
from .app import submit
from .keys import check_server, register
from .local import Tail
from .place import OUTCOME, Place
from .serving import Watch

LOOK_S = 5.0
ORPHAN_S = 15.0
"""So long a server process may live on whose SuperLink was killed."""


def train(place: Place, say: Callable[[str], None], show: Callable[[dict[str, Any]], None] = lambda line: None) -> None:
    """Let the nodes in, hand the run over, or what is left of it, and follow it to its end.

    Raises:
        InputError: it is running already.
        RunError: there is no SuperLink, it refuses, or the run ended as it should not.
    """
    until_s = time.monotonic() + ORPHAN_S
    while is_held(place.run) and not is_held(place.folder) and time.monotonic() < until_s:
        time.sleep(0.5)
    if is_held(place.run) or is_held(place.folder):
        raise InputError(f"{place.folder}: is running already; see fedexperts deploy status {place.folder}")
    with claimed(place.folder):
        _train(place, say, show)


def _train(place: Place, say: Callable[[str], None], show: Callable[[dict[str, Any]], None]) -> None:
    check_server(place)
    for link in register(place):
        say(f"{link}: its key is let in")
    (place.folder / OUTCOME).unlink(missing_ok=True)
    watch = Watch(place)
    submit(place.folder)
    say(f"handed over; waiting for {len(place.links)} nodes, for {place.patience_s:g} s at most")
    follow, looked_s = Tail(place.run / "ledger.jsonl", show), time.monotonic()
    while (outcome := place.outcome()) is None:
        follow()
        if time.monotonic() > looked_s + LOOK_S:
            watch()
            check_server(place)
            looked_s = time.monotonic()
        time.sleep(0.5)
    follow()
    if outcome["error"] is not None:
        raise RunError(f"{outcome['error']} (log: what {place.folder / 'server.sh'} printed)")
