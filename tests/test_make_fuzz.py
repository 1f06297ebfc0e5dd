"""`make fuzz` at a handful of mutations: its counts, its exit code, and what it prints of a reader that breaks a bound."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from random import Random

import pytest

import fuzz
import readers
from mutate import Reader, mutated
from readers import READERS, file


@pytest.mark.slow
def test_a_few_mutations_of_every_reader(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for reader in readers.SCENARIOS:  # the others are read alike, and slowly
        if reader.name.startswith(("example", "in full")) and reader.name not in (
            "example minilm-glue",
            "in full nmoe-fashion",
        ):
            monkeypatch.delitem(READERS, reader.name)
    mine_B = fuzz.resident_B(os.getpid())  # what other tests have left in this process, which is forked
    monkeypatch.setattr(fuzz, "MOST_B", fuzz.MOST_B + mine_B)
    monkeypatch.setattr(fuzz, "KILL_B", fuzz.KILL_B + mine_B)
    assert fuzz.main(["--count", "2", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[:30].strip() for line in lines[1:]} == {*READERS, "all"}
    counts = [int(word) for word in lines[-1][30:].replace(",", "").split()[:6]]
    assert counts[0] == counts[1] + counts[2] == sum(max(1, round(2 * reader.share)) for reader in READERS.values())
    assert counts[3:] == [0, 0, 0]


def fails(path: Path) -> None:
    if path.read_bytes() != b"ab":
        raise KeyError("wrong")


def sleeps(path: Path) -> None:
    if path.read_bytes() != b"ab":
        time.sleep(60)


def grows(path: Path) -> None:
    if path.read_bytes() != b"ab":
        assert len(b"x" * (200 * 2**20))


def dies(path: Path) -> None:
    if path.read_bytes() != b"ab":
        os._exit(7)


@pytest.mark.parametrize(
    ("read", "column", "why"),
    [
        (fails, 3, "KeyError: 'wrong'"),
        (sleeps, 4, "takes more than 0.3 s"),
        (grows, 5, r"takes [\d.]+ GB"),
        (dies, 3, "the process ended with 7"),
    ],
)
def test_a_broken_bound_is_counted_and_can_be_seen_again(
    read, column: int, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "LONGEST_S", 0.3 if read is sleeps else 20.0)
    if read is grows:
        calm = fuzz.fuzz([Reader("calm", file("a", b"ab"), Path.read_bytes)], 1, 0)["calm"]
        capsys.readouterr()
        monkeypatch.setattr(fuzz, "MOST_B", calm.peak_B + 100 * 2**20)
    monkeypatch.setitem(READERS, "broken", Reader("broken", file("a", b"ab"), read))
    assert fuzz.main(["--reader", "broken", "--count", "3", "--seed", "4"]) == 1
    out = capsys.readouterr().out
    counts = [int(word) for word in out.splitlines()[2][30:].replace(",", "").split()[:6]]
    assert counts[0] == 3
    assert sum(counts[1:]) == 3
    assert counts[column] == 3 - counts[1] > 0
    assert re.search(why, out)
    again = re.search(r"--seed 4 --reader 'broken' --only (\d+)", out)
    assert again is not None
    assert fuzz.main(["--reader", "broken", "--seed", "4", "--only", again[1]]) == 1


def test_a_mutation_follows_from_its_seed_alone() -> None:
    valid = b'{"a": [1, 2, {"b": "c"}]}'
    assert [mutated(valid, "json", Random(f"s{i}")) for i in range(50)] == [
        mutated(valid, "json", Random(f"s{i}")) for i in range(50)
    ]
    assert len({mutated(valid, "json", Random(f"s{i}"))[0] for i in range(50)}) > 30


def test_the_table_has_every_reader_once() -> None:
    tables = (readers.CONTACT, readers.DATA, readers.RUNS, readers.MODELS, readers.PEERS, readers.SCENARIOS)
    assert len(READERS) == sum(map(len, tables))
