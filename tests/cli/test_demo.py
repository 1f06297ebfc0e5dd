"""The demo as a stranger runs it, whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

import small

PROGRAM = [sys.executable, "-c", "from fedexperts.cli.main import main; main()"]


@pytest.mark.slow
def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*PROGRAM, "demo", "--out", "demo", "--json"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["protocols"]
    gamma = rows["ems-fl"]["gamma"].values()
    assert min(gamma) >= 2
    assert max(rows["ems-fl, γ ≈ 1"]["gamma"].values()) < 1.5
    assert rows["ems-fl"]["cycles_to_target"] < rows["sync"]["cycles_to_target"]
    assert rows["ems-fl"]["uplink_B_to_target"] < rows["sync, C rounds"]["uplink_B_to_target"]
    assert rows["ems-fl, γ ≈ 1"]["steps_to_target"] > rows["sync, γ ≈ 1"]["steps_to_target"]
    starts = {name: row["history"][0]["accuracy"] for name, row in rows.items() if "γ" not in name}
    assert len(set(starts.values())) == 1, "every protocol starts from the same model"
    assert (tmp_path / "demo" / "report.html").stat().st_size > 1e6
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "demo" / "ems-fl" / "model")


def test_the_start_of_all_runs_can_be_read_like_any_new_file(tmp_path: Path) -> None:
    from fedexperts.cli.demo import warmed_up

    scenario = small.scenario(warmup={"data": ["digits:plain"], "samples": 20, "steps": 1})
    jobs = warmed_up(scenario, {"sync": scenario}, tmp_path)
    assert jobs["sync"].model.path == str(tmp_path / "initial")
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "initial").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}


@pytest.mark.slow
def test_a_central_run_learns_the_demos_task() -> None:
    """The task is learnable: all data in one place reach 85 % with the same trainable parts."""
    import torch

    from fedexperts.cli.demo import demo_scenario
    from fedexperts.data.classify import Classification
    from fedexperts.data.objective import evaluate
    from fedexperts.data.source import load, pool
    from fedexperts.method.methods import prepare
    from fedexperts.moe.parts import Piece
    from fedexperts.train.device import Device, LocalTraining
    from fedexperts.train.task import Task

    scenario = demo_scenario()
    prepared = prepare(scenario)
    prepared.begin()
    pooled = pool([load(c.data, scenario.base, scenario.seed).train for c in scenario.cluster])
    model = {part: Piece(part, 0, prepared.view.export(part)) for part in prepared.view.parts}
    local = LocalTraining(local_steps=400, batch_size=32, optimizer="adamw", lr_expert=1e-3, lr_gate=1e-3)
    central = Device("central", prepared.view, pooled, model, local, seed=0, objective=Classification(0, 10))
    torch.set_num_threads(1)
    central.train(Task(frozenset(p for p in model if p == "gate" or p.startswith("expert"))), rounds=1)
    facts = evaluate(prepared.view, prepared.objectives, prepared.tests.own)
    assert facts["accuracy"] >= 0.85


@pytest.mark.parametrize("name", ["ems-fl", "sync", "sync, C rounds"])
def test_a_control_differs_from_its_run_in_who_holds_what(name: str) -> None:
    from fedexperts.cli.demo import TUNED, demo_jobs, demo_scenario
    from fedexperts.data.digits import DOMAINS, MIXTURES

    jobs = demo_jobs(demo_scenario())
    one, control = (jobs[key].model_dump() for key in (name, f"{name}, γ ≈ 1"))
    assert [cluster.pop("data") for cluster in one["cluster"]] == [f"digits:{domain}" for domain in DOMAINS]
    assert [cluster.pop("data") for cluster in control["cluster"]] == [f"digits:{mixture}" for mixture in MIXTURES]
    for key, document in ((name, one), (f"{name}, γ ≈ 1", control)):
        assert {rate: document["train"].pop(rate) for rate in ("lr_expert", "lr_gate")} == TUNED[key]
    assert one == control
