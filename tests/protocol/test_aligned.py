"""Client-expert alignment on the toy: every number below was worked out on paper.

A round with learning rate 1/2 halves a device's error. Gate rows are one-hot, so a client's samples name the expert.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toy
from fedexperts.assign.scores import Capacity, Need
from fedexperts.contact.plan import Contact, ContactPlan, always_on
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger
from fedexperts.moe.parts import Piece
from fedexperts.protocol.aggregate import Change, moved
from fedexperts.protocol.aligned import Aligned, Alignment, Client
from fedexperts.protocol.link import Start

CAN = Capacity()
FREE = Need(*[0.0] * 8)


def play(
    plan: ContactPlan,
    data: dict[str, dict[str, torch.Tensor]],
    path: Path,
    cycles: int = 1,
    shared: frozenset[str] = frozenset(),
    experts: int = 2,
    seconds: float = 1.0,
    closes_s: dict[int, float] | None = None,
    capacity: dict[str, Capacity] | None = None,
    **settings: Any,
) -> tuple[Aligned, list[dict[str, Any]]]:
    _, model, devices = toy.make({name: [d] for name, d in data.items()}, values=(0.0,) * experts)
    clients = {name: Client((capacity or {}).get(name, CAN), len(d["labels"])) for name, d in data.items()}
    settings = {"need": FREE, "deadline_s": 1.0, "seed": 0, "appraisal_samples": 0, "max_experts": 1, **settings}
    told = Alignment(clients=clients, **settings)
    protocol = Aligned(Start(model, tuple(data), shared, {}, cycles=cycles), told)
    ledger = Ledger(path / "ledger.jsonl")

    def values(model: dict[str, Piece], _: int) -> dict[str, Any]:
        return toy.judged({part: toy.value(model, part) for part in model if part != "gate"})

    Simulator(plan, toy.hosts(devices), Pace(seconds), cycles, ledger, values, closes_s=closes_s).run(protocol)
    ledger.close()
    return protocol, toy.lines_of(path / "ledger.jsonl")


def rows(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


ONE = {"a": toy.samples(0, 4.0, n=2, experts=1), "b": toy.samples(0, 8.0, n=6, experts=1)}
"""Two clients of one expert."""


def test_an_expert_moves_by_the_mean_change_weighted_by_samples(tmp_path: Path) -> None:
    _, lines = play(always_on(["a", "b"], 2, 1.0), ONE, tmp_path, experts=1)
    # a moves expert 0 by 2, b by 4: (2·2 + 6·4) / 8 = 3.5
    assert rows(lines, "evaluate")[0]["expert:0"] == 3.5
    assert [line["clients"] for line in rows(lines, "aggregate")] == [2]


def test_an_expert_that_nobody_trained_stays(tmp_path: Path) -> None:
    data = {"a": toy.samples(0, 4.0), "b": toy.samples(1, 8.0)}
    only_a = ContactPlan(("a", "b"), (Contact("a", 0, 1),), 2.0, (1.0,))
    _, lines = play(only_a, data, tmp_path)
    # cold start gives expert 0 to a; b is away
    assert rows(lines, "align")[0]["assigned"] == {"a": [0]}
    assert rows(lines, "align")[0]["sat_out"] == {"b": "away"}
    assert (rows(lines, "evaluate")[0]["expert:0"], rows(lines, "evaluate")[0]["expert:1"]) == (2.0, 0.0)
    assert rows(lines, "round")[0]["load"] == [2.0, 0.0]


def test_a_lost_client_leaves_the_mean_to_the_others(tmp_path: Path) -> None:
    plan = always_on(["a", "b"], 2, 1.0)
    _, lines = play(plan, ONE, tmp_path, experts=1, closes_s={1: 0.5})  # b is lost in the middle of its round
    assert rows(lines, "evaluate")[0]["expert:0"] == 2.0
    assert len(rows(lines, "lost")) == 1


def test_what_is_trained_out_of_contact_arrives_with_its_share_and_once(tmp_path: Path) -> None:
    # one contact of one round, then three rounds away; b is not there, so that a's share is the whole
    plan = ContactPlan(("a",), (Contact("a", 0, 1), Contact("a", 4, 5)), 6.0, (1.0, 5.0))
    _, lines = play(plan, {"a": toy.samples(0, 8.0, experts=1)}, tmp_path, cycles=2, experts=1)
    # round 0: 8·(1 − 1/2) = 4. Away: error 4 → 2 → 1 → 1/2: 7.5, a change of 3.5 since the upload. It is applied at once:
    # expert 7.5; then one more round in contact: error 1/2 → 7.75
    assert [line["expert:0"] for line in rows(lines, "evaluate")] == [4.0, 7.75]
    assert [line.get("behind") for line in rows(lines, "aggregate")] == [None, 1, None]


def test_shared_parts_are_averaged_over_all_who_train(tmp_path: Path) -> None:
    data = {"a": toy.samples(0, 4.0, n=2), "b": toy.samples(1, 8.0, n=6)}
    _, lines = play(always_on(["a", "b"], 2, 1.0), data, tmp_path, shared=frozenset({"head"}))
    end = rows(lines, "evaluate")[0]
    # each expert and the head move by half the error: a 2, b 4; the head by (2·2 + 6·4) / 8
    assert (end["expert:0"], end["expert:1"], end["head"]) == (2.0, 4.0, 3.5)


def test_rows_of_the_gate_are_averaged_over_holders() -> None:
    gate = {"gate.weight": torch.zeros(3, 2)}
    model = {"gate": Piece("gate", 0, gate)}
    one, two = {"gate.weight": torch.ones(3, 2)}, {"gate.weight": torch.full((3, 2), 4.0)}
    changes = [Change("gate", 2.0, one, gate, (0, 1)), Change("gate", 6.0, two, gate, (1,))]
    piece, _ = moved(model, changes)
    # row 0: a alone, 1; row 1: (2·1 + 6·4) / 8 = 3.25; row 2: nobody
    assert piece.tensors["gate.weight"].tolist() == [[1, 1], [3.25, 3.25], [0, 0]]
    assert gate["gate.weight"].sum() == 0  # pieces are never written to


def test_a_round_in_which_nobody_can_train_is_logged_and_skipped(tmp_path: Path) -> None:
    small = Capacity(memory_B=1.0)
    need = replace(FREE, expert_memory_B=100.0)
    capacity = {"a": small, "b": small}
    _, lines = play(always_on(["a", "b"], 3, 1.0), ONE, tmp_path, cycles=2, experts=1, capacity=capacity, need=need)
    assert [line["assigned"] for line in rows(lines, "align")] == [{}, {}]
    assert rows(lines, "align")[0]["sat_out"] == {"a": "memory", "b": "memory"}
    assert rows(lines, "train") == []
    assert rows(lines, "evaluate")[-1]["expert:0"] == 0.0


def test_participation_draws_so_many_and_says_who_was_not_drawn(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(10)]
    data = {name: toy.samples(0, 1.0) for name in names}
    _, lines = play(always_on(names, 4, 1.0), data, tmp_path, cycles=3, participation=0.3)
    for line in rows(lines, "align"):
        assert len(line["assigned"]) == 3
        assert list(line["sat_out"].values()) == ["not drawn"] * 7
    assert len({tuple(line["assigned"]) for line in rows(lines, "align")}) > 1


def test_cold_start_covers_all_experts(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    data = {name: toy.samples(0, 1.0, experts=5) for name in names}
    _, lines = play(always_on(names, 2, 1.0), data, tmp_path, experts=5, max_experts=2, policy="greedy")
    assert {m for mine in rows(lines, "align")[0]["assigned"].values() for m in mine} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("policy", ["balanced", "optimal"])
def test_no_expert_waits_for_ever(policy: str, tmp_path: Path) -> None:
    names = ["a", "b"]
    data = {name: toy.samples(0, 1.0, experts=6) for name in names}
    protocol, lines = play(always_on(names, 13, 1.0), data, tmp_path, cycles=12, experts=6, policy=policy, patience=2)
    # two places a round for six experts: each is trained at least every patience + 6 / 2 rounds
    assert int(protocol.untrained_M.max()) <= 2 + 3
    trained = [{m for mine in line["assigned"].values() for m in mine} for line in rows(lines, "align")]
    for m in range(6):
        gaps = np.diff([-1, *[r for r, group in enumerate(trained) if m in group], len(trained)])
        assert gaps.max() <= 2 + 3 + 1


@pytest.mark.parametrize("min_load", [0, 1])
def test_a_least_load_does_not_switch_off_the_limit_on_waiting(min_load: int, tmp_path: Path) -> None:
    """With a least of 0 the optimum leaves experts for good that nobody desires; those that are overdue have a least of 1."""
    names = ["a", "b"]
    data = {name: toy.samples(0, 1.0, experts=6) for name in names}
    settings = {"policy": "optimal", "patience": 2, "min_load": min_load, "fitness_weight": 1.0, "cold_start": False}
    _, lines = play(always_on(names, 41, 1.0), data, tmp_path, cycles=40, experts=6, appraisal_samples=2, **settings)
    trained = [{m for mine in line["assigned"].values() for m in mine} for line in rows(lines, "align")]
    waits = [np.diff([-1, *[r for r, group in enumerate(trained) if m in group], len(trained)]).max() for m in range(6)]
    assert max(waits) <= 2 + 3 + 1  # patience, and six experts over two places


def test_leasts_of_overdue_experts_are_within_what_a_round_can_give() -> None:
    _, model, _ = toy.make({"a": [toy.samples(0, 1.0, experts=4)]}, values=(0.0,) * 4)
    told = Alignment({"a": Client(CAN, 2), "b": Client(CAN, 2)}, FREE, 1.0, 0, min_load=0)
    protocol = Aligned(Start(model, ("a", "b"), frozenset(), {}, cycles=1), told)
    protocol.untrained_M = np.array([5, 3, 9, 4])
    least_M, _ = protocol.bounds(np.array([1, 1]), protocol.untrained_M)
    assert least_M.tolist() == [1, 0, 1, 0]  # the longest untrained
    assert protocol.bounds(np.array([0, 0]), protocol.untrained_M)[0].tolist() == [0, 0, 0, 0]
    assert protocol.bounds(np.array([4, 4]), np.array([0, 0, 2, 0]))[0].tolist() == [0, 0, 1, 0]


def test_fitness_follows_the_reward(tmp_path: Path) -> None:
    data = {"a": toy.samples(0, 4.0)}
    greedy = {"policy": "greedy", "ties": "first"}
    protocol, _ = play(always_on(["a"], 3, 1.0), data, tmp_path, cycles=2, appraisal_samples=2, **greedy)
    # round 0: expert 0 is 0, its loss is that of the guess, ½·4² = 8; the free gate picks it always: r = ½·0 + ½·1
    # F = 0.7·0.5 + 0.3·0.5 = 0.5, which is also the mean of rewards. Round 1: expert 0 is 2, loss ½·2² = 2, a quarter of
    # the guess: r = ½·¾ + ½ = 0.875, F = 0.7·0.5 + 0.3·0.875 = 0.6125, and so the mean; expert 1 drifts 5 % towards it
    assert protocol.fitness_NM.tolist() == [[pytest.approx(0.6125), pytest.approx(0.505625)]]
    assert protocol.usage_M.tolist() == [pytest.approx(0.36), 0.0]
    assert protocol.placement() == {"a": frozenset({"expert:0"})}


def test_a_gate_per_client_stays_on_its_client(tmp_path: Path) -> None:
    protocol, lines = play(
        always_on(["a", "b"], 2, 1.0), ONE, tmp_path, experts=1, shared=frozenset({"gate"}), gate="per-client"
    )
    assert protocol.model["gate"].version == 0
    assert all("gate" not in line["parts"] for line in rows(lines, "collect") + rows(lines, "send"))
    assert rows(lines, "train")[0]["parts"] == ["expert:0", "gate"]
    assert lines[-1]["unsent_rounds"] == 0


def test_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    data = {name: toy.samples(0, label, n=n, experts=1) for name, label, n in (("a", 0.3, 3), ("b", 0.7, 5), ("c", 1.1, 7))}
    ends = []
    for order in ("abc", "cab"):
        contacts = tuple(Contact(name, 0, 1) for name in order)
        folder = tmp_path / order
        folder.mkdir()
        _, lines = play(ContactPlan(("a", "b", "c"), contacts, 2.0, (1.0,)), data, folder, experts=1)
        ends.append(rows(lines, "evaluate")[0]["expert:0"])
    assert ends[0] == ends[1]


FILE_bps = 8 * toy.FILE_B / 0.1  # bit/s that carry one part in 0.1 s


@pytest.mark.parametrize("cut_s", [5 + 0.1 * k for k in range(1, 15)])
@pytest.mark.parametrize("lost", [0, 1])
def test_whatever_a_lost_signal_cuts_everything_trained_arrives_in_the_end(cut_s: float, lost: int, tmp_path: Path) -> None:
    """One client has the whole of its expert and head: the server must end with what the device has, to the rounding."""
    contacts = tuple(Contact("a", 5.0 * k, 5.0 * k + 3, FILE_bps, FILE_bps) for k in range(6))
    plan = ContactPlan(("a",), contacts, 35.0)
    data = {"a": toy.samples(0, 8.0, experts=1)}
    _, model, devices = toy.make({"a": [data["a"]]}, values=(0.0,))
    told = Alignment({"a": Client(CAN, 2)}, FREE, 5.0, 0, appraisal_samples=0)
    protocol = Aligned(Start(model, ("a",), frozenset({"head"}), {}, cycles=5), told)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    closes = {lost: cut_s - 5 * (1 - lost)}
    Simulator(plan, toy.hosts(devices), Pace(0.5, max_rounds=1), 5, ledger, lambda model, cycle: {}, closes_s=closes).run(
        protocol
    )
    ledger.close()
    (device,) = devices["a"]
    assert not device.pending
    for part in ("expert:0", "head"):
        here = toy.value(protocol.model, part)
        there = float(next(iter(device.trained.get(part, device.held[part].tensors).values())).flatten()[0])
        assert here == pytest.approx(there, abs=1e-6)
    assert 7 < toy.value(protocol.model, "expert:0") + toy.value(protocol.model, "head") <= 8 + 1e-6


def test_a_contact_that_reaches_into_the_next_round_keeps_the_share_of_its_own(tmp_path: Path) -> None:
    _, model, _ = toy.make({"a": [toy.samples(0, 4.0, experts=1)]}, values=(0.0,))
    slow_bps = 8 * model["expert:0"].size_B / 4.0  # four seconds to send an expert
    data = {"a": toy.samples(0, 4.0, n=100, experts=1), "b": toy.samples(0, 8.0, n=2, experts=1)}
    contacts = (Contact("a", 0, 3), Contact("b", 2, 6), Contact("a", 5, 14, 1e12, slow_bps), Contact("b", 7, 12))
    plan = ContactPlan(("a", "b"), contacts, 20.0, (6.0, 14.0))
    _, lines = play(plan, data, tmp_path, experts=1, cycles=2)
    # b, alone in its round, brings the expert to 8; a's change from an older version adds at most 4·100/102 to that
    before, after = (line["expert:0"] for line in rows(lines, "evaluate")[:2])
    assert before < 4
    assert after == pytest.approx(8 + 4 * 100 / 102, abs=0.75)
    two = {"a": toy.samples(0, 4.0, n=100), "b": toy.samples(1, 8.0, n=2)}
    (tmp_path / "two").mkdir()
    _, lines = play(plan, two, tmp_path / "two", experts=2, cycles=2, policy="greedy")
    assert rows(lines, "end")


def test_what_is_left_of_an_expert_given_up_still_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an upload, training in the gap, another expert next time, and that contact lost."""
    turns = [[True, False], [False, True], [True, False], [False, True], [True, False]]
    monkeypatch.setattr(Aligned, "assign", lambda self, capacity_N: np.array([turns[self.round]]))
    _, model, _ = toy.make({"a": [toy.samples(0, 4.0, experts=2)]}, values=(0.0, 0.0))
    bps = 8 * model["expert:0"].size_B / 2.0
    starts = [(0, 6), (10, 20), (30, 40), (50, 60)]
    plan = ContactPlan(("a",), tuple(Contact("a", s, e, bps, 1e12) for s, e in starts), 70.0, (6.0, 20.0, 40.0, 60.0))
    data = {"a": toy.samples(0, 4.0, n=2)}
    _, lines = play(plan, data, tmp_path, cycles=4, closes_s={0: 5.0, 1: 17.0})
    assert len(rows(lines, "lost")) == 2
    assert 0 < rows(lines, "end")[0]["expert:0"] <= 4 + 1e-4


def test_experts_given_up_leave_no_optimiser_state(tmp_path: Path) -> None:
    names = ["a", "b"]
    data = {name: toy.samples(0, 1.0, experts=4) for name in names}
    local = replace(toy.HALF, optimizer="adamw")
    _, model, devices = toy.make({name: [d] for name, d in data.items()}, values=(0.0,) * 4, local=local)
    told = Alignment({name: Client(CAN, 2) for name in names}, FREE, 1.0, 0, appraisal_samples=0, max_experts=1)
    protocol = Aligned(Start(model, tuple(names), frozenset(), {}, cycles=6), told)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    Simulator(always_on(names, 7, 1.0), toy.hosts(devices), Pace(1.0), 6, ledger, lambda model, cycle: {}).run(protocol)
    ledger.close()
    assert all(len(device.optimizer_state) == 1 for group in devices.values() for device in group)
