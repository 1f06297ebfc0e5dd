"""``bound``, ``plan --bound`` and ``advise`` as commands: one JSON object, files, and one clear error each."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from test_startup import loaded

import fingerprints
import small
import terminal
from fedexperts import Scenario, run
from fedexperts.cli.common import output
from fedexperts.errors import InputError
from fedexperts.method.methods import prepare
from fedexperts.planned import plan
from fedexperts.runs.advise import advise, advised, wish
from fedexperts.runs.constants import estimated
from fedexperts.theory import MEANINGS

CONSTANTS = [
    word
    for name, value in zip(MEANINGS, (2, 12, 1, 2, 3, 1, 4), strict=True)
    for word in ("--" + name.replace("_", "-"), str(value))
]


@pytest.fixture
def fedexperts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*words: str | Path) -> tuple[int, str, str]:
        code, out, err = terminal.fedexperts(monkeypatch, capsys, *words)
        return code, out, " ".join(err.split())

    return command


def scenario(folder: Path, *tables: dict[str, Any]) -> Path:
    path = folder / "s.toml"
    path.write_text(tomli_w.dumps(fingerprints.text(*tables)))
    return path


# ---- theorems


def test_constants_by_hand_as_json_and_as_a_page(fedexperts: Any, tmp_path: Path) -> None:
    words = ("bound", "--clusters", "3", "--gamma", "2", "--cycles", "16", *CONSTANTS)
    code, out, _ = fedexperts(*words, "--json", "--out", tmp_path / "bound.html")
    document = json.loads(out)
    assert code == 0
    assert document["ems_fl"] == {
        "published": 1575.5,
        "corrected": 1575.5,
        "scaled_twice": pytest.approx(5625.5),
        "reason": None,
    }
    assert document["sync"]["published"] == 1036
    assert all(row["holds"] for row in document["conditions"].values())
    assert "Theorems 1 and 2" in (tmp_path / "bound.html").read_text()
    code, out, _ = fedexperts(*words)
    assert (code, "1576" in out, "above the baseline's for every γ in 1…3" in out) == (0, True, True)


def test_a_condition_that_fails_is_said(fedexperts: Any) -> None:
    code, out, _ = fedexperts("bound", "--gamma", "2,0.5", "--cycles", "16", *CONSTANTS)
    assert code == 0
    assert "fails: γ_c = 0.5" in out
    assert "bounds nothing here" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--clusters", "3", "--gamma", "2", "--cycles", "16", "--gap", "-1"),
            "--gap = -1: must be a number from 0 to 1e+30; it is F₀ − F*",
        ),
        (("--clusters", "3", "--gamma", "2", "--cycles", "16", "--gap", "1"), "missing --smoothness, L of (40)"),
        (("--clusters", "3", "--cycles", "16", *CONSTANTS), "missing --gamma"),
        (("--clusters", "3", "--gamma", "2", *CONSTANTS), "missing --cycles"),
        (("--gamma", "2", "--cycles", "16", *CONSTANTS), "missing --clusters"),
        (("--gamma", "x", "--cycles", "16", *CONSTANTS), "--gamma 'x': must be a number"),
        (("--gamma", "1,2", "--clusters", "3", "--cycles", "16", *CONSTANTS), "--clusters = 3: --gamma has 2 numbers"),
        (("--gamma", "nan", "--clusters", "3", "--cycles", "16", *CONSTANTS), "--gamma = nan: must be a number above 0"),
        (("--gamma", "2", "--clusters", "0", "--cycles", "16", *CONSTANTS), "--clusters = 0: must be from 1 to 100,000"),
        (("--gamma", "2", "--clusters", "3", "--cycles", "0", *CONSTANTS), "--cycles = 0: must be from 1 to 1e+12"),
        (("--gamma", "2", "--clusters", "3", "--cycles", "9" * 40, *CONSTANTS), "must be from 1 to 1e+12; it is T"),
        (
            ("--gamma", "2", "--clusters", "3", "--cycles", "16", *CONSTANTS, "--grad-expert", "1e200"),
            "--grad-expert = 1e+200: must be a number from 0 to 1e+30; it is G_E of (41)",
        ),
        (("--gamma", "1e300", "--clusters", "3", "--cycles", "16", *CONSTANTS), "--gamma = 1e+300: must be a number above 0"),
        (
            ("--gamma", "2", "--clusters", "3", "--cycles", "16", *CONSTANTS, "--eta-gate", "1e-300"),
            "--eta-gate = 1e-300: must be a number above 0, from 1e-30 to 1e+06",
        ),
    ],
)
def test_wrong_constants(words: tuple[str, ...], said: str, fedexperts: Any) -> None:
    code, out, err = fedexperts("bound", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_scenario_gives_what_is_left_out(fedexperts: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path)
    code, out, err = fedexperts("bound", path, "--json", "--grad-gate", "5")
    document = json.loads(out)
    assert code == 0
    assert (document["clusters"], document["cycles"], document["constants"]["grad_gate"]) == (2, 3, 5)
    assert set(document["estimated"]["constants"]) == set(MEANINGS) - {"grad_gate"}
    assert "values with them are no bounds" in err
    assert 0 < document["constants"]["gap"] == pytest.approx(math.log(10), rel=0.3)  # ten classes, a new model
    code, out, _ = fedexperts("bound", path, "--json", "--gamma", "1.5", *CONSTANTS)
    assert (json.loads(out)["estimated"], json.loads(out)["gammas"]) == (None, [1.5, 1.5])


def test_estimates_vanish_where_devices_are_alike_and_leave_the_model() -> None:
    """Two clusters of one device each with the same samples: no device differs from the mean."""
    cluster = [{"name": name, "data": "digits:plain"} for name in "ab"]
    prepared = prepare(Scenario.parse(small.document(cluster=cluster)))
    devices = small.devices(prepared)
    for device in devices["b"]:
        device.data = devices["a"][0].data
    before = {part: prepared.view.export(part) for part in prepared.view.parts}
    owned = {"a": frozenset({"expert:0", "expert:1"}), "b": frozenset({"expert:2", "expert:3"})}
    same = estimated(prepared, owned, {"a": 1.0, "b": 1.0})
    assert max(same.sigma_expert, same.sigma_gate, same.zeta_expert) < 1e-6
    twice = estimated(prepared, owned, {"a": 2.0, "b": 2.0})  # g − 2∇F = −∇F of the own experts, over γ = 2
    assert 0 < twice.sigma_expert < twice.grad_expert / 2
    assert (twice.smoothness > 0, twice.gap) == (True, pytest.approx(same.gap))
    for part, tensors in before.items():
        assert all(torch.equal(prepared.view.export(part)[name], tensor) for name, tensor in tensors.items())


# ---- plans


def test_plan_bound_as_json_and_page_without_torch(fedexperts: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path, {"train": {"cycles": 2, "seconds_per_round": 60.0}})
    code, out, _ = fedexperts("plan", path, "--bound", "--json", "--out", tmp_path / "out")
    bound = json.loads(out)["bound"]
    row = bound["clusters"]["plain"]
    assert code == 0
    assert row["schedule_s"][:2] == [120, 240]  # met at 0, trained by 60, met again at 120
    assert row["update_s"][:3] == pytest.approx([60, 120, 180], abs=1e-5)
    assert (row["bottleneck"], row["schedule_bottleneck"]) == ("compute", "contact")
    assert bound["sync"]["round_s"][:3] == pytest.approx([60, 120, 180], abs=1e-5)
    page = (tmp_path / "out" / "plan.html").read_text()
    assert "What the plan allows" in page
    assert "no network, rounds of 1 min" in page
    _, out, _ = fedexperts("plan", path, "--bound")
    assert "the earliest updates in EMS-FL's order" in out
    assert "what would help" in out
    assert "torch" not in loaded("plan", str(path), "--bound")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A scenario and a run of it."""
    path = scenario(tmp_path, {"train": {"cycles": 3, "seconds_per_round": 60.0}})
    run(path, tmp_path / "run")
    return path, tmp_path / "run"


def test_a_run_beside_its_bounds(made: tuple[Path, Path], fedexperts: Any, tmp_path: Path) -> None:
    path, directory = made
    code, out, _ = fedexperts("plan", path, "--bound", "--run", directory, "--json", "--out", tmp_path / "out")
    bound = json.loads(out)["bound"]
    lines = [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]
    owned = next(line["assignment"] for line in lines if line["event"] == "assignment")
    assert code == 0
    assert bound["owners"] == {name: [f"expert:{m}" for m in row] for name, row in owned.items()}
    for name, row in bound["clusters"].items():
        came_s = bound["run"]["clusters"][name]["update_s"]
        first = f"expert:{owned[name][0]}"
        at_s = [
            line["t_s"] for line in lines if line["event"] == "aggregate" and (line["cluster"], line["part"]) == (name, first)
        ]
        assert came_s == at_s
        assert came_s == pytest.approx(row["schedule_s"][: len(came_s)], abs=1e-3)
    page = (tmp_path / "out" / "plan.html").read_text()
    assert "plain, the run" in page
    assert "Markers: what came in the run, by ems-fl." in page
    _, out, _ = fedexperts("plan", path, "--bound", "--run", directory)
    assert re.search(
        r"the run: plain 3 updates, the last after .* by when the plan allows 3 in EMS-FL's order and \d+ by any", out
    )


def test_a_run_of_the_baseline_has_rounds_and_no_owners(fedexperts: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path, {"protocol": "sync", "train": {"cycles": 2, "seconds_per_round": 60.0}})
    run(path, tmp_path / "run")
    code, out, _ = fedexperts("plan", path, "--bound", "--run", tmp_path / "run", "--json")
    bound = json.loads(out)["bound"]
    assert code == 0
    for name, row in bound["run"]["clusters"].items():
        assert len(row["update_s"]) == 2
        assert row["update_s"] == pytest.approx(bound["sync"]["clusters"][name]["round_s"][:2], abs=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "plan.slot_s=50.0"), "was made over another plan (some of its contacts); give the scenario of the run"),
        (("--set", "model.uplink=int8"), "B; give the scenario of the run, with the --set of it"),
        (("--set", "cluster.0.name=oslo"), "was made over another plan (cluster oslo)"),
        (("--owners", "o.json"), "--run has owners of its own; leave one out"),
    ],
)
def test_a_run_of_something_else(words: tuple[str, ...], said: str, made: tuple[Path, Path], fedexperts: Any) -> None:
    path, directory = made
    code, _, err = fedexperts("plan", path, "--bound", "--run", directory, *words)
    assert (code, said in err) == (2, True), err


def test_no_run_to_show(made: tuple[Path, Path], fedexperts: Any, tmp_path: Path) -> None:
    path, directory = made
    for words, said in (
        (("--run", directory), f"--run {directory}: is for --bound; add it"),
        (("--bound", "--run", tmp_path), "holds no ledger.jsonl; give a run directory"),
    ):
        code, _, err = fedexperts("plan", path, *words)
        assert (code, said in err) == (2, True), err
    old = Path(__file__).parents[1] / "old_runs" / "aligned"
    code, _, err = fedexperts("plan", path, "--bound", "--run", old)
    assert (code, "bounds are of ems-fl, ems-fl-enhanced and sync" in err) == (2, True), err


def test_names_are_whole_in_a_narrow_terminal(fedexperts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "width", 50)
    words = ("--goal", "updates=1", "--by", "1 d", "--over", "assignment.trial_samples=11")
    code, out, _ = fedexperts("advise", scenario(tmp_path), *words)
    assert (code, "…" in out) == (0, False)
    rows = [line.split() for line in out.splitlines()[2:]]
    assert "".join(row[0] for row in rows if row).startswith("assignment.trial_samples=11")
    assert f"{tmp_path / 's-advice-1.toml'}: assignment.trial_samples=11" in out


def test_owners_are_for_bounds(fedexperts: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path)
    (tmp_path / "o.json").write_text('{"assignment": {"plain": [0], "inverted": [1, 2, 3]}}')
    code, _, err = fedexperts("plan", path, "--owners", tmp_path / "o.json")
    assert (code, "is for --bound; add it" in err) == (2, True)
    code, out, _ = fedexperts("plan", path, "--bound", "--owners", tmp_path / "o.json", "--json")
    assert json.loads(out)["bound"]["owners"]["inverted"] == ["expert:1", "expert:2", "expert:3"]


# ---- advice


SLOW = {"train": {"cycles": 2, "seconds_per_round": 60.0}, "plan": {"days": 0.05}}
RANKS = {"model": {"config": small.CONFIG, "lora": {"rank": 2, "alpha": 4.0}}}


def test_a_front_is_not_worse_in_everything(tmp_path: Path) -> None:
    path = scenario(tmp_path, SLOW, RANKS)
    wanted = wish("updates=5", "1 h", ["model.lora.rank=1,2,4", "train.seconds_per_round=20.0,60.0,130.0"], ["uplink_MB=1"])
    found = advised(path, wanted)
    every = found["front"] + found["others"]
    assert len(every) == 9
    keys = ("hours", "uplink_MB", "device_J")
    fits = [row for row in every if not row.get("misses")]
    for row in fits:
        beaten = any(all(o[k] <= row[k] for k in keys) and any(o[k] < row[k] for k in keys) for o in fits)
        assert beaten == (row not in found["front"])
    assert {row["changes"][0] for row in found["front"]} == {"model.lora.rank=1"}
    assert "updates are not accuracy" in found["note"]


def test_scenarios_are_written_and_run(fedexperts: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path, SLOW, RANKS)
    words = ("advise", path, "--goal", "updates=3", "--by", "1 h", "--over", "model.lora.rank=1,2")
    code, out, _ = fedexperts(*words, "--json")
    row = json.loads(out)["front"][0]
    assert (code, row["changes"]) == (0, ["model.lora.rank=1"])
    written = Scenario.load(Path(row["file"]))
    assert written.model.lora is not None
    assert written.model.lora.rank == 1
    assert written.name == Scenario.load(path).name
    assert fedexperts(*words)[0] == 0  # the same again
    Path(row["file"]).write_text("mine")
    code, _, err = fedexperts(*words)
    assert (code, "is there and says something else; use --force" in err) == (2, True)
    code, out, _ = fedexperts(*words, "--no-write")
    assert (code, "updates are not accuracy" in out) == (0, True)


def test_what_nothing_reaches_names_the_nearest(tmp_path: Path) -> None:
    path = scenario(tmp_path, SLOW, RANKS)
    over = ["model.lora.rank=1,2"]
    with pytest.raises(InputError, match=r"nothing reaches updates=9 .*rank=1: 9 updates after 0\.3 h, and 4 by then"):
        advised(path, wish("updates=9", "10 min", over, []))
    with pytest.raises(InputError, match=r"nothing reaches .*: in time, with uplink_MB \S+ where 1e-06 is the limit"):
        advised(path, wish("updates=2", "1 h", over, ["uplink_MB=0.000001"]))
    with pytest.raises(InputError, match=r"nothing reaches updates=1000 .* \d+ updates of every cluster by then"):
        advised(path, wish("updates=1000", "1 h", over, []))
    with pytest.raises(InputError, match=r"none of the combinations can be: model\.lora\.rank = 99"):
        advised(path, wish("updates=2", "1 h", ["model.lora.rank=99"], []))
    found = advise(path, "updates=2", "1 h", ["model.lora.rank=1,99"])
    assert [row["changes"] for row in found["refused"]] == [["model.lora.rank=99"]]


def test_a_limit_is_kept_to_the_byte(tmp_path: Path) -> None:
    """Small models send kilobytes, and a limit in MB is not of whole ones."""
    path = scenario(tmp_path, SLOW, RANKS)
    row = advised(path, wish("updates=2", "1 h", [], []))["front"][0]
    sent_B = round(1e6 * row["uplink_MB"])
    assert sent_B == 2 * allowed_B(path)
    advised(path, wish("updates=2", "1 h", [], [f"uplink_MB={sent_B / 1e6}"]))
    with pytest.raises(InputError, match="nothing reaches updates=2 within the limits"):
        advised(path, wish("updates=2", "1 h", [], [f"uplink_MB={(sent_B - 1) / 1e6}"]))


def allowed_B(path: Path) -> int:
    """What one update of a cluster takes up, by the bounds."""
    found = plan(path, bound=True)["bound"]["clusters"]
    return max(int(row["upload_B"]) for row in found.values())


def test_the_baseline_is_advised_by_its_rounds(tmp_path: Path) -> None:
    path = scenario(tmp_path, SLOW, RANKS, {"protocol": "sync"})
    row = advised(path, wish("updates=2", "1 h", [], []))["front"][0]
    assert row["hours"] == pytest.approx(240 / 3600, abs=1e-3)  # inverted is met at 60 and 180, and rounds take 60 s
    assert row["changes"] == []


@pytest.mark.parametrize(
    ("goal", "by", "over", "limit", "said"),
    [
        ("20", "3 d", (), (), "--goal 20: must say of what, as updates=20"),
        ("accuracy=0.9", "3 d", (), (), "--goal accuracy=0.9: must say of what"),
        ("updates=0", "3 d", (), (), "--goal updates=0: must be a whole number from 1"),
        ("updates=2", "3", (), (), "--by '3': must be a number with its unit, one of s, min, h, d"),
        ("updates=2", "3 weeks", (), (), "--by '3 weeks': must be a number with its unit"),
        ("updates=2", "0 d", (), (), "--by '0 d': must be a number above 0"),
        ("updates=2", "1e300 d", (), (), "--by '1e300 d': must be at most 1e+10 s"),
        ("updates=2", "3 d", ("model.lora.rank",), (), "--over model.lora.rank: must look like"),
        ("updates=2", "3 d", ("model.uplink=,",), (), "--over model.uplink=,: must look like"),
        ("updates=2", "3 d", ("seed=1", "seed=2"), (), "--over seed=2: seed is given twice; give its values once"),
        ("updates=2", "3 d", (), ("hours=3", "hours=4"), "--limit hours=4: hours is given twice"),
        ("updates=2", "3 d", ("seed=" + ",".join(map(str, range(600))),), (), "--over: 600 combinations; at most 500"),
        ("updates=2", "3 d", (), ("MB=3",), "--limit MB=3: unknown resource; known are hours"),
        ("updates=2", "3 d", (), ("uplink_MB=x",), "--limit uplink_MB=x: must be a number above 0"),
    ],
)
def test_wishes_that_cannot_be(
    goal: str, by: str, over: tuple[str, ...], limit: tuple[str, ...], said: str, fedexperts: Any, tmp_path: Path
) -> None:
    words = [word for one in over for word in ("--over", one)] + [word for one in limit for word in ("--limit", one)]
    code, out, err = fedexperts("advise", scenario(tmp_path), "--goal", goal, "--by", by, *words)
    assert (code, out) == (2, "")
    assert said in err


def test_a_plan_without_rates_is_refused_in_words(fedexperts: Any, tmp_path: Path) -> None:
    rows = [{"cluster": name, "start_s": 100 * k, "end_s": 100 * k + 50} for k, name in enumerate(("plain", "inverted") * 3)]
    (tmp_path / "p.json").write_text(json.dumps({"contacts": rows}))
    path = scenario(tmp_path, {"plan": {"kind": "file", "path": "p.json"}})
    for words in (("plan", path, "--bound"), ("advise", path, "--goal", "updates=2", "--by", "3 d")):
        code, _, err = fedexperts(*words)
        assert (code, "plan: none of its 6 contacts carries anything up; give them an uplink_bps" in err) == (2, True)
