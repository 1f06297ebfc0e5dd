"""A node on a machine of its own: its worker and its SuperNode, which ends with it and begins again until it is let in."""

from __future__ import annotations

import math
import socket
import ssl
import sys
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

from ..errors import InputError
from ..peer.address import free_ports, split_address
from ..peer.tls import certificate_of, check_dates, ssh_public
from ..runs.lock import claimed, is_held
from ..writing import reason
from .hand import SOCKET
from .keys import KEY
from .local import Processes, our_supernode, processes, until
from .place import CA, Place, load

AGAIN_S = 10.0
SUPERNODE, LET_IN = "supernode", "SuperNode ID"
REASONS = {
    "[code: 2004]": "the server does not know its key: its run.sh lets the deployment's nodes in; one whose key was changed "
    "needs the new node.key",
}
"""What Flower says, and what it means."""
MOST_AHEAD_S, MOST_BEHIND_S = 5.0, 300.0
"""Of a node's clock against the server's: what is signed by another is refused, and Flower's SuperNode ends without a word."""


def stand(folder: Path, say: Callable[[str], None]) -> None:
    """Be a node until told to end.

    Raises:
        InputError: the folder is no node's, or lacks what it needs.
        RunError: the worker has ended, and why.
    """
    place = checked(folder)
    link = str(place.link)
    if is_held(folder):
        raise InputError(f"{folder}: is a node already; end its other process first")
    with claimed(folder), processes(place) as start:
        (place.node(link) / SOCKET).unlink(missing_ok=True)
        start("worker", [sys.executable, "-m", "fedexperts.deploy.worker", str(folder), link])
        until(f"{link}: its devices are ready", (place.node(link) / SOCKET).exists, start, most_s=math.inf)
        say(f"{link}: its devices are ready; calling {place.server}")
        told = None  # each once, and not every ten seconds
        while (why := knock(place)) is not None:
            if why != told:
                say(f"{link}: {why}; trying again every {AGAIN_S:g} s")
            told = why
            time.sleep(AGAIN_S)
            start.check()
        command = supernode(place)
        at_B = _begin(start, command)
        while True:
            if (why := _ended(start, at_B)) is not None:
                why = _knocked_again(place) or why
                if why != told:
                    say(f"{link}: is not let in ({why}); trying again every {AGAIN_S:g} s")
                told = why
                time.sleep(AGAIN_S)
                at_B = _begin(start, command)
            elif told != LET_IN and LET_IN in _said(start, at_B):
                say(f"{link}: is let in, and waits for the server's calls")
                told = LET_IN
            start.check(but=SUPERNODE)  # which may have ended since it was looked at above
            time.sleep(0.5)


def supernode(place: Place) -> list[str]:
    """The command of a node's SuperNode."""
    link = str(place.link)
    config = f'link="{link}" folder="{place.node(link).resolve()}"'
    secured = ("--root-certificates", str(place.folder / CA), "--auth-supernode-private-key", str(place.folder / KEY))
    return our_supernode(str(place.server), free_ports(1)[0], *secured, "--node-config", config)


def checked(folder: Path) -> Place:
    """A node's folder that has what it needs.

    Raises:
        InputError: no.
    """
    place = load(folder)
    if place.link is None or place.server is None:
        raise InputError(f"{folder}: is no node's folder; give one of nodes/ that fedexperts deploy init has made")
    check_dates(certificate_of(folder / CA), str(folder / CA))
    ssh_public(folder / KEY)
    return place


def knock(place: Place) -> str | None:
    """Why the server cannot be reached now, or would refuse, which Flower's SuperNode would not tell; None if it can.

    Raises:
        InputError: it can, and it is another.
    """
    host, port = split_address("server", str(place.server))
    context = ssl.create_default_context(cafile=str(place.folder / CA))
    try:
        with (
            socket.create_connection((host, port), timeout=AGAIN_S) as way,
            context.wrap_socket(way, server_hostname=host) as secured,
        ):
            return wrong_clock(_asked_time(secured, host), place)
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"{place.server}: its certificate is not of this folder's {CA}, or not for this name, or out of date "
            f"({error.verify_message}); take the folder of the deployment that runs there, or set this machine's clock"
        ) from error
    except OSError as error:
        return f"{place.server} cannot be reached ({reason(error)})"


def _knocked_again(place: Place) -> str | None:
    """`knock` of a node that was let in before, and does not end for what can be mended at the server."""
    try:
        return knock(place)
    except InputError as error:
        return str(error)


def _asked_time(secured: ssl.SSLSocket, host: str) -> str:
    """What the server says that the time is, by any answer of HTTP; empty where it does not say."""
    secured.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    with secured.makefile("rb") as lines:
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "date":
                return value.strip()
    return ""


def wrong_clock(said: str, place: Place) -> str | None:
    """What to say of this machine's clock, if the server's, as a header has it, is so different that it refuses signatures."""
    try:
        ahead_s = time.time() - parsedate_to_datetime(said).timestamp()
    except ValueError:
        return None
    if -MOST_BEHIND_S <= ahead_s <= MOST_AHEAD_S + 1:  # the header has whole seconds
        return None
    how = f"{abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'}"
    return f"this machine's clock is {how} that of {place.server}, which refuses its signatures then: set it"


def _begin(start: Processes, command: list[str]) -> int:
    """Start the SuperNode; returns where in its log it begins."""
    log = _log(start)
    at_B = log.stat().st_size if log.exists() else 0
    start(SUPERNODE, command)
    return at_B


def _ended(start: Processes, at_B: int) -> str | None:
    """Why the SuperNode has ended; None as long as it lives."""
    if (code := start.children[SUPERNODE].poll()) is None:
        return None
    said = _said(start, at_B)
    why = next((why for mark, why in REASONS.items() if mark in said), f"it has ended with {code}")
    return f"{why}; log: {_log(start)}"


def _said(start: Processes, at_B: int) -> str:
    """What the SuperNode has said since it was started last."""
    said = _log(start).read_bytes()
    return said[at_B if at_B <= len(said) else 0 :].decode(errors="replace")  # a log that was too long has begun anew


def _log(start: Processes) -> Path:
    return start.logs / f"{SUPERNODE}.log"
