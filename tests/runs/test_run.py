"""Whole runs on a tiny Mixtral: the run directory, determinism, resuming after a kill, and bad input."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import fedexperts.method.methods
import fedexperts.runs.run
import fedexperts.setup.prepare
import small
from fedexperts import InputError, run
from fedexperts.data.digits import DOMAINS
from fedexperts.data.source import load
from fedexperts.ledger import read
from fedexperts.runs.run import Result
from marks import some_slow
from processes import exit_code, run_until, started

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

OVERLAPPING = {
    "contacts": [
        {
            "cluster": name,
            "start_s": k * 90 + 40 * i,
            "end_s": k * 90 + 40 * i + 80,
            "uplink_bps": 2e4,
            "downlink_bps": 1e5,
        }
        for k in range(6)
        for i, name in enumerate(("plain", "inverted"))
    ]
}


def write_scenario(folder: Path, **tables) -> Path:
    (folder / "plan.json").write_text(json.dumps(OVERLAPPING))
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(small.document(**tables)))
    return path


def files(directory: Path) -> tuple[bytes, bytes]:
    return (directory / "ledger.jsonl").read_bytes(), (directory / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run with EMS-FL, for those who read it."""
    return run(small.scenario(), tmp_path_factory.mktemp("finished") / "run", protocol="ems-fl")


@pytest.mark.parametrize("protocol", ["sync", "ems-fl", "ems-fl-enhanced"])
def test_same_seed_same_bytes(protocol: str, tmp_path: Path) -> None:
    scenario = small.scenario(protocol=protocol)
    for name in ("first", "second"):
        run(scenario, tmp_path / name)
    assert files(tmp_path / "first") == files(tmp_path / "second")
    run(scenario.changed(seed=4), tmp_path / "other")
    assert files(tmp_path / "first") != files(tmp_path / "other")


def test_the_final_model_loads_with_plain_transformers(finished: Result) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(finished.directory / "model").eval()
    test = load("digits:plain", Path(), seed=3).test
    assert test is not None
    with torch.no_grad():
        right = (model(test["input_ids"]).logits.argmax(-1) == test["labels"]).float().mean()
    assert float(right) == pytest.approx(finished.summary["accuracy_by_cluster"]["plain"], abs=1e-6)


def test_ems_fl_leaves_the_backbone_alone_and_sync_moves_every_expert(finished: Result) -> None:
    initial = fedexperts.method.methods.prepare(small.scenario()).view.model.state_dict()
    final = load_file(finished.directory / "model" / "model.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(finished.directory / "model").state_dict()
    changed = {name for name in initial if not torch.equal(initial[name], model[name])}
    assert changed
    assert all(".mlp.experts." in name or ".mlp.gate." in name for name in changed)
    assert final
    assert sorted(m for group in finished.summary["assignment"].values() for m in group) == [0, 1, 2, 3]


DENSE_BELOW = {"num_hidden_layers": 2, "mlp_only_layers": [0], "num_experts": 4, "moe_intermediate_size": 16}
KINDS: dict[str, dict[str, Any]] = {
    "round-robin": {},
    "file": {"plan": {"kind": "file", "path": "plan.json"}, "train": {"seconds_per_round": 20.0}},
    # weights under adapters are in no checkpoint: they are made again, warm-up included
    "refactor": {
        "model": {"lora": {"rank": 2, "alpha": 4.0}, "uplink": "int8"},
        "warmup": {"data": [f"digits:{name}" for name in DOMAINS[:2]], "steps": 3},
    },
    "ranks by class": {
        "protocol": "sync",
        "plan": {"kind": "always-on"},  # a version is at both clusters at once
        "model": {"lora": {"rank": 2, "alpha": 4.0}},
        "device": {"phone": {"lora_rank": 1}},
        "cluster": [
            {"name": name, "devices": 2, "data": f"digits:{name}", "device": kind}
            for name, kind in zip(DOMAINS[:2], ("phone", "laptop"), strict=True)
        ],
    },
    "merge": {"model": {"lora": {"rank": 2, "alpha": 4.0, "average": "merge"}}},
    # what the dense layer puts out is in no checkpoint either
    "frozen layers": {"model": {"config": {**small.CONFIG, "model_type": "qwen3_moe", **DENSE_BELOW}}},
}


@pytest.mark.parametrize("kind", some_slow(KINDS, ["merge", "frozen layers", "file", "ranks by class"]))
def test_kill_9_at_any_instant_then_resume_is_identical(kind: str, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, **KINDS[kind])
    run(scenario, tmp_path / "whole")
    lines = list(read(tmp_path / "whole" / "ledger.jsonl"))
    open_contact = [i + 1 for i, x in enumerate(lines) if x["event"] in ("send", "collect", "train", "aggregate")]
    chosen = random.Random(kind).sample(open_contact, 2)
    for number in chosen:
        out = tmp_path / f"killed-{number}"
        assert exit_code(started(run_until, scenario, out, False, number)) == -signal.SIGKILL
        assert not (out / "model").exists()
        run(scenario, out, resume=True)
        assert files(out) == files(tmp_path / "whole"), f"killed at ledger line {number}"


@pytest.mark.slow
def test_kill_9_from_outside_at_random_times(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path, train={"cycles": 6})
    run(scenario, tmp_path / "whole")
    rng, kills = random.Random(0), 0
    out = tmp_path / "killed"
    for _ in range(4):
        process = started(run_until, scenario, out, (out / "scenario.toml").exists())
        while not (out / "ledger.jsonl").exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        kills += exit_code(process) == -signal.SIGKILL
    assert kills >= 1
    run(scenario, out, resume=True)
    assert files(out) == files(tmp_path / "whole")


def test_resuming_another_scenario_is_refused(finished: Result, tmp_path: Path) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    with pytest.raises(InputError, match="another scenario"):
        run(small.scenario(train={"local_steps": 5}), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="already holds files"):
        run(small.scenario(), tmp_path / "run")
    with pytest.raises(InputError, match="no run to resume"):
        run(small.scenario(), tmp_path / "none", resume=True)


def test_resuming_a_finished_run_returns_it_and_loads_nothing(
    finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    monkeypatch.setattr(fedexperts.runs.run, "ready", None)
    assert run(small.scenario(), tmp_path / "run", resume=True).summary == finished.summary


def test_every_phase_of_training_says_what_it_began_with(finished: Result) -> None:
    first, *lines = read(finished.directory / "ledger.jsonl")
    assert first["links"] == "clusters"
    trained = [line for line in lines if line["event"] == "train"]
    assert trained
    assert all(0 < line["loss"] < 10 for line in trained)
    assert not any("goal" in line for line in trained)
    history = finished.summary["history"]
    assert set(history[1]["training_loss"]["task"]) == {"plain", "inverted"}


BAD = {
    "K above M": ({"model": {"config": {**small.CONFIG, "num_experts_per_tok": 5}}}, "num_experts_per_tok = 5"),
    "a label the head lacks": ({"model": {"config": {**small.CONFIG, "num_labels": 5}}}, r"label 5 is outside 0…4"),
    "a token the vocabulary lacks": (
        {"model": {"config": {**small.CONFIG, "vocab_size": 100, "pad_token_id": 0}}},
        "vocabulary of 100"),
    "an unknown model type": ({"model": {"config": {"model_type": "nonsense"}}}, "nonsense"),
    "a missing checkpoint": ({"model": {"path": "nowhere", "config": None}}, "no config.json"),
    "an unknown domain": ({"cluster": [{"name": "a", "devices": 1, "data": "digits:upside"}]}, "unknown domain"),
    "missing data": ({"cluster": [{"name": "a", "devices": 1, "data": "none.jsonl"}]}, "cannot be read"),
    "more devices than samples": ({"cluster": [{"name": "a", "devices": 5000, "data": "digits:plain"}]}, "devices = 5000"),
    "a dense model": (
        {"model": {"config": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                              "num_attention_heads": 2, "vocab_size": 6000, "num_labels": 10, "pad_token_id": 0}}},
        "no Mixture-of-Experts layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_anything_is_written(case: str, tmp_path: Path) -> None:
    tables, message = BAD[case]
    document = small.document(**tables)
    document["model"] = {k: v for k, v in document["model"].items() if v is not None}
    with pytest.raises(InputError, match=message):
        run(fedexperts.Scenario.parse(document), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_empty_data_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    scenario = write_scenario(tmp_path, cluster=[{"name": "a", "devices": 1, "data": "empty.jsonl", "test": "empty.jsonl"}])
    with pytest.raises(InputError, match="holds no samples"):
        run(scenario, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("granularity", ["global", "layer"])
def test_ratios_agree_with_a_sum_by_hand(granularity: str) -> None:
    """α of a cluster is the mean over layers of its own experts' share of its picks (decision 18)."""
    scenario = small.scenario(assignment={"granularity": granularity})
    prepared = fedexperts.method.methods.prepare(scenario)
    counts = fedexperts.setup.prepare.counted(prepared.trials())
    owned = fedexperts.method.owners.split_experts(scenario, counts)
    report = fedexperts.method.owners.assignment_report(scenario, counts, owned)
    for name, (counts_LM, _) in counts.items():
        shares_LM = counts_LM / counts_LM.sum(axis=1, keepdims=True)
        mine = [str(label).rpartition(".") for label in report["assignment"][name]]
        alpha = sum(shares_LM[int(ell), int(m)] if ell else shares_LM[:, int(m)].sum() for ell, _, m in mine) / len(counts_LM)
        assert report["alpha"][name] == pytest.approx(alpha, abs=1e-5)
