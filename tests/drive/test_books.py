"""What a run has cost, when: work counts when it is done, and for the data that it was done on."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import small
import toy
from fedexperts import Scenario, run
from fedexperts.contact.plan import Contact, ContactPlan, round_robin
from fedexperts.drive.classes import DeviceClass
from fedexperts.drive.cluster import Pace
from fedexperts.drive.simulate import Simulator
from fedexperts.errors import InputWarning
from fedexperts.ledger import Ledger, read
from fedexperts.protocol.ems_fl import EmsFl
from fedexperts.protocol.link import Start
from fedexperts.protocol.sync import Sync
from fedexperts.runs.checkpoint import Packer, unpack

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(trains on it as well|no training data of this task have)"
)  # a small file serves as both

KIND = DeviceClass("toy", tx_power_W=10.0, rx_power_W=2.0, compute_J_per_FLOP=0.5, idle_power_W=0.25, flops_per_s=16.0)
DATA = {"a": [toy.samples(0, 8.0)], "b": [toy.samples(1, 4.0)]}
STEADY = Pace(1.0)
OWNED = {"a": frozenset({"expert:0"}), "b": frozenset({"expert:1"})}


def play(
    protocol_class: Any,
    plan: ContactPlan,
    cycles: int,
    path: Path,
    shared: frozenset[str] = frozenset({"head"}),
    owned: Mapping[str, frozenset[str]] = OWNED,
    pace: Pace = STEADY,
    **options: Any,
) -> list[dict[str, Any]]:
    _, model, devices = toy.make(DATA)
    protocol = protocol_class(Start(model, tuple(DATA), shared, owned, cycles=cycles))
    ledger = Ledger(path / "ledger.jsonl")
    Simulator(plan, toy.hosts(devices), pace, cycles, ledger, lambda model, cycle: {"accuracy": 0.0}, **options).run(protocol)
    ledger.close()
    return list(read(path / "ledger.jsonl"))


def at(lines: list[dict[str, Any]], event: str, key: str) -> list[Any]:
    return [line[key] for line in lines if line["event"] == event]


# ---- when


def test_rounds_out_of_contact_count_at_the_evaluation_that_comes_before_their_upload(tmp_path: Path) -> None:
    lines = play(EmsFl, round_robin(["a", "b"], 3, 1.0, idle_slots=1), 2, tmp_path)
    # cycle 1 ends at 2 s, when b has been served: a did a round in contact and one on its own, b one
    # cycle 2 ends at 5 s: a 5 rounds since 0 s, b 4 since 1 s; then nobody trains any more
    assert at(lines, "evaluate", "steps") == [3, 9]
    assert lines[-1]["steps"] == 9 == sum(at(lines, "train", "steps"))


def test_rounds_of_a_contact_under_way_count_too(tmp_path: Path) -> None:
    contacts = (Contact("a", 0, 2), Contact("b", 3, 5), Contact("a", 4, 8), Contact("b", 9, 10), Contact("a", 11, 12))
    lines = play(Sync, ContactPlan(("a", "b"), contacts, 12), 2, tmp_path)
    # cycle 1 ends at 5 s: 2 rounds of a, 2 of b, and the first of the 4 that a began at 4 s
    assert at(lines, "evaluate", "steps") == [5, 10]
    assert sum(at(lines, "train", "steps")) == 10


def test_joules_of_a_cycle_are_those_of_the_work_done_in_it(tmp_path: Path) -> None:
    lines = play(EmsFl, round_robin(["a", "b"], 3, 1.0, idle_slots=1), 2, tmp_path, kinds={"a": KIND, "b": KIND})
    # 2 samples through the gate, forward only: 16 FLOPs, 8 J a round
    compute_J = [{c: use["compute_J"] for c, use in row.items()} for row in at(lines, "energy", "per_device")]
    assert compute_J == [{"a": 16, "b": 8}, {"a": 24, "b": 24}, {"a": 0, "b": 0}]


def test_a_resumed_run_counts_no_round_twice(tmp_path: Path) -> None:
    """From each quiet moment, through a checkpoint's JSON: also where rounds under way have been counted already."""
    plan = round_robin(["a", "b"], 4, 1.0, idle_slots=1)

    def build(name: str) -> tuple[EmsFl, Simulator, Ledger]:
        _, model, devices = toy.make(DATA)
        ledger = Ledger(tmp_path / name)
        simulator = Simulator(plan, toy.hosts(devices), STEADY, 3, ledger, lambda model, cycle: {"accuracy": 0.0})
        return EmsFl(Start(model, tuple(DATA), frozenset({"head"}), OWNED, cycles=3)), simulator, ledger

    protocol, simulator, ledger = build("whole.jsonl")
    moments: list[tuple[str, dict[str, Any], int, bool]] = []

    def pause() -> None:
        packer, under_way = Packer(), any(cluster.booked for cluster in simulator.books.clusters.values())
        tree = {"protocol": {k: v for k, v in vars(protocol).items() if k[0] != "_"}, "simulator": simulator.state()}
        moments.append((json.dumps(packer.pack(tree)), packer.tensors, ledger.position(), under_way))

    simulator.run(protocol, pause)
    ledger.close()
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert any(under_way for *_, under_way in moments)
    for i, (document, tensors, at_B, _) in enumerate(moments):
        protocol, simulator, ledger = build(f"{i}.jsonl")
        saved = unpack(json.loads(document), tensors)
        vars(protocol).update(saved["protocol"])
        simulator.restore(saved["simulator"])
        simulator.run(protocol)
        ledger.close()
        assert (tmp_path / f"{i}.jsonl").read_bytes() == whole[at_B:]


def test_the_small_examples_evaluations(tmp_path: Path) -> None:
    # 4 steps a cluster and round: cycle 1 ends after 2 + 1 rounds, 2 after 5 + 4, 3 after 8 + 7
    summary = run(Scenario.load("examples/digits-small.toml", ["warmup.steps=1"]), tmp_path / "run").summary
    assert [point["steps"] for point in summary["history"]] == [0, 12, 36, 60, 60]


# ---- on what


def sequences(folder: Path, name: str, length: int, rows: int = 8) -> dict[str, Any]:
    lines = [json.dumps({"input_ids": [7 + (i + j) % 50 for j in range(length)], "label": i % 10}) for i in range(rows)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {"name": name, "devices": 1, "data": f"{name}.jsonl", "test": f"{name}.jsonl"}


def costs(folder: Path, clusters: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    """Rounds in the first contact, and joules of computing for each step, by cluster."""
    document = small.document(
        train={"cycles": 2, "local_steps": 1, "batch_size": 4, "seconds_per_round": "device", "max_rounds": 3},
        device={"phone": {"flops_per_s": 3e5}},
        evaluation={"validation": 0},
        cluster=clusters,
    )
    out = folder / "-".join(c["name"] for c in clusters)
    run(Scenario.parse(document, folder), out)
    lines = list(read(out / "ledger.jsonl"))
    found = {}
    for name in (c["name"] for c in clusters):
        rows = [x for x in lines if x["event"] == "train" and x["cluster"] == name]
        joules = lines[-1]["energy_per_device"][name]["compute_J"]
        found[name] = rows[0]["rounds"], joules / sum(x["steps"] for x in rows)
    return found


def test_what_a_step_costs_is_a_matter_of_a_clusters_own_data_and_not_of_the_order(tmp_path: Path) -> None:
    short, long = sequences(tmp_path, "short", 4), sequences(tmp_path, "long", 60)
    one, other = costs(tmp_path, [short, long]), costs(tmp_path, [long, short])
    for name in ("short", "long"):  # a draw gives it other experts, which other tokens meet
        assert one[name] == pytest.approx(other[name], rel=0.1)
    assert one["short"][0] > 10 * one["long"][0]  # rounds in contact go by the speed of the device
    assert one["long"][1] > 10 * one["short"][1]


def test_devices_of_one_cluster_whose_lengths_differ_cost_what_their_own_data_cost(tmp_path: Path) -> None:
    rows = [*sequences_of(4, 6), *sequences_of(5, 1), *sequences_of(40, 6), *sequences_of(41, 1)]  # a device each, by label
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cluster = {"name": "both", "devices": 2, "partition": "by-label", "data": "both.jsonl", "test": "both.jsonl"}
    document = small.document(train={"cycles": 1, "batch_size": 6}, evaluation={"validation": 0}, cluster=[cluster])
    lines = list(read(run(Scenario.parse(document, tmp_path), tmp_path / "run").directory / "ledger.jsonl"))
    mean_J = lines[-1]["energy_per_device"]["both"]["compute_J"]
    alone = []
    for label in (0, 1):
        (tmp_path / f"{label}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["label"] == label))
        one = [{"name": "both", "devices": 1, "data": f"{label}.jsonl", "test": "both.jsonl"}]
        document = small.document(train={"cycles": 1, "batch_size": 6}, evaluation={"validation": 0}, cluster=one)
        lines = list(read(run(Scenario.parse(document, tmp_path), tmp_path / f"run{label}").directory / "ledger.jsonl"))
        alone.append(lines[-1]["energy_per_device"]["both"]["compute_J"])
    assert alone[1] > 5 * alone[0]
    assert mean_J == pytest.approx(sum(alone) / 2, rel=0.1)


def sequences_of(length: int, rows: int) -> list[dict[str, Any]]:
    return [{"input_ids": [7 + (i + j) % 50 for j in range(length)], "label": int(length > 20)} for i in range(rows)]


# ---- nothing to train


def test_a_contact_without_anything_to_train_is_not_lost(tmp_path: Path) -> None:
    """With the pace of the device, no parts take no FLOPs: 0 rounds of endless length are over at once."""
    owned = {"a": frozenset({"expert:0", "expert:1"}), "b": frozenset[str]()}
    plan = round_robin(["a", "b"], 3, 8.0)
    kinds = {"a": KIND, "b": KIND}
    lines = play(EmsFl, plan, 2, tmp_path, frozenset(), owned, Pace(None), kinds=kinds)
    assert not at(lines, "lost", "cluster")
    assert at(lines, "train", "cluster")[0] == "a"
    assert all(math.isfinite(line["t_s"]) for line in lines)


def test_devices_that_are_fast_for_their_slots_are_warned_of(tmp_path: Path) -> None:
    fast = replace(KIND, flops_per_s=16e6)  # a round a microsecond
    plan, kinds, ledger = round_robin(["a", "b"], 3, 0.2), {"a": fast, "b": fast}, Ledger(tmp_path / "none.jsonl")
    free, bound = (
        Simulator(plan, toy.hosts(toy.make(DATA)[2]), pace, 2, ledger, lambda model, cycle: {}, kinds=kinds)
        for pace in (Pace(None), Pace(None, 3))
    )
    with pytest.warns(InputWarning, match=r"some 1,[0-9]{3},000 gradient steps.*bound it by train.max_rounds"):
        free._warn_of_many_steps(toy.make(DATA)[1])
    bound._warn_of_many_steps(toy.make(DATA)[1])  # a warning would be an error
    ledger.close()
