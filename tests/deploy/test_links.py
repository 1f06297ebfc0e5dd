"""Links of a deployment on one machine that are slow, and cut while bytes travel: uploads are resumed, or lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_deploy_init import fedexperts, scenario_in
from test_process_faults import LINK, begun, ended_well, events, gone_on, one_more, one_node, over, repeated, until, uploads

from fedexperts.deploy.app import SHAPED_B, WHOLE_B, environment, piece_B
from fedexperts.deploy.shapes import shapes
from fedexperts.deploy.switch import CONTROL, Switches, switch
from fedexperts.errors import InputError
from fedexperts.peer.relay import Shape

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")
LINKS = """[default]
rate_bps = 8e6
delay_s = 0.02

[[link]]
between = ["server", "rotated"]
jitter_s = 0.01
loss = 0.001
cut_B = 500e3
"""


def test_a_file_of_links_says_how_each_carries(tmp_path: Path) -> None:
    path = tmp_path / "links.toml"
    path.write_text(f"seed = 7\n{LINKS}")
    assert shapes(path, ("plain", "rotated")) == (
        {"plain": Shape(8e6, 0.02), "rotated": Shape(8e6, 0.02, 0.01, 0.001, 500e3)},
        7,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[link]]\nbetween = ["server", "lisbon"]\n', r"link\[0\].between = .*'lisbon'.*'server' and one of plain"),
        ('[[link]]\nbetween = ["plain", "rotated"]\n', r"link\[0\].between"),
        ('plan = "overlap.json"\nplace = {server = "a", plain = "b"}\n', "plan = …: is not for deploy local"),
        ('speed = 2.0\n', "speed = …"),
        ("[default]\nrate_bps = 0\n", "default.rate_bps"),
        ("[default]\ncut_B = -1\n", "default.cut_B"),
    ],
)  # fmt: skip
def test_a_file_of_links_that_is_not_for_a_deployment_is_refused_before_anything_is_written(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "links.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        shapes(path, ("plain", "rotated"))
    scenario = tmp_path / "small.toml"
    scenario.write_text(scenario_in(tmp_path).to_toml())
    code, _, error = fedexperts(monkeypatch, capsys, "deploy", "local", scenario, "--out", tmp_path / "out", "--links", path)
    assert (code, str(path) in error.replace("\n", "")) == (2, True)
    assert not (tmp_path / "out").exists()


def test_links_are_those_that_the_deployment_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "links.toml").write_text(LINKS)
    scenario = tmp_path / "small.toml"
    scenario.write_text(scenario_in(tmp_path).to_toml())
    begun: list[Any] = []
    monkeypatch.setattr("fedexperts.cli.deploy._here", lambda place, json: begun.append(place))
    words = ("deploy", "local", scenario, "--out", tmp_path / "out")
    assert fedexperts(monkeypatch, capsys, *words, "--links", tmp_path / "links.toml")[0] == 0
    assert (tmp_path / "out" / "links.toml").read_text() == LINKS
    code, _, error = fedexperts(monkeypatch, capsys, *words, "--resume", "--links", tmp_path / "links.toml")
    assert code == 2
    assert "is for a deployment that begins" in error
    assert len(begun) == 1


def test_whoever_has_the_token_shuts_and_cuts_a_link(tmp_path: Path) -> None:
    assert switch(tmp_path, "a", True) is None
    (tmp_path / CONTROL).touch()

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 1000)
        assert await reader.readexactly(1000)
        said = await asyncio.to_thread(switch, tmp_path, "a", False)
        assert said == {"up_B": 1000, "down_B": 1000, "cuts": 0}
        writer.write(b"y" * 500)
        await writer.drain()
        await asyncio.sleep(0.2)
        assert await asyncio.to_thread(switch, tmp_path, "a") == said  # shut: nothing has passed
        assert await asyncio.to_thread(switch, tmp_path, "b") == {"up_B": 0, "down_B": 0, "cuts": 0}
        assert (await asyncio.to_thread(partial(switch, tmp_path, "a", cut=True)))["cuts"] == 1
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()

    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(1 << 16):
                writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            there = ("127.0.0.1", server.sockets[0].getsockname()[1])
            with Switches(tmp_path, there, {"a": Shape(), "b": Shape()}) as switches:
                await talk(switches.port("a"))

    asyncio.run(main())


def test_what_was_sent_while_a_link_was_shut_arrives_when_it_is_opened(tmp_path: Path) -> None:
    """And not when whoever has sent it gives up, as a SuperNode does after 30 s."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1 << 16))
        await writer.drain()
        writer.close()

    async def main() -> bytes:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            there = ("127.0.0.1", server.sockets[0].getsockname()[1])
            with Switches(tmp_path, there, {"a": Shape()}) as switches:
                await asyncio.to_thread(switch, tmp_path, "a", False)
                reader, writer = await asyncio.open_connection("127.0.0.1", switches.port("a"))
                writer.write(b"is anybody there?")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.3)
                await asyncio.to_thread(switch, tmp_path, "a", True)
                found = await asyncio.wait_for(reader.read(), 60)
                writer.close()
                return found

    assert asyncio.run(main()) == b"is anybody there?"


def test_messages_travel_in_pieces_that_a_link_which_is_cut_lets_through(tmp_path: Path) -> None:
    """Flower reads their size from the environment of whoever makes a message, as the package's programs have it."""
    code = (
        "import random; from fedexperts.deploy.client_app import packed, unpacked; data = random.randbytes(1_000_000); "
        "content = packed(data); array = content['bytes']['bytes']; print(len(array.children), unpacked(content) == data)"
    )
    assert piece_B(tmp_path) == WHOLE_B, "links of this machine carry at once"
    (tmp_path / "links.toml").touch()
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-(-1_000_000 // SHAPED_B)), "True"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_links_are_slow_and_cut_in_transfers_and_one_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, scenario = tmp_path / "deployed", one_node(tmp_path)
    begun(scenario, out, 60.0, "[default]\nrate_bps = 4e6\ndelay_s = 0.02\njitter_s = 0.01\nloss = 0.001\ncut_B = 400e3\n")
    child = gone_on(out)

    # a contact ends in the middle of an upload, and nobody is told; of the contacts before it the first was the trial pass's
    until(lambda: over(out) >= 3, child)
    while "lost" not in events(out):  # else the upload was over before the link was shut
        until(partial(uploads, out), child)
        switch(out, LINK, False)
        one_more(out, child)
    ended_well(child, out)

    assert repeated(scenario, out, tmp_path / "here", monkeypatch)
    rows = [json.loads(line) for line in (out / "contacts.jsonl").read_text().splitlines()]
    later = [row for row in rows if "apart_B" in row]
    assert len(later) >= 3
    assert [row["apart_B"] for row in later] == [0] * len(later)  # nothing passed while the plan said that there is no link
    whole = [row for row in later if row["down_B"] > 700e3]
    assert all(row["link_cuts"] >= 1 for row in whole)
    # what was there was not sent again: each cut costs less than two pieces of two requests, and heads
    for row in whole:
        assert (
            row["link_down_B"] + row["link_up_B"] < 1.1 * (row["down_B"] + row["up_B"]) + (row["link_cuts"] + 1) * 4 * SHAPED_B
        )
