"""What benchmarks/gpu.sh and gpu.py do when something is missing, breaks or takes too long."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow.parquet import write_table

from fedexperts import Scenario
from fedexperts.moe.resnet import NetworkedMoEConfig

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def stub(folder: Path, text: str) -> str:
    """A program that stands in the place of Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = json.loads((out / "gpu.json").read_text())["parts"]
    return found


# ---- the script


def test_the_script_gives_the_package_and_the_wheels_to_python(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr("carried-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\n")
        wheel.writestr("carried-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("carried-1.0.dist-info/RECORD", "")
    program = (
        f'if [ "$1" = -m ]; then exec {sys.executable} "$@"; fi; {sys.executable} -c "import carried, fedexperts"; echo "$@"'
    )
    told = {
        **os.environ,
        "PYTHON": stub(tmp_path, program),
        "WHEELS": str(wheels),
        "OUT": str(tmp_path / "out"),
        "PYTHONPATH": "",
    }
    done = subprocess.run(["sh", SCRIPT, "--toy"], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "out"), "--toy"]


def test_the_script_ends_as_python_does(tmp_path: Path) -> None:
    told = {**os.environ, "PYTHON": stub(tmp_path, "exit 7")}
    assert subprocess.run(["sh", SCRIPT], env=told, check=False).returncode == 7


def test_its_head_names_the_versions_of_the_tested_set() -> None:
    tested = dict(
        line.lower().replace("-", "_").split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    named = [
        pair.split() for line in SCRIPT.read_text().splitlines() if line.startswith("#     ") for pair in line[1:].split(",")
    ]
    wheels = {pair[0]: pair[1] for pair in named if len(pair) == 2}
    assert len(wheels) == 7
    assert wheels == {name: tested[name] for name in wheels}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(gpu: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no GPU that torch can use"):
        gpu.main(["--out", str(tmp_path)])


# ---- what fails


def test_a_part_that_breaks_is_a_row_and_the_others_go_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(part: str, *_: object) -> Any:
        yield gpu.Row(f"{part}, first", "1")
        if part == "memory":
            raise RuntimeError("nothing left")

    monkeypatch.setattr(gpu, "rows_of", of)
    with pytest.raises(SystemExit, match="1"):
        gpu.main(["--toy", "--out", str(tmp_path)])
    assert [row["what"] for part in rows(tmp_path).values() for row in part] == [
        "layer, first",
        "memory, first",
        "memory: the rest",
        "same, first",
        "images, first",
    ]
    assert "FAILED" in (said := capsys.readouterr().out)
    assert "RuntimeError: nothing left" in said


def test_a_row_that_breaks_does_not_cost_those_after_it(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def images(extractor: str, *_: object) -> Any:
        if extractor == "fedsc":
            raise ValueError("no such thing")
        return gpu.Row(extractor, "1")

    monkeypatch.setattr(gpu, "images", images)
    first, second = gpu.image_rows("cpu", True, time.monotonic() + 10)
    assert (first.found, first.note) == ("FAILED", "ValueError: no such thing")
    assert second.what == "fedce"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("echo oh dear >&2; exit 3", "exit code 3: oh dear"),
        ("exec sleep 30", "ended after"),
        ("kill -9 $$", "exit code -9: no word"),
    ],
)
def test_a_part_in_a_process_of_its_own_says_how_it_ended(
    program: str, why: str, gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", stub(tmp_path, program))
    monkeypatch.setattr(gpu, "GRACE_S", 0.1)
    assert gpu.apart("layer", tmp_path, 0.1 if "sleep" in program else 20.0).startswith(why)


def test_what_a_part_had_found_before_it_was_ended_is_kept(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def way(part: str, folder: Path, seconds: float) -> str:
        (folder / f"{part}.jsonl").write_text(json.dumps({"what": f"{part} one", "found": "5"}) + "\n")
        return "ended after 9 s" if part == "images" else ""

    assert not gpu.play(1.0, tmp_path, way, {"device": "none"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "table.txt"]
    assert "images one" in (tmp_path / "table.txt").read_text()
    assert [row["found"] for row in rows(tmp_path)["images"]] == ["5", "FAILED"]
    assert "images one" in capsys.readouterr().out


# ---- single parts


def test_images_stop_when_their_time_is_up(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "step_time_s", lambda *_: 0.01)
    row = gpu.images("fedce", "cpu", True, 0.0, tmp_path)
    assert "STOPPED after cycle 0 of 3" in row.note
    assert row.data["epochs"] == 0


def test_images_are_as_many_as_there_are(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setenv("FEDEXPERTS_DATA", str(tmp_path))
    for n, count in ((0, 30), (3, 12)):
        write_table(pa.table({"label": list(range(count))}), tmp_path / "cifar10" / f"train-{n}-of-5.parquet")
    found = gpu.with_images(Scenario.load(gpu.EXAMPLE))
    assert (found["samples"], found["devices"]) == (42, 10)


def test_a_step_of_images_is_timed(gpu: Any) -> None:
    config = {"model_type": NetworkedMoEConfig.model_type, "image_size": 8, "width": 8}
    scenario = Scenario.load(gpu.EXAMPLE).changed(model={"config": config}, train={"batch_size": 2})
    assert all(gpu.step_time_s(scenario, extractor, "cpu") > gpu.MOVED_S for extractor in ("fedce", "fedsc"))


def test_a_difference_of_logits_or_of_ledgers_is_seen(gpu: Any, tmp_path: Path) -> None:
    same = importlib.import_module("gpu_same")
    wanted = torch.ones(1000)
    assert same.near("x", wanted + 1e-5, wanted, "it").data["rms"] == pytest.approx(1e-5, rel=0.1)
    with pytest.raises(AssertionError, match=r"differs by 1\.0e-02 of itself"):
        same.near("x", wanted * 1.01, wanted, "it")
    for name, steps, digest in (("a", 3, "0"), ("b", 3, "1"), ("c", 4, "0")):
        (tmp_path / name).mkdir()
        line = {"event": "train", "t_s": 5.0, "steps": steps, "digest": digest}
        (tmp_path / name / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    assert same.ledgers_differ(tmp_path / "a", tmp_path / "b") == ""
    assert same.ledgers_differ(tmp_path / "a", tmp_path / "c") == "train at 5 s: steps"


def test_what_does_not_fit_is_scaled_from_two_numbers_of_layers(gpu: Any) -> None:
    large = importlib.import_module("gpu_large")
    peaks = {"12 of 32 layers of Mixtral-8x7B, all 8": 40.0, "24 of 32 layers of Mixtral-8x7B, all 8": 76.0}
    row = large._scaled(peaks)
    assert row.found.startswith("100.00 GB SCALED")  # 3 GB a layer
    assert large._scaled({"Mixtral-8x7B, 2 of 8 there": 30.0}) is None


def test_predictions_are_those_of_inspect(gpu: Any) -> None:
    large = importlib.import_module("gpu_large")
    of = {case.what: large.foretold_GB(case) for case in large.cases("cpu", toy=False)[:3]}
    assert [round(size, 2) for size in of.values()] == [18.92, 41.47, 41.90]  # inspect --length 384 [--load all]
