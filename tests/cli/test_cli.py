"""The command line as a stranger meets it: exit codes, what goes to stdout, and the keys of --json."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

import small

PROGRAM = [sys.executable, "-c", "from fedexperts.cli.main import main; main()"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(tomli_w.dumps(small.document()))
    return path


def fedexperts(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
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
    done = fedexperts("run", scenario, *arguments, folder=tmp_path)
    row = json.loads(done.stdout)["protocols"]["sync"]
    assert (row["seed"], row["cycles"]) == (9, 1)


def test_assign_prints_the_contract(scenario: Path, tmp_path: Path) -> None:
    report = json.loads(fedexperts("assign", scenario, "--json", folder=tmp_path).stdout)
    assert {"relevance", "truncated", "probability", "assignment", "gamma", "advice"} <= set(report)
    assert len(report["relevance"]) == 4
    assert [len(row) for row in report["probability"]] == [2] * 4
    shown = fedexperts("assign", scenario, folder=tmp_path).stdout
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
    done = fedexperts(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_leaves_a_resumable_run(scenario: Path, tmp_path: Path) -> None:
    long = ("run", scenario, "--set", "train.cycles=40", "--out", "out")
    process = subprocess.Popen([*PROGRAM, *map(str, long)], cwd=tmp_path, env=ENV, stderr=subprocess.PIPE, text=True)
    ledger = tmp_path / "out" / "ledger.jsonl"
    while not (ledger.exists() and "evaluate" in ledger.read_text()) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    done = fedexperts(*long, "--resume", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["protocols"]["ems-fl"]["cycles"] == 40
