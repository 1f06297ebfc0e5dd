"""A protocol of one's own from the command line: ``--protocol module:Class``."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

import small
from fedexperts.cli import own_errors
from fedexperts.cli.main import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "my_protocol.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(EXAMPLE, tmp_path / "turns_of_mine.py")
    (tmp_path / "s.toml").write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *words: str, name: str = "run") -> int:
    monkeypatch.setattr(sys, "argv", ["fedexperts", name, "s.toml", *words])
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


@pytest.mark.slow
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


FAULTY = """
from fedexperts.moe.parts import is_expert
from fedexperts.train.task import Task


class Raises:
    needs_owners = False

    def __init__(self, start):
        self.model = dict(start.model)

    async def contact(self, link):
        self.inner()

    def inner(self):
        raise KeyError("long " * 100)


class Forgets(Raises):
    async def contact(self, link):
        link.train(Task(frozenset(filter(is_expert, self.model)), rounds=1))


class Logs(Raises):
    async def contact(self, link):
        link.log("lost", why="mine")


def two(loss, trained):
    return loss


def raises(loss, trained, received):
    return loss + missing
"""


@pytest.fixture
def faulty(folder: Path) -> Path:
    (folder / "faults_of_mine.py").write_text(FAULTY)
    return folder


def checked(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    return command(monkeypatch, *words, name="check")


@pytest.mark.parametrize("call", [command, checked])
def test_an_error_in_it_is_shown_in_its_own_lines(
    call: Callable[..., int], faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--protocol", "faults_of_mine:Raises") == 1
    said = capsys.readouterr().err
    assert said.count('File "') == 2
    assert "in contact\n    self.inner()" in said
    assert "in inner\n" in said
    assert said.rstrip().endswith("KeyError: '" + "long " * 100 + "'")
    assert "simulate.py" not in said


def test_an_error_in_a_local_loss_too(
    faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--set", "train.local_loss=faults_of_mine:raises") == 1
    said = capsys.readouterr().err
    assert said.count('File "') == 1
    assert "NameError: name 'missing' is not defined" in said


def test_an_error_of_ours_is_shown_with_all_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("ours")

    broken.__code__ = broken.__code__.replace(co_filename=str(Path(own_errors.__file__)))
    monkeypatch.setattr("fedexperts.runs.forecast.forecast", broken)
    monkeypatch.setattr(sys, "argv", ["fedexperts", "check", "s.toml"])
    with pytest.raises(KeyError, match="ours"):
        main()


@pytest.mark.filterwarnings("always::fedexperts.errors.InputWarning")
@pytest.mark.filterwarnings("ignore:coroutine 'SimulatedLink.train' was never awaited:RuntimeWarning")
def test_a_protocol_that_trains_nothing_is_told_of(
    faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(monkeypatch, "--protocol", "faults_of_mine:Forgets") == 0
    said = capsys.readouterr()
    assert "0 gradient steps" in said.out
    assert "Forgets': no gradient step in the whole run; is an await missing?" in said.err


def test_an_event_of_ours_with_fields_of_ones_own_says_where_the_fields_are(
    faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(monkeypatch, "--protocol", "faults_of_mine:Logs") == 1
    assert "event 'lost': has why; its fields are in docs/ledger.md" in capsys.readouterr().err


@pytest.mark.parametrize("call", [command, checked])
def test_a_local_loss_of_other_arguments_is_refused_before_any_work(
    call: Callable[..., int], faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--set", "train.local_loss=faults_of_mine:two") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train.local_loss = 'faults_of_mine:two': must take three arguments" in said
    assert "write def two(loss, trained, received)" in said
    assert not (faulty / "runs").exists()
