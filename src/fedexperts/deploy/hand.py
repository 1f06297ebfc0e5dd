"""Handing messages to a worker of the same machine. Nothing here takes time to load: a ClientApp starts for each message."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from pathlib import Path

SOCKET = "socket"
"""File in a node's folder that says where its worker listens."""
LENGTH_B = 8


def socket_path(folder: Path) -> Path:
    """Where a node's worker listens: a short path, as the system allows no long one."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fedexperts-{os.getuid()}-{name}"


def hand(folder: Path, message: bytes, timeout_s: float) -> bytes | None:
    """A worker's answer; None if there is no worker, or it has none in time."""
    try:
        path = (folder / SOCKET).read_text()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            send(connection, message)
            return receive(connection)
    except OSError:
        return None


def send(connection: socket.socket, message: bytes) -> None:
    """A message with its length before it."""
    connection.sendall(len(message).to_bytes(LENGTH_B, "little") + message)


def receive(connection: socket.socket) -> bytes | None:
    """What `send` has sent; None if the other end has gone before all was there."""
    head = _exactly(connection, LENGTH_B)
    return None if head is None else _exactly(connection, int.from_bytes(head, "little"))


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
