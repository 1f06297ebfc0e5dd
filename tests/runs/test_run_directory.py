"""Run directories under hard use: two processes, damage, a full disk, stray and foreign files. Never another result."""

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedexperts.runs.run
import small
from fedexperts import InputError, run
from fedexperts.runs import checkpoint
from processes import started

SCENARIO = small.scenario(train={"cycles": 2})


def files(directory: Path) -> dict[str, bytes]:
    """What a run must repeat byte for byte, and nothing left over beside it."""
    found = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if p.is_file()}
    varying = ("runtime.jsonl", "checkpoints/")
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(varying)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    return run(SCENARIO, tmp_path_factory.mktemp("whole") / "run").directory


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted after its fourth checkpoint."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    save, numbers = checkpoint.save, []

    def stop(folder: Path, number: int, tree: Any) -> None:
        save(folder, number, tree)
        numbers.append(number)
        if len(numbers) == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
        patch.setattr("fedexperts.runs.checkpoint.save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(SCENARIO, out)
    return out


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


# two processes


def run_and_wait(scenario: Path, out: Path) -> None:
    """In a process of its own: a run that stands still after its first cycle, and says so."""
    fedexperts.runs.run.CHECKPOINT_EVERY_S = 0.0

    def listener(line: dict[str, Any]) -> None:
        if line["event"] == "evaluate" and line["cycle"] == 1:
            (out.parent / "stands").touch()
            time.sleep(600)

    run(scenario, out, listener=listener)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "scenario.toml", tmp_path / "run"
    path.write_text(tomli_w.dumps(small.document(train={"cycles": 2})))
    first = started(run_and_wait, path, out)
    try:
        while not (tmp_path / "stands").exists() and first.is_alive():
            time.sleep(0.02)
        assert (out / "checkpoints" / "00000002").exists()
        monkeypatch.setattr("fedexperts.runs.lock.WAIT_S", 0.0, raising=False)
        before = (out / "ledger.jsonl").read_bytes()
        with pytest.raises(InputError, match=f"--out {out}: process {first.pid} on .* is at work there"):
            run(SCENARIO, out, resume=True)
        assert (out / "ledger.jsonl").read_bytes() == before
    finally:
        first.kill()
        first.join()
    run(SCENARIO, out, resume=True)
    assert files(out) == files(whole)


def test_the_lock_of_a_process_that_was_killed_after_the_end_goes_and_one_that_is_held_stays(
    whole: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    (copy / "run.lock").write_text("process 1 on elsewhere\n")
    with (copy / "run.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run(SCENARIO, copy, resume=True)
        assert (copy / "run.lock").exists()
    run(SCENARIO, copy, resume=True)
    assert not (copy / "run.lock").exists()


def test_workers_of_a_comparison_and_its_folder_are_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedexperts.runs.lock import claimed
    from fedexperts.runs.parallel import run_many

    monkeypatch.setattr("fedexperts.runs.lock.WAIT_S", 0.0)
    with claimed(tmp_path / "out"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        run_many({"one": SCENARIO}, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()  # it stayed empty, so it went again
    with claimed(tmp_path / "out" / "one"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        run(SCENARIO, tmp_path / "out" / "one")


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fedexperts.runs.lock import claimed

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path / "out"), caplog.at_level(logging.WARNING):
        (tmp_path / "out" / "file").write_text("")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["file"]
    assert "has no locks (No locks available)" in caplog.text


# damage


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def newest(out: Path, age: int = 0) -> Path:
    return sorted((out / "checkpoints").glob("0*"))[-1 - age]


def both(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(out: Path) -> None:
        for at in (out / "checkpoints").glob("0*"):
            change(at)

    return apply


def cut(path: Path, size_B: int) -> None:
    os.truncate(path, size_B)


def edit_the_accuracy(out: Path) -> None:
    text = (out / "ledger.jsonl").read_text()
    at = text.index('"accuracy":0.') + len('"accuracy":0.')
    (out / "ledger.jsonl").write_text(text[:at] + ("2" if text[at] != "2" else "3") + text[at + 1 :])


FATAL: dict[str, Callable[[Path], object]] = {
    "a ledger cut below the checkpoint": lambda out: cut(out / "ledger.jsonl", 500),
    "an edit of equal length": edit_the_accuracy,
    "no ledger": lambda out: (out / "ledger.jsonl").unlink(),
    "tensors truncated": both(lambda at: cut(at / "tensors.safetensors", 1000)),
    "a bit of the tensors": both(lambda at: flip(at / "tensors.safetensors", -5)),
    "a bit of the state": both(lambda at: flip(at / "state.json", 200)),
    "no tensors": both(lambda at: (at / "tensors.safetensors").unlink()),
    "no state": both(lambda at: (at / "state.json").unlink()),
    "a checkpoint of an earlier version": both(lambda at: (at / "SHA256SUMS").unlink()),
}


@pytest.mark.parametrize("kind", FATAL)
def test_what_is_damaged_is_refused_with_what_to_delete(kind: str, copy: Path) -> None:
    FATAL[kind](copy)
    before = files(copy)
    with pytest.raises(
        InputError, match=r"no checkpoint can be gone on from .* delete this folder to train from the beginning"
    ):
        run(SCENARIO, copy, resume=True)
    assert files(copy) == before


def test_a_checkpoint_of_another_scenario_is_refused(copy: Path) -> None:
    kept = copy / "scenario.toml"
    kept.write_text(kept.read_text().replace("cycles = 2", "cycles = 3"))
    with pytest.raises(InputError, match=r"of another scenario than scenario\.toml"):
        run(SCENARIO.changed(train={"cycles": 3}), copy, resume=True)


def test_and_deleting_it_trains_from_the_beginning(whole: Path, copy: Path) -> None:
    cut(copy / "ledger.jsonl", 500)
    shutil.rmtree(copy / "checkpoints")
    run(SCENARIO, copy, resume=True)
    assert files(copy) == files(whole)


def stray(out: Path) -> None:
    (out / "checkpoints" / "99999999").mkdir()
    (out / "checkpoints" / "9abc").write_text("")
    (out / "checkpoints" / "00000007").write_text("")
    (out / "checkpoints" / "unfinished").write_text("")
    with (out / "runtime.jsonl").open("a") as file:
        file.write('{"cycle": 1, "clo')


MENDED: dict[str, Callable[[Path], object]] = {
    "a bit of the newest tensors": lambda out: flip(newest(out) / "tensors.safetensors", -5),
    "the newest half copied": lambda out: (newest(out) / "state.json").unlink(),
    "a ledger cut between both": lambda out: cut(out / "ledger.jsonl", state(newest(out, 1))["ledger_B"]),
    "stray files, and a torn line": stray,
}


def state(at: Path) -> dict[str, Any]:
    return dict(json.loads((at / "state.json").read_text())["tree"]["items"])


@pytest.mark.parametrize("kind", MENDED)
def test_the_checkpoint_before_is_taken_with_a_warning(
    kind: str, whole: Path, copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    MENDED[kind](copy)
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    run(SCENARIO, copy, resume=True)
    assert files(copy) == files(whole)
    assert "going on from the one before, 0000000" in caplog.text
    for line in (copy / "runtime.jsonl").read_text().splitlines():
        json.loads(line)
    kept = [path.name for path in (copy / "checkpoints").iterdir() if path.is_dir()]
    assert len(kept) == 3
    assert "longer" in kept


ENDED: dict[str, Callable[[Path], object]] = {
    "no config": lambda out: (out / "model" / "config.json").unlink(),
    "no weights": lambda out: (out / "model" / "model.safetensors").unlink(),
    "a bit of the weights": lambda out: flip(out / "model" / "model.safetensors", -5),
    "half of an earlier version": lambda out: ((out / "SHA256SUMS").unlink(missing_ok=True), cut(out / "model/config.json", 9)),
    "the end of the ledger edited": lambda out: flip(out / "ledger.jsonl", -5),
}


@pytest.mark.parametrize("kind", ENDED)
def test_a_finished_run_that_is_damaged_is_mended_or_refused(
    kind: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    ENDED[kind](out)
    if kind != "half of an earlier version":
        code, _, said = command(monkeypatch, capsys, "export", out, "--format", "merged", "--to", tmp_path / "to")
        assert (code, (tmp_path / "to").exists()) == (2, False)
        assert "with fedexperts run … --resume" in said
    run(SCENARIO, out, resume=True)
    assert files(out) == files(whole)


def test_a_finished_run_says_its_checksums_as_sha256sum_does(whole: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum")
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert {line.split(":")[0] for line in done.stdout.splitlines()} == set(files(whole)) - {"SHA256SUMS"}


# beginnings


def test_a_run_that_was_killed_before_it_began_begins_afresh(whole: Path, tmp_path: Path) -> None:
    for resume, left in ((False, "scenario.unfinished"), (True, "run.lock")):
        out = tmp_path / str(resume)
        out.mkdir()
        (out / left).write_text("half of")
        run(SCENARIO, out, resume=resume)
        assert files(out) == files(whole)


def test_what_is_refused_leaves_nothing(tmp_path: Path) -> None:
    refused = small.scenario(protocol="aligned", train={"cycles": 1})
    with pytest.MonkeyPatch.context() as patch:  # a refusal in the first round, after all that is checked before
        patch.setattr("fedexperts.protocol.aligned.coverage", refuse_input)
        with pytest.raises(InputError, match="refused"):
            run(refused, tmp_path / "a" / "run")
    assert list(tmp_path.iterdir()) == []


def refuse_input(*_: object, **__: object) -> None:
    raise InputError("refused")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "loop", "fifo", "dangling"])
def test_what_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="--out"):
        run(SCENARIO, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["ledger.jsonl", "runtime.jsonl", "scenario.toml", "checkpoints", "run.lock"])
def test_a_fifo_in_the_place_of_a_file_is_refused(name: str, copy: Path) -> None:
    shutil.rmtree(copy / name) if name == "checkpoints" else (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(InputError, match=name):
        run(SCENARIO, copy, resume=True)


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and str(tmp_path) in str(path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\); name another folder"):
        run(SCENARIO, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# the disk


@pytest.mark.parametrize("most_B", [1_000, 5_000, 20_000, 150_000])  # scenario.toml, the ledger, a state, tensors
def test_a_disk_that_refuses_is_one_error_and_the_run_goes_on_from_there(
    most_B: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    path, out = tmp_path / "scenario.toml", tmp_path / "run"
    path.write_text(tomli_w.dumps(small.document(train={"cycles": 2})))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_B, limits[1]))
    try:
        code, _, said = command(monkeypatch, capsys, "run", path, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert "File too large" in said
    assert str(out) in said
    assert "--resume" in said
    begun = (out / "scenario.toml").exists()
    run(SCENARIO, out, resume=begun)
    assert files(out) == files(whole)


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """What the program ends with, in this process: exit code, stdout and stderr."""
    from fedexperts.cli.main import main

    monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_of_a_run_that_has_ended_the_command_says_so(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "small.toml", Path(shutil.copytree(whole, tmp_path / "run"))
    path.write_text(tomli_w.dumps(small.document(train={"cycles": 2})))
    code, _, said = command(monkeypatch, capsys, "run", path, "--out", out, "--resume")
    assert (code, "has ended before, and stays as it is" in said, "0/2 cycles" in said) == (0, True, False)
    code, _, said = command(monkeypatch, capsys, "run", path, "--out", out, "--resume", "--set", "train.cycles=3")
    assert (code, "has ended before" in said, "3/3 cycles" in said) == (0, False, True)


READS = ("r", "rb", os.O_RDONLY)
"""What a full disk does not refuse."""


class Operations:
    """Counts what a run asks of the file system below a folder, but for reading, and lets something happen before the n-th."""

    def __init__(self, below: Path, n: int, happen: Callable[[str], None]):
        self.below, self.n, self.happen, self.count = below, n, happen, 0

    def __call__(self, call: Callable[..., Any], path_at: int = 0) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            reads = getattr(call, "__name__", "") == "open" and (arguments[1:2] or ("r",))[0] in READS
            if str(self.below) in str(arguments[path_at]) and not reads:
                self.count += 1
                if self.count == self.n:
                    self.happen(str(arguments[path_at]))
            return call(*arguments, **named)

        return counted

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("open", "rename", "replace", "mkdir", "unlink", "write_text"):
            patch.setattr(Path, name, self(getattr(Path, name)))
        patch.setattr(os, "link", self(os.link, 1))
        for name in ("open", "rmdir"):
            patch.setattr(os, name, self(getattr(os, name)))
        patch.setattr(shutil, "copymode", self(shutil.copymode))
        patch.setattr(checkpoint, "save_file", self(checkpoint.save_file, 1))


def every(below: Path, happen: Callable[[str], None]) -> Iterator[Operations]:
    """One for each operation of a run."""
    for n in itertools.count(1):
        found = Operations(below, n, happen)
        yield found
        if found.count < n:
            return


def disk_full(path: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", path)


def with_few_checkpoints(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    patch.setattr(checkpoint, "LEAST_B", 1)  # so that there are links
    pause, calls = fedexperts.runs.run._Run._pause, [0]

    def seldom(self: Any, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] % 4 == 0:
            pause(self, *arguments)

    patch.setattr(fedexperts.runs.run._Run, "_pause", seldom)


@pytest.mark.slow
def test_a_full_disk_at_any_operation_then_resume_is_identical(whole: Path, tmp_path: Path) -> None:
    from fedexperts.errors import RunError

    for operations in every(tmp_path, disk_full):
        out = tmp_path / f"run-{operations.n}"
        with pytest.MonkeyPatch.context() as patch:
            with_few_checkpoints(patch)
            operations.watch(patch)
            with contextlib.suppress(RunError):
                run(SCENARIO, out)
        run(SCENARIO, out, resume=(out / "scenario.toml").exists())
        assert files(out) == files(whole), f"refused at operation {operations.n}"
    assert operations.n > 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads that do nothing here
def test_a_kill_before_any_operation_then_resume_is_identical(whole: Path, tmp_path: Path) -> None:
    for n in itertools.count(1):
        out = tmp_path / f"run-{n}"
        if (child := os.fork()) == 0:
            with pytest.MonkeyPatch.context() as patch:
                with_few_checkpoints(patch)
                Operations(tmp_path, n, lambda path: os.kill(os.getpid(), signal.SIGKILL)).watch(patch)
                try:
                    run(SCENARIO, out)
                finally:
                    os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        run(SCENARIO, out, resume=out.exists() and any(out.iterdir()))
        assert files(out) == files(whole), f"killed before operation {n}"
    assert n > 30
