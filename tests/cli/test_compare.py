"""``fedexperts compare`` as a user meets it: tables, JSON, interruptions, wrong input."""

import json
import re
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import small
import text
from fedexperts import Scenario
from fedexperts.cli.main import main
from fedexperts.ledger import summary
from fedexperts.report.compare_table import comparison_table
from fedexperts.report.table import accuracy_table
from fedexperts.runs.lock import is_held
from fedexperts.runs.parallel import folder, run_many
from fedexperts.runs.run import run
from processes import fork_instead_of_spawning, start_program
from terminal import fedexperts, printed

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

TRAIN = {"cycles": 2, "max_rounds": 1, "local_steps": 1, "seconds_per_round": 20.0, "shared": ["gate", "head", "backbone"]}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    tables = {"plan": {"kind": "always-on"}, "alignment": {"max_experts": 2, "appraisal_samples": 4}}
    path.write_text(tomli_w.dumps(small.document(protocol="aligned", train=TRAIN, **tables)))
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs one after another in this process: a worker's imports take longer than a run."""

    def serial(jobs: Mapping[str, Scenario], out: Path, **_: Any) -> dict[str, Any]:
        return {name: run(job, out / folder(name)).summary for name, job in jobs.items()}

    monkeypatch.setattr("fedexperts.runs.grid.run_many", serial)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process are forked; what is spawned, as it is without this, costs seconds of imports."""
    fork_instead_of_spawning(monkeypatch)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return partial(fedexperts, monkeypatch, capsys, "compare")


@pytest.mark.usefixtures("here")
def test_policies_as_one_json_object_and_a_page_that_needs_no_network(scenario: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "out"
    code, stdout, _ = call(scenario, "--policy", "random,optimal", "--out", out, "--json")
    assert code == 0
    found = json.loads(stdout)
    assert list(found["policies"]) == ["random", "optimal"]
    row = found["policies"]["optimal"]
    asked = {"final_accuracy", "rounds_to_plateau", "rounds_to_target", "load_cv", "uplink_B", "assignment_counts", "clients"}
    assert asked <= set(row)
    assert row["clients"] == ["plain/0", "plain/1", "inverted/0", "inverted/1"]
    assert [len(line) for line in row["assignment_counts"]] == [4] * 4
    assert all(sum(line) == 2 * TRAIN["cycles"] for line in row["assignment_counts"])
    assert row["load_cv"] < 0.02
    page = (out / "report.html").read_text()
    assert 'src="http' not in page
    assert "<link" not in page
    assert "random: whole run" in page


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_protocols_by_client_and_by_cluster_side_by_side(scenario: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "out"
    code, stdout, _ = call(scenario, "--protocol", "sync,aligned", "--seeds", 2, "--out", out, "--set", "train.cycles=1")
    assert code == 0
    assert "sync" in stdout
    assert "aligned" in stdout
    assert "…" not in stdout
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        *(f"{name}-seed-{seed}" for name in ("sync", "aligned") for seed in (3, 4)),
    }


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process may be started."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("fedexperts.runs.parallel.ProcessPoolExecutor", refuse)


def ended(scenario: Path, out: Path, *policies: str) -> None:
    """The runs of a comparison, made here."""
    for policy in policies:
        run(Scenario.load(scenario, [f'alignment.policy="{policy}"', "train.cycles=1"]), out / f"{policy}-seed-3")


@pytest.mark.usefixtures("no_work")
def test_resuming_what_has_ended_starts_nothing_and_prints_the_same(scenario: Path, tmp_path: Path, call: Any) -> None:
    out, words = tmp_path / "out", ["--policy", "random,optimal", "--set", "train.cycles=1"]
    ended(scenario, out, "random", "optimal")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, stdout, stderr = call(scenario, *words, "--out", out, "--resume", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)["policies"]
    assert {name: row["final_accuracy"] for name, row in found.items()} == {
        name: summary(out / f"{name}-seed-3" / "ledger.jsonl")["final_accuracy"] for name in ("random", "optimal")
    }
    assert "random, seed 3: cycle 1 of 1" in stderr
    assert {path: path.read_bytes() for path in before} == before


def test_of_a_comparison_only_what_has_not_ended_is_run(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, jobs = tmp_path / "out", {}
    for policy in ("random", "optimal", "greedy"):
        jobs[f"{policy}, seed 3"] = Scenario.load(scenario, [f'alignment.policy="{policy}"', "train.cycles=1"])
    ended(scenario, out, "random", "greedy")
    (out / "greedy-seed-3" / "model" / "config.json").write_text("damaged since")
    asked: list[str] = []

    def made(left: Mapping[str, Scenario], *_: Any) -> dict[str, Any]:
        asked.extend(left)
        return {name: {"made": name} for name in left}

    monkeypatch.setattr("fedexperts.runs.parallel._run_all", made)
    found = run_many(jobs, out, resume=True)
    assert asked == ["optimal, seed 3", "greedy, seed 3"]
    assert list(found) == list(jobs)
    assert found["random, seed 3"] == summary(out / "random-seed-3" / "ledger.jsonl")
    assert found["greedy, seed 3"] == {"made": "greedy, seed 3"}


@pytest.mark.slow
def test_what_a_reader_should_know_of_runs_is_said_once(
    scenario: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(jobs: Mapping[str, Scenario], out: Path, **_: Any) -> dict[str, Any]:
        return {name: run(job, out / folder(name)).summary | {"warnings": ["the plan ended"]} for name, job in jobs.items()}

    monkeypatch.setattr("fedexperts.runs.grid.run_many", short)
    words = ["--policy", "random,greedy", "--seeds", 2, "--set", "train.cycles=1"]
    code, stdout, stderr = call(scenario, *words, "--out", tmp_path / "out", "--json")
    assert (code, stderr.count("the plan ended")) == (0, 1)
    assert "warning: random and 1 more: the plan ended" in stderr
    assert json.loads(stdout)["policies"]["random"]["warnings"] == ["the plan ended"]


@pytest.mark.usefixtures("here")
def test_results_on_text_have_baselines_beside_them(tmp_path: Path, call: Any) -> None:
    text.saved(tmp_path / "model")
    rows = [{"text": f"{a} {b}", "label": a} for a in ("good", "bad") for b in ("film", "day", "food", "song")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clusters = [{"name": name, "data": "rows.jsonl", "test": "rows.jsonl"} for name in ("a", "b")]
    document = {"name": "text", "model": {"path": "model"}, "task": {"text": "text"}, "cluster": clusters}
    path = tmp_path / "text.toml"
    path.write_text(tomli_w.dumps(document | {"train": {"cycles": 1}, "evaluation": {"validation": 0.0}}))
    code, stdout, _ = call(path, "--protocol", "sync", "--out", tmp_path / "out")
    assert code == 0
    lines = [line.split() for line in stdout.splitlines()]
    assert ["majority", "50.0%", "50.0%"] in lines
    assert ["TF-IDF", "100.0%", "100.0%"] in lines
    code, stdout, _ = call(path, "--protocol", "sync", "--out", tmp_path / "json", "--json")
    row = json.loads(stdout)["protocols"]["sync"]
    assert row["baselines"] == {name: {"majority": 0.5, "tfidf": 1.0} for name in ("a", "b")}
    assert set(row["accuracy_by_cluster"]) == {"a", "b"}
    assert row["by_seed"]["accuracy_by_cluster"] == [row["accuracy_by_cluster"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "balanced,bogus"], "alignment.policy = 'bogus'"),
        (["--policy", "balanced", "--protocol", "sync"], "--protocol and --policy: give one of them"),
        (["--policy", "balanced,balanced"], "balanced: is given twice"),
        (["--protocol", "sync,bogus"], "protocol = 'bogus'"),
        (["--seeds", "0"], "0 is not in the range"),
        (["--set", 'protocol="ems-fl"'], "name what to compare"),
        (["--policy", "random"], "already holds files; add --resume"),
        (["--policy", "random", "--resume"], "holds a run of another scenario"),
    ],
)
def test_wrong_input_is_refused_before_any_work(
    words: list[str], message: str, scenario: Path, tmp_path: Path, call: Any
) -> None:
    out = tmp_path / "out"
    if "already" in message or "another" in message:
        kept = out / "random-seed-3" / "scenario.toml"
        kept.parent.mkdir(parents=True)
        kept.write_text("of another run\n")
    before = sorted(out.rglob("*"))
    code, stdout, stderr = call(scenario, *words, "--out", out)
    assert code == 2
    assert stdout == ""
    assert message in stderr
    assert sorted(out.rglob("*")) == before


@pytest.mark.usefixtures("forked")
def test_what_clients_cannot_carry_ends_a_worker_with_one_message(scenario: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "out"
    code, stdout, stderr = call(scenario, "--policy", "optimal", "--out", out, "--set", "alignment.min_load=4")
    assert code == 2
    assert stdout == ""
    assert "alignment.min_load = 4: 4 experts would need 16 places" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_killed_and_resumed_it_ends_as_if_nothing_had_been(scenario: Path, tmp_path: Path, call: Any) -> None:
    out, ledger = tmp_path / "out", tmp_path / "out" / "random-seed-3" / "ledger.jsonl"
    words = [scenario, "--policy", "random", "--set", "train.cycles=20"]
    streams = {"out": tmp_path / "stdout", "err": tmp_path / "stderr"}
    process = start_program("compare", *words, "--out", out, folder=tmp_path, **streams)
    try:
        deadline = time.monotonic() + 300
        while not (ledger.exists() and b'"cycle":2' in ledger.read_bytes()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    deadline = time.monotonic() + 60
    while is_held(ledger.parent):
        assert time.monotonic() < deadline, "the worker has outlived its parent"
        time.sleep(0.02)
    assert call(*words, "--out", out, "--resume", "--json")[0] == 0
    run(Scenario.load(scenario, ["train.cycles=20", 'alignment.policy="random"']), tmp_path / "whole")
    assert ledger.read_bytes() == (tmp_path / "whole" / "ledger.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("always::fedexperts.errors.InputWarning")
def test_what_workers_warn_of_is_shown_once_and_as_messages_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"input_ids": [1, 2 + n], "label": 1 + n % 2} for n in range(20)]  # classes from 1
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cluster = [{"name": "a", "data": "x.jsonl", "test": "x.jsonl"}, {"name": "b", "data": "x.jsonl", "test": "x.jsonl"}]
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(small.document(cluster=cluster, train={"cycles": 1})))
    words = ["compare", str(path), "--protocol", "sync,ems-fl", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["fedexperts", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    stderr = capfd.readouterr().err  # the workers' too
    assert stderr.count("warning: labels of all clusters: 0 never occurs") == 1
    assert "InputWarning" not in stderr
    assert ".py:" not in stderr


def row(**values: Any) -> dict[str, Any]:
    keys = ("final_accuracy", "personal_accuracy", "rounds_to_target", "rounds_to_plateau", "load_cv", "load_cv_by_round")
    found = {**dict.fromkeys((*keys, "uplink_B", "steps")), **{key: given[1] for key, given in values.items()}}
    return {**found, "by_seed": {key: values[key][0] if key in values else [None] * 3 for key in found}}


def test_a_comparison_of_seeds_fits_a_terminal_of_80_columns() -> None:
    both = {
        "uplink_B": ([123.4e6, 234.5e6, 345.6e6], 234.5e6),
        "steps": ([12345, 23456, 34567], 23456),
        "personal_accuracy": ([0.11, 0.22, 0.33], 0.22),
    }
    rows = {
        "balanced": row(final_accuracy=([0.1, 0.25, 0.3], 0.25), rounds_to_target=([4, 7, None], 7), **both),
        "optimal": row(final_accuracy=([0.2, 0.2, 0.2], 0.2), rounds_to_target=([4, None, None], None), **both),
    }
    text = printed(comparison_table(rows, 0.5))
    assert "…" not in text
    assert "10.0–30.0" in text
    assert re.search(r" 4– ", text)  # one seed never got there
    assert "123.4–345.6" in text
    assert "load CV" not in text  # no run has one


def test_many_clients_are_shown_by_their_spread() -> None:
    accuracy = {f"city/{i}": i / 20 for i in range(20)}
    summary = {"accuracy_by_cluster": accuracy, "personal_by_client": {c: v / 2 for c, v in accuracy.items()}, "baselines": {}}
    text = printed(accuracy_table({"aligned": summary}))
    assert "20 clients" in text
    assert "aligned, personalised" in text
    assert "city/19" in text
    assert "city/7" not in text
    few = {"accuracy_by_cluster": {"a": 0.5, "b": 0.25}, "baselines": {}}
    assert "50.0%" in printed(accuracy_table({"sync": few}))


def test_folders_of_runs_are_plain_names() -> None:
    assert folder("algorithm-1, seed 3") == "algorithm-1-seed-3"
