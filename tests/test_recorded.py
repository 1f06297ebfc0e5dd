"""A run that has ended, as data frames, a figure, and files for other programs."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedexperts import InputError, Run, export
from fedexperts.cli.main import app
from fedexperts.columns import of_lines, together
from fedexperts.ledger import read
from ledgers import folder, owners_lines

OLD = Path(__file__).resolve().parent / "old_runs"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.load(folder(tmp_path / "one", owners_lines("sync", seed=1)))


def test_a_frame_has_a_row_for_each_evaluation(run: Run) -> None:
    frame = run.frame()
    assert list(frame["cycle"]) == [0, 1, 2, 3, 4, 5, 6, 6]
    assert list(frame["uplink_MB"])[:3] == [0.0, 0.2, 0.4]
    assert list(frame["hours"])[:3] == [0.0, 1.5, 3.0]
    assert frame["accuracy"].iloc[-1] == 0.875
    assert frame["accuracy/lisbon"].iloc[-1] == 0.875
    assert frame["joules"].iloc[1] == pytest.approx(1.75)
    assert frame["training_loss/task/lisbon"].iloc[1] == 2.0


def test_a_frame_of_an_event_has_a_row_for_each_of_its_lines(run: Run) -> None:
    frame = run.frame("train")
    lines = [line for line in read(run.directory / "ledger.jsonl") if line["event"] == "train"]
    assert len(frame) == len(lines) == 18
    assert list(frame["loss"]) == [line["loss"] for line in lines]
    assert json.loads(frame["parts"].iloc[0]) == ["expert:0", "expert:1", "gate"]
    assert len(run.frame("all")) == len(list(read(run.directory / "ledger.jsonl")))
    with pytest.raises(InputError, match=r"event = 'roll': .* has none; it has assignment, baselines, collect"):
        run.frame("roll")


def test_without_pandas_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs pandas; pip install 'fedexperts\[analysis\]'"):
        run.frame()


def test_a_figure_for_a_paper(run: Run, tmp_path: Path) -> None:
    other = Run.load(folder(tmp_path / "other", owners_lines("ems-fl", seed=2)))
    figure = run.plot("accuracy", by="uplink_MB", beside=(other,), width_in=3.5)
    (axes,) = figure.axes
    curve = axes.lines[0]
    assert list(curve.get_xdata()) == list(run.frame()["uplink_MB"])
    assert list(curve.get_ydata()) == [100 * value for value in run.frame()["accuracy"]]
    assert axes.get_xlabel() == "uplink, MB"
    assert " ".join(axes.get_title(loc="left").split()) == "accuracy, %, on validation data"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sync, seed 1", "ems-fl, seed 2"]
    assert figure.get_figwidth() == 3.5
    for name in ("figure.pdf", "figure.png", "figure.svg"):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    assert run.plot("accuracy/lisbon").axes[0].lines[0].get_ydata()[-1] == 87.5
    assert " ".join(run.plot("loss", by="hours").axes[0].get_title(loc="left").split()) == "loss, nats, on validation data"


def test_what_cannot_be_drawn_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"by = 'week': must be one of cycle, hours, steps, uplink_MB, joules"):
        run.plot(by="week")
    with pytest.raises(InputError, match=r"value = 'f1': .* has cycle, t_s, hours, steps"):
        run.plot("f1")
    with pytest.raises(InputError, match=r"width_in = 0"):
        run.plot(width_in=0)
    with pytest.raises(InputError, match="are one run twice, sync with seed 1"):
        run.plot(beside=(Run.load(Path(shutil.copytree(run.directory, tmp_path / "copy"))),))
    with pytest.raises(InputError, match="holds no ledger"):
        Run.load(tmp_path)


def test_parquet_has_every_line(tmp_path: Path) -> None:
    told = export(OLD / "ems-fl", "parquet", tmp_path / "to")
    frame = pd.read_parquet(tmp_path / "to" / "ledger.parquet")
    lines = list(read(OLD / "ems-fl" / "ledger.jsonl"))
    assert list(frame["event"]) == [line["event"] for line in lines]
    assert list(frame["t_s"]) == [line["t_s"] for line in lines]
    sent = [line for line in lines if "uplink_B" in line]
    assert list(frame["uplink_B"].dropna()) == [line["uplink_B"] for line in sent]
    assert json.loads(frame["clusters"].iloc[0]) == lines[0]["clusters"]
    found: dict[str, Any] = {}
    exec(told["load"].replace("pandas.read", "found = pandas.read"), found)
    assert len(found["found"]) == len(lines)


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["export", str(OLD / "sync"), "--format", "parquet", "--to", str(tmp_path / "to")], standalone_mode=False)
    assert "pandas.read_parquet" in capsys.readouterr().out
    assert (tmp_path / "to" / "ledger.parquet").is_file()


def test_columns_of_mixed_kinds_are_text_and_numbers_floats() -> None:
    assert together([{"a": 1}, {"a": 2.5}, {}]) == {"a": [1.0, 2.5, None]}
    assert together([{"a": 1}, {"a": "x"}]) == {"a": ["1", "x"]}
    assert of_lines([{"t_s": 0, "parts": ["é"], "late": True}]) == {"t_s": [0], "parts": ['["é"]'], "late": [True]}


def test_tensorboard_reads_its_file(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the extra: pip install 'fedexperts[tensorboard]'",
    )
    export(OLD / "sync", "tensorboard", tmp_path / "to")
    events = accumulator.EventAccumulator(str(tmp_path / "to")).Reload()
    history = Run.load(OLD / "sync").summary["history"]
    found = events.Scalars("accuracy")
    assert [scalar.step for scalar in found] == [point["cycle"] for point in history]
    assert [scalar.value for scalar in found] == pytest.approx([point["accuracy"] for point in history])
    assert [scalar.wall_time for scalar in found] == [point["t_s"] for point in history]
    assert "accuracy/plain" in events.Tags()["scalars"]


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs TensorBoard; pip install 'fedexperts\[tensorboard\]'"):
        export(OLD / "sync", "tensorboard", tmp_path / "to")
    assert not (tmp_path / "to").exists()
