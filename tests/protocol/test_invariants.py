"""What must hold on any plan: whatever overlaps, is cut or is slow."""

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import toy
from fedexperts.contact.plan import Contact, ContactPlan, Rates, round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.faults import Faults
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.protocol.asynchronous import FedAsync, FedBuff
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl, Parts
from fedexperts.protocol.sync import Sync
from fedexperts.train.device import Device, LocalTraining

NONE = Faults()
ADAM = LocalTraining(local_steps=1, batch_size=None, optimizer="adamw", lr_expert=0.1, lr_gate=0.1)
EVERYBODYS = partial(EmsFl, there=Parts(disjoint=False))
PROTOCOLS = [EmsFl, EnhancedEmsFl, Sync, FedAsync, FedBuff, EVERYBODYS]


def play(
    protocol_class,
    plan: ContactPlan,
    path: Path,
    cycles: int,
    owned: dict[str, set[int]],
    experts: int = 2,
    closes_s: dict[int, float] | None = None,
    faults: Faults = NONE,
    seconds_per_round: float = 1.0,
    local: LocalTraining = toy.HALF,
    **start: Any,
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    data = {c: [toy.samples(min(mine, default=0), 8.0, experts=experts)] for c, mine in owned.items()}
    _, model, devices = toy.make(data, values=(0.0,) * experts, local=local)
    parts = {c: frozenset(f"expert:{m}" for m in mine) for c, mine in owned.items()}
    protocol = toy.protocol(protocol_class, model, parts, cycles, **start)
    ledger = Ledger(path / "ledger.jsonl")
    simulator = Simulator(
        plan,
        toy.hosts(devices),
        Pace(seconds_per_round),
        cycles,
        ledger,
        lambda model, cycle: {},
        closes_s=closes_s,
        faults=faults,
    )
    simulator.run(protocol)
    ledger.close()
    return protocol, list(read(path / "ledger.jsonl")), devices


@pytest.mark.parametrize("clusters", [2, 3, 5])
@pytest.mark.parametrize("idle_slots", [0, 2])
def test_each_cycle_updates_every_expert_once_and_the_gate_c_times(clusters: int, idle_slots: int, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(clusters)]
    plan = round_robin(names, 5, 1.0, idle_slots)
    owned = {name: {2 * i, 2 * i + 1} for i, name in enumerate(names)}
    _, lines, _ = play(EmsFl, plan, tmp_path, 4, owned, experts=2 * clusters)
    ends = plan.cycle_ends_s[:4]
    for cycle in range(1, 4):
        within = [x for x in lines if x["event"] == "aggregate" and ends[cycle - 1] <= x["t_s"] <= ends[cycle]]
        begin = next(i for i, x in enumerate(lines) if x["event"] == "contact" and x["t_s"] >= ends[cycle - 1])
        within = [x for x in within if lines.index(x) > begin and x["t_s"] <= ends[cycle]]
        stop = [i for i, x in enumerate(lines) if x["event"] in ("contact", "flush") and x["t_s"] >= ends[cycle]]
        counts = Counter(x["part"] for x in within if lines.index(x) < stop[0])
        assert counts == {**{f"expert:{m}": 1 for m in range(2 * clusters)}, "head": clusters}


FILE_bps = 8 * toy.FILE_B / 0.1  # bit/s that carry one part in 0.1 s
SLOW = ContactPlan(  # two clusters in turn; a transfer of one part takes 0.1 s
    ("a", "b"), tuple(Contact("ab"[k % 2], 5.0 * k, 5.0 * k + 4, FILE_bps, FILE_bps) for k in range(12)), 60.0
)
OWNED = {"a": {0}, "b": {1}}


@pytest.mark.parametrize("protocol_class", PROTOCOLS)
@pytest.mark.parametrize("cut", [0, 3, 6])
def test_a_contact_may_be_cut_at_every_await(protocol_class, cut: int, tmp_path: Path) -> None:
    whole, lines, _ = play(protocol_class, SLOW, tmp_path, 5, OWNED)
    contact = SLOW.contacts[cut]
    during = {x["t_s"] for x in lines if x.get("cluster") == contact.cluster and contact.start_s <= x["t_s"] <= contact.end_s}
    steps = sorted(during)
    between = [(a + b) / 2 for a, b in pairwise(steps)]
    for instant_s in between:
        protocol, lines, devices = play(protocol_class, SLOW, tmp_path, 5, OWNED, closes_s={cut: instant_s})
        assert sum(x["event"] == "lost" for x in lines) == 1
        assert lines[-1]["event"] == "end"
        assert lines[-1]["unsent_rounds"] == 0
        assert all(not device.pending for group in devices.values() for device in group)
        assert not [x for x in lines if x["event"] == "refuse"]
        assert set(protocol.model) == set(whole.model)
    assert len(between) >= (1 if cut == 0 else 3)


@pytest.mark.parametrize("after_s", [0.05, 0.1, 0.2, 0.3, 1.0, 2.5, 3.9])
def test_no_round_of_training_is_lost_with_the_signal(after_s: float, tmp_path: Path) -> None:
    """The head is not trained by anybody else here, so the expert's error tells how many rounds reached the server."""
    plan = ContactPlan(
        ("a",),
        (
            Contact("a", 0, 4, FILE_bps, FILE_bps),
            Contact("a", 10, 14, FILE_bps / 4, FILE_bps),  # an upload takes 0.4 s
            Contact("a", 20, 24, FILE_bps, FILE_bps),
            Contact("a", 30, 34, FILE_bps, FILE_bps),
            Contact("a", 40, 44, FILE_bps, FILE_bps),
        ),
        50,
    )
    protocol, lines, _ = play(EnhancedEmsFl, plan, tmp_path, 4, {"a": {0}}, closes_s={1: 10 + after_s}, gate_tail_cycles=0)
    rounds = sum(x["rounds"] for x in lines if x["event"] == "train")
    error = 8.0 - toy.value(protocol.model, "expert:0")
    assert error == pytest.approx(8.0 * 0.5**rounds, rel=1e-3, abs=1e-6)
    assert rounds > 20


def test_an_upload_longer_than_a_contact_goes_on_in_the_next(tmp_path: Path) -> None:
    contacts = tuple(Contact("a", 10.0 * k, 10.0 * k + 1, 8 * 69, FILE_bps) for k in range(9))  # 69 B per contact, 92 wanted
    protocol, lines, _ = play(EnhancedEmsFl, ContactPlan(("a",), contacts, 90), tmp_path, 6, {"a": {0}}, gate_tail_cycles=0)
    sent = [x["uplink_B"] for x in lines if x["event"] == "collect"]
    assert max(sent) <= 69
    assert sum(x["event"] == "aggregate" for x in lines) >= 2
    assert toy.value(protocol.model, "expert:0") > 7.9


@st.composite
def plans(draw: st.DrawFn) -> ContactPlan:
    contacts = []
    for cluster in ("a", "b", "c"):
        t = 0.0
        for _ in range(draw(st.integers(1, 6))):
            t += draw(st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.25]))
            length = draw(st.sampled_from([0.1, 0.35, 1.0, 2.0, 4.0]))
            rate = draw(st.sampled_from([400.0, 2500.0, FILE_bps, float("inf")]))
            contact = Contact(cluster, t, t + length, rate, draw(st.sampled_from([1500.0, float("inf")])))
            if draw(st.booleans()):
                rates = st.sampled_from([400.0, 1500.0, FILE_bps])
                edges = (t + length / 3, t + length)
                contact = replace(contact, rates=tuple(Rates(edge, draw(rates), draw(rates)) for edge in edges))
            contacts.append(contact)
            t += length
    return ContactPlan(("a", "b", "c"), tuple(contacts), max(c.end_s for c in contacts) + 5)


@pytest.mark.parametrize("protocol_class", PROTOCOLS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans(), cycles=st.integers(1, 3), faults=st.sampled_from([NONE, Faults(0.3, 0.1, 0.3, seed=1)]))
def test_any_plan(protocol_class, plan: ContactPlan, cycles: int, faults: Faults, tmp_path: Path) -> None:
    owned = {"a": {0}, "b": {1, 2}, "c": {3}}
    protocol, lines, _ = play(protocol_class, plan, tmp_path, cycles, owned, experts=4, gate_tail_cycles=0, faults=faults)
    assert lines[-1]["event"] == "end"
    assert [x["t_s"] for x in lines] == sorted(x["t_s"] for x in lines)
    for key in ("uplink_B", "downlink_B"):
        assert lines[-1][key] == sum(x[key] for x in lines[:-1] if key in x)
    open_until: dict[str, Contact] = {}
    carried: Counter[tuple[str, float, str]] = Counter()
    by_start = {(c.cluster, c.start_s): c for c in plan.contacts}
    for x in lines:
        if x["event"] in ("contact", "flush"):
            open_until[x["cluster"]] = min(
                (c for c in by_start.values() if c.cluster == x["cluster"]), key=lambda c: abs(c.start_s - x["t_s"])
            )
        for key in ("uplink_B", "downlink_B"):
            if x.get("cluster") and key in x:
                contact = open_until[x["cluster"]]
                carried[x["cluster"], contact.start_s, key] += x[key]
    for (cluster, start_s, key), size_B in carried.items():
        contact = by_start[cluster, start_s]
        direction = "up" if key == "uplink_B" else "down"
        assert size_B <= contact.carried_B(direction, contact.start_s, contact.end_s) + 1e-6
    if protocol_class in (EmsFl, EnhancedEmsFl):
        for part in ("expert:0", "expert:1", "expert:2", "expert:3"):
            owner = next(c for c, mine in owned.items() if int(part[-1]) in mine)
            trainers = {x["cluster"] for x in lines if x["event"] == "train" and part in x["parts"]}
            assert trainers <= {owner}
        assert protocol.owned == {c: frozenset(f"expert:{m}" for m in mine) for c, mine in owned.items()}


@pytest.mark.parametrize("protocol_class", [EmsFl, EnhancedEmsFl])
def test_resplitting_hands_experts_over_at_contacts(protocol_class, tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 9, 1.0)
    swapped = [
        {"a": frozenset({"expert:1"}), "b": frozenset({"expert:0"})},
        {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})},
    ]
    _, lines, _ = play(
        protocol_class,
        plan,
        tmp_path,
        8,
        OWNED,
        split=lambda counts, number: swapped[(number - 1) % 2],
        every_cycles=2,
        trial_samples=1,
        gate_tail_cycles=1,
    )
    splits = [x for x in lines if x["event"] == "split"]
    assert len(splits) >= 2
    owner = {"expert:0": "a", "expert:1": "b"}
    taught: set[str] = set()
    for x in lines:
        if x["event"] == "hand_over":
            for part in x["released"]:
                assert owner.pop(part) == x["cluster"]
            for part in x["gained"]:
                assert part not in owner
                owner[part] = x["cluster"]
        if x["event"] == "train":
            for part in x["parts"]:
                if part.startswith("expert"):
                    assert owner[part] == x["cluster"]
                    taught.add(f"{part} by {x['cluster']}")
    assert taught == {"expert:0 by a", "expert:0 by b", "expert:1 by a", "expert:1 by b"}
    assert not [x for x in lines if x["event"] == "refuse"]


@pytest.mark.parametrize("protocol_class", [EmsFl, EnhancedEmsFl])
def test_a_trial_before_a_resplit_sees_what_came_down_and_no_training_of_this_contact(protocol_class, tmp_path: Path) -> None:
    plan, seen = round_robin(["a", "b"], 5, 1.0), []

    def observe(device, samples):
        seen.append({part: (piece.version, part in device.trained) for part, piece in device.held.items()})
        return np.array([[1, 1]]), 2

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Device, "observe", observe)
        keep = {c: frozenset(f"expert:{m}" for m in mine) for c, mine in OWNED.items()}
        options = {"split": lambda counts, number: keep, "every_cycles": 2, "trial_samples": 1, "gate_tail_cycles": 0}
        _, lines, _ = play(protocol_class, plan, tmp_path, 4, OWNED, **options)
    at = [i for i, x in enumerate(lines) if x["event"] == "trial"]
    assert len(at) == len(seen) == 2
    for i, held in zip(at, seen, strict=True):
        assert lines[i - 1]["event"] == "send"
        assert next(x["event"] for x in lines[i + 1 :] if x["event"] != "split") == "train"
        assert not any(trained for _, trained in held.values())
        down = {p: v for x in lines[:i] if x["event"] == "send" for p, v in zip(x["parts"], x["versions"], strict=True)}
        sent = lines[i - 1]
        assert {p: held[p][0] for p in sent["parts"]} == {p: down[p] for p in sent["parts"]}


def test_a_download_longer_than_a_contact_goes_on_in_the_next(tmp_path: Path) -> None:
    contacts = tuple(Contact("a", 10.0 * k, 10.0 * k + 2, FILE_bps, 8 * 57.5) for k in range(12))  # 115 B down each, 276 wanted
    _, lines, _ = play(Sync, ContactPlan(("a",), contacts, 120), tmp_path, 9, {"a": {0}})
    sends = [x for x in lines if x["event"] == "send"]
    assert [x["downlink_B"] for x in sends[:3]] == [115, 115, 46]
    assert [x["parts"] for x in sends[:3]] == [["expert:0"], ["expert:1"], ["head"]]
    assert sum(x["event"] == "aggregate" and x["part"] == "head" for x in lines) >= 2


@pytest.mark.parametrize("protocol_class", [EmsFl, EnhancedEmsFl])
@pytest.mark.parametrize("after_s", [0.05, 0.15, 1.0])
def test_devices_go_on_with_their_order_when_a_contact_is_cut(protocol_class, after_s: float, tmp_path: Path) -> None:
    plan = ContactPlan(("a",), tuple(Contact("a", 10.0 * k, 10.0 * k + 4, FILE_bps, FILE_bps) for k in range(6)), 60)
    cut = {2: 20 + after_s}
    _, lines, _ = play(protocol_class, plan, tmp_path, 5, {"a": {0}}, closes_s=cut, gate_tail_cycles=0)
    away = [x["rounds"] for x in lines if x["event"] == "train" and x["phase"] == "disconnected" and 20 < x["t_s"] <= 30]
    assert away
    assert away[0] >= 7


def test_what_is_handed_over_starts_with_a_fresh_optimiser(tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 9, 1.0)
    swapped = [{"a": frozenset({"expert:1"}), "b": frozenset({"expert:0"})}] * 9
    _, _, devices = play(
        EmsFl, plan, tmp_path, 8, OWNED, local=ADAM, split=lambda counts, number: swapped[0], every_cycles=2, trial_samples=1
    )
    assert set(devices["a"][0].optimizer_state) <= {"expert:1", "head"}
    assert set(devices["b"][0].optimizer_state) <= {"expert:0", "head"}


@pytest.mark.parametrize("instant", range(6))
@pytest.mark.parametrize("contact", [4, 5, 6, 7])
def test_no_expert_has_two_owners_when_a_hand_over_is_cut(contact: int, instant: int, tmp_path: Path) -> None:
    swapped = [{"a": frozenset({"expert:1"}), "b": frozenset({"expert:0"})}] * 9
    _, lines, _ = play(
        EmsFl,
        SLOW,
        tmp_path,
        5,
        OWNED,
        closes_s={contact: 5.0 * contact + 0.05 + 0.1 * instant},
        split=lambda counts, number: swapped[0],
        every_cycles=2,
        trial_samples=1,
    )
    owner = {"a": {"expert:0"}, "b": {"expert:1"}}
    for x in lines:
        if x["event"] == "hand_over":
            owner[x["cluster"]] = (owner[x["cluster"]] - set(x["released"])) | set(x["gained"])
            assert not owner["a"] & owner["b"]
        if x["event"] == "train":
            assert {part for part in x["parts"] if part != "head"} <= owner[x["cluster"]]
    assert not [x for x in lines if x["event"] == "refuse"]
    assert any(x["event"] == "hand_over" for x in lines)


@pytest.mark.parametrize("slot_s", [0.1, 0.7, 1.1, 33.3])
@pytest.mark.parametrize("clusters", [1, 2, 3])
@pytest.mark.parametrize("protocol_class", PROTOCOLS)
def test_slots_that_do_not_add_up_in_binary(protocol_class, clusters: int, slot_s: float, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(clusters)]
    owned = {name: {i} for i, name in enumerate(names)}
    results = []
    for slot, folder in ((slot_s, "odd"), (1.0, "even")):
        (tmp_path / folder).mkdir()
        plan = round_robin(names, 6, slot)
        protocol, lines, _ = play(protocol_class, plan, tmp_path / folder, 5, owned, experts=clusters, seconds_per_round=slot)
        results.append((lines[-1]["steps"], {part: toy.value(protocol.model, part) for part in protocol.model}))
    assert results[0] == results[1]


@pytest.mark.parametrize("protocol_class", PROTOCOLS)
def test_lost_pieces_are_sent_again(protocol_class, tmp_path: Path) -> None:
    """Drops and corruption cost bytes and time, not training: what no longer fits a contact arrives in the next."""
    whole, lines, _ = play(protocol_class, SLOW, tmp_path, 5, OWNED)
    protocol, faulty, devices = play(protocol_class, SLOW, tmp_path, 5, OWNED, faults=Faults(0.3, 0.2, seed=4))
    assert faulty[-1]["uplink_B"] > lines[-1]["uplink_B"]
    assert not [x for x in faulty if x["event"] == "refuse"]
    assert faulty[-1]["unsent_rounds"] == 0
    assert all(not device.pending for group in devices.values() for device in group)
    found, without = (toy.value(one.model, "expert:0") + toy.value(one.model, "head") for one in (protocol, whole))
    assert found == pytest.approx(without, abs=0.01)
    assert found == pytest.approx(8, abs=0.7)  # FedBuff adds what two clusters made of one version, and is on its way back
