"""Links: what a relay does to bytes, by its own account of time, and over real sockets; and plans as windows."""

import asyncio
import contextlib
import gc
import math
import socket
import time
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedexperts.contact.plan import Contact, ContactPlan, Rates
from fedexperts.errors import InputError
from fedexperts.peer.links import Links, best, together
from fedexperts.peer.relay import CHUNK_B, SEGMENT_B, TIMEOUT_S, Clock, Relay, Shape, Windows

AT = ("127.0.0.1", 0)


def arrivals(monkeypatch: pytest.MonkeyPatch, shape: Shape, sizes: list[int], seed: int = 0, way: int = 0) -> list[float]:
    """When chunks arrive that are sent at second 0, one after another."""
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    relay = Relay(AT, AT, shape, seed=seed)
    return [relay._arrival_s(size, way) for size in sizes]


def test_bytes_leave_one_after_another_and_arrive_later(monkeypatch: pytest.MonkeyPatch) -> None:
    found = arrivals(monkeypatch, Shape(rate_bps=8e3, delay_s=0.5), [1000, 500, 250])
    assert found == pytest.approx([1.5, 2.0, 2.25])
    assert arrivals(monkeypatch, Shape(delay_s=0.25), [10**6]) == [0.25]


def test_jitter_is_drawn_evenly_around_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    found = arrivals(monkeypatch, Shape(delay_s=1.0, jitter_s=0.4), [1] * 4000)
    assert min(found) == pytest.approx(0.6, abs=0.01)
    assert max(found) == pytest.approx(1.4, abs=0.01)
    assert sum(found) / 4000 == pytest.approx(1.0, abs=0.02)


def test_a_lost_segment_comes_after_a_timeout_that_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, n = 0.25, 20000
    found = arrivals(monkeypatch, Shape(loss=loss), [SEGMENT_B] * n)
    stalled = [s for s in found if s > 0]
    assert len(stalled) / n == pytest.approx(loss, rel=0.05)
    assert min(stalled) == TIMEOUT_S
    assert {round(s, 6) for s in stalled} <= {round(TIMEOUT_S * (2**i - 1), 6) for i in range(1, 20)}
    (first,) = (s for s in arrivals(monkeypatch, Shape(loss=0.999999, delay_s=1.0), [1])[:1])
    assert first > 60
    assert arrivals(monkeypatch, Shape(loss=1e-12), [CHUNK_B] * 10) == [0.0] * 10


async def through(relay: Relay, data: bytes) -> bytes:
    """What an echo behind a relay gives back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.write_eof()
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay.to = ("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        async with relay:
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            writer.write(data)
            writer.write_eof()
            found = await reader.read()
            writer.close()
            return found
    finally:
        server.close()
        await server.wait_closed()


def test_all_bytes_pass_in_order_whatever_the_link() -> None:
    data = bytes(range(256)) * 4000
    relay = Relay(AT, AT, Shape(rate_bps=1e9, delay_s=0.002, jitter_s=0.002, loss=1e-4), seed=3)
    assert asyncio.run(through(relay, data)) == data
    assert relay.passed_B == [len(data), len(data)]


def test_nothing_passes_without_contact_and_all_of_it_afterwards() -> None:
    clock = Clock(time.time(), speed=10.0)
    relay = Relay(AT, AT, windows=Windows(((4.0, 1e9, math.inf, math.inf),)), clock=clock)
    assert asyncio.run(through(relay, b"hello")) == b"hello"
    assert clock.now_s() >= 4.0


def test_a_relay_closes_with_connections_open_and_where_nobody_listens() -> None:
    async def left_open() -> bytes:
        async with Relay(AT, ("127.0.0.1", 1)) as relay:
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            with_error = await asyncio.wait_for(_read(reader), 60)
            writer.close()
        async with Relay(AT, AT, windows=Windows(())) as relay:
            _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            await asyncio.sleep(0.05)
        writer.close()
        return with_error

    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""

    assert asyncio.run(left_open()) == b""


def test_connections_are_reset_each_time_that_so_many_bytes_have_passed() -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, Relay(AT, server.sockets[0].getsockname(), Shape(cut_B=3000)) as relay:
            for cuts in (1, 2):
                reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
                other, its = await asyncio.open_connection("127.0.0.1", relay.port)
                writer.write(bytes(1000))
                assert await reader.readexactly(1000) == bytes(1000)
                its.write(bytes(1000))  # there and back 4,000 B
                for one in (reader, other):
                    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)) as raised:
                        await one.readexactly(2000)
                    assert isinstance(raised.value, ConnectionResetError), "ended, and not reset"
                assert relay.cuts == cuts
                writer.close()
                its.close()
            relay.shape = Shape()
            assert await through_open(relay, bytes(100_000)) == bytes(100_000)

    assert left_open(main()) == []


async def through_open(relay: Relay, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(data)
    found = await reader.readexactly(len(data))
    writer.close()
    return found


def test_a_port_in_use_is_named() -> None:
    async def twice() -> None:
        async with Relay(AT, AT) as relay, Relay(("127.0.0.1", relay.port), AT):
            pass

    with pytest.raises(InputError, match="cannot be had"):
        asyncio.run(twice())


WINDOWS = Windows(((10.0, 20.0, 1.0, 2.0), (30.0, 40.0, 3.0, 4.0)))


@pytest.mark.parametrize(
    ("now_s", "at", "next_s"),
    [(0, None, 10), (10, 0, 10), (19.9, 0, 19.9), (20, None, 30), (35, 1, 35), (40, None, math.inf)],
)
def test_windows_are_open_from_their_start_to_their_end(now_s: float, at: int | None, next_s: float) -> None:
    assert WINDOWS.at(now_s) == (None if at is None else WINDOWS.rows[at])
    assert WINDOWS.next_s(now_s) == next_s


PLAN = ContactPlan(
    ("a", "b"),
    (
        Contact("a", 0, 100, 10.0, 20.0),
        Contact("a", 200, 300, 10.0, 20.0),
        Contact.of("b", 50, [Rates(80, 5.0, 6.0), Rates(250, 50.0, 60.0)]),
        Contact("b", 290, 400, 7.0, 0.0),
    ),
    400.0,
)


def test_two_places_reach_each_other_while_both_are_in_contact() -> None:
    """By hand: up from one and down to the other, the slower of the two; what carries nothing one way is no link."""
    assert together(PLAN, "a", "b").rows == ((50, 80, 6.0, 5.0), (80, 100, 10.0, 20.0), (200, 250, 10.0, 20.0))
    assert together(PLAN, "b", "a").rows == ((50, 80, 5.0, 6.0), (80, 100, 20.0, 10.0), (200, 250, 20.0, 10.0))


def test_the_best_moment_is_the_first_at_which_the_most_can_be_reached() -> None:
    windows = {
        1: Windows(((10, 20, 1, 1), (50, 60, 1, 1))),
        2: Windows(((55, 70, 1, 1),)),
        3: Windows(((12, 15, 1, 1), (80, 90, 1, 1))),
    }
    assert best(windows, 0.0) == (12, (1, 3))
    assert best(windows, 16.0) == (55, (1, 2))
    assert best(windows, 70.0) == (80, (3,))
    assert best(windows, 80.0) is None
    assert best({}, 0.0) is None


def test_a_file_of_links_gives_each_pair_its_numbers_and_windows(tmp_path: Path) -> None:
    import json

    (tmp_path / "plan.json").write_text(json.dumps(PLAN.to_json()))
    document = {
        "plan": "plan.json",
        "place": {"0": "a", "1": "a", "2": "b"},
        "begins": 1000.0,
        "speed": 60.0,
        "default": {"delay_s": 0.1, "loss": 0.01},
        "link": [{"between": ["2", "0"], "rate_bps": 1e6, "delay_s": 0.3}],
        "route": [{"between": ["0", "2"], "listen": "127.0.0.1:1", "to": "127.0.0.1:2"}],
    }
    (tmp_path / "links.toml").write_text(tomli_w.dumps(document))
    links = Links(tmp_path / "links.toml")
    assert links.shape("0", "2") == links.shape("2", "0") == Shape(1e6, 0.3, 0.0, 0.01)
    assert links.shape("1", "2") == Shape(math.inf, 0.1, 0.0, 0.01)
    assert links.windows("0", "1") is None
    assert links.windows("2", "0") == together(PLAN, "b", "a")
    assert links.clock == Clock(1000.0, 60.0)
    assert [(relay.listen, relay.to) for relay in links.relays()] == [(("127.0.0.1", 1), ("127.0.0.1", 2))]
    with pytest.raises(InputError, match=r"place\.9: is missing"):
        links.windows("0", "9")


def left_open(work: Coroutine[Any, Any, None]) -> list[str]:
    """Run it, and say which connections nobody has closed."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        asyncio.run(work)
        gc.collect()
    return [str(one.message) for one in found if "unclosed" in str(one.message)]


@pytest.mark.parametrize("turns", range(6))
def test_a_relay_that_closes_as_a_connection_comes_leaves_none_open(turns: int) -> None:
    async def closed() -> None:
        async with Relay(AT, AT) as relay:
            caller = socket.create_connection(("127.0.0.1", relay.port))
            for _ in range(turns):
                await asyncio.sleep(0)
        caller.close()

    assert left_open(closed()) == []


def test_a_relay_that_closes_as_a_connection_ends_leaves_none_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """One end is closing, which can take a while, and the other must not wait for it."""
    opened, connect = [], asyncio.open_connection

    async def seen(*to: Any) -> Any:
        opened.append(await connect(*to))
        return opened[-1]

    async def closed() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        closing = asyncio.Event()

        async def slow(writer: asyncio.StreamWriter) -> None:
            closing.set()
            await asyncio.sleep(60)

        async with server, Relay(AT, server.sockets[0].getsockname()) as relay:
            monkeypatch.setattr(asyncio, "open_connection", seen)
            socket.create_connection(("127.0.0.1", relay.port)).close()
            with monkeypatch.context() as patch:
                patch.setattr(asyncio.StreamWriter, "wait_closed", slow)
                await asyncio.wait_for(closing.wait(), 30)
            assert [writer.transport.is_closing() for _, writer in opened] == [True]

    asyncio.run(closed())
