"""Servers and nodes that are killed in the middle of anything, full disks, calls that come late: nothing is done twice."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from test_remote import LABELS, OVERLAPPING, OWNED, PLAN, PROTOCOLS, Network, here, hosts, play, world
from test_runs import LORA, Nodes

import small
from deployed import losses, weights
from fedexperts import Scenario, run
from fedexperts.contact.plan import Contact, ContactPlan
from fedexperts.deploy import node as nodes
from fedexperts.deploy.node import Node
from fedexperts.deploy.orders import read_reply, said_hello
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.protocol.link import Start
from fedexperts.runs.checkpoint import Packer, unpack
from marks import some_slow
from stopped import KilledError, killed


class Rough(Network):
    """Where also processes end in the middle of anything, disks are full for a while, and calls come after later ones."""

    def __init__(self, spool: Path, fates: list[str]):
        self.aside: dict[str, list[bytes]] = {link: [] for link in LABELS}
        self.fate = "calm"
        self.steps = 0
        super().__init__(spool, fates)

    def carry(self, link: str, message: bytes) -> bytes | None:
        if self.fate == "calm":  # of hellos
            return self.nodes[link].handle(message)
        self.fate = self.fates[self.calls] if self.calls < len(self.fates) else "ok"
        self.steps = 0
        try:
            if self.fate == "late":
                self.calls += 1
                self.aside[link].append(message)
                return None
            reply = super().carry(link, message)
            if self.fate == "ok":
                late, self.aside[link] = self.aside[link], []
                for one in late:
                    self.nodes[link].handle(one)
            return reply
        except KilledError:
            self.fate = "ok"
            self.nodes[link] = self.start(link)
            return None

    @contextmanager
    def broken(self) -> Iterator[None]:
        """Disk and processor do as the fate of a call has it."""
        save, done, write = nodes.checkpoint.save, nodes._done, nodes.write_whole

        def saved(folder: Path, number: int, tree: Any) -> None:
            if self.fate in ("killed in saving", "no room for states"):
                (folder / "unfinished").mkdir(parents=True, exist_ok=True)
                (folder / "unfinished" / "state.json").write_text('{"form')
                raise (
                    KilledError if self.fate == "killed in saving" else SafetensorError("No space left on device (os error 28)")
                )
            save(folder, number, tree)

        def did(host: Any, command: Any) -> Any:
            self.steps += 1
            if self.fate == f"killed in step {self.steps}":
                raise KilledError
            found = done(host, command)
            if self.fate == f"fails in step {self.steps}":
                raise MemoryError("no memory")
            return found

        def wrote(path: Path, text: bytes) -> None:
            if self.fate in ("killed in writing", "no room for calls"):
                path.with_name(f".{path.name}.unfinished").write_bytes(text[: len(text) // 2])
                raise KilledError if self.fate == "killed in writing" else OSError(errno.ENOSPC, "No space left on device")
            write(path, text)

        with (
            patch.object(nodes.checkpoint, "save", saved),
            patch.object(nodes, "_done", did),
            patch.object(nodes, "write_whole", wrote),
        ):
            yield


def served(
    kind: Any, network: Rough, folder: Path, plan: ContactPlan, kills: list[int]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """As `play`, with a server that is killed after so many lines, and the next, and goes on from its last quiet moment."""
    saved: tuple[Any, dict[str, Any]] | None = None
    for most in [*kills, -1]:
        network.fate = "calm"
        devices = hosts(network)
        for host in devices.values():
            host.others = [*devices.values(), SimpleNamespace(refused="")]  # so that a node that refuses ends nothing
        network.fate = "ok"
        protocol = kind(Start(world()[1], tuple(LABELS), frozenset({"head"}), OWNED, cycles=4))
        tree = unpack(*saved) if saved else None
        with closing(Ledger(folder, tree["ledger_B"] if tree else 0, killed(most))) as ledger:
            simulator = Simulator(plan, devices, Pace(5.0), 4, ledger, lambda model, cycle: {"accuracy": 0.0})
            if tree:
                vars(protocol).update(tree["protocol"])
                simulator.restore(tree["simulator"])

            def pause(protocol: Any = protocol, simulator: Simulator = simulator, ledger: Ledger = ledger) -> None:
                nonlocal saved
                packer = Packer()
                own = {name: value for name, value in vars(protocol).items() if not name.startswith("_")}
                tree = {"protocol": own, "simulator": simulator.state(), "ledger_B": ledger.position()}
                saved = json.loads(json.dumps(packer.pack(tree))), packer.tensors

            try:
                simulator.run(protocol, pause)
                break
            except KilledError:
                pass
    return list(read(folder)), {part: piece.digest for part, piece in protocol.model.items()}


FATES = st.sampled_from(
    ["ok"] * 14
    + ["call lost", "reply lost", "twice", "idle", "node killed", "killed late", "late", "late"]
    + ["killed in saving", "killed in writing", "no room for states", "no room for calls"]
    + [f"{how} in step {n}" for how in ("killed", "fails") for n in (1, 2, 3, 4)]
)


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(PROTOCOLS),
    plan=st.sampled_from([PLAN, OVERLAPPING]),
    fates=st.lists(FATES, max_size=60),
    kills=st.lists(st.integers(1, 60), max_size=3),
)
def test_whatever_breaks_the_model_is_that_of_a_simulation_with_the_same_losses(
    kind: Any, plan: ContactPlan, fates: list[str], kills: list[int], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "nodes", ignore_errors=True)
    (tmp_path / "there").unlink(missing_ok=True)
    network = Rough(tmp_path / "nodes", fates)
    with network.broken():
        there, model = served(kind, network, tmp_path / "there", plan, kills)
    expected, same = play(kind, here(), tmp_path / "here", plan, losses(there, plan))
    assert model == same
    assert [line["event"] for line in there] == [line["event"] for line in expected]


@pytest.mark.parametrize("fate", ["late", "killed in saving", "no room for states", "no room for calls", "fails in step 1"])
def test_one_thing_breaks(fate: str, tmp_path: Path) -> None:
    network = Rough(tmp_path / "nodes", ["ok"] * 3 + [fate] * 2)
    with network.broken():
        there, model = served(PROTOCOLS[0], network, tmp_path / "there", PLAN, [])
    _, same = play(PROTOCOLS[0], here(), tmp_path / "here", PLAN, losses(there, PLAN))
    assert model == same


def test_a_node_that_is_killed_as_it_begins_begins_again(tmp_path: Path) -> None:
    network = Rough(tmp_path / "nodes", [])
    network.fate = "killed in saving"
    shutil.rmtree(tmp_path / "nodes" / "a")
    with network.broken(), pytest.raises(KilledError):
        network.start("a")
    facts = read_reply(network.start("a").handle(said_hello("run")))[0].facts
    assert facts is not None
    assert facts.devices == ["a/0", "a/1"]


def test_a_state_that_is_half_there_is_not_gone_back_to(tmp_path: Path) -> None:
    """A process was killed when it had removed a file of an older state, and not yet the others."""
    network = Rough(tmp_path / "nodes", [])
    with network.broken():
        served(PROTOCOLS[0], network, tmp_path / "there", PLAN, [])
    node = network.nodes["a"]
    older = node.saved[0].folder.with_name("00000000")
    assert not older.exists()
    shutil.copytree(node.saved[0].folder, older)
    (older / "00000001" / "state.json").unlink()
    again = network.start("a")
    assert [step.command.id for step in again.path] == [step.command.id for step in node.path]


def test_a_call_that_was_damaged_on_disk_is_no_call(tmp_path: Path) -> None:
    network = Rough(tmp_path / "nodes", [])
    with network.broken():
        served(PROTOCOLS[0], network, tmp_path / "there", PLAN, [])
    for path in (tmp_path / "nodes" / "a" / "calls").glob("[0-9]*"):
        path.write_bytes(path.read_bytes()[:100])
    assert len(network.start("a").path) < len(network.nodes["a"].path)


class Faulty(Nodes):
    """Nodes of a whole run, of whose calls or replies some are lost."""

    def __init__(self, scenario: Scenario, spool: Path, seed: int):
        super().__init__(scenario, spool)
        self.rng = random.Random(seed)

    def hosts(self, prepared: Any) -> Any:
        found = dict(super().hosts(prepared))
        for number, (link, host) in enumerate(found.items()):
            host.way = FaultyWay(self, link, number)
        return found


class FaultyWay:
    quiet_s = 1.0

    def __init__(self, nodes: Faulty, link: str, number: int):
        self.nodes, self.link, self.number, self.begun = nodes, link, number, False

    def begin(self, start_s: float, end_s: float) -> None:
        self.begun = True

    def end(self) -> None:
        pass

    def ask(self, message: bytes) -> bytes | None:
        fate = self.nodes.rng.choice(["ok"] * 7 + ["call", "reply", "killed"]) if self.begun else "ok"
        if fate == "call":
            return None
        reply = self.nodes.nodes[self.link].handle(message)
        if fate == "killed":
            devices = nodes_host(self.nodes.scenario, self.link)
            self.nodes.nodes[self.link] = Node(devices, "run", self.nodes.spool / str(self.number))
            return None
        self.nodes.nodes[self.link].go_on()
        return None if fate == "reply" else reply


def nodes_host(scenario: Scenario, link: str) -> Any:
    from fedexperts.method.elsewhere import host

    return host(scenario, link)


CASES: dict[str, dict[str, Any]] = {
    "sync": {"protocol": "sync"},
    "aligned": {"protocol": "aligned"},
    "split again": {"protocol": "ems-fl", "assignment": {"trial_samples": 8, "every_cycles": 1}},
    "enhanced, split again": {"protocol": "ems-fl-enhanced", "assignment": {"trial_samples": 8, "every_cycles": 1}},
    "adapters in int8": {"protocol": "ems-fl", "model": LORA},
}


LONG = ("aligned", "split again", "adapters in int8")
"""Many contacts, and many checkpoints: as `make slow` has time for."""


@pytest.mark.parametrize("case", some_slow(CASES, LONG))
def test_runs_on_bad_links_end_with_the_model_of_a_simulation_with_the_same_losses(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a plan that has rates: where awaits take no time, losses at one second cannot be told apart."""
    names = ("plain", "inverted")
    contacts = tuple(Contact(names[i % 2], 400.0 * i, 400.0 * i + 600, 1e5, 2e5) for i in range(8))
    (tmp_path / "plan.json").write_text(json.dumps(ContactPlan(names, contacts, 3600.0).to_json()))
    tables: dict[str, Any] = {
        "train": {"cycles": 2, "local_steps": 1, "batch_size": 8, "seconds_per_round": 60.0},
        **CASES[case],
    }
    plan = {"kind": "file", "path": str(tmp_path / "plan.json")}
    scenario = small.scenario(plan=plan, **tables)
    plans: list[ContactPlan] = []

    def seen(prepared: Any) -> Any:
        plans.append(prepared.plan)
        return Faulty(scenario, tmp_path / "nodes", seed=len(case)).hosts(prepared)

    run(scenario, tmp_path / "there", hosts=seen)
    there = list(read(tmp_path / "there" / "ledger.jsonl"))
    lost = losses(there, plans[0])
    assert lost
    assert {line.get("reason", "no answer") for line in there if line["event"] == "lost"} == {"no answer"}
    monkeypatch.setattr("fedexperts.runs.run.Simulator", partial(Simulator, closes_s=lost))
    run(scenario, tmp_path / "here")
    assert weights(tmp_path / "there") == weights(tmp_path / "here")


@pytest.mark.slow
def test_a_node_forgets_what_nobody_goes_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checkpoints of a real run its memory and its disk do not grow with the run."""
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    most: dict[int, tuple[int, int, int]] = {}
    for cycles in (3, 9):
        scenario = small.scenario(train={"cycles": cycles, "local_steps": 1, "batch_size": 8})
        there = Nodes(scenario, tmp_path / f"nodes-{cycles}")
        sizes = [(0, 0, 0)]

        def look(line: dict[str, Any], there: Any = there, sizes: Any = sizes) -> None:
            for node in there.nodes.values():
                sizes.append((len(node.path), len(list(node.spool.glob("states/*"))), len(list(node.spool.glob("calls/*")))))

        run(scenario, tmp_path / f"run-{cycles}", hosts=there.hosts, listener=look)
        most[cycles] = tuple(max(column) for column in zip(*sizes, strict=True))  # type: ignore[assignment]
    assert most[9] <= tuple(2 * size for size in most[3])
    assert all(b <= a + 4 for a, b in zip(most[3], most[9], strict=True)), most
