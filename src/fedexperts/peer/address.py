"""HOST:PORT."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import ExitStack
from typing import Annotated

from pydantic import Field

from ..errors import InputError
from ..writing import reason

HOST = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.\-]+")
Address = Annotated[str, Field(pattern=f"^({HOST.pattern}):[0-9]{{1,5}}$")]


def check_free(where: str, address: str) -> None:
    """Whether one can listen at HOST:PORT.

    Raises:
        InputError: no, and why.
    """
    host, port = split_address(where, address)
    try:
        family, kind, _, _, at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(at)
            listening.listen(1)
    except OSError as error:
        raise InputError(
            f"{where} {address}: cannot be had ({reason(error)}); name another port or address, or end what listens there"
        ) from error


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def answers(host: str, port: int, timeout_s: float = 0.2) -> bool:
    """Whether anybody listens there."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def split_address(where: str, address: str, least: int = 0) -> tuple[str, int]:
    """HOST and PORT; the port is ``least`` or above, and 0 is any that is free.

    Raises:
        InputError: it is no such thing, after ``where``.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise InputError(f"{where} {address!r}: must be HOST:PORT, as 0.0.0.0:7300, with a port in {least}…65535")
    if not least <= int(port) <= 65535:
        raise InputError(f"{where} {address!r}: the port must lie in {least}…65535")
    return host.strip("[]"), int(port)


def everywhere(address: str) -> str:
    """Where a client listens: at all addresses of its machine, or at itself alone if others reach it so."""
    host, port = split_address("--host", address)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return address if host == "localhost" else f"0.0.0.0:{port}"
    return address if ip.is_loopback else f"0.0.0.0:{port}" if ip.version == 4 else f"[::]:{port}"
