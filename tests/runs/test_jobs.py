"""Clusters of one run trained by several processes: the same bytes as in one, whatever befalls it, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

import fedexperts.runs.run
import fingerprints
import pictures
import small
from fedexperts import Scenario, run
from fedexperts.errors import InputError, RunError
from fedexperts.ledger import read
from fedexperts.runs import ahead
from fedexperts.runs.ahead import AheadHost, Trainer
from fedexperts.train.host import LocalHost
from marks import some_slow
from processes import exit_code as ended
from processes import fork_instead_of_spawning, program, started

THREE = [{"name": name, "devices": 2, "data": f"digits:{name}"} for name in ("plain", "inverted", "rotated")]
CASES: dict[str, dict[str, Any]] = {
    "ems-fl": {"plan": {"idle_slots": 1}, "cluster": THREE},
    "ems-fl, cut off, adapters": {
        "faults": {**fingerprints.FAULTS, "early_close": 0.8},
        "train": {"seconds_per_round": 12.0, "max_rounds": 4},
        "warmup": {"data": ["digits:plain"], "steps": 2},
        **fingerprints.LORA,
    },
    "ems-fl-enhanced, adamw, first cycle": {
        "protocol": "ems-fl-enhanced",
        "train": {"optimizer": "adamw", "first_cycle": "paper"},
    },
    "ems-fl, split again": {"assignment": {"trial_samples": 8, "every_cycles": 1}},
    "sync, all in contact, int8": {
        "protocol": "sync",
        "plan": {"kind": "always-on"},
        "model": {"config": small.CONFIG, "uplink": "int8"},
    },
    "fedbuff, speed of devices": {
        "protocol": "fedbuff",
        "plan": {"slot_s": 1e-3, "idle_slots": 1},
        "train": {"seconds_per_round": "device", "max_rounds": 1, "cycles": 2},
    },
    "aligned, faults": {**fingerprints.ALIGNED, "faults": fingerprints.FAULTS},
    "local": {"protocol": "local"},
    "ems-fl, devices in one batch": {"train": {"cohort": "batched", "optimizer": "adamw"}},
}


def files(directory: Path) -> tuple[bytes, bytes]:
    return (directory / "ledger.jsonl").read_bytes(), (directory / "model" / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    fork_instead_of_spawning(monkeypatch)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has trained in this process."""
    found: list[str] = []
    train = LocalHost.train

    def seen(self: LocalHost, *order: Any) -> Any:
        found.append(", ".join(self.devices))
        return train(self, *order)

    monkeypatch.setattr(LocalHost, "train", seen)
    return found


def trained(directory: Path) -> int:
    return sum(line["event"] == "train" for line in read(directory / "ledger.jsonl"))


LONG = [name for name in CASES if name not in ("ems-fl, devices in one batch", "aligned, faults", "ems-fl, cut off, adapters")]


@pytest.mark.parametrize("name", some_slow(CASES, LONG))
def test_a_run_of_several_processes_has_the_bytes_of_one(name: str, here: list[str], tmp_path: Path) -> None:
    given = small.scenario(**CASES[name])
    one = run(given, tmp_path / "one").directory
    assert here
    here.clear()
    two = run(given, tmp_path / "two", jobs=2).directory
    assert files(two) == files(one)
    assert bool(here) == ("cut off" in name)  # of rounds under way then less is done than was foreseen, which is done here
    assert len(here) < trained(two) / 2
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["rolling", "federated"])
def test_clients_of_a_network_too(gate: str, here: list[str], tmp_path: Path) -> None:
    pictures.npz(tmp_path / "train.npz", 120)
    pictures.npz(tmp_path / "test.npz", 60, seed=1)
    own = {"networked": {**fingerprints.NETWORKED["networked"], "extractor": "fedsc", "gate": gate}}
    given = Scenario.parse(fingerprints.merged(fingerprints.NETWORKED, own), tmp_path)
    one = run(given, tmp_path / "one").directory
    here.clear()
    many = run(given, tmp_path / "many", jobs=100).directory
    assert files(many) == files(one)
    assert not here


@pytest.mark.parametrize(
    ("jobs", "cohort"),
    [
        ((2, 1), "batched"),
        pytest.param((1, 3), "one-by-one", marks=pytest.mark.slow),
        pytest.param((3, 2), "one-by-one", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number(
    jobs: tuple[int, int], cohort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    given = small.scenario(
        plan={"idle_slots": 1}, train={"optimizer": "adamw", "cohort": cohort}, cluster=THREE, faults=fingerprints.FAULTS
    )
    whole = run(given, tmp_path / "whole").directory
    seen: list[str] = []

    def stop(line: dict[str, Any]) -> None:
        seen.append(line["event"])
        if seen.count("train") == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(given, tmp_path / "stopped", listener=stop, jobs=jobs[0])
    assert multiprocessing.active_children() == []
    assert any((tmp_path / "stopped" / "checkpoints").iterdir())
    assert files(run(given, tmp_path / "stopped", resume=True, jobs=jobs[1]).directory) == files(whole)


@pytest.mark.parametrize(
    ("first", "tables"),
    [(1, {"protocol": "ems-fl"}), (0, {"protocol": "sync", "plan": {"kind": "always-on"}})],
    ids=["one out of contact", "both in contact"],
)
def test_two_processes_train_at_the_same_time(
    first: int, tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two orders that wait for each other; out of contact it is those after the first, which nobody trains beside."""
    ask, number, both = Trainer._ask, count(), Barrier(2, timeout=60)

    def together(self: Trainer, write: Callable[[], bytes]) -> bytes:
        if first <= next(number) < first + 2:
            both.wait()
        return ask(self, write)

    monkeypatch.setattr(Trainer, "_ask", together)
    run(small.scenario(**tables), tmp_path / "run", jobs=2)
    assert next(number) > first + 2
    assert not both.broken


def test_a_checkpoint_does_not_wait_for_what_is_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each phase out of contact would be over before the next contact begins: a checkpoint lies between the two."""
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    state, under_way, wanted = AheadHost.state, [], Event()

    def asked(self: AheadHost) -> dict[str, Any]:
        found = state(self)
        under_way.append(self.begun is not None and not self.begun[1].done())
        wanted.set()
        return found

    def held(self: Trainer, write: Callable[[], bytes]) -> bytes:
        """Nothing is trained before the run comes for the state, or for what was trained, or gives it up."""
        assert wanted.wait(60), "a checkpoint waits for what is ahead"
        return ask(self, write)

    def wants(work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            wanted.set()
            return work(*given)

        return done

    def begins(*given: Any) -> None:
        wanted.clear()
        begin(*given)

    ask, begin = Trainer._ask, AheadHost._begin
    monkeypatch.setattr(AheadHost, "state", asked)
    monkeypatch.setattr(AheadHost, "_begin", begins)
    monkeypatch.setattr(AheadHost, "train", wants(AheadHost.train))
    monkeypatch.setattr(Trainer, "close", wants(Trainer.close))
    monkeypatch.setattr(Trainer, "_ask", held)
    run(small.scenario(plan={"idle_slots": 1}), tmp_path / "run", jobs=2)
    assert any(under_way)


def test_a_process_that_is_killed_ends_the_run_which_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    given = small.scenario(plan={"idle_slots": 1})
    seen: list[str] = []

    def kill(line: dict[str, Any]) -> None:
        seen.append(line["event"])
        if seen.count("train") == 4:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    with pytest.raises(RunError, match=r"a process of jobs has ended \(exit code -9\).* take fewer jobs; go on with resume"):
        run(given, tmp_path / "run", listener=kill, jobs=2)
    assert multiprocessing.active_children() == []
    gone_on = run(given, tmp_path / "run", resume=True, jobs=2).directory
    assert files(gone_on) == files(run(given, tmp_path / "whole").directory)


def failing(*_: Any, **__: Any) -> Any:
    raise InputError("no devices there")


def test_what_a_process_raises_is_raised_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_hosts", failing)
    with pytest.raises(InputError, match="no devices there") as raised:
        run(small.scenario(), tmp_path / "run", jobs=2)
    assert "in failing" in raised.value.__notes__[0]
    assert multiprocessing.active_children() == []


def long_run(folder: Path) -> None:
    """For a process of its own: it tells which others it has started, and goes on."""
    fork_instead_of_spawning(pytest.MonkeyPatch())
    seen: list[str] = []

    def tell(line: dict[str, Any]) -> None:
        seen.append(line["event"])
        if seen.count("train") == 4:
            pids = [str(one.pid) for one in multiprocessing.active_children()]
            (folder / "pids.unfinished").write_text("\n".join(pids))
            (folder / "pids.unfinished").rename(folder / "pids")

    run(small.scenario(train={"cycles": 500}, plan={"idle_slots": 1}), folder / "run", listener=tell, jobs=2)


@pytest.mark.parametrize("number", some_slow([signal.SIGINT, signal.SIGKILL], [signal.SIGINT]))
def test_a_run_that_is_ended_leaves_no_process(number: int, tmp_path: Path) -> None:
    process = started(long_run, tmp_path)
    while not (tmp_path / "pids").exists() and process.is_alive():
        time.sleep(0.02)
    trainers = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert len(trainers) == 2
    assert all(map(alive, trainers))
    assert process.pid is not None
    os.kill(process.pid, number)
    ended(process)
    until_s = time.monotonic() + 60
    while any(map(alive, trainers)):
        assert time.monotonic() < until_s, "left behind"
        time.sleep(0.02)


def facts(pid: int) -> list[str]:
    """State, parent, group … of a process; a zombie's where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", "", ""]


def alive(pid: int) -> bool:
    return facts(pid)[0] != "Z"


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_which_all_processes_hear(tmp_path: Path) -> None:
    """Spawned, as they are without these tests; also while they are still loading."""
    (tmp_path / "scenario.toml").write_text(small.scenario(train={"cycles": 500}, plan={"idle_slots": 1}).to_toml())
    words = [sys.executable, "-m", "fedexperts", "run", "scenario.toml", "--jobs", "2", "--out"]
    for number, events in enumerate(("evaluate", "train")):
        with (tmp_path / "stderr").open("w+") as stderr:
            process = subprocess.Popen([*words, f"{number}"], cwd=tmp_path, stderr=stderr, process_group=0)
            ledger = tmp_path / f"{number}" / "ledger.jsonl"
            while not (ledger.exists() and f'"{events}"' in ledger.read_text()) and process.poll() is None:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait() == 130
            said = (tmp_path / "stderr").read_text()
        assert "--resume" in said
        assert "Traceback" not in said
        until_s = time.monotonic() + 60
        while in_group(process.pid):  # multiprocessing's own, which ends as it hears that
            assert time.monotonic() < until_s, "left behind"
            time.sleep(0.02)


def in_group(number: int) -> list[int]:
    """Processes of a group that have not ended."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if alive(pid) and facts(pid)[2] == str(number)]


@pytest.mark.parametrize("jobs", [0, -1, True, 1.5, "2", None])
def test_what_is_no_number_of_processes_is_refused_before_any_work(jobs: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"jobs = .*: must be a whole number of processes, at least 1") as raised:
        run(small.scenario(), tmp_path / "run", jobs=jobs)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_hosts_of_ones_own_have_processes_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jobs = 2: is for devices in this process"):
        run(small.scenario(), tmp_path / "run", hosts=lambda prepared: prepared.hosts, jobs=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("word", "message"), [("0", "0 is not in the range"), ("two", "'two' is not a valid int")])
def test_the_command_refuses_it_as_well(word: str, message: str, tmp_path: Path) -> None:
    done = program("run", "none.toml", "--jobs", word, folder=tmp_path)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
