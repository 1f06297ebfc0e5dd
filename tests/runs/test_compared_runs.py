"""Runs of the protocols to compare with: ceiling, floor, C rounds, FedProx, what they resume from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fingerprints
import pictures
import small
from fedexperts import InputError, Scenario, run
from fedexperts.cli.check import summary
from fedexperts.data.digits import DOMAINS
from fedexperts.data.source import load
from fedexperts.deploy.links import links_of
from fedexperts.ledger import read
from fedexperts.method.methods import prepare
from fedexperts.runs.comparison import grid
from fedexperts.runs.forecast import forecast
from fedexperts.tables import Train
from plans import document_of, method_of
from stopped import KilledError, killed

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{said}") for said in ("trains on it as well", "labels that no training")]
# a small file serves as both
QUICK = {"cycles": 2, "local_steps": 1, "batch_size": 8, "lr_expert": 3e-3, "lr_gate": 3e-3}
LORA = {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0}}


def scenario(base: Path = Path(), **tables: Any) -> Scenario:
    return Scenario.parse(small.document(**{**tables, "train": {**QUICK, **tables.get("train", {})}}), base)


def model(directory: Path) -> bytes:
    return (directory / "model" / "model.safetensors").read_bytes()


def end(directory: Path) -> dict[str, Any]:
    return list(read(directory / "ledger.jsonl"))[-1]


KINDS: dict[str, dict[str, Any]] = {
    "fedasync": {"protocol": "fedasync"},
    "fedbuff": {"protocol": "fedbuff", "server": {"buffer": 3, "optimizer": "yogi"}},
    "fedbuff, adapters": {"protocol": "fedbuff", "server": {"buffer": 2, "lr": 0.5}, "model": LORA},
    "fedadam": {"protocol": "sync", "server": {"optimizer": "adam"}, "plan": {"kind": "always-on"}},
    "ems-fl, fedadam": {"protocol": "ems-fl", "server": {"optimizer": "adam"}, "train": {"proximal_mu": 0.1}},
    "ems-fl, no owners": {"protocol": "ems-fl", "ems_fl": {"disjoint": False, "joint_rounds": 1}},
    "ems-fl-enhanced, no mask": {"protocol": "ems-fl-enhanced", "ems_fl": {"mask": False, "away": False}},
    "central": {"protocol": "central"},
    "local": {"protocol": "local"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    given = scenario(**{**KINDS[kind], "faults": {"drop": 0.2, "early_close": 0.3}})
    run(given, tmp_path / "whole")
    lines = list(read(tmp_path / "whole" / "ledger.jsonl"))
    stop_at = max(i for i, line in enumerate(lines) if line["event"] in ("contact", "flush")) + 1
    with pytest.raises(KilledError):
        run(given, tmp_path / "stopped", listener=killed(stop_at))
    run(given, tmp_path / "stopped", resume=True)
    assert model(tmp_path / "stopped") == model(tmp_path / "whole")
    assert (tmp_path / "stopped" / "ledger.jsonl").read_bytes() == (tmp_path / "whole" / "ledger.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["fedasync", "fedbuff", "central", "local"])
def test_a_longer_run_is_the_run_that_it_would_have_been(kind: str, tmp_path: Path) -> None:
    run(scenario(**KINDS[kind]), tmp_path / "run")
    run(scenario(**KINDS[kind], train={"cycles": 3}), tmp_path / "run", resume=True)
    run(scenario(**KINDS[kind], train={"cycles": 3}), tmp_path / "whole")
    assert model(tmp_path / "run") == model(tmp_path / "whole")
    assert end(tmp_path / "run") == end(tmp_path / "whole")


# ---- C rounds


@pytest.mark.parametrize("seconds", [60.0, 25.0])
def test_c_rounds_are_the_baseline_on_devices_c_times_as_fast(seconds: float, tmp_path: Path) -> None:
    named = run(scenario(protocol="sync-c-rounds", train={"seconds_per_round": seconds}), tmp_path / "named")
    by_hand = run(scenario(protocol="sync", train={"seconds_per_round": seconds / 2}), tmp_path / "by hand")
    assert model(tmp_path / "named") == model(tmp_path / "by hand")
    assert {**named.summary, "protocol": "sync"} == by_hand.summary


# ---- FedProx


def test_the_proximal_term_is_that_of_the_example(tmp_path: Path) -> None:
    (tmp_path / "prox_again.py").write_text((fingerprints.EXAMPLES / "fedprox.py").read_text())
    for protocol in ("sync", "ems-fl"):
        plain, key, own = (
            run(scenario(tmp_path, protocol=protocol, train={"local_steps": 2, **more}), tmp_path / f"{protocol}-{name}")
            for name, more in (("plain", {}), ("key", {"proximal_mu": 0.1}), ("own", {"local_loss": "prox_again:proximal"}))
        )
        assert model(key.directory) == model(own.directory) != model(plain.directory)


def test_there_is_no_proximal_term_by_default() -> None:
    assert Train(cycles=1).proximal_mu is None
    (device, *_) = small.devices(prepare(scenario()))["plain"]
    assert device.local.proximal_mu == 0.0


# ---- ceiling and floor


def tokens(path: Path, *domains: str, n: int = 40) -> str:
    """Some digits of each domain, as a file."""
    with path.open("w") as file:
        for domain in domains:
            samples = load(f"digits:{domain}", Path()).train
            for ids, label in zip(samples["input_ids"][:n].tolist(), samples["labels"][:n].tolist(), strict=True):
                file.write(json.dumps({"input_ids": ids, "label": label}) + "\n")
    return path.name


def clusters(folder: Path, **of: tuple[str, ...]) -> list[dict[str, Any]]:
    test = tokens(folder / "test.jsonl", *DOMAINS[:2], n=10)
    return [
        {"name": name, "devices": 1, "data": tokens(folder / f"{name}.jsonl", *domains), "test": test}
        for name, domains in of.items()
    ]


def apart(folder: Path, protocol: str, cycles: int, cluster: list[dict[str, Any]], **tables: Any) -> Scenario:
    return scenario(
        folder, protocol=protocol, train={"cycles": cycles, "batch_size": 6}, evaluation={"validation": 0.0},
        assignment={"trial_samples": 2}, cluster=cluster, **tables,
    )  # fmt: skip


def test_central_is_training_on_all_data_as_many_rounds_as_there_are_contacts(tmp_path: Path) -> None:
    two = clusters(tmp_path, lisbon=DOMAINS[:1], nairobi=DOMAINS[1:2])
    central = run(apart(tmp_path, "central", 3, two), tmp_path / "central")
    alone = {"model": {"config": small.CONFIG, "uplink": "exact"}}  # one device, whose uploads lose nothing
    sync = run(apart(tmp_path, "sync", 6, clusters(tmp_path, central=DOMAINS[:2]), **alone), tmp_path / "sync")
    assert model(central.directory) == model(sync.directory)
    assert central.summary["steps"] == sync.summary["steps"] == 6


def test_central_counts_the_raw_data_once_and_nothing_else(tmp_path: Path) -> None:
    given = apart(tmp_path, "central", 2, clusters(tmp_path, lisbon=DOMAINS[:1], nairobi=DOMAINS[1:2]))
    lines = list(read(run(given, tmp_path / "run").directory / "ledger.jsonl"))
    (pooled,) = (line for line in lines if line["event"] == "pooled")
    length = len(json.loads((tmp_path / "lisbon.jsonl").read_text().splitlines()[0])["input_ids"])
    assert pooled == {"t_s": 0, "event": "pooled", "uplink_B": 80 * 8 * (length + 1), "samples": 80}  # int64 tokens and label
    judged = [line for line in lines if line["event"] in ("evaluate", "end")]
    assert {(line["uplink_B"], line["downlink_B"]) for line in judged} == {(pooled["uplink_B"], 0)}
    assert set(judged[-1]["accuracy_by_cluster"]) == {"lisbon", "nairobi"}
    assert not [line for line in lines if line["event"] == "send"]


def test_local_is_each_cluster_alone_for_as_long_as_ems_fl_trains(tmp_path: Path) -> None:
    """Of the first cluster, which is met at the start: one round a slot to the end, on nothing but its own data."""
    two = clusters(tmp_path, central=DOMAINS[:1], nairobi=DOMAINS[1:2])
    local = run(apart(tmp_path, "local", 3, two), tmp_path / "local")
    alone = run(apart(tmp_path, "central", 6, two[:1]), tmp_path / "alone")
    ems_fl = run(apart(tmp_path, "ems-fl", 3, two), tmp_path / "ems-fl")
    assert local.summary["accuracy_by_cluster"]["central"] == alone.summary["accuracy_by_cluster"]["central"]
    losses = [
        [
            line["loss"]
            for line in read(one.directory / "ledger.jsonl")
            if line["event"] == "train" and line["cluster"] == "central"
        ]
        for one in (local, alone)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    assert (local.summary["uplink_B"], local.summary["downlink_B"]) == (0, 0)
    assert local.summary["steps"] == ems_fl.summary["steps"]


def test_the_server_s_model_of_local_is_the_first(tmp_path: Path) -> None:
    local = run(scenario(protocol="local"), tmp_path / "local")
    first = run(scenario(protocol="local", train={"lr_expert": 1e-9, "lr_gate": 1e-9}), tmp_path / "first")
    assert model(local.directory) == model(first.directory)
    lines = [line for line in read(local.directory / "ledger.jsonl") if line["event"] == "evaluate"]
    assert lines[0]["loss"] != lines[-1]["loss"]  # what clusters have is another


@pytest.mark.parametrize("protocol", ["central", "local"])
@pytest.mark.parametrize("average", ["refactor", "merge", "factors"])
def test_no_fault_of_links_and_no_codec_touches_what_does_not_travel(protocol: str, average: str, tmp_path: Path) -> None:
    adapted = {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0, "average": average}, "precision": "bfloat16"}
    calm, stormy = (
        run(scenario(protocol=protocol, model={**adapted, "uplink": uplink}, faults=faults), tmp_path / uplink)
        for uplink, faults in (("exact", {}), ("int8", {"drop": 0.5, "early_close": 0.9}))
    )
    assert model(calm.directory) == model(stormy.directory)
    assert not [line for line in read(stormy.directory / "ledger.jsonl") if line["event"] == "lost"]
    assert calm.summary["final_accuracy"] == stormy.summary["final_accuracy"]


def test_central_needs_one_task_and_local_does_not(tmp_path: Path) -> None:
    pictures.npz(tmp_path / "x.npz", 40)
    told: dict[str, Any] = {"data": "x.npz", "test": "x.npz"}
    tables: dict[str, Any] = {
        "model": {"config": pictures.CONFIG},
        "task": {"kind": "image"},
        "cluster": [{"name": "a", **told}, {"name": "b", **told, "task": {"metric": "f1"}}],
    }
    with pytest.raises(InputError, match=r'protocol = "central": clusters \'a\' and \'b\' have different tasks.*use local'):
        forecast(scenario(tmp_path, protocol="central", **tables))
    assert forecast(scenario(tmp_path, protocol="local", **tables))["steps"] == 7


@pytest.mark.parametrize("protocol", ["central", "local"])
def test_plan_and_check_say_that_no_model_travels(protocol: str) -> None:
    given = scenario(protocol=protocol)
    document, counted = document_of(given), forecast(given)
    method = document["method"]
    assert method["answer"] == "yes"
    assert {one["uplink_B"] + one["downlink_B"] for links in method["stages"].values() for one in links.values()} == {0}
    assert method["steps"] == counted["steps"]
    assert counted["downlink_B"] == 0
    assert (counted["uplink_B"] > 0) is (protocol == "central")
    assert ("MB up (the raw data, once), 0.00 MB down" in summary(counted)) is (protocol == "central")
    with pytest.raises(InputError, match="nothing to deploy"):
        links_of(given)


def test_slots_in_which_all_are_met_are_one_round_of_central() -> None:
    assert forecast(scenario(protocol="central", plan={"kind": "always-on"}))["steps"] == 2
    assert forecast(scenario(protocol="central"))["steps"] == 4


def test_all_of_them_are_compared() -> None:
    names = ["sync", "ems-fl", "central", "local", "fedasync", "fedbuff", "sync-c-rounds"]
    assert [key[0] for key in grid(scenario(), names, [], 1).jobs] == names


# ---- what does not fit

ADAM = {"server": {"optimizer": "adam"}}
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "fedasync": ({"protocol": "fedasync", **ADAM}, r"server\.optimizer = 'adam': protocol = 'fedasync' mixes whole models"),
    "aligned": ({"protocol": "aligned", "server": {"lr": 0.5}}, r"server\.lr = 0\.5: protocol = 'aligned' averages an expert"),
    "factored": ({"protocol": "sync", **ADAM, "model": LORA}, r"server\.optimizer = 'adam': steps on numbers.*\"merge\""),
    "mask": ({"protocol": "ems-fl", "ems_fl": {"mask": False}}, r"ems_fl\.mask = false: protocol = \"ems-fl\" masks no gate"),
    "no mask of all": ({"protocol": "ems-fl-enhanced", "ems_fl": {"mask": False, "disjoint": False}}, "leave one out"),
    "split": ({"ems_fl": {"disjoint": False}, "assignment": {"every_cycles": 1}}, r"assignment\.every_cycles = 0 \(it is 1\)"),
    "paper": (
        {"ems_fl": {"away": False}, "train": {"first_cycle": "paper"}},
        r"train\.first_cycle = \"paper\" is training out",
    ),
    "mixing": ({"server": {"mixing": 0.0}}, r"server\.mixing"),
    "buffer": ({"server": {"buffer": 0}}, r"server\.buffer"),
    "beta": ({"server": {"beta2": 1.0}}, r"server\.beta2"),
    "joint": ({"ems_fl": {"joint_rounds": 0}}, r"ems_fl\.joint_rounds"),
    "async": ({"protocol": "async"}, r"protocol = 'async': unknown; did you mean fedasync\?"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_with_the_reason(case: str) -> None:
    tables, said = MISFITS[case]
    with pytest.raises(InputError, match=said):
        scenario(**tables)


def test_tables_of_other_protocols_do_not_matter() -> None:
    for protocol in ("sync", "central", "local", "aligned"):
        assert scenario(protocol=protocol, ems_fl={"mask": False}).ems_fl is not None
    for protocol in ("central", "local", "ems-fl", "fedbuff"):
        assert scenario(protocol=protocol, **ADAM).server is not None
    assert scenario(protocol="ems-fl", **ADAM, model=LORA).model.lora is not None  # its gate has no adapters


@pytest.mark.parametrize("tables", [{"protocol": "fedbuff"}, {"ems_fl": {"disjoint": False}}])
def test_bounds_say_what_they_are_not_of(tables: dict[str, Any]) -> None:
    from fedexperts.planned import plan

    with pytest.raises(InputError, match=r"protocol = 'fedbuff': bounds are of|\[ems_fl\]: bounds are of EMS-FL with all"):
        plan(scenario(**tables), bound=True)


def test_devices_of_an_ablated_method_hold_all_experts() -> None:
    held = [method_of(scenario(**tables))["devices"][0]["experts"] for tables in ({}, {"ems_fl": {"disjoint": False}})]
    assert held == [2, 4]
    with pytest.raises(InputError, match=r"device\.phone\.load = 'stream': protocol = 'ems-fl-enhanced' lets devices load all"):
        forecast(scenario(protocol="ems-fl-enhanced", ems_fl={"mask": False}, device={"phone": {"load": "stream"}}))
