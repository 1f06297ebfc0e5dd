"""HOST:PORT."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..errors import InputError

Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.\-]+):[0-9]{1,5}$")]


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
