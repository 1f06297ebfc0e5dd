"""A run that has ended goes on to more cycles, and is what a run of so many would have been; or it says why it cannot."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedexperts.runs.run
import pictures
import small
from fedexperts import InputError, Scenario, run
from fedexperts.ledger import read
from fedexperts.protocol.ems_fl import EmsFl
from fedexperts.runs import checkpoint
from fedexperts.runs.parallel import run_many
from marks import some_slow
from processes import exit_code, run_until, started

FAULTS = {"drop": 0.2, "corrupt": 0.1, "early_close": 0.3}
ORBIT: dict[str, Any] = {
    "plan": {"kind": "orbit", "start": datetime(2026, 1, 1, tzinfo=UTC), "days": 2.0},
    "satellite": [{"altitude_km": 600.0, "inclination_deg": 53.0}],
    "radio": {"preset": "paper-range"},
    "train": {"max_rounds": 2, "seconds_per_round": 60.0},
}
PLACES = [{"latitude_deg": 38.7, "longitude_deg": -9.1}, {"latitude_deg": -1.3, "longitude_deg": 36.8}]
ALIGNED: dict[str, Any] = {
    "protocol": "aligned",
    "plan": {"kind": "always-on"},
    "train": {"max_rounds": 1, "seconds_per_round": 20.0, "shared": ["gate", "head", "backbone"]},
    "alignment": {"max_experts": 2, "appraisal_samples": 8},
}
LORA = {"model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0}}}
CONTACTS = [
    ("plain", 0, 100),
    ("inverted", 120, 200),  # cycle 0 ends
    ("plain", 250, 340),
    ("inverted", 330, 420),  # overlaps, and cycle 1 ends
    ("plain", 400, 520),  # the end of two cycles cuts it off
    ("inverted", 530, 600),  # cycle 2 ends
    ("plain", 650, 720),
    ("inverted", 740, 800),  # cycle 3 ends
    ("plain", 840, 900),
    ("inverted", 900, 960),
]


def plan_file(folder: Path) -> str:
    contacts = [
        {"cluster": c, "start_s": a, "end_s": b, "uplink_bps": "unlimited", "downlink_bps": "unlimited"} for c, a, b in CONTACTS
    ]
    document = {"clusters": ["plain", "inverted"], "horizon_s": 1000, "contacts": contacts}
    (folder / "plan.json").write_text(json.dumps(document))
    return "plan.json"


FILE = {"plan": {"kind": "file", "path": "plan.json"}, "train": {"seconds_per_round": 20.0, "max_rounds": 3}}
CASES: dict[str, dict[str, Any]] = {
    "sync": {"protocol": "sync"},
    "ems-fl, faults": {"faults": FAULTS, "plan": {"idle_slots": 1}},
    "ems-fl, split again": {"assignment": {"trial_samples": 8, "every_cycles": 1}},
    "ems-fl, adapters": LORA,
    "ems-fl, contacts that overlap and are cut off": FILE,
    "ems-fl, nothing collected at the end": {"train": {"final_flush": False, "first_cycle": "paper"}},
    "ems-fl-enhanced": {"protocol": "ems-fl-enhanced"},
    "ems-fl, orbit": {**ORBIT, "cluster": [c | p for c, p in zip(small.document()["cluster"], PLACES, strict=True)]},
    "aligned": ALIGNED,
    "aligned, contacts that overlap and are cut off": {**ALIGNED, **FILE},
}


LONG = ("aligned, contacts that overlap and are cut off", "ems-fl, adapters", "ems-fl, orbit", "ems-fl, split again")


def scenario(case: dict[str, Any], cycles: int, folder: Path) -> Scenario:
    plan_file(folder)
    return Scenario.parse(small.document(**{**case, "train": {**case.get("train", {}), "cycles": cycles}}), folder)


def model(directory: Path) -> dict[str, bytes]:
    found = [directory / "scenario.toml", directory / "adapters.safetensors", *sorted((directory / "model").iterdir())]
    return {path.name: path.read_bytes() for path in found if path.exists()}


def ledger(directory: Path, longer: int) -> list[bytes]:
    """The lines, but for those that tell that the run has gone on: so many, and the cycles of the first."""
    lines = (directory / "ledger.jsonl").read_bytes().splitlines()
    told = [line for line in lines if b'"event":"longer"' in line]
    assert len(told) == longer
    first = json.loads(lines[0])
    return [json.dumps({**first, "cycles": 0}).encode(), *(line for line in lines[1:] if line not in told)]


@pytest.mark.parametrize("name", some_slow(CASES, LONG))
def test_it_is_what_a_run_of_so_many_cycles_would_have_been(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    run(scenario(case, 2, tmp_path), tmp_path / "run")
    before = next(line for line in read(tmp_path / "run" / "ledger.jsonl") if line["event"] == "end")
    assert before["cycles"] == 2
    longer = run(scenario(case, 4, tmp_path), tmp_path / "run", resume=True)
    whole = run(scenario(case, 4, tmp_path), tmp_path / "whole")
    assert model(tmp_path / "run") == model(tmp_path / "whole")
    assert ledger(tmp_path / "run", 1) == ledger(tmp_path / "whole", 0)
    assert longer.summary == whole.summary
    assert longer.summary["cycles"] == 4
    assert "going on from cycle" in caplog.text
    told = next(line for line in read(tmp_path / "run" / "ledger.jsonl") if line["event"] == "longer")
    assert (told["before"], told["cycles"]) == (2, 4)
    # before the gate tail, the split that two cycles have no time for, or the contact that they cut off
    early = name in ("ems-fl-enhanced", "ems-fl, split again") or "cut off" in name
    assert told["cycle"] == (1 if early else 2)


@pytest.mark.slow
def test_again_and_a_kill_at_any_line_of_it_change_nothing(tmp_path: Path) -> None:
    """2 cycles, on to 3, killed with -9 at each of some lines and resumed, and on to 4."""
    case = {"faults": FAULTS}
    path = tmp_path / "scenario.toml"
    for cycles in (2, 3, 4):
        run(scenario(case, cycles, tmp_path), tmp_path / f"whole-{cycles}")
    run(scenario(case, 2, tmp_path), tmp_path / "run")
    plain = Path(shutil.copytree(tmp_path / "run", tmp_path / "plain"))
    run(scenario(case, 3, tmp_path), plain, resume=True)
    lines = len(list(read(plain / "ledger.jsonl"))) - len(list(read(tmp_path / "run" / "ledger.jsonl")))
    path.write_text(tomli_w.dumps(small.document(**case, train={"cycles": 3})))
    for number in (1, 2, lines // 2, lines):  # the first is the line that tells of it
        killed = Path(shutil.copytree(tmp_path / "run", tmp_path / f"killed-{number}"))
        assert exit_code(started(run_until, path, killed, True, number)) == -signal.SIGKILL
        run(path, killed, resume=True)
        assert (killed / "ledger.jsonl").read_bytes() == (plain / "ledger.jsonl").read_bytes()
        assert model(killed) == model(plain) == model(tmp_path / "whole-3")
    run(scenario(case, 4, tmp_path), plain, resume=True)
    assert model(plain) == model(tmp_path / "whole-4")
    assert ledger(plain, 2) == ledger(tmp_path / "whole-4", 0)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    return run(scenario({}, 2, folder), folder / "run").directory


@pytest.fixture
def copy(ended: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ended, tmp_path / "run"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_of_a_checkpoint_that_was_damaged_since_the_end_goes_into_the_longer_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Files of the one before the last would be linked, as they were written; it is looked at first."""
    monkeypatch.setattr(checkpoint, "LEAST_B", 1)
    monkeypatch.setattr(fedexperts.runs.run, "CHECKPOINT_EVERY_S", 0.0)
    given = {"protocol": "sync"}
    whole = run(scenario(given, 4, tmp_path), tmp_path / "whole")
    run(scenario(given, 2, tmp_path), tmp_path / "run")
    at = tmp_path / "run" / "checkpoints"
    before = at / f"{checkpoint.numbers(at)[-2]:08d}"
    for path in before.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    longer = run(scenario(given, 4, tmp_path), tmp_path / "run", resume=True)
    assert longer.summary == whole.summary
    assert model(tmp_path / "run") == model(tmp_path / "whole")
    assert f"checkpoint {before.name}: " in caplog.text


@pytest.mark.parametrize("number", range(1, 9))
def test_a_kill_before_the_first_line_leaves_a_run_that_has_ended_or_goes_on(
    number: int, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each change of the folder, until the ledger is opened; it never counts as ended with the model of the short run."""
    from fedexperts.runs import run as module

    left = [number]

    def counted(call: Any) -> Any:
        def happen(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return call(*arguments, **named)

        return happen

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", counted(checkpoint.save))
        patch.setattr(module, "write_whole", counted(module.write_whole))
        patch.setattr(module.checkpoint, "remove", counted(checkpoint.remove))
        patch.setattr(module, "Ledger", counted(module.Ledger))
        with contextlib.suppress(KeyboardInterrupt):  # the last of them are behind us when it goes through
            run(scenario({}, 4, tmp_path), copy, resume=True)
    run(scenario({}, 4, tmp_path), copy, resume=True)
    whole = run(scenario({}, 4, tmp_path), tmp_path / "whole").directory
    assert model(copy) == model(whole)
    assert ledger(copy, 1) == ledger(whole, 0)


def test_the_checkpoints_of_a_run_take_no_more_disk_for_it(copy: Path, tmp_path: Path) -> None:
    for cycles in (2, 3, 4):
        run(scenario({}, cycles, tmp_path), copy, resume=True)
        assert [path.name for path in (copy / "checkpoints" / "longer").iterdir()] == ["00000001"]
        assert len(checkpoint.numbers(copy / "checkpoints")) <= 2


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "fewer": ({}, 1, r"has ended with train\.cycles = 2, and 1 are fewer"),
    "another key": (
        {"train": {"local_steps": 3}},
        4,
        r"another scenario or protocol \(train\.cycles = 2 there, 4 here; train\.local_steps = 2 there, 3 here\); resume it",
    ),
    "a rate": ({"train": {"lr_gate": 1.0}}, 4, r"train\.lr_gate = 0\.003 there, 1\.0 here\); .* train\.cycles alone, upwards"),
    "other data": (
        {"cluster": [{**one, "devices": 3} for one in small.document()["cluster"]]},
        2,
        r"\(cluster\[0\]\.devices = 2 there, 3 here; cluster\[1\]\.devices",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_is_named(name: str, copy: Path, tmp_path: Path) -> None:
    case, cycles, told = REFUSED[name]
    before = everything(copy)
    with pytest.raises(InputError, match=told):
        run(scenario(case, cycles, tmp_path), copy, resume=True)
    assert everything(copy) == before


def test_without_its_checkpoint(copy: Path, tmp_path: Path) -> None:
    at = copy / "checkpoints" / "longer" / "00000001" / "tensors.safetensors"
    data = bytearray(at.read_bytes())
    data[-5] ^= 1
    at.write_bytes(data)
    before = everything(copy)
    with pytest.raises(InputError, match=r"longer: no checkpoint can be gone on from .* name another folder to run all cycles"):
        run(scenario({}, 4, tmp_path), copy, resume=True)
    assert everything(copy) == before
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match=r"there is no checkpoints/longer to go on from: it was removed, or .*; name another"):
        run(scenario({}, 4, tmp_path), copy, resume=True)
    assert run(scenario({}, 2, tmp_path), copy, resume=True).summary["cycles"] == 2


def test_a_run_that_has_not_ended(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "model")
    told = r"of train\.cycles = 2 that has not ended .*; go on to its end with --resume --set train\.cycles=2"
    with pytest.raises(InputError, match=rf"{told}, and then to 4, or name another folder"):
        run(scenario({}, 4, tmp_path), copy, resume=True)
    with pytest.raises(InputError, match=f"{told}, or name another folder"):
        run(scenario({}, 1, tmp_path), copy, resume=True)


def test_a_plan_that_ends_earlier(tmp_path: Path) -> None:
    run(scenario(FILE, 9, tmp_path), tmp_path / "run")  # four are in the plan
    with pytest.raises(InputError, match=r"cycles = 10: the plan has only 4 orbital cycles, and the run has made 4; run"):
        run(scenario(FILE, 10, tmp_path), tmp_path / "run", resume=True)
    run(scenario(FILE, 3, tmp_path), tmp_path / "three")
    run(scenario(FILE, 9, tmp_path), tmp_path / "three", resume=True)  # as far as it goes
    assert model(tmp_path / "three") == model(tmp_path / "run")
    assert ledger(tmp_path / "three", 1) == ledger(tmp_path / "run", 0)


def test_the_runs_of_a_comparison(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was begun with train\.cycles = 2; runs that are compared keep their rates and"):
        run_many({copy.name: scenario({}, 4, tmp_path)}, copy.parent, resume=True)


class Own(EmsFl):
    """As the original."""


def test_a_protocol_of_ones_own_may_know_its_length(tmp_path: Path) -> None:
    run(scenario({}, 2, tmp_path), tmp_path / "run", protocol=Own)
    with pytest.raises(InputError, match=r"no checkpoints/longer .* of a protocol of one's own, which may know its length"):
        run(scenario({}, 3, tmp_path), tmp_path / "run", protocol=Own, resume=True)


def networked(folder: Path, cycles: int, control: str | None, gate_cycles: int = 1) -> Scenario:
    pictures.npz(folder / "train.npz", 60, 0)
    pictures.npz(folder / "test.npz", 30, 1)
    config = {"model_type": "networked_moe", "image_size": pictures.SIDE, "width": 8, "expert_hidden": 8, "projection_size": 8}
    document = {
        "name": "network",
        "seed": 1,
        "protocol": "networked",
        "plan": {"kind": "always-on", "slot_s": 600.0},
        "model": {"config": {**config, "num_experts": 1 if control == "fedavg" else 2}},
        "task": {"kind": "image"},
        "train": {"cycles": cycles, "local_steps": 1, "batch_size": 8, "max_rounds": 1},
        "networked": {"extractor_cycles": 1, "expert_cycles": 1, "gate_cycles": gate_cycles}
        | ({} if control is None else {"control": control}),
        "cluster": [{"name": "c", "devices": 2, "data": "train.npz", "test": "test.npz"}],
    }
    return Scenario.parse(document, folder)


def test_a_networked_moe_is_as_long_as_its_stages_and_its_controls_are_not(tmp_path: Path) -> None:
    run(networked(tmp_path, 3, None), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "longer").exists()
    with pytest.raises(InputError, match=r"networked\.gate_cycles = 1 there, 2 here"):
        run(networked(tmp_path, 4, None, 2), tmp_path / "run", resume=True)
    run(networked(tmp_path, 2, "fedavg"), tmp_path / "control")
    run(networked(tmp_path, 3, "fedavg"), tmp_path / "control", resume=True)
    run(networked(tmp_path, 3, "fedavg"), tmp_path / "whole")
    assert model(tmp_path / "control") == model(tmp_path / "whole")
    assert ledger(tmp_path / "control", 1) == ledger(tmp_path / "whole", 0)
