"""A protocol of one's own from the command line: ``--protocol module:Class``."""

import shutil
import sys
from pathlib import Path

import pytest
import tomli_w

import small
from fedexperts.cli.main import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "my_protocol.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(EXAMPLE, tmp_path / "turns_of_mine.py")
    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedexperts", "run", "s.toml", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_it_runs_under_its_own_name_and_resumes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--protocol", "turns_of_mine:TurnTaking") == 0
    said = capsys.readouterr()
    assert "TurnTaking" in said.out
    out = folder / "runs" / "small-TurnTaking-3"
    assert "protocol TurnTaking" in (out / "scenario.toml").read_text().splitlines()[0]
    assert '"protocol":"TurnTaking"' in (out / "ledger.jsonl").read_text().splitlines()[0]
    assert command(monkeypatch, "--protocol", "turns_of_mine:TurnTaking", "--resume") == 0
    assert command(monkeypatch, "--protocol", "ems-fl", "--out", str(out), "--resume") == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:Class", "cannot be imported (No module named 'nowhere')"),
        ("turns_of_mine:Nothing", "cannot be imported (module 'turns_of_mine' has no attribute 'Nothing')"),
        ("turns_of_mine:run", "is no class"),
        (":", "cannot be imported"),
    ],
)
def test_what_is_none_is_refused(
    name: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--protocol", name) == 2
    assert f"--protocol {name}: {said}" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "runs").exists()
