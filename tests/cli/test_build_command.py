"""``fedexperts build`` as a stranger meets it: options, keys of --json, exit codes."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedexperts.cli.main import main
from fedexperts.moe.checkpoint import Checkpoint

SIZES = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
MATRIX = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate("abc"):
        torch.manual_seed(number)
        LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fedexperts(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedexperts", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(str(ended.value.code))


@pytest.mark.parametrize(
    "experts",
    [
        "--experts c a b --out moe",
        "--out moe --experts c a b",
        "--experts c --experts a b --out moe",
        "--experts=c a --out moe --experts b",
    ],
)
def test_experts_are_named_one_after_another(here, monkeypatch, capsys, experts):
    assert fedexperts(monkeypatch, f"build merge --base a {experts} --json") == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert {key: document[key] for key in ("out", "experts", "top_k", "layers")} == {
        "out": "moe",
        "experts": 3,
        "top_k": 1,
        "layers": [0, 1],
    }
    assert document["parameters"] == sum(torch.Size(shape).numel() for shape in Checkpoint(here / "moe").store.shapes.values())
    assert len(document["warnings"]) == shown.err.count("warning:") == 2
    merged = Checkpoint(here / "moe").read(MATRIX)
    for row, name in zip(merged, "cab", strict=True):
        assert torch.equal(row, Checkpoint(here / name).read("model.layers.0.mlp.down_proj.weight"))


def test_upcycling(here, monkeypatch, capsys):
    line = "build upcycle --model a --experts 4 --top-k 1 --layers 0,1 --gate-std 0.1 --out moe --json"
    assert fedexperts(monkeypatch, line) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["experts"], document["top_k"], document["layers"], document["warnings"]) == (4, 1, [0, 1], [])
    assert Checkpoint(here / "moe").shape(MATRIX) == (4, 8, 12)


def test_without_json_one_line_says_what_was_written(here, monkeypatch, capsys):
    assert fedexperts(monkeypatch, "build merge --base a --experts a b --top-k 2 --seed 4 --out moe") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2 experts in 2 layers, Top-2" in shown.err


def test_names_in_brackets_are_shown_as_they_are(here, monkeypatch, capsys):
    (here / "b").rename(here / "[red]b")
    assert fedexperts(monkeypatch, "build merge --base a --experts a [red]b --out [bold]moe") == 0
    shown = capsys.readouterr().err
    assert "[red]b: not both it and the base have" in shown
    assert "[bold]moe: " in shown


def test_what_is_written_has_the_permissions_of_new_files(here, monkeypatch):
    before = os.umask(0o027)
    try:
        assert fedexperts(monkeypatch, "build merge --base a --experts a b --out moe") == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (here / "moe").iterdir()} == {0o640}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build merge --base a --experts a --out moe", "name at least two"),
        ("build merge --base a --experts a b --out c", "already holds files"),
        ("build merge --base a --experts a no --out moe", "no config.json there"),
        ("build merge --base a --experts a b --gate hidden --out moe", "go together"),
        ("build merge --base a --out moe", "--experts"),
        ("build upcycle --model a --experts 1 --out moe", "must be at least 2"),
        ("build upcycle --model a --experts 2 --layers 0 --out moe", "leave out --layers"),
        ("build upcycle --model a --experts 2 --layers x --out moe", "must be numbers with commas"),
    ],
)
def test_wrong_input_ends_with_2_and_one_message(here, monkeypatch, capsys, line, message):
    assert fedexperts(monkeypatch, line) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert "Traceback" not in shown.err
