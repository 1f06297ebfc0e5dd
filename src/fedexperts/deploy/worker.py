"""A node's worker: the process that holds its devices, trains them, and answers the calls that its SuperNode hands over.

``python -m fedexperts.deploy.worker FOLDER LINK``
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from .. import __version__
from ..errors import InputError, RunError
from ..method.elsewhere import host
from ..scenario import Scenario, read_toml
from .hand import SOCKET, receive, send, socket_path
from .node import Node
from .place import PARENT, SCENARIO, Place, load

log = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGE_B = -1, -3, 2**16
HAND_S = 60.0
"""A caller of this machine that sends or takes nothing for so long is not waited for."""


def scenario_of(place: Place) -> Scenario:
    """What is deployed."""
    return Scenario.parse(read_toml(place.folder / SCENARIO), place.folder.resolve() / place.base)


def work(place: Place, link: str) -> None:
    """Answer until the process is told to end."""
    torch.set_num_threads(1)
    folder = place.node(link)
    folder.mkdir(parents=True, exist_ok=True)
    node = Node(host(scenario_of(place), link), place.id, folder / "spool")
    path = socket_path(folder)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        (folder / SOCKET).write_text(str(path))
        log.info("fedexperts %s: %s is ready", __version__, link)
        try:
            while True:
                listening.settimeout(node.quiet_s if node.meanwhile else None)
                try:
                    connection, _ = listening.accept()
                except (TimeoutError, BlockingIOError):
                    node.go_on()
                    continue
                with connection, suppress(OSError):  # who has called is gone, and calls again
                    connection.settimeout(HAND_S)
                    message = receive(connection)
                    if message is not None:
                        send(connection, node.handle(message))
        finally:
            path.unlink(missing_ok=True)


def give_back() -> None:
    """Have glibc return the memory of tensors to the system when they go; it keeps half an expert's otherwise."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, LARGE_B)


def main() -> None:
    """As a program."""
    give_back()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
    try:
        work(load(Path(sys.argv[1])), sys.argv[2])
    except (InputError, RunError) as error:
        sys.exit(f"{sys.argv[2]}: {error}")


def _follow(parent: int) -> None:
    """End with the process that has started this one."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
