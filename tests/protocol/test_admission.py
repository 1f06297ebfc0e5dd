"""The gate for updates: on the path that runs use, a run with a device that lies ends as one in which it is not heard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import toy
from fedexperts.assign.scores import Capacity, Need
from fedexperts.contact.plan import Contact, ContactPlan, always_on, round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.moe.parts import Piece, finite
from fedexperts.protocol.admission import Admission, Refusal, differs
from fedexperts.protocol.aligned import Aligned, Alignment, Client
from fedexperts.protocol.asynchronous import FedAsync, FedBuff
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl
from fedexperts.protocol.link import Link, Start
from fedexperts.protocol.sync import Sync
from fedexperts.runs.checkpoint import Packer, unpack
from fedexperts.train.host import LocalHost
from fedexperts.train.task import Task, Update
from forgers import LIES, Forge, Forger, first_again, first_as_new, first_only, honest, last_too, lying, silent, twice

CYCLES = 4
OWNED = {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}
LABELS = {"a": (8.0, 3.0), "b": (5.0,)}
CLIENTS = {"a": (8.0,), "b": (5.0,), "c": (3.0,)}
PROTOCOLS = [Sync, EmsFl, EnhancedEmsFl, Aligned, FedAsync, FedBuff]


def played(
    protocol_class: Any, forge: Forge, path: Path, plan: ContactPlan | None = None, closes_s: dict[int, float] | None = None
) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """The model, and the ledger, of a run in which one device is heard through ``forge``."""
    labels = CLIENTS if protocol_class is Aligned else LABELS
    data = {
        c: [toy.samples(m, x, n=2 + j) for j, x in enumerate(those)] for m, (c, those) in enumerate(labels.items()) if m < 2
    }
    data |= {c: [toy.samples(0, labels[c][0])] for c in labels if c not in data}
    _, model, devices = toy.make(data)
    if protocol_class is Aligned:
        told = {name: Client(Capacity(), sum(len(d["labels"]) for d in those)) for name, those in data.items()}
        alignment = Alignment(told, Need(*[0.0] * 8), 1.0, 0, max_experts=2, appraisal_samples=2)
        start = Start(model, tuple(data), frozenset({"head"}), {}, cycles=CYCLES, max_rounds=1)
        protocol, liar, plan = Aligned(start, alignment), "b/0", plan or always_on(list(data), CYCLES, 2.0)
    else:
        protocol = protocol_class(Start(model, tuple(data), frozenset({"head"}), OWNED, cycles=CYCLES, weights="samples"))
        liar, plan = "a/1", plan or round_robin(list(data), CYCLES + 1, 3.0)
    hosts = {name: Forger(those, liar, forge) if name == liar[0] else LocalHost(those) for name, those in devices.items()}
    with closing(Ledger(path)) as ledger:
        Simulator(plan, hosts, Pace(1.0), CYCLES, ledger, lambda model, cycle: {}, closes_s=closes_s).run(protocol)
    for part in protocol.model.values():
        assert finite(part.tensors)
    values = {name: [float(x) for t in part.tensors.values() for x in t.flatten()] for name, part in protocol.model.items()}
    return values, list(read(path))


@cache
def unheard(protocol_class: Any) -> dict[str, list[float]]:
    """The model of the run in which nothing of the device arrives."""
    with TemporaryDirectory() as folder:
        return played(protocol_class, silent, Path(folder) / "ledger.jsonl")[0]


def refusals(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "refuse"]


def each_lie() -> Iterator[Any]:
    """Every lie to every protocol; the fast tests tell each to one of them, in turn."""
    for (i, lie), (j, protocol_class) in product(enumerate(LIES), enumerate(PROTOCOLS)):
        marks = () if i % len(PROTOCOLS) == j else pytest.mark.slow
        yield pytest.param(protocol_class, lie, marks=marks, id=f"{protocol_class.__name__}-{lie}")


@pytest.mark.parametrize(("protocol_class", "lie"), [*each_lie()])
def test_a_forged_update_is_refused_and_the_run_goes_on_without_it(protocol_class: Any, lie: str, tmp_path: Path) -> None:
    ours, lines = played(protocol_class, lying(lie), tmp_path / "lying")
    assert ours == unheard(protocol_class)
    refused = refusals(lines)
    assert refused
    assert {line["device"] for line in refused} == {"b/0" if protocol_class is Aligned else "a/1"}
    assert all(0 < len(line["reason"]) < 300 and len(line["part"]) < 100 for line in refused)


def test_the_device_would_have_been_heard(tmp_path: Path) -> None:
    """What the tests above compare is not the same with an honest device."""
    for protocol_class in PROTOCOLS:
        heard, lines = played(protocol_class, honest, tmp_path / "honest")
        assert heard != unheard(protocol_class)
        assert refusals(lines) == []


REPEATED: dict[str, tuple[Callable[[], Forge], Callable[[], Forge]]] = {
    "twice in an upload": (lambda: twice, lambda: honest),
    "the first again and again": (first_again, first_only),
    "the last too": (last_too, lambda: honest),
    "the first, as if it were new": (first_as_new, first_only),
}
"""What a device sends, and what of it may count."""


@pytest.mark.parametrize("kind", REPEATED)
@pytest.mark.parametrize("protocol_class", [Sync, EmsFl])
def test_an_update_counts_once(protocol_class: Any, kind: str, tmp_path: Path) -> None:
    sends, counts = REPEATED[kind]
    ours, lines = played(protocol_class, sends(), tmp_path / "sends")
    assert ours == played(protocol_class, counts(), tmp_path / "counts")[0]
    assert refusals(lines)


def test_lies_while_contacts_break_off_change_nothing(tmp_path: Path) -> None:
    """Uploads that take two contacts, and a device that says something else of itself each time."""
    contacts = [Contact("ab"[i % 2], 40.0 * i, 40.0 * i + 30, 200.0, 300.0) for i in range(8)]
    plan = ContactPlan(("a", "b"), tuple(contacts), 320.0, (80.0, 160.0, 240.0, 320.0))
    closes = {i: contact.start_s + 14.0 for i, contact in enumerate(contacts) if i % 3}
    for protocol_class in (Sync, EmsFl):
        found = [
            played(protocol_class, forge, tmp_path / "x", plan, closes)[0]
            for forge in (lying("1e30"), lying("a file of a terabyte"), silent)
        ]
        assert all(model == found[-1] for model in found)
        heard, lines = played(protocol_class, honest, tmp_path / "x", plan, closes)
        assert refusals(lines) == []
        assert heard != found[-1]


def test_when_nobody_is_left_nothing_is_aggregated(tmp_path: Path) -> None:
    ours, lines = played(Aligned, lying("not a number"), tmp_path / "x")
    assert torch.isfinite(torch.tensor([x for values in ours.values() for x in values])).all()
    _, model, devices = toy.make({"a": [toy.samples(0, 8.0)]})
    protocol = EmsFl(Start(model, ("a",), frozenset({"head"}), {"a": OWNED["a"]}, cycles=2))
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:
        hosts = {"a": Forger(devices["a"], "a/0", lying("not a number"))}
        Simulator(round_robin(["a"], 3, 3.0), hosts, Pace(1.0), 2, ledger, lambda model, cycle: {}).run(protocol)
    assert all(part.version == 0 for part in protocol.model.values())
    lines = list(read(tmp_path / "ledger.jsonl"))
    assert not [line for line in lines if line["event"] == "aggregate"]
    assert {line["reason"] for line in refusals(lines)} == {"is not finite"}


def gate(**options: Any) -> Admission:
    """Two devices that have trained for three rounds on version 0 of a head of two numbers."""
    found = Admission({"a": {"a/0": 10, "a/1": 20}, "b": {"b/0": 5}}, **options)
    found.begin({"head": Piece("head", 0, {"x": torch.tensor([3.0, 4.0])})})
    found.ordered("a", Task(frozenset({"head", "gate"}), keeps=frozenset({"gate"})), 3)
    return found


def update(version: int = 0, rounds: int = 3, values: tuple[float, ...] = (3.0, 5.0), device: str = "a/0") -> Update:
    return Update(device, Piece("head", version, {"x": torch.tensor(values)}), rounds, 10, 92)


def reason(refusal: Refusal | None) -> str:
    return "" if refusal is None else refusal.reason


def test_an_account_is_spent_by_what_is_asked_for_and_let_in_once() -> None:
    one = gate()
    assert "was not asked for" in reason(one.announced("a/0", update()))
    assert one.may_send("a/0", ["gate", "head"]) == ["head"]  # the gate stays on the device
    one.asked("a/0", {"head": 92})
    assert "was not announced" in reason(one.arrived_whole("a/0", update()))
    assert one.announced("a/0", update()) is None
    assert "twice" in reason(one.announced("a/0", update()))
    assert one.arrived_whole("a/0", update()) is None
    one.closed("a")
    one.asked("a/0", {"head": 92})
    assert "was not asked for" in reason(one.announced("a/0", update()))
    one.ordered("a", Task(frozenset({"head"})), 2)
    one.asked("a/0", {"head": 92})
    assert "2 were ordered" in reason(one.announced("a/0", update()))
    assert one.announced("a/0", update(rounds=2)) is None


def test_what_could_not_be_read_is_refused_in_the_readers_words() -> None:
    one = gate()
    one.asked("a/0", {"head": 92})
    assert reason(one.announced("a/0", replace(update(), fault="cannot be read: no head"))) == "cannot be read: no head"
    assert one.announced("a/0", update()) is None


def test_training_past_a_snapshot_is_owed_on() -> None:
    """An upload that takes two contacts carries what was trained before it was asked for; the rest comes later."""
    one = gate()
    one.asked("a/0", {"head": 92})
    assert one.announced("a/0", update()) is None
    one.ordered("a", Task(frozenset({"head"})), 4)  # the signal is lost, and the device goes on
    assert one.arrived_whole("a/0", update()) is None
    one.closed("a")
    one.asked("a/0", {"head": 92})
    assert "4 were ordered" in reason(one.announced("a/0", update(rounds=7)))
    assert one.announced("a/0", update(rounds=4)) is None


def test_versions_that_devices_may_hold() -> None:
    one, later = gate(), Piece("head", 1, {"x": torch.tensor([3.0, 5.0])})
    one.sent("a", [later])  # it may be there or not
    one.asked("a/0", {"head": 92})
    assert "holds 0 or 1" in reason(one.announced("a/0", update(2)))
    assert one.announced("a/0", update(1)) is None
    one.asked("a/0", {"head": 92})
    assert one.announced("a/0", update(0)) is None
    one.arrived("a", [later])  # while an upload is under way, which stands on what was there before
    assert one.arrived_whole("a/0", update(0)) is None
    one.closed("a")
    one.arrived("a", [later])
    one.ordered("a", Task(frozenset({"head"})), 3)
    one.asked("a/0", {"head": 92})
    assert "holds 1" in reason(one.announced("a/0", update(0)))
    one.ordered("b", Task(frozenset({"head"})), 3)  # another cluster has not got it
    one.asked("b/0", {"head": 92})
    assert "holds 0" in reason(one.announced("b/0", update(1, device="b/0")))


def test_a_device_does_not_go_back_to_an_earlier_version() -> None:
    one = gate()
    one.sent("a", [Piece("head", 1, {"x": torch.tensor([3.0, 5.0])})])
    for version, said in ((1, ""), (0, "the device has delivered on 1")):
        one.asked("a/0", {"head": 92})
        assert said in reason(one.announced("a/0", update(version)))
        if not said:
            assert one.arrived_whole("a/0", update(version)) is None
        one.closed("a")
        one.ordered("a", Task(frozenset({"head"})), 3)


@pytest.mark.parametrize(
    ("last", "bound", "let_in"), [(5.5, 0.31, True), (5.5, 0.29, False), (9.5, 1.2, True), (9.5, 1.0, False)]
)
def test_the_bound_by_hand(last: float, bound: float, let_in: bool) -> None:
    """The part's root mean square is 5 / √2, and d in one number changes it by d / √2: d may be 5 times the bound."""
    one = gate(max_update_norm=bound)
    one.asked("a/0", {"head": 92})
    assert one.announced("a/0", update(values=(3.0, last))) is None
    assert (one.arrived_whole("a/0", update(values=(3.0, last))) is None) == let_in


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_every_type_of_number(dtype: torch.dtype) -> None:
    """Squares overflow in float16 at 256, and so do sums of them."""
    sent = Piece("head", 0, {"x": torch.full((1000,), 300.0, dtype=dtype)})
    assert differs({"x": sent.tensors["x"] + 8}, sent, 1.0) is None
    assert "changes the part by" in str(differs({"x": sent.tensors["x"] * 8}, sent, 1.0))
    assert differs({"x": sent.tensors["x"] * float("inf")}, sent, 1e30) == "is not finite"
    assert differs({}, Piece("head", 0, {})) is None


def test_what_it_remembers_is_what_a_checkpoint_keeps() -> None:
    one, other = gate(), gate()
    one.asked("a/0", {"head": 92})
    assert one.announced("a/0", update()) is None
    packer = Packer()
    document = json.loads(json.dumps(packer.pack(one.state())))
    other.restore(unpack(document, packer.tensors))
    assert "twice" in reason(other.announced("a/0", update()))
    assert other.arrived_whole("a/0", update()) is None


class Fickle:
    """Trains both parts, and asks for other parts each time."""

    def __init__(self, start: Start):
        self.model, self.asks, self.got = dict(start.model), [["expert:0", "head"], ["head"], ["expert:0", "head"]], {}

    async def contact(self, link: Link) -> None:
        if link.cycle == 0:
            await link.train(Task(frozenset({"expert:0", "head"}), rounds=2))
        for update in await link.collect(self.asks[link.cycle]):
            self.got[update.piece.part] = update.rounds
        await link.leave(None)


def test_an_upload_that_was_cut_and_is_not_asked_for_again_is_owed_still(tmp_path: Path) -> None:
    """A part whose first byte never left is no more under way, and comes when it is asked for next."""
    _, model, _ = toy.make({"a": [toy.samples(0, 8.0)]})
    contacts = tuple(Contact("a", 40.0 * i, 40.0 * i + 30, 200.0, 300.0) for i in range(3))
    plan = ContactPlan(("a",), contacts, 120.0, (40.0, 80.0, 120.0))
    protocol = Fickle(Start(model, ("a",), frozenset({"head"}), {"a": OWNED["a"]}, cycles=3))
    with closing(Ledger(tmp_path / "ledger.jsonl")) as ledger:  # cut after 2.9 of the 3.7 s of the first part, or at once
        for cut_s in (4.9, 2.0):
            protocol.got = {}
            hosts = toy.hosts(toy.make({"a": [toy.samples(0, 8.0)]})[2])
            simulator = Simulator(plan, hosts, Pace(1.0), 3, ledger, lambda model, cycle: {}, closes_s={0: cut_s})
            simulator.run(protocol)
            assert protocol.got == {"expert:0": 2, "head": 2}
    assert refusals(list(read(tmp_path / "ledger.jsonl"))) == []
