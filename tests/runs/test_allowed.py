"""What a scenario's plan allows: bytes as a run has them, runs that are never earlier, and every source of plans."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import fingerprints
import small
from fedexperts import InputError, Scenario, run
from fedexperts.contact.interchange import EXPORTS, plan_text
from fedexperts.contact.plan import Contact, ContactPlan, round_robin
from fedexperts.ledger import read
from fedexperts.planned import planned
from fedexperts.runs.allowed import allowed, faster, sizes
from fedexperts.runs.forecast import forecast
from fedexperts.runs.owners_file import read_owners
from fedexperts.scenario import Prospect

MIXTRAL = {"model_type": "mixtral"}  # the sizes that its type has: 8x7B
LORA = {"rank": 2, "alpha": 4.0}


def prospect(document: dict[str, Any], base: Path = Path()) -> Prospect:
    known = set(Prospect.model_fields) - {"base"}
    return Prospect.parse({key: value for key, value in document.items() if key in known}, base)


def bound_of(document: dict[str, Any], base: Path = Path(), **options: Any) -> dict[str, Any]:
    network, plan, found = planned(prospect(document, base), None)
    return allowed(network, plan, found, **options)


def updates_s(lines: list[dict[str, Any]], cluster: str, mine: list[str]) -> list[float]:
    seen: Counter[str] = Counter()
    found: list[float] = []
    for line in lines:
        if line["event"] == "aggregate" and line["cluster"] == cluster and line["part"] in mine and not line["behind"]:
            seen[line["part"]] += 1
            if min(seen[part] for part in mine) > len(found):
                found.append(line["t_s"])
    return found


@pytest.mark.parametrize("lora", [None, LORA, {**LORA, "average": "merge"}])
@pytest.mark.parametrize("uplink", ["bf16", "int8"])
def test_sizes_are_those_of_a_run(lora: dict[str, Any] | None, uplink: str) -> None:
    model = {"config": small.CONFIG, "uplink": uplink, **({"lora": lora} if lora else {})}
    document = fingerprints.text({"model": model})
    known, _ = sizes(prospect(document))
    parts = forecast(Scenario.parse(document))["parts"]
    assert {part: {"bytes": known.piece_B[part], "upload_B": known.upload_B[part]} for part in known.piece_B} == {
        part: parts[part] for part in known.piece_B
    }
    assert set(known.piece_B) == {"gate", *(f"expert:{m}" for m in range(4))}


CASES = {
    "round robin": fingerprints.text({"plan": {"idle_slots": 1}}),
    "from the start": fingerprints.text({"train": {"first_cycle": "paper"}}),
    "enhanced, orbit": fingerprints.on_orbit(fingerprints.text({"protocol": "ems-fl-enhanced"})),
    "faults": fingerprints.text({"faults": fingerprints.FAULTS}),
    "adapters": fingerprints.text(fingerprints.LORA),
}


@pytest.mark.parametrize("case", CASES)
def test_no_run_is_earlier_than_its_scenario_allows(case: str, tmp_path: Path) -> None:
    """On real devices that train, with the owners that Algorithm 1 found."""
    lines = list(read(run(Scenario.parse(CASES[case]), tmp_path / "run").directory / "ledger.jsonl"))
    split = next(line for line in lines if line["event"] == "assignment")["assignment"]
    owners = {name: frozenset(f"expert:{m}" for m in mine) for name, mine in split.items()}
    found = bound_of(CASES[case], owners=owners)
    total = 0
    for name, row in found["clusters"].items():
        came = updates_s(lines, name, sorted(owners[name]))
        total += len(came)
        for key in ("schedule_s", "update_s"):
            assert len(came) <= len(row[key])
            assert all(at_s >= earliest_s - 1e-6 for at_s, earliest_s in zip(came, row[key], strict=False))
        if case in ("round robin", "from the start", "adapters"):
            assert came == pytest.approx(row["schedule_s"][: len(came)])  # nothing is lost, and links have no limit
    assert total >= 3


def s_band(folder: Path, share_up: float, share_down: float, contacts: int = 60) -> dict[str, Any]:
    """Two places under one satellite, contacts of 4 to 8 minutes at 0.5 to 1.25 Mb/s up, scaled; a wide broadcast."""
    rows = []
    for k in range(contacts):
        start_s, length_s = 3000.0 * k, 240.0 + 60.0 * (k % 5)
        up_bps = (0.5 + 0.25 * (k % 4)) * 1e6
        rates = {"uplink_bps": up_bps * share_up, "downlink_bps": 60 * up_bps * share_down}
        rows.append({"cluster": "ab"[k % 2], "start_s": start_s, "end_s": start_s + length_s, **rates})
    (folder / "plan.json").write_text(json.dumps({"contacts": rows, "horizon_s": 3000.0 * contacts}))
    return {"kind": "file", "path": "plan.json"}


def test_mixtral_over_s_band_and_a_tiny_model_with_the_same_ratios(tmp_path: Path) -> None:
    """Adapters of rank 16 of four experts need several contacts; a run whose bytes fit its rates alike is updated at those."""
    clusters = [{"name": name, "data": f"digits:{data}"} for name, data in zip("ab", ("plain", "inverted"), strict=True)]
    train = {"cycles": 3, "seconds_per_round": 60.0, "max_rounds": 1, "gate_tail_cycles": 0}
    whole = {
        "name": "mixtral",
        "protocol": "ems-fl-enhanced",
        "plan": s_band(tmp_path, 1.0, 1.0),
        "model": {"config": MIXTRAL, "precision": "bfloat16", "lora": {"rank": 16, "alpha": 16.0}},
        "task": {"kind": "causal-lm", "text": "text"},
        "train": train,
        "cluster": [{"name": name} for name in "ab"],
    }
    found = bound_of(whole, tmp_path)
    assert found["clusters"]["a"]["upload_B"] == pytest.approx(4 * 16 * 3 * (4096 + 14336) * 32 * 2, rel=1e-3)  # bf16
    assert found["clusters"]["a"]["contacts_per_upload"] == 7  # 226 MB at 33 MB a contact
    tiny = small.document(
        protocol="ems-fl-enhanced",
        model={"config": small.CONFIG, "lora": LORA},
        train={**train, "cycles": 29},
        cluster=clusters,
    )
    owners = {"a": frozenset({"expert:0", "expert:2"}), "b": frozenset({"expert:1", "expert:3"})}
    known, _ = sizes(prospect(tiny), owners)
    share = {
        key: sum(size_B[part] for part in owners["a"]) / found["clusters"]["a"][f"{key}load_B"]
        for key, size_B in (("up", known.upload_B), ("down", known.piece_B))
    }
    document = {**tiny, "plan": s_band(tmp_path, share["up"], share["down"])}
    again = bound_of(document, tmp_path, owners=owners)
    lines = list(read(run(Scenario.parse(document, tmp_path), tmp_path / "run").directory / "ledger.jsonl"))
    split = next(line for line in lines if line["event"] == "assignment")["assignment"]
    assert sorted(map(len, split.values())) == [2, 2]
    plan = planned(prospect(document, tmp_path), None)[1]

    def at_contacts(name: str, times_s: list[float]) -> list[int]:
        return [next(i for i, c in enumerate(plan.by_cluster[name]) if t_s <= c.end_s + 1e-6) for t_s in times_s]

    for name in "ab":
        came = at_contacts(name, updates_s(lines, name, [f"expert:{m}" for m in split[name]]))
        assert came == at_contacts(name, again["clusters"][name]["schedule_s"])
        assert came == at_contacts(name, found["clusters"][name]["schedule_s"])
        assert len(came) >= 2


def test_what_a_narrow_broadcast_costs_emsfl(tmp_path: Path) -> None:
    """As Mixtral's adapters, 7 contacts up, at 4 times that rate down: Algorithm 2 uploads before the rest comes down.

    What comes then was trained from an old version: 2 updates of 7 that the bound has (decision 152; the guide says so).
    """
    clusters = [{"name": name, "data": f"digits:{data}"} for name, data in zip("ab", ("plain", "inverted"), strict=True)]
    train = {"cycles": 29, "seconds_per_round": 60.0, "max_rounds": 1, "gate_tail_cycles": 0}
    tiny = small.document(
        protocol="ems-fl-enhanced", model={"config": small.CONFIG, "lora": LORA}, train=train, cluster=clusters
    )
    owners = {"a": frozenset({"expert:0", "expert:2"}), "b": frozenset({"expert:1", "expert:3"})}
    known, _ = sizes(prospect(tiny), owners)
    up, down = (sum(size_B[part] for part in owners["a"]) / 226.5e6 for size_B in (known.upload_B, known.piece_B))
    document = {**tiny, "plan": s_band(tmp_path, up, down / 2 * 4 / 60)}
    bounds = bound_of(document, tmp_path, owners=owners, helps=False)["clusters"]
    lines = list(read(run(Scenario.parse(document, tmp_path), tmp_path / "run").directory / "ledger.jsonl"))
    split = next(line for line in lines if line["event"] == "assignment")["assignment"]
    came = sum(len(updates_s(lines, name, [f"expert:{m}" for m in split[name]])) for name in "ab")
    late = [line["behind"] > 0 for line in lines if line["event"] == "aggregate" and line["part"].startswith("expert")]
    assert (came, sum(len(bounds[name]["schedule_s"]) for name in "ab")) == (2, 7)
    assert (sum(late), len(late)) == (14, 18)


@pytest.mark.parametrize("kind", ["json", "csv", "hdtn", "ion"])
def test_plans_of_every_file(kind: str, tmp_path: Path) -> None:
    contacts = tuple(Contact("ab"[k % 2], 100.0 * k, 100.0 * k + 60, 8000.0, 80000.0) for k in range(12))
    name = f"plan.{EXPORTS[kind]}"
    (tmp_path / name).write_text(plan_text(ContactPlan(("a", "b"), contacts, 1200.0), kind))
    document = small.document(
        plan={"kind": "file", "path": name}, cluster=[{"name": name, "data": "digits:plain"} for name in "ab"]
    )
    found = bound_of(document, tmp_path, helps=False)
    same = allowed(prospect(document), ContactPlan(("a", "b"), contacts, 1200.0), helps=False)
    assert found["clusters"]["a"]["update_s"] == pytest.approx(same["clusters"]["a"]["update_s"], abs=1e-3)
    assert len(found["clusters"]["b"]["schedule_s"]) >= 2


def test_what_helps_is_computed_again() -> None:
    document = fingerprints.on_orbit(fingerprints.text(fingerprints.LORA, {"train": {"cycles": 4}}))
    document = fingerprints.merged(document, {"train": {"seconds_per_round": 60.0}, "radio": {"bandwidth_Hz": 2.0}})
    network, plan, orbit = planned(prospect(document), None)
    found = allowed(network, plan, orbit)
    rows = {row["change"]: row for row in found["helps"]}
    assert list(rows) == ["as it is", "twice the rate", "uplink in int8", "rank 1", "a mask 5° lower", "one more satellite"]
    assert rows["as it is"]["updates"] < min(rows[name]["updates"] for name in ("twice the rate", "one more satellite"))
    again = allowed(network, faster(plan, 2.0), None, helps=False)
    assert rows["twice the rate"]["updates"] == min(len(row["schedule_s"]) for row in again["clusters"].values())
    assert len({row["update"] for row in found["helps"]}) == 1
    assert found["final"]["reached_s"] >= found["final"]["stands_s"]


def test_bytes_and_joules_of_the_last_model_by_hand() -> None:
    """Links without limit: nothing is sent for any time, so a phone idles at 0.05 W until the model is there."""
    found = bound_of(fingerprints.text({"train": {"seconds_per_round": 60.0}}), helps=False)
    known, dealt = sizes(prospect(fingerprints.text()))
    k, row = found["final"]["updates"], found["final"]["clusters"]["plain"]
    own = known.load("plain", dealt["plain"])
    assert row["uplink_B"] == k * own.up_B
    assert row["downlink_B"] == (k - 1) * own.down_B + sum(known.piece_B[f"expert:{m}"] for m in range(4))
    assert row["radio_J"] == 0
    assert row["device_J"] == pytest.approx(0.05 * row["reached_s"] + k * known.round_J["plain"], rel=1e-5)


def test_notes_and_idle_clusters() -> None:
    owners = {"plain": frozenset(f"expert:{m}" for m in range(4))}
    found = bound_of(fingerprints.text({"train": {"seconds_per_round": "device", "batch_size": "full"}}), owners=owners)
    assert found["notes"][0] == "inverted own no expert: they have nothing to update"
    assert "computing is taken to need no time" in found["notes"][1]
    assert list(found["clusters"]) == ["plain"]
    again = bound_of(fingerprints.text({"assignment": {"every_cycles": 2}}), helps=False)
    assert again["notes"] == ["experts are split again during the run: these are bounds of owners that stay"]
    several = ContactPlan(("plain", "inverted"), (Contact("plain", 0, 9, satellite="x"), Contact("inverted", 0, 9)), 20)
    part = {"plain": frozenset({"expert:0"}), "inverted": frozenset({"expert:2"})}
    assert bound_of(fingerprints.text(), owners=part, helps=False)["notes"] == [
        "nobody owns expert:1, expert:3: nobody trains them, and their bytes are in no update"
    ]
    assert "decision 24" in allowed(prospect(fingerprints.text()), several)["notes"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "aligned"}, r"protocol = 'aligned': bounds are of protocols whose clusters own experts"),
        ({"model": {"config": small.CONFIG, "lora": {"rank": 99, "alpha": 1.0}}}, r"model\.lora\.rank = 99"),
    ],
)
def test_what_cannot_be_bounded(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bound_of(fingerprints.text(change))


def test_without_a_model_there_are_no_bytes() -> None:
    document = {key: value for key, value in fingerprints.text().items() if key != "model"}
    with pytest.raises(InputError, match=r"\[model\]: is missing"):
        allowed(prospect(document), round_robin(["plain", "inverted"], 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"plain": [0, 1], "oslo": [2]}', r"--owners: unknown cluster oslo; the scenario has plain, inverted"),
        ('{"plain": [0, 9]}', r"--owners: the model has no expert:9"),
        ('{"plain": [0, 1], "inverted": [1]}', r"--owners: expert:1 in two clusters"),
        ('{"plain": [1, "expert:1"]}', r"plain: expert:1 twice; name it once"),
        ('{"plain": ["x"]}', r"plain: 'x' is no expert"),
        ('{"plain": [true]}', r"plain: True is no expert"),
        ("[1]", r"must be clusters with their experts"),
        ("{", r"is not JSON"),
    ],
)
def test_owners_that_cannot_be(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "owners.json").write_text(text)
    with pytest.raises(InputError, match=said):
        bound_of(fingerprints.text(), owners=read_owners(tmp_path / "owners.json"))
