"""``fedexperts compare`` with --grid and --tune on real runs: what is chosen, left alone, diverges or is half there."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import small
from fedexperts import Scenario
from fedexperts.ledger import summary
from fedexperts.runs import parallel
from fedexperts.runs.run import run
from processes import fork_instead_of_spawning
from terminal import fedexperts

GRID = ("--grid", "train.lr_expert=1e-3,3e-2")


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(small.document(train={"cycles": 1, "local_steps": 1}, evaluation={"target": 0.9})))
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    fork_instead_of_spawning(monkeypatch)  # what is spawned costs seconds of imports
    return partial(fedexperts, monkeypatch, capsys, "compare")


def ends(out: Path) -> dict[str, dict[str, Any]]:
    return {at.parent.name: summary(at) for at in sorted(out.glob("*/ledger.jsonl"))}


def test_each_protocol_is_tuned_by_validation_data_and_run_with_its_best(
    scenario: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = (scenario, "--protocol", "sync,ems-fl", *GRID, "--tune", 1, "--baseline", "ems-fl", "--jobs", 2, "--out", out)
    code, stdout, stderr = call(*words, "--json")
    assert code == 0, stderr
    found, runs = json.loads(stdout), ends(out)
    assert len(runs) == 2 * 2 + 2
    assert [run["seed"] for name, run in runs.items() if name.startswith("tuning-")] == [4] * 4
    for name in ("sync", "ems-fl"):
        scores = {
            rate: runs[f"tuning-{name}-train.lr-expert-{rate}-seed-4"]["history"][-1]["accuracy"] for rate in ("1e-3", "3e-2")
        }
        best = max(scores, key=lambda rate: scores[rate])
        assert found["tuned"]["chosen"][name] == {"train.lr_expert": best}
        assert [cell["score"] for cell in found["tuned"]["cells"][name]] == list(scores.values())
        kept = Scenario.load(out / f"{name}-seed-3" / "scenario.toml")
        assert (kept.seed, kept.train.lr_expert) == (3, float(best))
        assert found["protocols"][name]["by_seed"]["seed"] == [3]
    assert found["baseline"] == "ems-fl"
    assert found["protocols"]["ems-fl"]["paired"] == {}
    difference = runs["sync-seed-3"]["final_accuracy"] - runs["ems-fl-seed-3"]["final_accuracy"]
    assert found["protocols"]["sync"]["paired"]["final_accuracy"]["difference"] == difference
    assert found["protocols"]["sync"]["not_reached"]["joules_to_target"] == 1
    assert (out / "report.html").stat().st_size > 1000

    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", refuse)
    code, again, _ = call(*words, "--resume", "--json")
    assert (code, json.loads(again)) == (0, found)
    code, table, _ = call(*words, "--resume")
    assert "tuned on validation data, seeds 4, higher is better" in " ".join(table.split())
    assert table.count("*") >= 2
    assert "difference from ems-fl" in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.slow
def test_values_that_diverge_lose_and_do_not_end_the_comparison(scenario: Path, tmp_path: Path, call: Any) -> None:
    falling = ("--set", "train.optimizer=sgd", "--set", "train.weight_decay=1")  # weights grow by the rate in every step
    words = (scenario, "--protocol", "sync", "--grid", "train.lr_expert=1e-3,1e6", *falling)
    code, stdout, stderr = call(*words, "--tune", 1, "--out", tmp_path / "out", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)["tuned"]
    assert [cell["score"] is None for cell in found["cells"]["sync"]] == [False, True]
    assert found["chosen"] == {"sync": {"train.lr_expert": "1e-3"}}
    code, stdout, stderr = call(*words, "--out", tmp_path / "plain")
    assert (code, stdout) == (1, "")
    assert "sync-train.lr-expert-1e6-seed-3: " in stderr  # a run that is to be reported ends all, and is named
    assert "diverged" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_a_run_that_is_half_there_is_made_whole(scenario: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "out"
    words = (scenario, "--protocol", "sync", *GRID, "--out", out)
    assert call(*words)[0] == 0
    half, other = (out / f"sync-train.lr-expert-{rate}-seed-3" for rate in ("1e-3", "3e-2"))
    whole = (half / "ledger.jsonl").read_bytes()
    (half / "ledger.jsonl").write_bytes(whole[: len(whole) // 2])  # within a line
    (half / "SHA256SUMS").unlink()
    for name in ("model", "checkpoints"):
        shutil.rmtree(half / name)
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*") if path.is_file()}
    code, _, stderr = call(*words, "--resume")
    assert code == 0, stderr
    assert (half / "ledger.jsonl").read_bytes() == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_seeds_run_in_a_seeds_folder_is_refused(scenario: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "out"
    run(Scenario.load(scenario, ["seed=3", "protocol=sync"]), out / "sync-seed-3")
    shutil.copytree(out / "sync-seed-3", out / "sync-seed-4")
    code, stdout, stderr = call(scenario, "--protocol", "sync", "--seeds", 2, "--out", out, "--resume")
    assert (code, stdout) == (2, "")
    assert "sync-seed-4: holds a run of another scenario or protocol (seed = 3 there, 4 here)" in " ".join(stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--grid", "train.lr_expret=1"), "train.lr_expret: unknown key; did you mean lr_expert"),
        (("--grid", "train.lr_expert"), "--grid train.lr_expert: must look like section.key=value,value"),
        (("--grid", "train.lr_expert="), "--grid train.lr_expert=: must look like"),
        (("--grid", "train.lr_expert=1e-3,,1e-2"), "value 2 is empty"),
        (("--grid", "train.lr_expert=1e-3,"), "value 2 is empty"),
        (("--grid", "train.lr_expert=1", "--grid", "train.lr_expert=2"), "train.lr_expert is given twice"),
        (("--grid", "train.lr_expert=1e-3,-5"), "train.lr_expert = -5: input should be greater than"),
        (("--tune", "1"), "--tune: needs --grid"),
        (("--tune", "1", *GRID, "--set", "evaluation.validation=0"), "evaluation.validation = 0: --tune chooses by"),
        (("--baseline", "aligned"), "--baseline aligned: is none of what is compared; choose from sync"),
        (("--jobs", "0"), "0 is not in the range"),
        (("--jobs", "2", "--ray", "local"), "leave out --jobs or --ray"),
    ],
)
def test_wrong_grids_are_refused_before_any_work(
    words: tuple[str, ...], message: str, scenario: Path, tmp_path: Path, call: Any
) -> None:
    code, stdout, stderr = call(scenario, "--protocol", "sync", *words, "--out", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert message in " ".join(stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_networked_moes_tables_have_no_grid(scenario: Path, tmp_path: Path, call: Any) -> None:
    document = small.document(
        protocol="networked", task={"kind": "image"}, networked={"extractor_cycles": 1, "expert_cycles": 1}
    )
    document["train"]["cycles"] = 2 + document["networked"].setdefault("gate_cycles", 1)
    scenario.write_text(tomli_w.dumps(document))
    code, _, stderr = call(scenario, *GRID, "--out", tmp_path / "out")
    assert code == 2
    assert "name --protocol networked" in " ".join(stderr.split())


def test_so_many_processes_as_asked_for(scenario: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count(processes: int, *_: Any) -> None:
        asked.append(processes)
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", count)
    for jobs in ("1", "2", "50"):
        assert call(scenario, "--protocol", "sync", "--seeds", 3, "--jobs", jobs, "--out", tmp_path / jobs)[0] == 130
    assert asked == [1, 2, 3]  # at most one for each run
