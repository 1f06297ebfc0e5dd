"""Whole runs with adapters, coded uploads and other precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import small
from fedexperts import InputError, run
from fedexperts.data.objective import evaluate
from fedexperts.ledger import read
from fedexperts.method.methods import prepare
from fedexperts.moe.view import View
from plans import planned_B

LORA = {"rank": 4, "alpha": 8.0}
QUICK = {"train": {"cycles": 2, "local_steps": 2, "batch_size": 8, "lr_expert": 1e-2}}


def model(**changes: Any) -> dict[str, Any]:
    return {"config": small.CONFIG, **changes}


@pytest.mark.parametrize("average", ["refactor", "merge", "factors"])
@pytest.mark.parametrize("protocol", ["sync", "ems-fl", "ems-fl-enhanced"])
def test_runs_with_adapters(protocol: str, average: str, tmp_path: Path) -> None:
    scenario = small.scenario(model=model(lora={**LORA, "average": average}), protocol=protocol, train={"cycles": 2})
    result = run(scenario, tmp_path / "run")
    lines = list(read(tmp_path / "run" / "ledger.jsonl"))
    numbers = 2 * 4 * 3 * (16 + 16)  # layers · rank · projections · (in + out)
    upload_B = lines[0]["upload_B"]["expert:0"]
    assert 2 * numbers < upload_B < 2 * numbers + 2000
    collected = [x for x in lines if x["event"] == "collect" and x["parts"] == ["expert:0"]]
    assert all(x["uplink_B"] == 2 * upload_B for x in collected)  # two devices
    aggregated = [x for x in lines if x["event"] == "aggregate" and x["part"].startswith("expert")]
    assert aggregated
    assert all(("truncation" in x) is (average == "refactor") for x in aggregated)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert saved.config.num_local_experts == 4
    assert result.summary["final_accuracy"] == lines[-1]["accuracy"]


def test_the_saved_model_holds_what_the_adapters_learnt(tmp_path: Path) -> None:
    scenario = small.scenario(model=model(lora=LORA), **QUICK)
    result = run(scenario, tmp_path / "run")
    prepared = prepare(scenario)
    saved = View(AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model"))
    accuracy = evaluate(saved, prepared.objectives, prepared.tests.own)["accuracy"]
    assert accuracy == pytest.approx(result.summary["final_accuracy"], abs=0.02)
    assert any(not torch.equal(saved.parts["expert:0"][n], t) for n, t in prepared.view.parts["expert:0"].items())


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8"])
def test_the_codec_decides_the_bytes(codec: str, tmp_path: Path) -> None:
    scenario = small.scenario(model=model(uplink=codec), **QUICK)
    lines = list(read(run(scenario, tmp_path / "run").directory / "ledger.jsonl"))
    upload_B, parts_B = lines[0]["upload_B"]["expert:0"], lines[0]["parts_B"]["expert:0"]
    numbers = 2 * 3 * 16 * 16
    width = {"exact": 4, "bf16": 2, "int8": 1}[codec]
    assert width * numbers < upload_B < width * numbers + 1200
    assert parts_B > 4 * numbers
    assert planned_B(scenario) == 2 * upload_B + lines[0]["upload_B"]["gate"]  # two experts each


@pytest.mark.parametrize("changes", [{"lora": LORA}, {"precision": "bfloat16", "uplink": "exact"}, {"uplink": "int8"}])
def test_a_plan_knows_the_upload_from_the_config_alone(changes: dict[str, Any]) -> None:
    scenario = small.scenario(model=model(**changes))
    prepared = prepare(scenario)
    prepared.begin()
    device = next(iter(small.devices(prepared).values()))[0]
    assert planned_B(scenario) == 2 * device.upload_B("expert:0") + device.upload_B("gate")


def test_bf16_weights_run_and_are_saved_as_such(tmp_path: Path) -> None:
    scenario = small.scenario(model=model(precision="bfloat16", lora=LORA), **QUICK)
    run(scenario, tmp_path / "run")
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model", dtype="auto")
    assert saved.dtype == torch.bfloat16


def test_a_rank_above_the_dimensions_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.lora\.rank = 17: must be at most 16"):
        run(small.scenario(model=model(lora={"rank": 17, "alpha": 1.0})), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.accelerator = 'cuda': no GPU .* use \"cpu\""):
        run(small.scenario(model=model(accelerator="cuda")), tmp_path / "run")
