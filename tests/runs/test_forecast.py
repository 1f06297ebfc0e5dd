"""A forecast is what the run does: the same contacts, rounds, steps, bytes and joules, without training."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fingerprints
import pictures
from fedexperts import InputError, Scenario, run
from fedexperts.cli.check import summary
from fedexperts.cli.main import main
from fedexperts.ledger import read
from fedexperts.runs.forecast import forecast

CASES: dict[str, dict[str, Any]] = {
    **{protocol: fingerprints.text({"protocol": protocol}) for protocol in ("sync", "ems-fl", "ems-fl-enhanced")},
    "faults": fingerprints.text({"faults": fingerprints.FAULTS, "plan": {"idle_slots": 1}}),
    "orbit": fingerprints.on_orbit(fingerprints.text({"protocol": "ems-fl-enhanced"})),
    "adapters": fingerprints.text(fingerprints.LORA),
    "split again": fingerprints.text({"assignment": {"trial_samples": 8, "every_cycles": 1}}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_forecast_is_what_the_run_does(case: str, tmp_path: Path) -> None:
    scenario = Scenario.parse(CASES[case])
    said, found = forecast(scenario), run(scenario, tmp_path / "run")
    lines = list(read(found.directory / "ledger.jsonl"))
    end = lines[-1]
    for key in ("cycles", "steps", "uplink_B", "downlink_B", "unsent_rounds"):
        assert said[key] == end[key], key
    assert said["ends_s"] == end["t_s"]
    for name, row in said["links"].items():
        trained = [line for line in lines if line["event"] == "train" and line["cluster"] == name]
        assert (row["rounds"], row["steps"]) == (sum(x["rounds"] for x in trained), sum(x["steps"] for x in trained))
        assert row["energy_J_per_device"] == pytest.approx(sum(end["energy_per_device"][name].values()), rel=1e-4)
        assert row["devices"] == 2
    assert said["wall_s"]["training"] > 0


@pytest.mark.parametrize(
    "document", [fingerprints.text(fingerprints.ALIGNED), fingerprints.NETWORKED], ids=["aligned", "networked"]
)
def test_clients_one_by_one(document: dict[str, Any], tmp_path: Path) -> None:
    pictures.npz(tmp_path / "train.npz", 120)
    pictures.npz(tmp_path / "test.npz", 60, seed=1)
    scenario = Scenario.parse(document, tmp_path)
    said, found = forecast(scenario), run(scenario, tmp_path / "run").summary
    assert said["steps"] == found["steps"]
    assert set(said["links"]) == set(found["clients"]) if "clients" in found else len(said["links"]) == 3


def test_the_command_says_it_in_tables_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(CASES["ems-fl"]))

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fedexperts", "check", str(path), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    document = json.loads(command("--json"))
    shown = command()
    assert f"{document['steps']:,} gradient steps" in shown.replace("\n", " ")
    assert all(name in shown for name in document["links"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_with_a_start_has_a_date_for_its_end() -> None:
    document = forecast(Scenario.parse(CASES["orbit"]))
    assert document["start"] == "2026-01-01T00:00:00+00:00"
    assert f"{document['ends_s'] / 3600:.1f} h, 2026-01-0" in summary(document)


def test_what_a_run_refuses_a_forecast_refuses() -> None:
    with pytest.raises(InputError, match="seconds_per_round"):
        forecast(Scenario.parse(fingerprints.text({"train": {"seconds_per_round": 1000.0}})))
