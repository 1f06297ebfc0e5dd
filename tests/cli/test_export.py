"""``fedexperts export``: what other programs load computes what the run's model does."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import small
import text
from fedexperts import InputError, Scenario, run
from fedexperts.cli.main import app
from fedexperts.moe.peft import peft_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

ROWS = [{"text": f"{a} {b}", "label": a} for a in ("good", "bad") for b in ("film", "day", "food", "song")]
LORA = {"rank": 2, "alpha": 6.0}
TASKS = {"classification": {"text": "text"}, "causal-lm": {"kind": "causal-lm", "text": "text"}}
CLASSES = {"classification": AutoModelForSequenceClassification, "causal-lm": AutoModelForCausalLM}


def finished(folder: Path, kind: str, family: str = "mixtral", **tables: Any) -> Path:
    """A run through adapters with large steps, so that they are far from zero."""
    text.saved(folder / "start", family)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    document = {
        "name": "text",
        "seed": 1,
        "protocol": "ems-fl",
        "model": {"path": "start", "lora": LORA},
        "task": TASKS[kind],
        "train": {"cycles": 2, "batch_size": 4, "lr_expert": 0.1, "lr_gate": 0.1},
        "assignment": {"trial_samples": 4},
        "cluster": [{"name": name, "data": "rows.jsonl", "test": "rows.jsonl"} for name in ("a", "b")],
        **tables,
    }
    (folder / "scenario.toml").write_text(tomli_w.dumps(document))
    return run(Scenario.load(folder / "scenario.toml"), folder / "run").directory


def exported(capsys: pytest.CaptureFixture[str], directory: Path, form: str, to: Path) -> dict[str, Any]:
    app(["export", str(directory), "--format", form, "--to", str(to), "--json"], standalone_mode=False)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def logits(model: Any, vocabulary: int = text.PAD) -> torch.Tensor:
    ids = torch.randint(0, vocabulary, (4, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def with_peft(base: Any, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's own use of an old name
        return PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, family) for kind in TASKS for family in ("mixtral", "qwen3_moe")), ("causal-lm", "granitemoe")],
)
def test_peft_computes_what_the_run_ends_with(
    kind: str, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = finished(tmp_path, kind, family)
    document = exported(capsys, directory, "peft", tmp_path / "adapter")
    assert document["base"] == str(tmp_path / "start")
    labels = {"num_labels": 2} if kind == "classification" else {}
    start = CLASSES[kind].from_pretrained(document["base"], **labels)
    before = logits(start)
    ours = logits(CLASSES[kind].from_pretrained(directory / "model"))
    torch.testing.assert_close(logits(with_peft(start, tmp_path / "adapter")), ours, rtol=0, atol=1e-5)
    if kind == "causal-lm":  # a classifier's head was not there before
        assert (before - ours).abs().max() > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter")("x")["input_ids"]
    assert "num_labels=2" in document["load"] or kind == "causal-lm"


def test_after_a_warm_up_from_random_weights_the_base_is_the_runs_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warmup = {"data": ["digits:plain", "digits:inverted"], "steps": 3, "samples": 20}
    scenario = small.scenario(
        model={"config": small.CONFIG, "lora": LORA}, warmup=warmup, train={"cycles": 2, "lr_expert": 0.1}
    )
    directory = run(scenario.changed(assignment={"granularity": "layer"}), tmp_path / "run").directory
    document = exported(capsys, directory, "peft", tmp_path / "adapter")
    assert document["base"] == str(directory / "base")
    start = AutoModelForSequenceClassification.from_pretrained(document["base"])
    ours = logits(AutoModelForSequenceClassification.from_pretrained(directory / "model"), small.VOCABULARY - 1)
    assert (logits(start, small.VOCABULARY - 1) - ours).abs().max() > 1e-3
    found = logits(with_peft(start, tmp_path / "adapter"), small.VOCABULARY - 1)
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)


def test_a_merged_model_is_a_plain_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = finished(tmp_path, "causal-lm", model={"path": "start"})
    document = exported(capsys, directory, "merged", tmp_path / "merged")
    assert document["base"] is None
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert torch.equal(found, logits(AutoModelForCausalLM.from_pretrained(directory / "model")))
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("x")["input_ids"]
    assert not (directory / "adapters.safetensors").exists()


@pytest.mark.parametrize("form", ["merged", "peft"])
def test_new_files_have_the_permissions_of_new_files(form, tmp_path, capsys):
    directory = finished(tmp_path, "causal-lm")
    before = os.umask(0o027)
    try:
        exported(capsys, directory, form, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.suffix: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes[".safetensors"] == 0o640
    assert (directory / "adapters.safetensors").stat().st_mode & 0o777 == 0o666 & ~before


@pytest.mark.parametrize(("form", "file"), [("merged", "model/model.safetensors"), ("peft", "adapters.safetensors")])
def test_a_run_whose_training_went_wrong_is_not_exported(form, file, tmp_path):
    directory = finished(tmp_path, "causal-lm")
    tensors = load_file(directory / file)
    name = next(name for name in tensors if "experts" in name)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, directory / file)
    (directory / "SHA256SUMS").unlink()  # or it would be the wrong file before it is a wrong number
    with pytest.raises(InputError, match=rf"{file}: tensor '{name}' has 1 number that is not finite"):
        app(["export", str(directory), "--format", form, "--to", str(tmp_path / "to")], standalone_mode=False)
    assert not (tmp_path / "to").exists()


def test_a_name_in_brackets_is_shown_as_it_is(tmp_path, capsys):
    directory = finished(tmp_path, "causal-lm")
    app(["export", str(directory), "--format", "merged", "--to", str(tmp_path / "[bold]out")], standalone_mode=False)
    shown = capsys.readouterr()
    assert "/[bold]out: load it with" in shown.err
    assert "/[bold]out'" in shown.out


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "trained in full": ({"model": {"path": "start"}}, r"trained in full .* use --format merged"),
    "merged": ({"model": {"path": "start", "lora": {**LORA, "average": "merge"}}}, r"model\.lora\.average = 'merge'.*refactor"),
    "the backbone": (
        {"train": {"cycles": 2, "batch_size": 4, "shared": ["gate", "backbone"]}},
        r"train\.shared has 'backbone'.*use --format merged",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_runs_that_are_no_adapter(case: str, tmp_path: Path) -> None:
    tables, message = BAD[case]
    directory = finished(tmp_path, "causal-lm", **tables)
    with pytest.raises(InputError, match=message):
        app(["export", str(directory), "--format", "peft", "--to", str(tmp_path / "adapter")], standalone_mode=False)
    assert not (tmp_path / "adapter").exists()


def test_experts_of_our_own_layer_are_refused() -> None:
    adapter = {"bert.moe.experts.0.output.lora_A": torch.ones(2, 3), "bert.moe.experts.0.output.lora_B": torch.ones(4, 2)}
    with pytest.raises(InputError, match=r"bert\.moe\.experts\.0\.output: PEFT adapts fused experts .* --format merged"):
        peft_adapter({"expert:0": adapter}, rank=2, alpha=4.0)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    text.saved(tmp_path / "start")
    for folder, message in ((tmp_path / "start", "holds no scenario.toml"), (tmp_path / "none", "holds no scenario.toml")):
        with pytest.raises(InputError, match=message):
            app(["export", str(folder), "--format", "merged", "--to", str(tmp_path / "to")], standalone_mode=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "scenario.toml").touch()
    with pytest.raises(InputError, match=r"has not ended \(no model/\)"):
        app(["export", str(tmp_path / "run"), "--format", "merged", "--to", str(tmp_path / "to")], standalone_mode=False)
    (tmp_path / "run" / "model").mkdir()
    with pytest.raises(InputError, match=r"--to .*: already holds files; name another folder"):
        app(["export", str(tmp_path / "run"), "--format", "merged", "--to", str(tmp_path / "start")], standalone_mode=False)
