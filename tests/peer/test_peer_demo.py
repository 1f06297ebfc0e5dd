"""The demo on a small run: what it says of one slow, dead and frozen client, and that it leaves nobody behind."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import CLIENTS
from torch import Tensor

from fedexperts.cli.peer import demo_table
from fedexperts.peer.demo import PATIENCE, Pass, asked, demo, demo_scenario, quantile
from fedexperts.peer.local import Local
from processes import CONTEXT, exit_code, start_program

MARK = "FEDEXPERTS_TEST_MARK"


async def at_once(local: Local, images: Mapping[int, Tensor], labels: Mapping[int, Tensor], most: int = 10**9) -> Pass:
    """All users at the same time, so that the frozen client costs one deadline, which may be long then."""
    whole = Pass()
    for part in await asyncio.gather(*(asked(local, {c: x}, labels, most) for c, x in images.items())):
        for name, found in vars(part).items():
            before = getattr(whole, name)
            setattr(whole, name, before | found if isinstance(found, dict) else before + found)
    return whole


def test_what_each_fault_changes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedexperts.peer.demo.asked", at_once)
    monkeypatch.setitem(PATIENCE, "deadline_s", 3.0)
    monkeypatch.setitem(PATIENCE, "timeout_after_k_min_s", 3.0)
    monkeypatch.setattr("fedexperts.peer.demo.RECOVERY_S", 120.0)
    monkeypatch.setattr("fedexperts.peer.demo.SLOW_S", 0.05)
    said: list[str] = []
    found = demo(trained, tmp_path, said.append, batches=1, context=CONTEXT)
    json.dumps(found, allow_nan=False)
    assert found["equal_bits"]
    assert found["accuracy"] == found["in_process_accuracy"]
    assert found["answered"] == found["asked"] == 16 * CLIENTS
    assert found["bytes_per_sample"] > 0
    assert 0 <= found["local_ratio"] <= 1
    for name in ("slow", "killed", "frozen"):
        part = found[name]
        assert part["answered"] == part["asked"] == 16 * (CLIENTS - 1), "none may be lost"
        assert set(part) >= {"accuracy", "answered", "asked", "p95_ms"}
    assert found["slow"]["accuracy"] == found["slow"]["healthy_accuracy"]
    assert found["killed"]["fallbacks"] == found["frozen"]["fallbacks"] > 0
    assert found["killed"]["accuracy"] == found["frozen"]["accuracy"], "they are answered by the same experts"
    assert demo_table(found).row_count == 4


def test_quantiles_are_values() -> None:
    assert [quantile([3.0, 1.0, 2.0, 4.0], q) for q in (1, 25, 26, 50, 75, 95, 99)] == [1, 1, 2, 2, 3, 4, 4]
    assert quantile([5.0], 50) == 5


def test_without_the_data_set_the_demo_takes_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDEXPERTS_DATA", raising=False)
    scenario = demo_scenario(tmp_path)
    assert Path(str(scenario.cluster[0].data)) == tmp_path / "train.npz"
    from fedexperts.method.methods import prepare

    assert len(prepare(scenario).tests.own) == 10


def marked(mark: str) -> list[int]:
    """Processes that were started with this mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nobody_is_left_behind(number: int, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C the demo ends its clients, and if it is killed itself a guard does."""
    mark = f"{os.getpid()}-{number}"
    monkeypatch.setenv(MARK, mark)
    out, err = tmp_path / "out", tmp_path / "err"
    process = start_program("peer", "demo", "--run", trained, folder=tmp_path, out=out, err=err)
    try:
        until_s = time.monotonic() + 300
        wanted = "is frozen" if number == signal.SIGKILL else "is slow"
        while wanted not in (err.read_text() if err.exists() else ""):
            assert time.monotonic() < until_s, err.read_text()
            time.sleep(0.05)
        assert len(marked(mark)) >= CLIENTS
        os.kill(process.pid, number)
        assert exit_code(process) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    finally:
        process.kill()
    until_s = time.monotonic() + 60
    while left := marked(mark):
        assert time.monotonic() < until_s, f"left behind: {left}"
        time.sleep(0.05)
