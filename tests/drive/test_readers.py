"""Readers of run directories, given bytes that no run has written: read, or refused with one message. Never a traceback."""

import contextlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mutate
import small
from fedexperts import InputError
from fedexperts.errors import Diverged
from fedexperts.ledger import Ledger, read, summary, tail
from fedexperts.runs import checkpoint
from fedexperts.runs.ended import scenario_of

FUZZ = settings(mutate.FUZZ, max_examples=150)
SEEDS = st.integers(0, 2**32 - 1).map(Random)
WORDS = (b"nan", b"NaN", b"1e400", b"-1", b"9" * 400, b"9" * 5000, b"null", b'"x"', b"\xff", b"\0", b"{}")
WORDS += (b"[" * 3000, b'{"a":' * 3000)  # type: ignore[assignment]
VALUES = (None, True, -1, 1e17, 10**400, float("inf"), "", "x", [], {}, [[]], {"a": {}}, [1, "2"], 2**70)


def mutated(data: bytes, random: Random) -> bytes:
    """Bytes changed, lost, doubled or put in, words replaced, the end cut off."""
    for _ in range(random.choice((1, 1, 2, 3))):
        at, span = random.randrange(len(data) + 1), random.randrange(1, 40)
        kind = random.choice(("flip", "drop", "double", "put in", "cut"))
        if kind == "flip":
            data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        elif kind == "drop":
            data = data[:at] + data[at + span :]
        elif kind == "double":
            data = data[: at + span] + data[at:]
        elif kind == "put in":
            data = data[:at] + random.choice(WORDS) + data[at + span :]
        elif random.random() < 0.3:
            data = data[:at]
    return data


def changed(tree: Any, random: Random) -> Any:
    """Plain data of which one value, wherever it is, is another."""
    if isinstance(tree, dict) and tree and random.random() < 0.85:
        key = random.choice(list(tree))
        if random.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: changed(tree[key], random)}
    if isinstance(tree, list) and tree and random.random() < 0.6:
        i = random.randrange(len(tree))
        return [*tree[:i], changed(tree[i], random), *tree[i + 1 :]]
    return random.choice(VALUES)


JOULES = {"radio_J": 0.5, "compute_J": 1.0, "idle_J": 2.0}
COSTS: dict[str, Any] = {"steps": 4, "uplink_B": 10, "downlink_B": 20, "accuracy": 0.25, "loss": 1.5}
COSTS["accuracy_by_cluster"] = {"a": 0.5, "b": 0.0}
LINES = [
    {"t_s": 0, "event": "run", "name": "r", "protocol": "ems-fl", "seed": 3, "clusters": {"a": [4, 4], "b": [4]}, "target": 0.5,
     "plateau": [2, 0.005]},
    {"t_s": 0, "event": "baselines", "clusters": {"a": {"majority": 0.5, "tfidf": None}}},
    {"t_s": 0, "event": "assignment", "experts": ["expert:0", "expert:1"], "clusters": ["a", "b"],
     "relevance": [[0.5, 0.5], [0.25, 0.75]], "assignment": {"a": [0], "b": ["0.1"]}, "gamma": {"a": 1.0, "b": 1.0},
     "advice": "-"},
    {"t_s": 0, "event": "evaluate", "cycle": 0, **COSTS},
    {"t_s": 1.5, "event": "align", "assigned": {"a": [0, 1]}, "sat_out": {"b": "away"}},
    {"t_s": 1.5, "event": "round", "load": [1.0, 2.0]},
    {"t_s": 2, "event": "energy", "cycle": 1, "per_device": {"a": JOULES, "b": JOULES}},
    {"t_s": 2, "event": "evaluate", "cycle": 1, **COSTS},
    {"t_s": 3, "event": "end", "cycles": 1, "late": True, "unsent_rounds": 0, "validation": {"accuracy": 0.5}, **COSTS},
]  # fmt: skip


def text_of(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@FUZZ
@given(random=SEEDS)
def test_a_ledger_is_summed_up_or_refused(random: Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    i = random.randrange(len(LINES))
    lines = [*LINES[:i], changed(LINES[i], random), *LINES[i + 1 :]]
    path.write_bytes(mutated(text_of(LINES), random) if random.random() < 0.5 else text_of(lines))
    with contextlib.suppress(InputError):
        json.dumps(summary(path), allow_nan=False)
    with contextlib.suppress(InputError):
        tail(path, "evaluate")


WRONG = {
    "foreign": (b"hello\n", "is not JSON"),
    "a list": (b"[1]\n", "line 10: the line: "),
    "a number": (b"7\n", "line 10: the line: "),
    "not UTF-8": (b'{"t_s":0,"event":"\xff"}\n', "is not JSON"),
    "deep": (b"[" * 3000 + b"]" * 3000 + b"\n", "is not JSON"),
    "NaN": (b'{"t_s":NaN,"event":"x"}\n', "line 10: t_s: "),
    "no event": (b'{"t_s":0}\n', "line 10: event: field required"),
    "a word for a number": (text_of([{**LINES[3], "accuracy": "high"}]), "line 10: accuracy: "),
    "a field that lacks": (text_of([{"t_s": 0, "event": "round"}]), "line 10: load: field required"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_line_is_named(kind: str, tmp_path: Path) -> None:
    line, message = WRONG[kind]
    (tmp_path / "ledger.jsonl").write_bytes(text_of(LINES) + line)
    with pytest.raises(InputError, match=f"ledger.jsonl, line 10.*{message.removeprefix('line 10')}"):
        summary(tmp_path / "ledger.jsonl")


def test_lines_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    changes = ((6, {"per_device": {"a": JOULES}}), (4, {"assigned": {"nobody": [0]}}), (5, {"load": []}))
    for wrong in ({**LINES[i], **change} for i, change in changes):
        (tmp_path / "ledger.jsonl").write_bytes(text_of([*LINES[:-1], wrong, LINES[-1]]))
        with pytest.raises(InputError, match="do not belong together"):
            summary(tmp_path / "ledger.jsonl")


def test_a_fact_that_is_not_finite_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.write("loss", 1, loss=1.5)
    with pytest.raises(Diverged, match=r"event 'loss' at 2 s: metrics\.a\.1 = nan"):
        ledger.write("loss", 2, metrics={"a": [1.0, float("nan")]})
    ledger.close()
    assert list(read(tmp_path / "ledger.jsonl")) == [{"t_s": 1, "event": "loss", "loss": 1.5}]


@FUZZ
@given(random=SEEDS)
def test_scenario_and_runtime_of_a_run_are_read_or_refused(random: Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.getbasetemp() / "fuzzed"
    out.mkdir(exist_ok=True)
    scenario, runtime = small.scenario().to_toml().encode(), b'{"scenario_folder": "/data"}\n{"cycle": 1, "clock_s": 2.5}\n'
    first = random.random() < 0.5
    (out / "scenario.toml").write_bytes(scenario if first else mutated(scenario, random))
    (out / "runtime.jsonl").write_bytes(mutated(runtime, random) if first else runtime)
    with contextlib.suppress(InputError):
        scenario_of(out)


TREE = {"a": torch.arange(6.0), "b": [1, (2, None)], "c": {("x", 1): {"y"}}, "version": "1"}


@FUZZ
@given(random=SEEDS)
def test_a_checkpoint_is_read_as_it_was_written_or_the_one_before_it(
    random: Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "checkpoints"
    if not folder.exists():
        checkpoint.save(folder, 1, {**TREE, "b": "before"})
        checkpoint.save(folder, 2, TREE)
    path = random.choice(sorted((folder / "00000002").iterdir()))
    right = path.read_bytes()
    try:
        path.write_bytes(mutated(right, random))
        found = checkpoint.load(folder)
        assert found is not None
        number, tree = found
        assert torch.equal(tree["a"], TREE["a"])
        assert tree["b"] == ("before" if number == 1 else TREE["b"])
        assert number == 1 or path.read_bytes() == right or path.name == "SHA256SUMS"
    finally:
        path.write_bytes(right)
