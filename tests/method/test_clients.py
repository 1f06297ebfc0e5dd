"""Runs with protocol = "aligned" on real data: several clients a cluster, resume, clients that join, leave and are away."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import small
from fedexperts import Scenario
from fedexperts.cli.main import app
from fedexperts.errors import InputError
from fedexperts.ledger import read
from fedexperts.method.capacity import need
from fedexperts.method.methods import prepare
from fedexperts.report.compare_table import comparison_table
from fedexperts.report.table import results_table
from fedexperts.runs import checkpoint
from fedexperts.runs.comparison import medians
from fedexperts.runs.forecast import forecast
from fedexperts.runs.run import run
from marks import some_slow
from terminal import printed


def scenario(**tables: Any) -> Scenario:
    base = small.document(
        protocol="aligned",
        plan={"kind": "always-on"},
        train={"cycles": 4, "max_rounds": 1, "seconds_per_round": 20.0, "shared": ["gate", "head", "backbone"]},
        alignment={"max_experts": 2, "appraisal_samples": 8},
    )
    for key, value in tables.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return Scenario.parse(base)


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read(folder / "ledger.jsonl") if line["event"] == event]


def test_every_device_is_a_client_with_its_own_data_test_and_experts(tmp_path: Path) -> None:
    result = run(scenario(alignment={"policy": "optimal"}), tmp_path / "run")
    rows = lines(tmp_path / "run", "align")
    assert [set(row["assigned"]) for row in rows] == [{"plain/0", "plain/1", "inverted/0", "inverted/1"}] * 4
    assert all(len(mine) == 2 for row in rows for mine in row["assigned"].values())
    assert sum(map(sum, result.summary["assignment_counts"])) == 4 * 4 * 2
    assert result.summary["load_cv"] < 0.01  # two places for each expert in every round
    assert set(result.summary["personal_by_client"]) == set(rows[0]["assigned"])
    assert 0 < result.summary["personal_accuracy"] < 1
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("policy", some_slow(["random", "greedy", "balanced", "optimal"], ["random", "balanced"]))
def test_a_policy_repeats_byte_for_byte(policy: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(scenario(alignment={"policy": policy}, train={"cycles": 3}), tmp_path / name)
    assert (tmp_path / "one" / "ledger.jsonl").read_bytes() == (tmp_path / "two" / "ledger.jsonl").read_bytes()


PAUSES = {"kind": "round-robin", "idle_slots": 2}


@pytest.mark.parametrize("plan", some_slow([{"kind": "always-on"}, PAUSES], [PAUSES]))
def test_a_resumed_run_ends_with_the_same_bytes(plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = scenario(plan=plan, train={"cycles": 3, "max_rounds": 2})
    run(given, tmp_path / "whole")
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    save, saved = checkpoint.save, []

    def stop(folder: Path, number: int, tree: Any, last: bool = False) -> None:
        save(folder, number, tree, last)
        saved.append(number)
        if number == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("fedexperts.runs.checkpoint.save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "cut")
    monkeypatch.setattr("fedexperts.runs.checkpoint.save", save)
    run(given, tmp_path / "cut", resume=True)
    assert saved == [1, 2, 3, 4, 5]
    assert (tmp_path / "cut" / "ledger.jsonl").read_bytes() == (tmp_path / "whole" / "ledger.jsonl").read_bytes()


def test_clients_join_leave_and_are_away_without_stretching_the_rounds(tmp_path: Path) -> None:
    clusters = small.document()["cluster"]
    clusters[0] |= {"until_cycle": 2, "device": {"moody": 1.0}}
    clusters[1] |= {"from_cycle": 1}
    moody = {"tx_power_W": 1.0, "rx_power_W": 1.0, "compute_J_per_FLOP": 0.0, "idle_power_W": 0.0, "availability": 0.6}
    given = scenario(cluster=clusters, device={"moody": moody}, train={"cycles": 5})
    run(given, tmp_path / "run")
    rows = lines(tmp_path / "run", "align")
    assert [row["cycle"] for row in rows] == [1, 2, 3, 4] or [row["cycle"] for row in rows] == [0, 1, 2, 3, 4]
    ends = [line["t_s"] for line in lines(tmp_path / "run", "evaluate")]
    assert ends == [0, 60, 120, 180, 240, 300]
    for row in rows:
        there = set(row["assigned"])
        assert there <= {c for c in ("plain/0", "plain/1") if row["cycle"] < 2} | {"inverted/0", "inverted/1"}
        assert not there & {"inverted/0", "inverted/1"} if row["cycle"] < 1 else {"inverted/0", "inverted/1"} <= there
        assert {c for c, why in row["sat_out"].items() if why == "away"} | there == set(small.devices(prepare(given)))


def test_on_an_orbit_clients_train_on_out_of_contact(tmp_path: Path) -> None:
    clusters = small.document()["cluster"]
    for cluster, (latitude, longitude) in zip(clusters, [(38.7, -9.1), (52.5, 13.4)], strict=True):
        cluster |= {"latitude_deg": latitude, "longitude_deg": longitude}
    given = scenario(
        cluster=clusters,
        plan={"kind": "orbit", "start": datetime(2026, 1, 1, tzinfo=UTC), "days": 1.0, "min_elevation_deg": 10.0},
        satellite={"altitude_km": 600.0, "inclination_deg": 53.0},
        radio={"preset": "paper-range"},
        train={"cycles": 3, "max_rounds": 3, "seconds_per_round": 60.0},
    )
    result = run(given, tmp_path / "run")
    phases = {line["phase"] for line in lines(tmp_path / "run", "train")}
    assert phases == {"connected", "disconnected"}
    assert any(line.get("behind", 0) > 0 for line in lines(tmp_path / "run", "aggregate"))
    assert result.summary["uplink_B"] > 0


def test_a_gate_of_each_client_s_own_is_judged_and_never_sent(tmp_path: Path) -> None:
    run(scenario(alignment={"gate": "per-client"}), tmp_path / "own")
    assert all("gate" not in line["parts"] for line in lines(tmp_path / "own", "collect") + lines(tmp_path / "own", "send"))
    assert lines(tmp_path / "own", "end")[0]["unsent_rounds"] == 0
    run(scenario(alignment={"gate": "frozen"}), tmp_path / "frozen")
    assert all("gate" not in line["parts"] for line in lines(tmp_path / "frozen", "train"))


def test_what_a_round_takes_grows_by_the_expert() -> None:
    prepared = prepare(scenario())
    needed = need(prepared, frozenset({"gate"}))
    part = prepared.view.parts["expert:0"]
    numbers = sum(tensor.numel() for tensor in part.values())
    # weights, gradients and AdamW's two numbers, 4 bytes each; activations come on top
    assert needed.expert_memory_B >= 16 * numbers
    assert needed.expert_up_B == small.devices(prepared)["plain/0"][0].upload_B("expert:0")
    assert needed.expert_down_B == prepared.model["expert:0"].size_B
    assert needed.base_flops > 0
    assert needed.expert_flops >= 0


def test_the_capacity_that_binds_is_the_reason_to_sit_out(tmp_path: Path) -> None:
    kinds = {
        "narrow": {"up_bps": 100.0},
        "slow": {"flops_per_s": 1.0},
        "tiny": {"memory_B": 1000.0},
    }
    powers = {"tx_power_W": 1.0, "rx_power_W": 1.0, "compute_J_per_FLOP": 0.0, "idle_power_W": 0.0}
    clusters = [
        {"name": name, "data": "digits:plain", "device": name if name in kinds else "laptop"} for name in (*kinds, "able")
    ]
    given = scenario(cluster=clusters, device={name: powers | kind for name, kind in kinds.items()}, train={"cycles": 2})
    run(given, tmp_path / "run")
    row = lines(tmp_path / "run", "align")[0]
    assert row["sat_out"] == {"narrow": "uplink", "slow": "compute", "tiny": "memory"}
    assert list(row["assigned"]) == ["able"]


def test_speed_is_learnt_from_how_long_clients_took(tmp_path: Path) -> None:
    powers = {"tx_power_W": 1.0, "rx_power_W": 1.0, "compute_J_per_FLOP": 0.0, "idle_power_W": 0.0}
    given = scenario(
        cluster=[{"name": name, "data": "digits:plain", "device": name} for name in ("quick", "slow")],
        device={"quick": powers | {"flops_per_s": 1e10}, "slow": powers | {"flops_per_s": 1e6}},
        train={"cycles": 4, "seconds_per_round": "device"},
        plan={"slot_s": 200.0},
        alignment={"capacity": "estimated", "max_experts": 4},
    )
    run(given, tmp_path / "run")
    sizes = [{c: len(mine) for c, mine in row["assigned"].items()} for row in lines(tmp_path / "run", "align")]
    assert sizes[0] == {"quick": 1, "slow": 1}
    assert sizes[-1]["quick"] == 4


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"alignment": {"fitness_weight": 1.5}}, "alignment.fitness_weight = 1.5"),
        ({"alignment": {"usage_decay": -0.1}}, "alignment.usage_decay = -0.1"),
        ({"alignment": {"min_load": 3, "max_load": 2}}, "min_load = 3: must be at most max_load = 2"),
        ({"device": {"phone": {"memory_B": 0.0}}}, "device.phone.memory_B = 0.0"),
        ({"device": {"phone": {"up_bps": -1.0}}}, "device.phone.up_bps = -1.0"),
        ({"assignment": {"granularity": "layer"}}, 'assignment.granularity = "layer"'),
        ({"alignment": {"min_load": 4}}, "alignment.min_load = 4: 4 experts would need 16 places"),
        ({"device": {"own": {"tx_power_W": 1.0}}}, "[device.own]: is not complete"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tables: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        run(scenario(**tables), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_is_for_clients_alone_is_refused_elsewhere() -> None:
    clusters = small.document()["cluster"]
    clusters[0]["device"] = {"phone": 1.0}
    with pytest.raises(InputError, match="treat clients one by one"):
        Scenario.parse(small.document(cluster=clusters))


def test_personal_and_final_are_over_the_same_clients_and_those_who_never_train_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clusters = small.document()["cluster"]
    clusters[1]["device"] = "laptop"
    document = scenario(device={"laptop": {"memory_B": 1.0}}, cluster=clusters)
    found = run(document, tmp_path / "run").summary
    assert found["never_trained"] == {"inverted/0": "memory", "inverted/1": "memory"}
    assert found["personal_by_client"].keys() == found["accuracy_by_cluster"].keys()
    for client in found["never_trained"]:  # no experts of their own: the global model
        assert found["personal_by_client"][client] == found["accuracy_by_cluster"][client]
    sentence = "2 of 4 clients never trained (memory)"
    assert any(text.startswith(sentence) for text in found["warnings"])
    assert sentence in printed(results_table({"aligned": found}), 120)
    assert sentence in printed(comparison_table(medians({"balanced": [found]}), None), 120)
    assert forecast(document)["never_trained"] == found["never_trained"]
    path = tmp_path / "s.toml"
    path.write_text(document.to_toml())
    app(["check", str(path)], standalone_mode=False)
    assert sentence in capsys.readouterr().out
