"""A protocol of one's own from the command line: ``--protocol module:Class``."""

import json
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
        (":", "unknown; choose from sync, "),
    ],
)
def test_what_is_none_is_refused(
    name: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--protocol", name) == 2
    assert f"protocol = '{name}': {said}" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "runs").exists()


def test_it_stands_in_the_resolved_scenario_and_runs_from_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "--protocol", "turns_of_mine:TurnTaking", "--out", "first") == 0
    resolved = folder / "first" / "scenario.toml"
    assert 'protocol = "turns_of_mine:TurnTaking"' in resolved.read_text()
    assert command(monkeypatch, "--set", "protocol=turns_of_mine:TurnTaking", "--out", "again") == 0
    assert (folder / "first" / "ledger.jsonl").read_bytes() == (folder / "again" / "ledger.jsonl").read_bytes()


def test_it_is_compared_with_ours(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "s.toml", "--protocol", "sync,turns_of_mine:TurnTaking", "--out", "side", "--json"]
    monkeypatch.setattr(sys, "argv", ["fedexperts", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    rows = json.loads(capsys.readouterr().out)["protocols"]
    assert list(rows) == ["sync", "TurnTaking"]
    assert rows["sync"]["uplink_B"] != rows["TurnTaking"]["uplink_B"]


def test_check_goes_through_its_contacts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedexperts", "check", "s.toml", "--protocol", "turns_of_mine:TurnTaking", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert command(monkeypatch, "--protocol", "turns_of_mine:TurnTaking", "--out", "ran", "--json") == 0
    ran = json.loads(capsys.readouterr().out)["protocols"]["TurnTaking"]
    assert told["protocol"] == "TurnTaking"
    assert (told["uplink_B"], told["steps"]) == (ran["uplink_B"], ran["steps"])
    assert not ran["gamma"]  # nobody owns an expert: no Algorithm 1, and nothing of it is told


def test_clients_one_by_one_need_a_class_that_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = '[{name = "a", devices = 2, data = "digits:plain", from_cycle = 1}]'
    assert command(monkeypatch, "--protocol", "turns_of_mine:TurnTaking", "--set", f"cluster={cluster}") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "from_cycle" in said
    assert "by_client = True" in said
