"""Nodes that lie: what cannot be an answer costs them the contact, uploads are the gate's business, and others go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from test_remote import Network, hosts, play, world

from fedexperts.deploy import node as nodes
from fedexperts.deploy.orders import LENGTH_B, Reply, frame, unframe, write_reply
from fedexperts.errors import RunError
from fedexperts.protocol.ems_fl import EmsFl
from fedexperts.train.upload import pack
from forgers import LIES, Forger, silent

Lie = Callable[[dict[str, Any], list[bytes]], bytes]
HUGE = 10**300


def done(**changed: Any) -> Lie:
    """Another value in what is said of every command."""
    return lambda header, blobs: frame({**header, "done": [{**row, **changed} for row in header.get("done", [])]}, blobs)


def deep(header: dict[str, Any], blobs: list[bytes]) -> bytes:
    text = b'{"done":' + b"[" * 100_000
    return len(text).to_bytes(LENGTH_B, "little") + text


WITHOUT = {"untouched": {}, "pending": {}}
LIES_OF_NODES: dict[str, Lie] = {
    "noise": lambda header, blobs: bytes(range(256)) * 8,
    "nothing": lambda header, blobs: b"",
    "a header beyond the end": lambda header, blobs: HUGE.to_bytes(128, "little"),
    "no object": lambda header, blobs: frame({}, [])[:LENGTH_B] + b"[]" * 6,
    "deep": deep,
    "heavy": lambda header, blobs: frame(header, [*blobs, bytes(2**20)]),
    "nothing done": lambda header, blobs: frame({**header, "done": []}, blobs),
    "more done": lambda header, blobs: frame({**header, "done": header["done"] * 2}, blobs),
    "other ids": done(id="0" * 32),
    "no status": done(status={}),
    "nobody's status": done(status=WITHOUT),
    "status of others": done(status={**WITHOUT, "pending": {"b/0": {}}}),
    "a part that is not": done(status={"untouched": {"backdoor": 1}, "pending": {"a/0": {}, "a/1": {}}}),
    "less than nothing done": done(steps=-1),
    "more steps than were ordered": done(steps=10**9),
    "more steps than there are numbers": done(steps=HUGE),
    "work that is none": done(flops=[-1, 1]),
    "work of one device": done(flops=[1]),
    "work without end": done(flops=[HUGE, HUGE]),
    "a loss that is no number": done(loss=float("nan")),
    "a loss without end": done(loss=float("inf")),
    "bytes between clients that ask nobody": done(peer_B=1),
    "broken devices of others": done(broken={"b/0": []}),
    "broken parts of others": done(broken={"a/0": ["expert:1"], "a/1": []}),
    "files that are not there": done(uploads=[99]),
    "a file twice": done(uploads=[0, 0]),
    "a field more": done(backdoor=1),
    "text for a number": done(steps="1"),
    "another version": lambda header, blobs: frame({**header, "version": "99"}, blobs),
    "no": lambda header, blobs: write_reply(Reply(version="1", refused="\x1b[2J no", kind="for good")),
}


class Liar(Network):
    """Cluster a's node tells the same lie from its second contact on."""

    def __init__(self, spool: Path, lie: Lie):
        self.lie, self.met = lie, 0
        super().__init__(spool, [])

    def carry(self, link: str, message: bytes) -> bytes | None:
        reply = super().carry(link, message)
        self.met += link == "a"
        if reply is None or link != "a" or self.met < 5:
            return reply
        return self.lie(*unframe(reply))


HEAVY = "a part of a megabyte"
"""A lie of an upload that weighs more than the upload: it costs the contact."""


def acquainted(network: Network) -> Any:
    found = hosts(network)
    for host in found.values():
        host.others = list(found.values())
    return found


@pytest.mark.parametrize("lie", LIES_OF_NODES)
def test_a_node_that_lies_loses_its_contacts_and_others_go_on(lie: str, tmp_path: Path) -> None:
    lines, _ = play(EmsFl, acquainted(Liar(tmp_path / "nodes", LIES_OF_NODES[lie])), tmp_path / "ledger")
    lost = [line for line in lines if line["event"] == "lost" and line["cluster"] == "a"]
    assert lost
    assert all(len(line["reason"]) <= 400 and line["reason"].isprintable() for line in lost)
    last = [line["cluster"] for line in lines if line["event"] == "aggregate" and line["t_s"] > lost[-1]["t_s"]]
    assert "a" not in last
    assert [line for line in lines if line["event"] == "collect" and line["cluster"] == "b" and line["t_s"] > lost[0]["t_s"]]
    json.dumps(lines, allow_nan=False)


def test_a_run_whose_nodes_all_refuse_for_good_ends_with_what_they_say(tmp_path: Path) -> None:
    network = Liar(tmp_path / "nodes", lambda header, blobs: b"")
    no = write_reply(Reply(version="1", refused="no module named samples", kind="for good"))
    devices = acquainted(network)
    with (
        patch.object(network, "carry", lambda link, message: no),
        pytest.raises(RunError, match=r"a: no module.*; b: no module"),
    ):
        play(EmsFl, devices, tmp_path / "ledger")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"noise", "a: a message of 5 B ends before"),
        (frame({"version": "0.0.1", "done": []}, []), "a: the node has fedexperts 0.0.1, and the server"),
        (
            write_reply(Reply(version="0.0.1", refused="the server has 2, and this node 1", kind="for good")),
            "a: the server has 2",
        ),
    ],
)
def test_a_node_of_another_kind_is_refused_at_once(answer: bytes, says: str, tmp_path: Path) -> None:
    network = Network(tmp_path / "nodes", [])
    with patch.object(network, "carry", lambda link, message: answer), pytest.raises(RunError, match=says):
        hosts(network)


def test_a_node_that_is_away_for_the_trial_pass_is_named(tmp_path: Path) -> None:
    host = hosts(Network(tmp_path / "nodes", ["ok", "ok", "call lost"]))["b"]
    with pytest.raises(RunError, match=r"b: no trial pass \(no answer\)"):
        host.trial(4)


def test_every_forged_upload_is_refused(tmp_path: Path) -> None:
    """Of one of two devices of a node; its neighbour is heard, and the model is that of a run in which it says nothing."""
    left = [lie for lie in LIES if lie != HEAVY]
    told = left.copy()
    network = Network(tmp_path / "silent", [])
    network.nodes["a"] = nodes.Node(Forger(list(world()[2]["a"]), "a/0", silent), "run", tmp_path / "silent" / "forger")
    _, without = play(EmsFl, hosts(network), tmp_path / "ledger-silent")

    def forged(update: Any, change: Any, codec: Any) -> bytes:
        if update.device != "a/0":
            return pack(update, change, codec)
        lie = left.pop(0) if left else "not a number"
        lied = LIES[lie](update)
        try:
            return pack(lied, change if lied.piece.tensors is update.piece.tensors else lied.piece.tensors, codec)
        except Exception:  # what no file can hold is noise
            return lie.encode()

    for number in range(30):
        if not left:
            break
        with patch.object(nodes, "pack", forged):
            lines, model = play(EmsFl, hosts(Network(tmp_path / f"{number}", [])), tmp_path / f"ledger-{number}")
        refused = [line for line in lines if line["event"] == "refuse"]
        assert {line["device"] for line in refused} == {"a/0"}
        assert model == without
    assert not left
    assert len(told) >= 25
