"""Links of a local deployment: relays before each node, shaped, opened and closed by the server as the plan has it."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from ..peer.relay import Relay, Shape, Windows
from ..writing import write_whole

CONTROL = "switch.json"
SHUT = Windows(())
"""No window at all."""


class Switches:
    """Relays from each node to the server, in a thread; a context manager.

    Whoever knows the token, which stands in a file that others cannot read, opens, closes and cuts them. All are open as they
    begin.

    Args:
        folder: where that file is written.
        server: HOST and port that nodes talk to.
        shapes: how each link carries, by its name.
        seed: of jitter and loss.
    """

    def __init__(self, folder: Path, server: tuple[str, int], shapes: Mapping[str, Shape], seed: int = 0):
        self.path = folder / CONTROL
        self.relays = {
            link: Relay(("127.0.0.1", 0), server, shape, seed=seed + i) for i, (link, shape) in enumerate(shapes.items())
        }
        self.token = secrets.token_hex(16)
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def port(self, link: str) -> int:
        """Where a node finds the server."""
        return self.relays[link].port

    def turn(self, link: str, is_open: bool) -> None:
        """Open a link, or shut it: as `switch` asks for, and in the loop of this thread alone."""
        self.relays[link].turn(None if is_open else SHUT)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with AsyncExitStack() as stack:
                for relay in self.relays.values():
                    await stack.enter_async_context(relay)
                server = await stack.enter_async_context(await asyncio.start_server(self._told, "127.0.0.1", 0))
                port = server.sockets[0].getsockname()[1]
                self.path.touch(mode=0o600)
                write_whole(self.path, json.dumps({"port": port, "token": self.token}))
                self.path.chmod(0o600)
                self._ready.set()
                await self._end.wait()
        except BaseException as error:
            self._failed = error
            self._ready.set()

    async def _told(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            order = json.loads(await reader.readline())
            if secrets.compare_digest(str(order.get("token")), self.token) and order.get("link") in self.relays:
                relay = self.relays[order["link"]]
                if order.get("open") is not None:
                    self.turn(order["link"], bool(order["open"]))
                if order.get("cut"):
                    relay.cut()
                said = {"up_B": relay.passed_B[0], "down_B": relay.passed_B[1], "cuts": relay.cuts}
                writer.write(json.dumps(said).encode() + b"\n")
                await writer.drain()
        except (ValueError, LookupError, AttributeError, OSError):
            pass  # of no concern to anybody but whoever sent it
        finally:
            writer.close()


def switch(folder: Path, link: str, is_open: bool | None = None, cut: bool = False) -> dict[str, int] | None:
    """Ask whoever holds the links of this folder to open one, to shut it, or to reset its connections.

    Returns what has passed there so far, ``up_B`` and ``down_B``, and how many ``cuts`` there were; None where the links are
    nobody's.
    """
    try:
        control: Mapping[str, Any] = json.loads((folder / CONTROL).read_text())
    except FileNotFoundError:
        return None
    with socket.create_connection(("127.0.0.1", control["port"]), timeout=10) as connection:
        order = {"token": control["token"], "link": link, "open": is_open, "cut": cut}
        connection.sendall(json.dumps(order).encode() + b"\n")
        with connection.makefile("rb") as said:
            found: dict[str, int] = json.loads(said.readline() or b"null")
        return found
