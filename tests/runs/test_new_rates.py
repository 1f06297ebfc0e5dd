"""A run that stopped can go on with other learning rates, from its last checkpoint; the ledger says from when on."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import small
from fedexperts import InputError, run
from fedexperts.errors import Diverged
from fedexperts.ledger import read
from fedexperts.runs import checkpoint
from fedexperts.runs.parallel import run_many

BAD, GOOD = 30.0, 1e-3


def scenario(rate: float, **train: Any) -> Any:
    """Weights grow by the rate in every step, as their decay is 1."""
    return small.scenario(
        train={"cycles": 3, "optimizer": "sgd", "weight_decay": 1.0, "lr_expert": rate, "lr_gate": 1e-3, **train}
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    return list(read(directory / "ledger.jsonl"))


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rates were too large; its checkpoints are from before that showed."""
    out = tmp_path_factory.mktemp("diverged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
        with pytest.raises(Diverged):
            run(scenario(BAD), out)
    assert any((out / "checkpoints").iterdir())
    return out


@pytest.fixture
def copy(diverged: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(diverged, tmp_path / "run"))


def test_a_run_that_diverged_goes_on_from_its_checkpoint_with_smaller_rates(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = checkpoint.load(copy / "checkpoints")
    assert found is not None
    before_B = found[1]["ledger_B"]
    before = (copy / "ledger.jsonl").read_bytes()[:before_B]
    result = run(scenario(GOOD), copy, resume=True)
    after = (copy / "ledger.jsonl").read_bytes()
    assert after.startswith(before)
    (line,) = [line for line in lines(copy) if line["event"] == "rates"]
    assert line == {"t_s": found[1]["simulator"]["now_s"], "event": "rates", "train.lr_expert": GOOD}
    assert b'"event":"rates"' in after[before_B:].splitlines()[0]
    assert (copy / "scenario.toml").read_text().endswith(scenario(GOOD).to_toml())
    assert "going on with train.lr_expert = 0.001 (30 before)" in caplog.text
    assert result.summary["steps"] > 0


def test_the_new_rates_are_those_that_train(copy: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    run(scenario(GOOD), copy, resume=True)
    run(scenario(GOOD / 10), other, resume=True)
    assert lines(copy)[-1]["loss"] != lines(other)[-1]["loss"]


def test_a_kill_after_that_changes_nothing(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(shutil.copytree(copy, tmp_path / "whole"))
    run(scenario(GOOD), whole, resume=True)
    monkeypatch.setattr("fedexperts.runs.run.CHECKPOINT_EVERY_S", 0.0)
    save = checkpoint.save
    for stop_at in (1, 2, 3):  # before the first new checkpoint, and after others

        def stop(folder: Path, number: int, tree: Any, left: list[int] = [stop_at]) -> None:  # noqa: B006  # a counter
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            save(folder, number, tree)

        monkeypatch.setattr("fedexperts.runs.checkpoint.save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(scenario(GOOD), copy, resume=True)
    monkeypatch.setattr("fedexperts.runs.checkpoint.save", save)
    run(scenario(GOOD), copy, resume=True)
    for name in ("ledger.jsonl", "scenario.toml", "SHA256SUMS", "model/model.safetensors"):
        assert (copy / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_without_a_checkpoint_begins_with_the_new_rates(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    run(scenario(GOOD), copy, resume=True)
    fresh = run(scenario(GOOD), tmp_path / "fresh").directory
    assert (copy / "ledger.jsonl").read_bytes() == (fresh / "ledger.jsonl").read_bytes()


ANOTHER = r"holds a run of another scenario or protocol \(.*%s there, .*\); .* only learning rates can change before"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            scenario(BAD, cycles=4),
            r"train\.cycles = 3 that has not ended or was damaged since \(model/\); go on to its end with",
        ),
        (scenario(GOOD, local_steps=3), ANOTHER % r"train\.local_steps = 2"),
        (scenario(GOOD, weight_decay=0.1), ANOTHER % r"train\.weight_decay = 1\.0"),
        (scenario(BAD).changed(seed=9), ANOTHER % "seed = 3"),
    ],
)
def test_nothing_else_of_a_run_may_change(copy: Path, other: Any, told: str) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=told):
        run(other, copy, resume=True)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_run_that_has_ended_keeps_its_rates(copy: Path) -> None:
    run(scenario(GOOD), copy, resume=True)
    with pytest.raises(InputError, match=r"has ended with train\.lr_expert = 0\.001; name another folder"):
        run(scenario(GOOD / 10), copy, resume=True)


def test_runs_of_a_comparison_keep_their_rates(copy: Path) -> None:
    with pytest.raises(InputError, match=r"was begun with train\.lr_expert = 30; runs that are compared keep"):
        run_many({copy.name: scenario(GOOD)}, copy.parent, resume=True)
