"""Readers of run directories, given bytes that no run has written: read, or refused with one message. Never a traceback."""

from pathlib import Path

import pytest

import mutate
from fedexperts import InputError
from fedexperts.errors import Diverged
from fedexperts.ledger import Ledger, read, summary
from fedexperts.runs import checkpoint
from fedexperts.runs.sums import write_sums
from mutate import on_lines
from readers import JOULES, LEDGER, RUNS


@pytest.mark.parametrize("reader", RUNS, ids=str)
def test_files_of_runs_are_read_or_refused(reader: mutate.Reader, tmp_path: Path) -> None:
    mutate.hold(reader, tmp_path, examples=150)


WRONG = {
    "foreign": (b"hello\n", "is not JSON"),
    "a list": (b"[1]\n", "line 10: the line: "),
    "a number": (b"7\n", "line 10: the line: "),
    "not UTF-8": (b'{"t_s":0,"event":"\xff"}\n', "is not JSON"),
    "deep": (b"[" * 3000 + b"]" * 3000 + b"\n", "is not JSON"),
    "NaN": (b'{"t_s":NaN,"event":"x"}\n', "line 10: t_s: "),
    "no event": (b'{"t_s":0}\n', "line 10: event: field required"),
    "a word for a number": (on_lines([{**LEDGER[3], "accuracy": "high"}]), "line 10: accuracy: "),
    "a field that lacks": (on_lines([{"t_s": 0, "event": "round"}]), "line 10: load: field required"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_line_is_named(kind: str, tmp_path: Path) -> None:
    line, message = WRONG[kind]
    (tmp_path / "ledger.jsonl").write_bytes(on_lines(LEDGER) + line)
    with pytest.raises(InputError, match=f"ledger.jsonl, line 10.*{message.removeprefix('line 10')}"):
        summary(tmp_path / "ledger.jsonl")


def test_lines_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    changes = ((6, {"per_device": {"a": JOULES}}), (4, {"assigned": {"nobody": [0]}}), (5, {"load": []}))
    for wrong in ({**LEDGER[i], **change} for i, change in changes):
        (tmp_path / "ledger.jsonl").write_bytes(on_lines([*LEDGER[:-1], wrong, LEDGER[-1]]))
        with pytest.raises(InputError, match="do not belong together"):
            summary(tmp_path / "ledger.jsonl")


def test_a_fact_that_is_not_finite_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.write_any("loss", 1, loss=1.5)
    with pytest.raises(Diverged, match=r"event 'loss' at 2 s: metrics\.a\.1 = nan"):
        ledger.write_any("loss", 2, metrics={"a": [1.0, float("nan")]})
    ledger.close()
    assert list(read(tmp_path / "ledger.jsonl")) == [{"t_s": 1, "event": "loss", "loss": 1.5}]


@pytest.mark.parametrize(
    "text",
    [b"[" * 5000, b'{"format": 2}', b'{"format": 2, "tree": {"!": "tensor", "name": "none"}}'],
    ids=["deep", "empty", "no tensor"],
)
@pytest.mark.parametrize("tensors", [b"", b"\xff" * 30], ids=["none", "no header"])
def test_a_checkpoint_that_has_its_sums_and_is_none_of_ours_is_refused(text: bytes, tensors: bytes, tmp_path: Path) -> None:
    at = tmp_path / "checkpoints" / "00000001"
    at.mkdir(parents=True)
    (at / checkpoint.STATE).write_bytes(text)
    (at / checkpoint.TENSORS).write_bytes(tensors)
    write_sums(at, (checkpoint.STATE, checkpoint.TENSORS))
    with pytest.raises(InputError, match=r"no checkpoint can be gone on from \(00000001: of another version"):
        checkpoint.load(tmp_path / "checkpoints")
