"""Hosts: devices in another process do the same, bit for bit; what has not been collected is not overwritten."""

import ast
import json
import math
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fedexperts
import small
import toy
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.drive.cluster import Pace
from fedexperts.drive.faults import Faults
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger
from fedexperts.moe.parts import Piece
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl
from fedexperts.protocol.link import Start
from fedexperts.protocol.sync import Sync
from fedexperts.runs.checkpoint import Packer, unpack
from fedexperts.setup.prepare import Prepared
from fedexperts.train.device import Device, LocalTraining
from fedexperts.train.host import Host, LocalHost
from fedexperts.train.process import ProcessHost
from fedexperts.train.task import Task
from processes import fork_instead_of_spawning

LABELS = {"a": (8.0, 3.0), "b": (5.0,)}
OWNED = {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}
ADAM = LocalTraining(local_steps=2, optimizer="adamw", lr_expert=0.1, lr_gate=0.1)


PLAN = ContactPlan(
    ("a", "b"),
    tuple(Contact("ab"[i % 2], 40.0 * i, 40.0 * i + 30, 200.0, 300.0) for i in range(10)),
    400.0,
    (80.0, 160.0, 240.0, 320.0),
)
"""A part of the toy is 736 bits: some seconds of a contact."""


def world() -> tuple[dict[str, Piece], dict[str, list[Device]]]:
    data = {c: [toy.samples("ab".index(c), label) for label in labels] for c, labels in LABELS.items()}
    _, model, devices = toy.make(data, local=ADAM)
    return model, devices


def host(cluster: str) -> Host:
    """In whichever process it is called, its devices live there."""
    return LocalHost(world()[1][cluster])


def play(protocol_class: Any, hosts: dict[str, Host], path: Path) -> tuple[bytes, dict[str, str]]:
    """The ledger and the model's digests."""
    protocol = protocol_class(Start(world()[0], tuple(LABELS), frozenset({"head"}), OWNED, cycles=4))
    faults = Faults(drop=0.3, early_close=0.5, seed=2)
    with closing(Ledger(path)) as ledger:
        Simulator(PLAN, hosts, Pace(1.0), 4, ledger, lambda model, cycle: {"accuracy": 0.0}, faults=faults).run(protocol)
    return path.read_bytes(), {part: piece.digest for part, piece in protocol.model.items()}


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of hosts are forked from one that has loaded torch; spawned ones, as they are without this, load it."""
    fork_instead_of_spawning(monkeypatch)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("protocol_class", [EmsFl, Sync, EnhancedEmsFl])
def test_devices_in_another_process_do_the_same_bit_for_bit(protocol_class: Any, tmp_path: Path) -> None:
    here = play(protocol_class, {c: host(c) for c in LABELS}, tmp_path / "here")
    with ExitStack() as stack:
        there = {c: stack.enter_context(ProcessHost(partial(host, c))) for c in LABELS}
        elsewhere = play(protocol_class, dict(there), tmp_path / "there")
        states = [there[c].state() for c in LABELS]
    assert here == elsewhere
    events = [json.loads(line)["event"] for line in here[0].splitlines()]
    assert {"train", "collect", "lost"} <= set(events)
    for given in states:  # a state goes over the wire and into a checkpoint alike
        packer = Packer()
        assert unpack(packer.pack(given), packer.tensors).keys() == given.keys()


def test_what_a_host_elsewhere_raises_is_raised_here_and_its_end_is_said() -> None:
    with ProcessHost(partial(host, "a")) as there:
        assert (there.devices, there.samples, there.local_steps) == (("a/0", "a/1"), (2, 2), 2)
        with pytest.raises(KeyError, match="nobody"):
            there.snapshot("nobody", ["head"])
        assert there.snapshot("a/0", ["head"]) == []  # and it goes on
        there._process.kill()
        with pytest.raises(RuntimeError, match="the process of a Host has ended"):
            there.unsent_rounds()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("at", [host, lambda c: ProcessHost(partial(host, c))])
def test_a_piece_does_not_take_the_place_of_training_that_was_not_collected(at: Callable[[str], Any]) -> None:
    there, model = at("a"), world()[0]
    new = [Piece("head", 1, model["head"].tensors), Piece("expert:1", 1, model["expert:1"].tensors)]
    there.train(Task(frozenset({"expert:0", "head"}), keeps=frozenset({"expert:0"})), 2, 1.0, {})
    with pytest.raises(ValueError, match="send: head would take the place of what a/0, a/1 trained of it; collect first"):
        there.lacks(new)
    assert [piece.part for piece in there.lacks(new[1:])] == ["expert:1"]
    assert there.lacks([Piece("expert:0", 1, model["expert:0"].tensors)])  # never uploaded, so nobody waits for it
    updates = [update for name in there.devices for update in there.snapshot(name, ["head"])]
    with pytest.raises(ValueError, match="collect first"):  # a copy on its way is not there yet
        there.lacks(new)
    there.delivered(updates, ["head"])
    assert there.lacks(new) == new
    if isinstance(there, ProcessHost):
        there.close()


def test_a_protocol_that_sends_before_it_collects_is_told_so(tmp_path: Path) -> None:
    class Hasty(Sync):
        async def gather(self, link: Any) -> None:
            return

        async def contact(self, link: Any) -> None:
            await super().contact(link)
            self.model = {part: replace(piece, version=piece.version + 1) for part, piece in self.model.items()}

    with pytest.raises(ValueError, match="collect first"):
        play(Hasty, {c: host(c) for c in LABELS}, tmp_path / "ledger")


def test_the_loss_of_a_host_is_the_mean_over_devices_where_it_is_finite() -> None:
    def of(*labels: float) -> float | None:
        _, _, devices = toy.make({"a": [toy.samples(0, label) for label in labels]})
        return LocalHost(devices["a"]).train(Task(frozenset({"expert:0"})), 1, 0.0, {}).loss

    assert of(2.0, 4.0) == pytest.approx((0.5 * 4 + 0.5 * 16) / 2)
    assert of(2.0, math.inf) == pytest.approx(0.5 * 4)
    assert of(math.inf) is None


def test_the_server_s_side_knows_no_device() -> None:
    """What decides, keeps time, judges and saves does not know of `Device`; what builds the devices does, and `LocalHost`."""
    root = Path(fedexperts.__file__).parent
    users = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2] == "device":
                users |= {path.relative_to(root).as_posix() for alias in node.names if alias.name == "Device"}
    measures = "runs/constants.py"  # a scenario's constants for the theorems, before there is a server
    builders = {"setup/prepare.py", "setup/devices.py", "method/elsewhere.py", "method/alone.py"}
    assert users == builders | {"train/host.py", "train/cohort.py", measures}


def broken() -> Host:
    raise ValueError("no devices here")


def test_what_building_a_host_raises_is_raised_to_who_asks_for_it() -> None:
    with pytest.raises(ValueError, match="no devices here"):
        ProcessHost(broken)


def test_a_run_takes_other_hosts(tmp_path: Path) -> None:
    """Here the devices of every cluster stand behind a Host of another kind; the run is the same."""
    asked: list[str] = []

    class Watched(LocalHost):
        def __getattribute__(self, name: str) -> Any:
            if name == "train":
                asked.append(name)
            return super().__getattribute__(name)

    def watched(prepared: Prepared) -> dict[str, Host]:
        return {name: Watched(group) for name, group in small.devices(prepared).items()}

    given = small.scenario(train={"cycles": 2})
    one, other = fedexperts.run(given, tmp_path / "one"), fedexperts.run(given, tmp_path / "other", hosts=watched)
    assert asked
    assert (one.directory / "ledger.jsonl").read_bytes() == (other.directory / "ledger.jsonl").read_bytes()
