"""Runs of format 1, as they were written: read, reported, exported and judged; gone on with only where that was ever right."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import pictures
from fedexperts import InputError, run
from fedexperts.cli.main import app
from fedexperts.events import EVENTS, FORMAT
from fedexperts.ledger import read, summary
from fedexperts.lines import keys
from fedexperts.report.compare_html import write_comparison
from fedexperts.runs.comparison import medians
from fedexperts.runs.header import format_of

OLD = Path(__file__).resolve().parent.parent / "old_runs"
ENDED = {"sync": 0.106667, "ems-fl": 0.106667, "ems-fl-enhanced": 0.106667, "aligned": 0.112847, "networked": 0.294118}
"""Each with what it came to on test data."""
STOPPED = "ems-fl-stopped"


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an old run, with its scenario beside it: the paths in that start from the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(OLD / request.param / "scenario.toml", tmp_path / "scenario.toml")
    return Path(shutil.copytree(OLD / request.param, tmp_path / request.param))


def with_data(old: Path) -> Path:
    """Its scenario; reports and exports do without the data."""
    if old.name == "networked":
        pictures.npz(old.parent / "train.npz", 120)
        pictures.npz(old.parent / "test.npz", 60, seed=1)
    return old.parent / "scenario.toml"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    app([*command, "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_they_are_what_they_are_kept_for() -> None:
    assert {path.name for path in OLD.iterdir() if path.is_dir()} == {*ENDED, STOPPED}
    for name in (*ENDED, STOPPED):
        first, *_ = read(OLD / name / "ledger.jsonl")
        assert "format" not in first
        assert format_of(OLD / name) == 1


@pytest.mark.parametrize("old", ENDED, indirect=True)
def test_an_ended_run_is_read_reported_and_exported(old: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = files(old)
    found = summary(old / "ledger.jsonl")
    assert found["final_accuracy"] == pytest.approx(ENDED[old.name], abs=1e-6)
    assert found["protocol"] == old.name
    assert found["history"]
    for line in read(old / "ledger.jsonl"):  # nothing but the format has come to the table since
        assert any(least - {"format"} <= line.keys() and line.keys() - {"t_s", "event"} <= most
                   for least, most in map(keys, EVENTS[line["event"]]))  # fmt: skip
    assert printed(capsys, "report", str(old), "--out", str(tmp_path / "page.html"))["protocols"][old.name] == found
    assert old.name in (tmp_path / "page.html").read_text()
    write_comparison({old.name: [old]}, medians({old.name: [found]}), tmp_path / "compared.html", "old")
    assert "<table" in (tmp_path / "compared.html").read_text()
    assert printed(capsys, "export", str(old), "--format", "merged", "--to", str(tmp_path / "merged"))["base"] is None
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (old / "model" / "model.safetensors").read_bytes()
    assert files(old) == before


@pytest.mark.parametrize("old", ENDED, indirect=True)
def test_an_ended_run_is_judged_as_it_judged_itself(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "eval", str(old), "--task", str(with_data(old)))
    if old.name in ("sync", "ems-fl", "ems-fl-enhanced"):
        assert found["accuracy"] == pytest.approx(ENDED[old.name], abs=1e-6)
    else:  # theirs is judged client by client, on other shares of the test data
        assert 0 <= found["accuracy"] <= 1


@pytest.mark.parametrize("old", ENDED, indirect=True)
def test_resuming_an_ended_run_gives_its_summary_and_changes_nothing(old: Path) -> None:
    before = files(old)
    result = run(with_data(old), old, resume=True)
    assert result.summary == summary(OLD / old.name / "ledger.jsonl")
    assert files(old) == before


@pytest.mark.parametrize("old", ["ems-fl"], indirect=True)
def test_adapters_of_an_old_run_load_beside_its_base(old: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = printed(capsys, "export", str(old), "--format", "peft", "--to", str(tmp_path / "peft"))
    assert Path(found["base"]).resolve() == (old / "base").resolve()
    base = AutoModelForSequenceClassification.from_pretrained(found["base"], num_labels=10)
    ours = AutoModelForSequenceClassification.from_pretrained(old / "model").eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's own use of an old name
        theirs = PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()
    ids = torch.randint(0, 16, (4, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(ours(input_ids=ids).logits, theirs(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("old", [STOPPED], indirect=True)
def test_a_stopped_run_is_refused_in_words_and_left_alone(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(old)
    words = (
        f"--out {old}: holds a run of format 1, which has not ended or was damaged since (model/), and this fedexperts goes on "
        f"from checkpoints of format {FORMAT} alone; begin the run again in another folder, or here, with --resume, after "
        f"removing {old / 'checkpoints'}"
    )
    with pytest.raises(InputError) as refused:
        run(old.parent / "scenario.toml", old, resume=True)
    assert str(refused.value) == words
    command = [
        sys.executable,
        "-c",
        "from fedexperts.cli.main import main; main()",
        "run",
        "scenario.toml",
        "--out",
        str(old),
        "--resume",
    ]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": "1000"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert files(old) == before


@pytest.mark.parametrize("old", [STOPPED], indirect=True)
def test_without_its_checkpoints_a_stopped_run_begins_again(old: Path) -> None:
    shutil.rmtree(old / "checkpoints")
    result = run(old.parent / "scenario.toml", old, resume=True)
    assert result.summary["cycles"] == summary(OLD / "ems-fl" / "ledger.jsonl")["cycles"]
    assert next(read(old / "ledger.jsonl"))["format"] == format_of(old) == FORMAT


@pytest.mark.parametrize("old", [STOPPED], indirect=True)
def test_a_checkpoint_says_its_format_itself(old: Path) -> None:
    text = (old / "scenario.toml").read_text()
    (old / "scenario.toml").write_text(text.replace("protocol ems-fl;", f"protocol ems-fl, format {FORMAT};", 1))
    with pytest.raises(
        InputError, match=r"00000005: of format 1, and this fedexperts goes on from format 2 alone\).*delete this"
    ):
        run(old.parent / "scenario.toml", old, resume=True)


@pytest.mark.parametrize("old", ["sync"], indirect=True)
def test_a_folder_of_a_newer_format_is_refused(old: Path, tmp_path: Path) -> None:
    text = (old / "scenario.toml").read_text()
    (old / "scenario.toml").write_text(text.replace("protocol sync;", "protocol sync, format 3;", 1))
    before = files(old)
    newer = rf"scenario.toml: written by a newer fedexperts \(format 3\); this one reads up to {FORMAT}; update fedexperts"
    with pytest.raises(InputError, match=newer):
        run(tmp_path / "scenario.toml", old, resume=True)
    for command in (
        ["export", str(old), "--format", "merged", "--to", str(tmp_path / "merged")],
        ["eval", str(old), "--task", str(tmp_path / "scenario.toml")],
    ):
        with pytest.raises(InputError, match=newer):
            app(command, standalone_mode=False)
    assert files(old) == before
    assert not (tmp_path / "merged").exists()
