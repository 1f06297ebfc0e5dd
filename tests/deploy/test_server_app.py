"""How a server asks a node over Flower, which waits for minutes for what is never to come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_deploy_init import scenario_in

pytest.importorskip("flwr", reason="needs the extra: pip install 'fedexperts[flower]'")

from flwr.app import ConfigRecord

from fedexperts.deploy import server_app
from fedexperts.deploy.client_app import packed
from fedexperts.deploy.place import create
from fedexperts.deploy.server_app import GridWay


@pytest.fixture(autouse=True)
def _in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flower's own program is, which says to messages of which run they are."""
    monkeypatch.setattr(server_app, "Message", lambda content, node, kind, ttl: SimpleNamespace(content=content, node=node))


class Grid:
    """One node, 7, which is there or not; what is pushed has numbers 1, 2, …"""

    def __init__(self, replies: dict[str, Callable[[], list[Any]]], there: Iterable[bool] = ()):
        self.replies, self.there = replies, iter(there)
        self.pushed: list[Any] = []
        self.pulled: list[str] = []

    def get_node_ids(self) -> list[int]:
        return [7] if next(self.there, True) else []

    def push_messages(self, messages: list[Any]) -> list[str]:
        self.pushed += messages
        return [str(len(self.pushed))]

    def pull_messages(self, numbers: list[str]) -> list[Any]:
        self.pulled += numbers
        return self.replies[numbers[0]]()


def reply(data: bytes) -> Any:
    return SimpleNamespace(has_content=lambda: True, content=packed(data))


def way(grid: Grid, tmp_path: Path, patience_s: float = 20.0) -> GridWay:
    place = create(tmp_path / "there", scenario_in(tmp_path).to_toml(), tmp_path, ("a",), patience_s)
    return GridWay(grid, place, "a", 7, {7})  # type: ignore[arg-type]


def test_a_node_that_was_killed_while_it_sent_is_called_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_app, "BACK_S", 0.1)
    never = threading.Event()

    def partly() -> list[Any]:
        never.wait(60)
        return []

    grid = Grid({"1": partly, "2": lambda: [reply(b"again")]}, [True, True, False, False])
    assert way(grid, tmp_path).ask(b"call") == b"again"
    never.set()
    assert grid.pulled == ["1", "2"]


def test_patience_is_kept_when_flower_waits(tmp_path: Path) -> None:
    never = threading.Event()
    grid = Grid({"1": lambda: [never.wait(60)]})
    assert way(grid, tmp_path, 0.5).ask(b"call") is None
    assert not never.is_set()
    never.set()
    assert len(grid.pushed) == 1


def test_a_reply_that_takes_its_time_is_asked_for_once(tmp_path: Path) -> None:
    """To ask for it again would be to lose it: who has asked has got it."""

    def slow() -> list[Any]:
        time.sleep(0.5)
        return [reply(b"large")] if grid.pulled == ["1"] else []

    grid = Grid({"1": slow})
    assert way(grid, tmp_path).ask(b"call") == b"large"
    assert grid.pulled == ["1"]


def test_what_asking_raises_is_not_swallowed(tmp_path: Path) -> None:
    def failing() -> list[Any]:
        raise ValueError("a message that cannot be read")

    with pytest.raises(ValueError, match="cannot be read"):
        way(Grid({"1": failing}), tmp_path).ask(b"call")


class Coming:
    """A node, 8, which is gone as it is asked for the first time: Flower gives no number to what it refuses."""

    def __init__(self) -> None:
        self.numbers = iter(["", "1", "2"])
        hello = reply(b"facts")
        hello.content["node"] = ConfigRecord({"link": "a"})
        hello.metadata = SimpleNamespace(reply_to_message_id="1")
        self.replies = {"1": hello, "2": reply(b"answer")}

    def get_node_ids(self) -> list[int]:
        return [8]

    def push_messages(self, messages: list[Any]) -> list[str]:
        return [next(self.numbers) if message.node == 8 else "" for message in messages]

    def pull_messages(self, numbers: list[str]) -> list[Any]:
        return [self.replies.pop(number) for number in numbers]


def test_a_node_that_was_gone_as_it_was_asked_who_it_is_is_asked_again(tmp_path: Path) -> None:
    """As the run begins, and when a link's node has come back with another number."""
    place = create(tmp_path / "there", scenario_in(tmp_path).to_toml(), tmp_path, ("a",), 60.0)
    assert server_app.found(Coming(), place) == {"a": (8, b"facts")}  # type: ignore[arg-type]
    assert GridWay(Coming(), place, "a", 7, {7}).ask(b"call") == b"answer"  # type: ignore[arg-type]
