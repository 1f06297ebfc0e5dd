"""Where plan, build, compare and demo write: nothing that is not theirs is replaced; a disk that refuses is one message."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import small
from fedexperts.cli.main import main
from fedexperts.writing import MARK
from obstacles import KINDS, put

LLAMA = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code and stderr, in this process."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(tomli_w.dumps(small.document()))
    return path


def unread(*_: object, **__: object) -> None:
    raise AssertionError("work was done before the refusal")


@pytest.mark.parametrize("name", ["plan.html", "plan.json", "plan.csv"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_replaces_what_it_wrote_alone(
    kind: str, name: str, scenario: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = scenario.parent / "plan"
    out.mkdir()
    at = out / name
    target, before = put(kind, at), at.lstat()
    words = ("plan", scenario, "--out", out, "--export", "csv")
    with monkeypatch.context() as patch:
        patch.setattr("fedexperts.cli.plan.planned", unread)
        code, said = command(*words)
    assert (code, at.lstat().st_ino, target.read_text()) == (2, before.st_ino, "mine")
    assert f"--out {at}: " in said
    assert {path.name for path in out.iterdir()} == {name, "target"}
    code, _ = command(*words, "--force")
    assert (code, target.read_text()) == (0 if kind == "file" else 2, "mine")


def test_a_plan_is_written_again_over_itself_but_not_over_a_file_that_was_changed(scenario: Path, command: Command) -> None:
    out = scenario.parent / "plan"
    words = ("plan", scenario, "--out", out, "--export", "csv")
    assert command(*words)[0] == 0
    assert MARK in (out / "plan.html").read_text()[:1000]
    assert command(*words, "--set", "plan.slot_s=30")[0] == 0
    mine = (out / "plan.csv").read_text() + "lisbon,0,1,1,1,\n"
    (out / "plan.csv").write_text(mine)
    code, said = command(*words)
    assert (code, f"--out {out / 'plan.csv'}: exists" in said, "--force" in said) == (2, True, True)
    assert (out / "plan.csv").read_text() == mine
    assert command("plan", scenario, "--out", out)[0] == 0  # which does not write it


def test_a_plan_does_not_write_over_the_plan_that_it_reads(tmp_path: Path, scenario: Path, command: Command) -> None:
    text = "cluster,start_s,end_s,uplink_bps,downlink_bps,satellite\n" + "".join(
        f"{c['name']},0,9,1e6,1e6,\n" for c in small.document()["cluster"]
    )
    (tmp_path / "plan.csv").write_text(text)
    scenario.write_text(tomli_w.dumps(small.document(plan={"kind": "file", "path": "plan.csv"})))
    assert command("plan", scenario, "--out", tmp_path, "--export", "csv")[0] == 2
    assert (tmp_path / "plan.csv").read_text() == text


def test_a_full_disk_under_a_plan_leaves_what_was_there(
    scenario: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = scenario.parent / "plan"
    words = ("plan", scenario, "--out", out, "--export", "csv")
    assert command(*words)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    opened = Path.open

    def refuse(path: Path, mode: str = "r", **named: Any) -> Any:
        if "plan.csv" in path.name and mode == "xb":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return opened(path, mode, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        code, said = command(*words, "--set", "plan.slot_s=30")
    assert (code, f"error: {out / 'plan.csv'}: No space left on device; make room" in said) == (1, True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# build


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("kind", KINDS)
def test_build_writes_into_what_is_new_or_empty(kind: str, dense: Path, command: Command) -> None:
    out = dense.parent / "out"
    target, before = put(kind, out), out.lstat()
    code, said = command("build", "upcycle", "--model", dense, "--experts", 2, "--out", out)
    assert (code, out.lstat().st_ino, target.read_text()) == (2, before.st_ino, "mine")
    assert f"--out {out}: " in said


def test_build_removes_no_folder_of_another(dense: Path, command: Command) -> None:
    mine = dense.parent / "out.unfinished"
    mine.mkdir()
    assert command("build", "upcycle", "--model", dense, "--experts", 2, "--out", dense.parent / "out")[0] == 0
    assert mine.is_dir()


@pytest.mark.parametrize("refused", [errno.ENOSPC, "safetensors"])
def test_a_full_disk_under_build_is_one_message_and_leaves_nothing(
    refused: Any, dense: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device") if refused == "safetensors" else OSError(refused, "Full")

    monkeypatch.setattr("fedexperts.moe.written.save_file", full)
    before = set(dense.parent.iterdir())
    code, said = command("build", "upcycle", "--model", dense, "--experts", 2, "--out", dense.parent / "out")
    assert (code, said.count("\n"), said.startswith(f"error: {dense.parent / 'out'}: "), "make room" in said) == (
        1,
        1,
        True,
        True,
    )
    assert set(dense.parent.iterdir()) == before


# compare and demo


@pytest.mark.parametrize("kind", KINDS)
def test_compare_goes_on_only_where_it_can_write_its_page(
    kind: str, scenario: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedexperts.runs.grid.run_many", unread)
    page = scenario.parent / "out" / "report.html"
    page.parent.mkdir()
    target, before = put(kind, page), page.lstat()
    code, said = command("compare", scenario, "--protocol", "sync,ems-fl", "--out", page.parent, "--resume")
    assert (code, page.lstat().st_ino, target.read_text()) == (2, before.st_ino, "mine")
    assert f"--out {page}: " in said
    assert "--force" not in said


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "FIFO"])
@pytest.mark.parametrize("words", [("compare", "s.toml", "--protocol", "sync,ems-fl"), ("demo",)])
def test_a_folder_is_a_folder(
    words: tuple[str, ...], kind: str, scenario: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("runs.grid.run_many", "cli.demo.warmed_up"):
        monkeypatch.setattr(f"fedexperts.{work}", unread)
    monkeypatch.chdir(scenario.parent)
    target = put(kind, scenario.parent / "out")
    code, said = command(*words, "--out", "out")
    assert (code, "--out out: is " in said, "name a folder" in said) == (2, True, True)
    assert target.read_text() == "mine"


def test_the_demo_removes_an_earlier_demo_alone(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedexperts.cli.demo.warmed_up", begun)
    out = tmp_path / "demo"
    for name in ("initial", "sync", "ems-fl-gamma-1"):
        (out / name).mkdir(parents=True)
    (out / "thesis.tex").write_text("mine")
    code, said = command("demo", "--out", out, "--force")
    assert (code, "'thesis.tex', which is no part of a demo" in said) == (2, True)
    assert len(list(out.iterdir())) == 4
    (out / "thesis.tex").unlink()
    (tmp_path / "link").symlink_to("demo")
    assert command("demo", "--out", tmp_path / "link", "--force")[0] == 2
    assert len(list(out.iterdir())) == 3
    assert command("demo", "--out", out)[0] == 2
    assert command("demo", "--out", out, "--force")[0] == 130
    assert not out.exists()


# places that cannot be written


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "words",
    [
        ("plan", "s.toml", "--out"),
        ("build", "upcycle", "--model", "dense", "--experts", "2", "--out"),
        ("compare", "s.toml", "--protocol", "sync,ems-fl", "--out"),
        ("demo", "--out"),
    ],
)
def test_a_read_only_place_is_wrong_input(
    words: tuple[str, ...], there: bool, scenario: Path, dense: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scenario.parent)
    monkeypatch.setattr("fedexperts.cli.demo.warmed_up", unread)
    read_only(monkeypatch, scenario.parent / "out")
    if there:
        os.mkdir(scenario.parent / "out", 0o555)
    before = set(scenario.parent.iterdir())
    code, said = command(*words, "out")
    assert (code, said.count("error:"), said.count("cannot be written")) == (2, 1, 1), said
    assert set(scenario.parent.iterdir()) == before


def read_only(patch: pytest.MonkeyPatch, place: Path) -> None:
    """As on a file system that is mounted for reading: nothing can be made at a place, below it or for it."""
    made, opened = os.mkdir, os.open
    first = [True]

    def refuse(path: object) -> None:
        if str(place) in str(Path(str(path)).absolute()) or f".{place.name}.unfinished" in str(path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    def mkdir(path: Any, mode: int = 0o777, **named: Any) -> None:
        if mode != 0o555 or not first.pop():
            refuse(path)
        made(path, mode, **named)

    def open_(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            refuse(path)
        return opened(path, flags, *more, **named)

    patch.setattr(os, "mkdir", mkdir)
    patch.setattr(os, "open", open_)
    patch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and str(path) == str(place)))


@pytest.mark.parametrize("name", ["[/]", "[red]x"])
def test_a_run_s_folder_may_have_brackets_and_its_page_may_be_nobody_else_s(
    name: str, tmp_path: Path, command: Command
) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    out = tmp_path / name
    code, said = command("run", scenario, "--out", out)
    assert code == 0, said
    assert f"{name}: ledger.jsonl, report.html, model/" in said
    (out / "report.html").write_text("mine")
    code, said = command("run", scenario, "--out", out, "--resume")
    assert code == 2
    assert "report.html: exists, and fedexperts did not write it" in said
    assert (out / "report.html").read_text() == "mine"
