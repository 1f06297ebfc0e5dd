"""Links between two ends of TCP, shaped by a relay: rate, delay, jitter, loss, and when there is one at all.

It knows nothing of what passes, so that anything over TCP can be tried on it. What it models is what TCP makes of a link:

- *Rate*: bytes leave one after another, those of all connections of a link through one queue for each direction.
- *Delay and jitter*: bytes arrive so much later, evenly drawn from delay ± jitter, and in order.
- *Loss*: TCP loses nothing, it stalls. A segment of 1,448 bytes that is lost is sent again after a timeout, 200 ms or three
  delays, whichever is longer, twice as long each time it is lost again; all behind it waits, as TCP delivers in order.
- *No contact*: nothing passes, as behind a hill. Connections stay, and what was on its way comes when the link is back; who
  waits is not told.
- *Cuts*: each time that so many bytes have passed, connections are reset at both ends, and what was on its way is lost.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

from ..errors import InputError
from ..writing import reason

SEGMENT_B = 1448
CHUNK_B = 16 * 1024
WAITING_B = 256 * 1024
"""Of one direction of a connection, on their way; the sender is made to wait then."""
TIMEOUT_S, TIMEOUT_DELAYS, MOST_TIMEOUT_S = 0.2, 3, 60.0
RESET = struct.pack("ii", 1, 0)
"""Of SO_LINGER: what is closed is reset, and not ended."""


@dataclass(frozen=True)
class Shape:
    """How a link carries, in either direction; ``cut_B`` counts both."""

    rate_bps: float = math.inf
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    cut_B: float = math.inf


@dataclass(frozen=True)
class Clock:
    """Time of a plan: its second 0 is at ``begins``, in Unix time, and it passes ``speed`` times as fast as ours."""

    begins: float
    speed: float = 1.0

    def now_s(self) -> float:
        """Seconds of the plan."""
        return (time.time() - self.begins) * self.speed

    def real_s(self, plan_s: float) -> float:
        """How long a stretch of the plan lasts here."""
        return plan_s / self.speed


@dataclass(frozen=True)
class Windows:
    """When there is a link, and how fast: (start_s, end_s, rate there, rate back), in order, none overlapping another."""

    rows: tuple[tuple[float, float, float, float], ...]

    def at(self, now_s: float) -> tuple[float, float, float, float] | None:
        """The window that is open."""
        i = bisect_right(self.rows, now_s, key=lambda row: row[0]) - 1
        return self.rows[i] if i >= 0 and now_s < self.rows[i][1] else None

    def next_s(self, now_s: float) -> float:
        """When a link is there, now or later; infinity if never again."""
        if self.at(now_s):
            return now_s
        i = bisect_right(self.rows, now_s, key=lambda row: row[0])
        return self.rows[i][0] if i < len(self.rows) else math.inf


class Relay:
    """One link: whoever connects to ``listen`` talks with ``to``. Use it as an asynchronous context manager.

    Args:
        listen: HOST and port; 0 takes any that is free, see ``port``.
        to: HOST and port of the other end.
        shape: how the link carries; may be changed at any time.
        windows: when there is one; None: always.
        clock: of the windows.
        seed: of jitter and loss.
    """

    def __init__(
        self,
        listen: tuple[str, int],
        to: tuple[str, int],
        shape: Shape = Shape(),
        windows: Windows | None = None,
        clock: Clock | None = None,
        seed: int = 0,
    ):
        self.listen, self.to, self.shape, self.windows = listen, to, shape, windows
        self.clock = clock or Clock(time.time())
        self.port, self.passed_B, self.cuts = listen[1], [0, 0], 0
        self._uncut_B = 0  # what has passed since connections were cut last
        self._rng = random.Random(seed)
        self._free_s = [0.0, 0.0]  # when the queue of each direction is empty
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._turned = asyncio.Event()

    def turn(self, windows: Windows | None) -> None:
        """Other windows from now on; what has waited for a link looks again."""
        self.windows = windows
        self._turned.set()
        self._turned = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            InputError: the address cannot be had.
        """
        try:
            self._server = await asyncio.start_server(self._accepted, *self.listen)
        except OSError as error:
            host, port = self.listen
            raise InputError(f"{host}:{port}: cannot be had ({reason(error)}); name another address to listen at") from error
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cut all connections."""
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening)
        await asyncio.sleep(0)  # for what was just accepted: asyncio forgets it when it stops to listen, and leaves it open
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._closed(self._ends)
        await self._server.wait_closed()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection is there, and known, also if the relay closes before its task begins."""
        self._ends.add(writer)
        task = asyncio.get_running_loop().create_task(self._carried(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cut(self) -> None:
        """Reset all connections, whatever is on its way."""
        self.cuts += 1
        self._uncut_B = 0
        for end in self._ends:
            if (way := end.get_extra_info("socket")) is not None:
                way.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for task in self._tasks:
            task.cancel()

    async def _closed(self, ends: set[asyncio.StreamWriter]) -> None:
        for end in ends:
            end.transport.abort()
        await asyncio.gather(*(end.wait_closed() for end in ends), return_exceptions=True)
        self._ends -= ends

    async def _carried(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        try:
            await self._contact(0)
            back, other = await asyncio.open_connection(*self.to)
            ends.add(other)
            self._ends.add(other)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, other, 0))
                both.create_task(self._pump(back, writer, 1))
        except (OSError, ExceptionGroup):
            pass  # an end has gone; the other is told below
        finally:
            await self._closed(ends)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int) -> None:
        """Carry one direction, until its sender has no more."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(max(1, WAITING_B // CHUNK_B))
        async with asyncio.TaskGroup() as both:
            both.create_task(self._read(reader, queue, way))
            both.create_task(self._write(queue, writer, way))

    async def _read(self, reader: asyncio.StreamReader, queue: Any, way: int) -> None:
        last_s = 0.0
        while data := await reader.read(CHUNK_B):
            last_s = max(last_s, self._arrival_s(len(data), way))
            await queue.put((last_s, data))
        await queue.put((last_s, b""))

    async def _write(self, queue: Any, writer: asyncio.StreamWriter, way: int) -> None:
        while True:
            arrival_s, data = await queue.get()
            await asyncio.sleep(max(0.0, arrival_s - time.monotonic()))
            await self._contact(way)
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            self.passed_B[way] += len(data)
            self._uncut_B += len(data)
            if self._uncut_B >= self.shape.cut_B:
                self.cut()
            await writer.drain()

    def _arrival_s(self, size_B: int, way: int) -> float:
        """When bytes that are sent now are there, on the monotonic clock."""
        shape, rng, now_s = self.shape, self._rng, time.monotonic()
        window = self.windows.at(self.clock.now_s()) if self.windows else None
        rate_bps = min(shape.rate_bps, window[2 + way] if window else math.inf)
        sending_s = 0.0 if math.isinf(rate_bps) else size_B * 8 / max(rate_bps, 1e-9)
        self._free_s[way] = max(self._free_s[way], now_s) + sending_s
        stalled_s = sum(self._stall_s() for _ in range(math.ceil(size_B / SEGMENT_B))) if shape.loss else 0.0
        jitter_s = rng.uniform(-shape.jitter_s, shape.jitter_s) if shape.jitter_s else 0.0
        return self._free_s[way] + max(0.0, shape.delay_s + jitter_s) + stalled_s

    def _stall_s(self) -> float:
        """How long one segment keeps all behind it waiting."""
        waits_s, timeout_s = 0.0, max(TIMEOUT_S, TIMEOUT_DELAYS * self.shape.delay_s)
        while self._rng.random() < self.shape.loss:
            waits_s += timeout_s
            timeout_s = min(2 * timeout_s, MOST_TIMEOUT_S)
        return waits_s

    async def _contact(self, way: int) -> None:
        """Wait until there is a link that carries in this direction."""
        while self.windows is not None:
            now_s = self.clock.now_s()
            window = self.windows.at(now_s)
            if window is not None and window[2 + way] > 0:
                return
            begin_s = window[1] if window else self.windows.next_s(now_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(3600.0, max(0.001, self.clock.real_s(begin_s - now_s)))):
                    await self._turned.wait()


async def relayed(relays: Sequence[Relay]) -> None:
    """Open all of these until the task is cancelled."""
    async with AsyncExitStack() as stack:
        for relay in relays:
            await stack.enter_async_context(relay)
        await asyncio.Event().wait()
