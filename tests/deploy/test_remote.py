"""Devices on nodes elsewhere do the same as here, bit for bit, whatever is lost on the way: calls, replies, processes."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toy
from deployed import losses
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.deploy.node import Node
from fedexperts.deploy.remote import RemoteHost
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.moe.parts import Piece
from fedexperts.moe.view import View
from fedexperts.protocol.asynchronous import FedAsync, FedBuff
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl
from fedexperts.protocol.link import Start
from fedexperts.protocol.sync import Sync
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.host import Host, LocalHost

LABELS = {"a": (8.0, 3.0), "b": (5.0,)}
OWNED = {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}
ADAM = LocalTraining(local_steps=2, optimizer="adamw", lr_expert=0.1, lr_gate=0.1)
PROTOCOLS = [EmsFl, Sync, EnhancedEmsFl, FedAsync, FedBuff]
PLAN = ContactPlan(
    ("a", "b"),
    tuple(Contact("ab"[i % 2], 40.0 * i, 40.0 * i + 30, 200.0, 300.0) for i in range(10)),
    400.0,
    (80.0, 160.0, 240.0, 320.0),
)
OVERLAPPING = ContactPlan(
    ("a", "b"),
    tuple(Contact("ab"[i % 2], 40.0 * i, 40.0 * i + 60, 200.0, 300.0) for i in range(10)),
    460.0,
    (80.0, 160.0, 240.0, 320.0),
)


def world() -> tuple[View, dict[str, Piece], dict[str, list[Device]]]:
    data = {c: [toy.samples("ab".index(c), label) for label in labels] for c, labels in LABELS.items()}
    return toy.make(data, local=ADAM)


class Network:
    """Two nodes, each with a model of its own, and what happens to their calls: a word for each, "ok" when there is none."""

    def __init__(self, spool: Path, fates: list[str]):
        self.spool, self.fates, self.calls = spool, fates, 0
        self.nodes = {link: self.start(link) for link in LABELS}

    def start(self, link: str) -> Node:
        return Node(LocalHost(world()[2][link]), "run", self.spool / link)

    def carry(self, link: str, message: bytes) -> bytes | None:
        fate = self.fates[self.calls] if self.calls < len(self.fates) else "ok"
        self.calls += 1
        node = self.nodes[link]
        if fate == "call lost":
            return None
        if fate == "node killed":  # and started again, before it could do anything
            self.nodes[link] = self.start(link)
            return None
        reply = node.handle(message)
        if fate == "twice":
            assert node.handle(message) == reply
        if fate == "killed late":
            self.nodes[link] = self.start(link)
            return None
        if fate != "idle":  # it waits no longer, or has waited in vain
            node.go_on()
        return None if fate == "reply lost" else reply


@dataclass
class Way:
    """Is open in contact alone."""

    network: Network
    link: str
    open: bool = True
    quiet_s: float = 1.0

    def begin(self, start_s: float, end_s: float) -> None:
        self.open = True

    def ask(self, message: bytes) -> bytes | None:
        assert self.open
        return self.network.carry(self.link, message)

    def end(self) -> None:
        self.open = False


def hosts(network: Network) -> dict[str, Host]:
    view, model, devices = world()
    known = toy.hosts(devices)
    return {link: RemoteHost(link, Way(network, link), "run", known[link], view, model, "exact") for link in LABELS}


def play(
    kind: Any, devices: dict[str, Host], path: Path, plan: ContactPlan = PLAN, closes_s: dict[int, float] | None = None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The ledger and the model's digests."""
    protocol = kind(Start(world()[1], tuple(LABELS), frozenset({"head"}), OWNED, cycles=4))
    with closing(Ledger(path)) as ledger:
        Simulator(plan, devices, Pace(5.0), 4, ledger, lambda model, cycle: {"accuracy": 0.0}, closes_s=closes_s).run(protocol)
    return list(read(path)), {part: piece.digest for part, piece in protocol.model.items()}


def here() -> dict[str, Host]:
    return toy.hosts(world()[2])


@pytest.mark.parametrize("kind", PROTOCOLS)
@pytest.mark.parametrize("plan", [PLAN, OVERLAPPING])
def test_devices_on_nodes_do_the_same_bit_for_bit(kind: Any, plan: ContactPlan, tmp_path: Path) -> None:
    network = Network(tmp_path / "nodes", [])
    there, model = play(kind, hosts(network), tmp_path / "there", plan)
    expected, same = play(kind, here(), tmp_path / "here", plan)
    assert model == same
    assert [_known(line) for line in there] == [_known(line) for line in expected]
    contacts = sum(line["event"] in ("contact", "flush") for line in there)
    assert network.calls <= 4 * contacts + 2


def _known(line: dict[str, Any]) -> dict[str, Any]:
    """A line without a loss that a node could not tell, as it was not in contact when training ended."""
    return {key: value for key, value in line.items() if key != "loss" or line["event"] != "train"}


FATES = st.sampled_from(["ok"] * 12 + ["call lost", "reply lost", "twice", "idle", "node killed", "killed late"])


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(kind=st.sampled_from(PROTOCOLS), plan=st.sampled_from([PLAN, OVERLAPPING]), fates=st.lists(FATES, max_size=60))
def test_whatever_is_lost_the_model_is_that_of_a_simulation_with_the_same_losses(
    kind: Any, plan: ContactPlan, fates: list[str], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "nodes", ignore_errors=True)
    network = Network(tmp_path / "nodes", ["ok", "ok", *fates])
    there, model = play(kind, hosts(network), tmp_path / "there", plan)
    expected, same = play(kind, here(), tmp_path / "here", plan, losses(there, plan))
    assert model == same
    assert [line["event"] for line in there] == [line["event"] for line in expected]
