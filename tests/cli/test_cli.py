"""The command line as a stranger meets it: exit codes, what goes to stdout, and the keys of --json."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tomli_w

import small
from fedexperts.ledger import read
from processes import exit_code, program, start_program

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

PROGRAM = [sys.executable, "-c", "from fedexperts.cli.main import main; main()"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(small.document()))
    return path


def fedexperts(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """With an interpreter of its own; `program` is the same from where all is loaded."""
    return subprocess.run([*PROGRAM, *map(str, arguments)], cwd=folder, env=ENV, capture_output=True, text=True)


def test_run_prints_one_json_object_and_writes_the_run_directory(scenario: Path, tmp_path: Path) -> None:
    done = fedexperts("run", scenario, "--out", "out", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["protocols"]["ems-fl"]
    contract = {
        "final_accuracy",
        "accuracy_by_cluster",
        "cycles_to_target",
        "steps_to_target",
        "uplink_B_to_target",
        "uplink_B",
        "cycles",
        "assignment",
        "gamma",
    }
    assert contract <= set(row)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "scenario.toml",
        "ledger.jsonl",
        "runtime.jsonl",
        "model",
        "report.html",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "http://" not in page.split("<script>")[0]
    assert 'src="http' not in page


def test_protocol_seed_and_set_change_the_scenario(scenario: Path, tmp_path: Path) -> None:
    arguments = ("--protocol", "sync", "--seed", "9", "--set", "train.cycles=1", "--out", "o", "--json")
    done = program("run", scenario, *arguments, folder=tmp_path)
    row = json.loads(done.stdout)["protocols"]["sync"]
    assert (row["seed"], row["cycles"]) == (9, 1)


def test_assign_prints_the_contract(scenario: Path, tmp_path: Path) -> None:
    report = json.loads(program("assign", scenario, "--json", folder=tmp_path).stdout)
    assert {"relevance", "truncated", "probability", "assignment", "gamma", "advice"} <= set(report)
    assert len(report["relevance"]) == 4
    assert [len(row) for row in report["probability"]] == [2] * 4
    shown = program("assign", scenario, folder=tmp_path).stdout
    assert "Algorithm 1" in shown
    assert "γ" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.toml"], "none.toml"),
        (["run", "scenario.toml", "--set", "train.lr_expert=-1"], "train.lr_expert = -1"),
        (["run", "scenario.toml", "--set", "train.cyclez=2"], "train.cyclez: unknown key"),
        (["run", "scenario.toml", "--protocol", "magic"], "magic"),
        (["run", "scenario.toml", "--frob"], "--frob"),
        (["report", "nowhere"], "nowhere"),
        (["assign", "scenario.toml", "--set", "assignment.threshold=2"], "assignment.threshold = 2"),
    ],
)
def test_wrong_input_exits_2_with_one_message(arguments: list[str], message: str, scenario: Path, tmp_path: Path) -> None:
    done = program(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_labels_that_count_from_1_are_warned_of_before_training(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"input_ids": [{n}, 2], "label": {1 + n % 2}}}\n' for n in range(8)))
    clusters = [{"name": name, "data": "a.jsonl", "test": "a.jsonl"} for name in ("a", "b")]
    (tmp_path / "scenario.toml").write_text(tomli_w.dumps(small.document(cluster=clusters, train={"cycles": 1})))
    done = program("run", "scenario.toml", "--out", "run", "--json", folder=tmp_path)
    assert "warning: labels of all clusters: 0 never occurs (1: 16, 2: 16)" in done.stderr
    assert json.loads(done.stdout)["protocols"]
    assert done.stderr.count("0 never occurs") == 1  # heard while it was made ready, it is not said again
    assert "0 never occurs (1: 16, 2: 16)" in (tmp_path / "run" / "report.html").read_text()
    warned = [line for line in read(tmp_path / "run" / "ledger.jsonl") if line["event"] == "warning"]
    (line,) = (line for line in warned if "0 never occurs" in line["text"])
    assert line["text"].startswith("labels of all clusters: 0 never occurs")
    again = program("run", "scenario.toml", "--out", "run", "--resume", "--json", folder=tmp_path)
    assert again.stdout == done.stdout
    assert again.stderr.count("0 never occurs") == 1  # read from the ledger


def test_ctrl_c_leaves_a_resumable_run(scenario: Path, tmp_path: Path) -> None:
    long = ("run", scenario, "--set", "train.cycles=40", "--out", "out")
    process = start_program(*long, folder=tmp_path, out=tmp_path / "stdout", err=tmp_path / "stderr")
    assert process.pid is not None
    ledger = tmp_path / "out" / "ledger.jsonl"
    while not (ledger.exists() and "evaluate" in ledger.read_text()) and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert exit_code(process) == 130
    stderr = (tmp_path / "stderr").read_text()
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    done = program(*long, "--resume", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["protocols"]["ems-fl"]["cycles"] == 40


ORBIT = {
    "satellite": {"altitude_km": 600, "inclination_deg": 53.0},
    "plan": {"kind": "orbit", "start": datetime(2026, 1, 1, tzinfo=UTC), "days": 1.0},
    "radio": {"preset": "paper-range", "fixed_downlink_bps": 5e7},
    "cluster": [
        {"name": "lisbon", "latitude_deg": 38.72, "longitude_deg": -9.14, "devices": 2, "data": "digits:plain"},
        {"name": "nairobi", "latitude_deg": -1.29, "longitude_deg": 36.82, "devices": 2, "data": "digits:inverted"},
    ],
}


@pytest.fixture
def orbital(tmp_path: Path) -> Path:
    path = tmp_path / "orbit.toml"
    path.write_text(tomli_w.dumps(small.document(**ORBIT)))
    return path


def test_plan_prints_the_contract_and_writes_its_page(orbital: Path, tmp_path: Path) -> None:
    done = program("plan", orbital, "--json", "--out", "plan", "--export", "ion", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    contract = {"cluster", "satellite", "start_s", "end_s", "max_elevation_deg", "uplink_bps", "uplink_B", "downlink_B"}
    assert contract <= set(document["contacts"][0])
    assert {"passes_per_day", "median_duration_s", "max_gap_s", "uplink_B_per_day"} <= set(document["clusters"]["lisbon"])
    assert {p.name for p in (tmp_path / "plan").iterdir()} == {"plan.html", "plan.json", "answer.json", "plan.ion.rc"}
    assert 'src="http' not in (tmp_path / "plan" / "plan.html").read_text()
    shown = program("plan", orbital, "--days", "0.5", folder=tmp_path).stdout
    assert "passes and gaps" in shown


def test_plan_needs_neither_model_nor_data(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    places = [{k: v for k, v in row.items() if k != "data"} for row in ORBIT["cluster"]]
    path.write_text(tomli_w.dumps({"name": "bare", **{k: ORBIT[k] for k in ("satellite", "plan", "radio")}, "cluster": places}))
    loaded = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    program = [sys.executable, "-c", f"{loaded}; from fedexperts.cli.main import main; main()", "plan", path, "--out", "plan"]
    done = subprocess.run(program, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"  # and torch, which takes seconds to load, stays out


def test_the_package_offers_training_without_loading_it() -> None:
    lazily = "import sys, fedexperts as f; assert 'torch' not in sys.modules; assert f.run.__module__ == 'fedexperts.runs.run'"
    subprocess.run(
        [sys.executable, "-c", f"{lazily}; from fedexperts import Result; assert not hasattr(f, 'walks')"], check=True
    )


def test_training_on_an_orbit_takes_its_time_from_the_plan(orbital: Path, tmp_path: Path) -> None:
    settings = ("--set", "train.seconds_per_round=300.0", "--set", "train.max_rounds=3", "--set", "train.cycles=2")
    done = program("run", orbital, *settings, "--out", "o", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    history = json.loads(done.stdout)["protocols"]["ems-fl"]["history"]
    assert history[-1]["t_s"] > 3600
    rows = [json.loads(line) for line in (tmp_path / "o" / "ledger.jsonl").read_text().splitlines()]
    away = [row["rounds"] for row in rows if row["event"] == "train" and row["phase"] == "disconnected"]
    assert away
    assert max(away) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"satellite": {"altitude_km": -5, "inclination_deg": 53.0}}, "below the surface"),
        ({"cluster": [{"name": "a", "latitude_deg": 95.0, "longitude_deg": 0.0}]}, "latitude_deg = 95"),
        ({"cluster": [{"name": "a"}]}, "needs latitude_deg and longitude_deg"),
        ({"plan": {"min_elevation_deg": 90.0}}, "min_elevation_deg = 90"),
        ({"radio": {"preset": "smoke-signals"}}, "smoke-signals"),
        ({"radio": {"bandwidth_Hz": 0.0}}, "bandwidth_Hz = 0"),
        ({"satellite": {"tle": "none.tle", "altitude_km": None, "inclination_deg": None}}, "none.tle"),
    ],
)
def test_wrong_orbits_places_and_radios(change: dict, message: str, tmp_path: Path) -> None:
    document = small.document(**ORBIT)
    for key, value in change.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    document["satellite"] = {k: v for k, v in document["satellite"].items() if v is not None}
    path = tmp_path / "wrong.toml"
    path.write_text(tomli_w.dumps(document))
    done = program("plan", path, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
