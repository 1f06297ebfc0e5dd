"""Links that lose almost everything: a contact sends a piece so often and no oftener, and what it sent counts in the next."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedexperts.runs.run
import small
import toy
from fedexperts import run
from fedexperts.contact.plan import ContactPlan, round_robin
from fedexperts.drive.cluster import Pace
from fedexperts.drive.faults import MOST_SENDS, Faults
from fedexperts.drive.simulate import Simulator
from fedexperts.ledger import Ledger, read
from fedexperts.moe.parts import Piece
from fedexperts.protocol.ems_fl import EmsFl, EnhancedEmsFl
from fedexperts.protocol.link import Link, Start
from fedexperts.protocol.sync import Sync

CLOSE = 1 - 2**-53
PART_B = toy.FILE_B


def test_what_links_have_drawn_so_far_stays() -> None:
    drawn = [Faults(0.7, 0.5, seed=4).sends("a", "expert:0", k) for k in range(24)]
    assert drawn == [3, 5, 2, 12, 9, 5, 3, 5, 17, 1, 11, 7, 8, 4, 21, 9, 3, 3, 7, 7, 5, 5, 8, 1]


@pytest.mark.parametrize("odds", [(CLOSE, CLOSE), (CLOSE, 0.0), (1e-9, CLOSE), (0.999, 0.999)])
def test_no_odds_are_an_error(odds: tuple[float, float]) -> None:
    assert Faults(*odds).sends("a", "expert:0", 0) > MOST_SENDS


def play(
    protocol_class: Any, plan: ContactPlan, path: Path, faults: Faults, devices: int = 1
) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    data = {name: [toy.samples(m, 8.0)] * devices for m, name in enumerate("ab")}
    _, model, groups = toy.make(data, values=(0.0, 0.0), local=toy.HALF)
    owned = {name: frozenset({f"expert:{m}"}) for m, name in enumerate("ab")}
    cycles = len(plan.cycle_ends_s)
    protocol = protocol_class(Start(model, ("a", "b"), frozenset({"head"}), owned, cycles=cycles))
    ledger = Ledger(path / "ledger.jsonl")
    Simulator(plan, toy.hosts(groups), Pace(10.0), cycles, ledger, lambda model, cycle: {}, faults=faults).run(protocol)
    ledger.close()
    return protocol, list(read(path / "ledger.jsonl")), groups


def at(lines: list[dict[str, Any]], event: str, cluster: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event and line.get("cluster") == cluster]


@pytest.mark.parametrize("rate_bps", [math.inf, 8e3])
@pytest.mark.parametrize("protocol_class", [EmsFl, EnhancedEmsFl, Sync])
def test_nothing_arrives_where_nothing_can(protocol_class: Any, rate_bps: float, tmp_path: Path) -> None:
    plan = round_robin(["a", "b"], 4, 60.0)
    plan = replace(plan, contacts=tuple(replace(c, uplink_bps=rate_bps, downlink_bps=rate_bps) for c in plan.contacts))
    protocol, lines, _ = play(protocol_class, plan, tmp_path, Faults(CLOSE, CLOSE))
    reasons = [line.get("reason") for line in lines if line["event"] == "lost"]
    assert "50 sends of a part were in vain" in reasons
    assert set(reasons) <= {"50 sends of a part were in vain", None}  # the baseline leaves its uploads no more than one sending
    assert not [line for line in lines if line["event"] in ("send", "collect") and line["parts"]]
    spent_B = lines[-1]["uplink_B"] + lines[-1]["downlink_B"]
    assert 0 < spent_B <= sum(line["event"] in ("contact", "flush") for line in lines) * MOST_SENDS * 3 * PART_B
    assert {part: toy.value(protocol.model, part) for part in protocol.model} == {
        **dict.fromkeys(protocol.model, 0.0),
        "gate": 1.0,
    }


class Broadcast:
    """One piece, in every contact with ``a`` again."""

    def __init__(self, start: Start):
        self.model = {**start.model, "expert:0": Piece("expert:0", 1, start.model["expert:0"].tensors)}

    async def contact(self, link: Link) -> None:
        if link.cluster == "a":
            await link.send([self.model["expert:0"]])
            await link.leave(None)


def test_a_piece_of_120_sends_arrives_in_the_third_contact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """50, 50 and 20 times its bytes."""
    monkeypatch.setattr(Faults, "sends", lambda *key: 120)
    _, lines, groups = play(Broadcast, round_robin(["a", "b"], 6, 60.0), tmp_path, Faults(0.5))
    sent = at(lines, "send", "a")
    assert [(line["downlink_B"] / PART_B, line["parts"]) for line in sent] == [(50, []), (50, []), (20, ["expert:0"])]
    assert [line["t_s"] for line in at(lines, "lost", "a")] == [0.0, 120.0]
    assert groups["a"][0].held["expert:0"].version == 1


def test_an_upload_goes_on_where_it_gave_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two devices one needs 70 sends: its first contact carries 50, and both snapshots are there in the next."""

    def sends(faults: Faults, *key: object) -> int:
        return 70 if key[:2] == ("a/0", "expert:0") else 1

    monkeypatch.setattr(Faults, "sends", sends)
    _, lines, groups = play(EmsFl, round_robin(["a", "b"], 6, 60.0), tmp_path, Faults(0.5), devices=2)
    assert [device.name for device in groups["a"]] == ["a/0", "a/1"]
    lost = at(lines, "lost", "a")
    collected = at(lines, "collect", "a")
    vain = [line for line in collected if not line["parts"]]
    assert len(vain) == len(lost) > 0
    first, then = vain[0], next(line for line in collected if line["t_s"] > vain[0]["t_s"])
    assert first["uplink_B"] - then["uplink_B"] >= 30 * PART_B
    assert "expert:0" in then["parts"]


SCENARIO = small.scenario(faults={"drop": 0.8, "corrupt": 0.8}, train={"cycles": 4})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The ledger of a run that nothing stopped."""
    return (run(SCENARIO, tmp_path_factory.mktemp("whole") / "run").directory / "ledger.jsonl").read_bytes()


@pytest.mark.parametrize("stop", [12, 25, 40])
def test_a_run_on_such_links_repeats_and_goes_on(
    stop: int, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    assert whole.count(b"sends of a part were in vain") > 2
    assert whole.count(b"\n") > stop
    seen = [0]

    def interrupt(line: dict[str, Any]) -> None:
        seen[0] += 1
        if seen[0] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SCENARIO, tmp_path / "cut", listener=interrupt)
    run(SCENARIO, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "ledger.jsonl").read_bytes() == whole
