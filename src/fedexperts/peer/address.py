"""HOST:PORT."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..errors import InputError

Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.\-]+):[0-9]{1,5}$")]


def split_address(option: str, address: str) -> tuple[str, int]:
    """HOST and PORT.

    Raises:
        InputError: it is no such thing.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise InputError(f"{option} {address!r}: must be HOST:PORT, as 0.0.0.0:7300, with a port in 0…65535")
    return host.strip("[]"), int(port)
