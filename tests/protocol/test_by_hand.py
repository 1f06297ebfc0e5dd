"""Algorithms 2 and 3 and the baseline on the toy: every number below was worked out on paper.

A round with learning rate 1/2 halves a device's error; cluster a wants 8 from expert 0, cluster b wants 4 from expert 1.
"""

from pathlib import Path
from typing import Any

import pytest

import toy
from fedexperts.contact.plan import Contact, ContactPlan, always_on, round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger
from fedexperts.moe.parts import Piece
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl
from fedexperts.protocol.sync import Sync

PARTS = ("expert:0", "expert:1", "head")
OWNED = {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}


def values(model: dict[str, Piece], _cycle: int = 0) -> dict[str, Any]:
    return toy.judged({part: toy.value(model, part) for part in PARTS})


def play(protocol_class, plan, data, cycles, path: Path, owned=OWNED, **start) -> tuple[Any, list[dict[str, Any]]]:
    _, model, devices = toy.make(data)
    protocol = toy.protocol(protocol_class, model, owned, cycles, **start)
    ledger = Ledger(path / "ledger.jsonl")
    Simulator(plan, toy.hosts(devices), Pace(1.0), cycles, ledger, values).run(protocol)
    ledger.close()
    return protocol, toy.lines_of(path / "ledger.jsonl")


def at_cycles(lines: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(line[part] for part in PARTS) for line in lines if line["event"] in ("evaluate", "end")]


DATA = {"a": [toy.samples(0, 8.0)], "b": [toy.samples(1, 4.0)]}


def test_sync_trains_only_the_connected_cluster(tmp_path: Path) -> None:
    _, lines = play(Sync, round_robin(["a", "b"], 3, 1.0), DATA, 2, tmp_path)
    # contact a: error 8 on expert 0 and head, each moves by 4, and they add up: error 0; contact b: head is 4 already
    assert at_cycles(lines) == [(4, 0, 4), (4, 0, 4), (4, 0, 4)]


def test_sync_takes_the_mean_over_devices(tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0), toy.samples(0, 4.0)], "b": [toy.samples(1, 4.0)]}
    _, lines = play(Sync, round_robin(["a", "b"], 2, 1.0), data, 1, tmp_path)
    # contact a: devices move by 4 and by 2, mean 3 (26); contact b: error 4 − 3 = 1, expert 1 and head move by 1/2
    assert at_cycles(lines)[0] == (3, 0.5, 3.5)


def test_ems_fl_uploads_experts_one_contact_later(tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0)], "b": [toy.samples(1, 6.0)]}
    _, lines = play(EmsFl, round_robin(["a", "b"], 3, 1.0), data, 2, tmp_path)
    # cycle 1, contact a: expert 0 → 4 on the device, head → 4 at the server; contact b: error 2, expert 1 → 1, head → 5
    # out of contact: a has error 0 with the head it was sent (4), b has error 6 − 5 − 1 = 0
    # cycle 2, contact a: expert 0 = 4 arrives; head 5: error −1, expert 3.5, head 4.5
    #          contact b: expert 1 = 1 arrives; head 4.5: error 0.5, expert 1.25, head 4.75
    # then a, out of contact with head 4.5: error 0; flush: expert 0 = 3.5, expert 1 = 1.25
    assert at_cycles(lines) == [(0, 0, 5), (4, 1, 4.75), (3.5, 1.25, 4.75)]


def test_enhanced_freezes_the_shared_parts_until_the_tail(tmp_path: Path) -> None:
    _, lines = play(EnhancedEmsFl, round_robin(["a", "b"], 4, 1.0), DATA, 3, tmp_path)
    # experts halve their error each round: contact, away, then upload: 8·(1 − 1/4) = 6, 4·(1 − 1/4) = 3
    # tail: upload after 4 rounds: 7.5 and 3.75; head: a's error 0.5 moves it to 0.25, b's error 0.25 − 0.25 = 0
    assert at_cycles(lines) == [(0, 0, 0), (6, 3, 0), (7.5, 3.75, 0.25), (7.5, 3.75, 0.25)]


def test_idle_slots_are_used_by_ems_fl_and_lost_on_the_baseline(tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 3, 1.0, idle_slots=3)
    _, lines = play(EnhancedEmsFl, plan, DATA, 2, tmp_path, gate_tail_cycles=0)
    # two cycles end after 5 + 2 slots; a trains through all 7, b from slot 1 on; the baseline has 2 rounds each (Remark 4)
    assert at_cycles(lines)[-1] == (8 * (1 - 2**-7), 4 * (1 - 2**-6), 0)
    _, lines = play(Sync, plan, DATA, 2, tmp_path)
    assert lines[-1]["steps"] == 4


def test_with_one_cluster_and_all_experts_ems_fl_is_the_baseline_after_the_flush(tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0), toy.samples(1, 3.0), toy.samples(0, 5.0)]}
    owned = {"a": frozenset({"expert:0", "expert:1"})}
    plan = round_robin(["a"], 5, 1.0)
    ems, _ = play(EmsFl, plan, data, 4, tmp_path, owned)
    sync, _ = play(Sync, plan, data, 4, tmp_path, owned)
    assert values(ems.model) == values(sync.model)


def test_two_clusters_in_view_at_once_lose_no_gate_update(tmp_path: Path) -> None:
    both = ContactPlan(("a", "b"), (Contact("a", 0, 1), Contact("b", 0, 1)), 1.0)
    _, lines = play(EmsFl, both, DATA, 1, tmp_path)
    # both start from head 0: a moves it by 4, b by 2; the changes add up
    assert at_cycles(lines)[0] == (0, 0, 6)
    behind = [line["behind"] for line in lines if line["event"] == "aggregate" and line["part"] == "head"]
    assert behind == [0, 1]


def test_baseline_in_an_overlap_adds_changes_too(tmp_path: Path) -> None:
    both = ContactPlan(("a", "b"), (Contact("a", 0, 1), Contact("b", 0, 1)), 1.0)
    _, lines = play(Sync, both, DATA, 1, tmp_path)
    assert at_cycles(lines)[0] == (4, 2, 6)


@pytest.mark.parametrize("protocol_class", [EmsFl, EnhancedEmsFl, Sync])
def test_parts_that_are_not_trained_stay_bit_for_bit(protocol_class, tmp_path: Path) -> None:
    protocol, lines = play(protocol_class, round_robin(["a", "b"], 4, 1.0), DATA, 3, tmp_path)
    _, model, _ = toy.make(DATA)
    frozen, now = model["gate"].tensors, protocol.model["gate"].tensors
    assert all(bool((now[name] == tensor).all()) for name, tensor in frozen.items())
    assert protocol.model["gate"].version == 0
    assert "gate" not in {part for line in lines if line["event"] == "train" for part in line["parts"]}


# ---- the first cycle


def test_from_the_start_every_cluster_trains_until_it_is_met(tmp_path: Path) -> None:
    """Algorithm 2's else-branch holds from t = 0 on: b has a round behind it when it is met first."""
    _, lines = play(EnhancedEmsFl, round_robin(["a", "b"], 2, 1.0), DATA, 1, tmp_path, gate_tail_cycles=0, first_cycle="paper")
    # b, 0–1 s on its own: expert 1 → 2, uploaded at 1 s; then both go on until 2 s; the flush brings a's 2 and b's 2 rounds
    assert at_cycles(lines) == [(0, 2, 0), (6, 3, 0)]
    train = [(line["cluster"], line["phase"], line["rounds"]) for line in lines if line["event"] == "train"]
    assert train == [("a", "connected", 1), ("b", "disconnected", 1), ("b", "connected", 1), ("a", "disconnected", 1)]


def test_by_default_a_cluster_rests_until_it_is_met(tmp_path: Path) -> None:
    _, lines = play(EnhancedEmsFl, round_robin(["a", "b"], 2, 1.0), DATA, 1, tmp_path, gate_tail_cycles=0)
    assert at_cycles(lines) == [(0, 0, 0), (6, 2, 0)]


def test_standard_ems_fl_has_the_same_first_cycle(tmp_path: Path) -> None:
    _, lines = play(EmsFl, round_robin(["a", "b"], 2, 1.0), DATA, 1, tmp_path, first_cycle="paper")
    # a: expert 0 and head move by 4 each; b on its own: expert 1 → 2, uploaded; head came down as 4: error 4 − 2 − 4 = −2,
    # so in contact expert 1 → 1, head → 3
    assert at_cycles(lines)[0] == (0, 2, 3)


# ---- several clusters, one version; weights


ALWAYS = {name: [toy.samples(0, label)] for name, label in (("a", 8.0), ("b", 4.0), ("c", 0.0), ("d", 16.0))}


@pytest.mark.parametrize(("overlap", "moved"), [("mean", (2 + 1 + 0 + 4) * 2 / 4), ("add", (2 + 1 + 0 + 4) * 2)])
def test_always_on_sync_is_fedavg_with_the_mean_and_many_times_it_with_the_sum(
    overlap: str, moved: float, tmp_path: Path
) -> None:
    _, lines = play(Sync, always_on(list(ALWAYS), 1, 1.0), ALWAYS, 1, tmp_path, overlap=overlap)
    # from 0, a device moves expert 0 and the head by half its label; (6) is the mean over all devices
    assert at_cycles(lines)[0] == (moved, 0, moved)


def test_always_on_sync_stays_fedavg_round_after_round(tmp_path: Path) -> None:
    """Against (6) in two lines: every device moves both numbers by half its error, and all are averaged."""
    _, lines = play(Sync, always_on(list(ALWAYS), 6, 1.0), ALWAYS, 6, tmp_path, overlap="mean")
    expert = head = 0.0
    for found in at_cycles(lines)[:6]:
        step = sum(float(s[0]["labels"][0]) - expert - head for s in ALWAYS.values()) / 2 / 4
        expert, head = expert + step, head + step
        assert found == pytest.approx((expert, 0, head), abs=1e-5)


def test_a_group_ends_with_the_last_who_holds_its_version(tmp_path: Path) -> None:
    protocol, _ = play(Sync, always_on(list(ALWAYS), 3, 1.0), ALWAYS, 2, tmp_path, overlap="mean")
    assert not any(protocol.returned.values())
    protocol, _ = play(EmsFl, round_robin(["a", "b"], 5, 1.0), DATA, 4, tmp_path, overlap="mean")
    assert all(len(versions) <= 1 for versions in protocol.returned.values())


def test_out_of_overlaps_the_mean_changes_nothing(tmp_path: Path) -> None:
    for protocol_class in (Sync, EmsFl, EnhancedEmsFl):
        found = [
            play(protocol_class, round_robin(["a", "b"], 5, 1.0), DATA, 4, tmp_path, overlap=overlap)[1]
            for overlap in ("add", "mean")
        ]
        assert found[0] == found[1]


@pytest.mark.parametrize(("weights", "moved"), [("devices", 3.0), ("samples", (2 * 8 + 4 * 4) / 6 / 2)])
def test_devices_weigh_alike_or_by_their_samples(weights: str, moved: float, tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0, n=2), toy.samples(0, 4.0, n=4)]}
    owned = {"a": frozenset({"expert:0", "expert:1"})}
    for protocol_class, cycle in ((Sync, 0), (EmsFl, 1)):  # EMS-FL's expert arrives a contact later
        _, lines = play(protocol_class, round_robin(["a"], 3, 1.0), data, 2, tmp_path, owned, weights=weights)
        assert at_cycles(lines)[cycle][0] == pytest.approx(moved)
        assert at_cycles(lines)[0][2] == pytest.approx(moved)


def test_weights_by_samples_hold_between_clusters_too(tmp_path: Path) -> None:
    data = {"a": [toy.samples(0, 8.0, n=2)], "b": [toy.samples(0, 4.0, n=6)]}
    _, lines = play(Sync, always_on(["a", "b"], 1, 1.0), data, 1, tmp_path, overlap="mean", weights="samples")
    assert at_cycles(lines)[0][0] == pytest.approx((2 * 4 + 6 * 2) / 8)
