"""``fedexperts try``: answers and labels, before and after tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import pictures
import small
import text
from fedexperts import InputError, Scenario, run
from fedexperts.cli.main import app
from fedexperts.moe.auto import new_model

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

ROWS = [{"text": f"{a} {b}", "label": a} for a in ("good", "bad") for b in ("film", "day", "food", "song")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text.saved(tmp_path / "start")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def finished(folder: Path, kind: str) -> Path:
    document = {
        "name": "text",
        "seed": 1,
        "model": {"path": "start"},
        "task": {"kind": kind, "text": "text"},
        "train": {"cycles": 2, "batch_size": 4, "lr_expert": 0.1, "lr_gate": 0.1},
        "assignment": {"trial_samples": 4},
        "cluster": [{"name": name, "data": "rows.jsonl", "test": "rows.jsonl"} for name in ("a", "b")],
    }
    return run(Scenario.parse(document, folder), folder / "run").directory


def tried(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    app(["try", *map(str, arguments), "--json"], standalone_mode=False)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def greedy(model: Any, prompt: str, tokens: int) -> str:
    """One token after another, without a cache."""
    ids = text.tokenizer()(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        while ids.shape[1] < start + tokens and (ids.shape[1] == start or int(ids[0, -1]) != text.EOS):
            ids = torch.cat([ids, model.eval()(ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    found: str = text.tokenizer().decode(ids[0, start:], skip_special_tokens=True)
    return found


def test_a_run_answers_before_and_after(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = finished(folder, "causal-lm")
    (folder / "prompt.txt").write_text("bad day,\nbad\n")
    document = tried(capsys, directory, "--prompt", "good f", "--prompt-file", folder / "prompt.txt", "--max-new-tokens", "5")
    assert document["prompts"] == ["good f", "bad day,\nbad"]
    assert list(document["models"]) == [f"{directory}, before", str(directory)]
    for name, path in zip(document["models"], (folder / "start", directory / "model"), strict=True):
        expected = [{"text": greedy(AutoModelForCausalLM.from_pretrained(path), p, 5)} for p in document["prompts"]]
        assert document["models"][name]["answers"] == expected
    app(["try", str(folder / "start"), str(directory), "--prompt", "x"], standalone_mode=False)
    assert "before" in capsys.readouterr().out


def test_a_classifier_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = finished(folder, "classification")
    document = tried(capsys, directory, "--prompt", "good film")
    assert "no head for this task" in document["notes"][0]
    (answer,) = document["models"][str(directory)]["answers"]
    model = AutoModelForSequenceClassification.from_pretrained(directory / "model").eval()
    with torch.no_grad():
        shares = model(**text.tokenizer()("good film", return_tensors="pt")).logits[0].softmax(dim=-1)
    assert list(answer["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-5)
    assert answer["label"] == ["bad", "good"][int(shares.argmax())]


def test_models_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text.saved(folder / "other", "qwen3_moe")
    document = tried(capsys, folder / "start", folder / "other", "--prompt", "a", "--max-new-tokens", "2")
    assert list(document["models"]) == [str(folder / "start"), str(folder / "other")]
    assert document["notes"] == []


def without_tokenizer(folder: Path) -> list[str]:
    (folder / "start" / "tokenizer.json").unlink()
    return [str(folder / "start"), "--prompt", "x"]


def digits(folder: Path) -> list[str]:
    run(small.scenario(train={"cycles": 1}), folder / "run")
    return [str(folder / "run"), "--prompt", "x"]


def images(folder: Path) -> list[str]:
    new_model(pictures.CONFIG, 0, kind="image-classifier").save_pretrained(folder / "images")  # type: ignore[operator]
    return [str(folder / "images"), "--prompt", "x"]


def unfinished(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "scenario.toml").touch()
    return [str(folder / "run"), "--prompt", "x"]


def pickled(folder: Path) -> list[str]:
    (folder / "start" / "model.safetensors").rename(folder / "start" / "pytorch_model.bin")
    return [str(folder / "start"), "--prompt", "x"]


BAD = {
    "no prompt": (lambda folder: [str(folder / "start")], r"--prompt: is missing; give one or several"),
    "an empty prompt": (lambda folder: [str(folder / "start"), "--prompt", ""], r"--prompt '': has no tokens"),
    "a prompt without an end": (
        lambda folder: [str(folder / "start"), "--prompt-file", "/dev/zero"],
        r"--prompt-file = '/dev/zero': .*is not a regular file",
    ),
    "no such file": (
        lambda folder: [str(folder / "start"), "--prompt-file", "none"],
        r"--prompt-file = 'none': cannot be read",
    ),
    "no such model": (lambda folder: [str(folder / "none"), "--prompt", "x"], r"none.*no config\.json"),
    "no tokenizer": (without_tokenizer, r"no tokenizer can be loaded"),
    "no tokenizer in a run": (digits, r"no tokenizer can be loaded"),
    "images": (images, r"images: labels images, and a prompt is text; fedexperts eval .* --task SCENARIO\.toml judges it"),
    "a run that goes on": (unfinished, r"has not ended"),
    "a pickle": (pickled, r"start'.*: no safetensors file there; pytorch_model\.bin is a pickle, which is never loaded"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_answer(case: str, folder: Path) -> None:
    make, message = BAD[case]
    with pytest.raises(InputError, match=message):
        app(["try", *make(folder)], standalone_mode=False)
