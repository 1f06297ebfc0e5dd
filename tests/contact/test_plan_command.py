"""``fedexperts plan`` on files of others: names as they are, JSON that any parser reads, warnings, and one clear error."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedexperts.cli import common
from fedexperts.cli.main import main

MARKUP = """X [/] [bold]:cat: <b>
1 25544U 98067A   26001.50000000  .00016717  00000-0  10270-3 0  9001
2 25544  51.6400 208.9163 0006317  69.9862  25.2906 15.49560000000008
B
1 25545U 98067A   26001.50000000  .00016717  00000-0  10270-3 0  9002
2 25545  51.6400 108.9163 0006317  69.9862  25.2906 15.49560000000008
"""
PLAN = {
    "contacts": [
        {"cluster": "lisbon", "start_s": 0, "end_s": 600, "uplink_bps": 1e6, "satellite": "[/] [x]"},
        {"cluster": "lisbon", "start_s": 700, "end_s": 900, "uplink_bps": "unlimited", "downlink_bps": 0},
    ]
}


def fedexperts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fedexperts", *map(str, words)])
    with pytest.raises(SystemExit) as done:
        main()
    out = capsys.readouterr()
    return int(done.value.code or 0), out.out, out.err


def scenario(folder: Path, **tables: Any) -> Path:
    places = [{"name": "lisbon", "latitude_deg": 38.72, "longitude_deg": -9.14, "devices": 2}]
    path = folder / "s.toml"
    path.write_text(tomli_w.dumps({"name": "s", "cluster": places, **tables}))
    return path


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def from_file(folder: Path, document: Any = PLAN) -> Path:
    (folder / "p.json").write_text(json.dumps(document))
    return scenario(folder, plan={"kind": "file", "path": "p.json"})


def test_json_says_null_for_no_limit_and_0_for_nothing(tmp_path: Path, monkeypatch, capsys) -> None:
    code, out, err = fedexperts(monkeypatch, capsys, "plan", from_file(tmp_path), "--json")
    document = json.loads(out, parse_constant=refuse_constant)
    rates = [(c["uplink_bps"], c["downlink_bps"], c["uplink_B"], c["downlink_B"]) for c in document["contacts"]]
    assert (code, rates) == (0, [(1e6, 0, 75_000_000, 0), (None, 0, None, 0)])
    assert document["clusters"]["lisbon"]["uplink_B_per_day"] is None
    assert document["clusters"]["lisbon"]["downlink_B_per_day"] == 0
    assert "warning: p.json: 2 of 2 contacts carry nothing down, for no rate is given" in err
    assert document["warnings"] == ["p.json: 2 of 2 contacts carry nothing down, for no rate is given"]


def test_a_plan_that_carries_nothing_up_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = [
        {"cluster": "lisbon", "start_s": 100 * k, "end_s": 100 * k + 9, "uplink_bps": 8e7 if k == 0 else 0} for k in range(3)
    ]
    code, out, _ = fedexperts(monkeypatch, capsys, "plan", from_file(tmp_path, {"contacts": rows[1:]}))
    assert (code, "lisbon: no upload: none of its 2 contacts carries anything up" in out) == (0, True)
    code, out, _ = fedexperts(monkeypatch, capsys, "plan", from_file(tmp_path, {"contacts": rows}))
    assert (code, "lisbon: 14.2 MB fits 1 of 3 contacts; most of them carry nothing up" in out) == (0, True)


@pytest.mark.parametrize("words", [("--export", "ion,hdtn"), ("--export", "ion", "--export", "hdtn")])
def test_exports_are_named_with_commas_or_one_by_one(words: tuple[str, ...], tmp_path: Path, monkeypatch, capsys) -> None:
    path = from_file(tmp_path, {"contacts": [{"cluster": "lisbon", "start_s": 0, "end_s": 9, "uplink_bps": 8e6}]})
    code, _, err = fedexperts(monkeypatch, capsys, "plan", path, "--out", tmp_path / "to", *words)
    assert (code, "unknown format" in err) == (0, False)
    assert {"plan.html", "plan.ion.rc", "plan.hdtn.json"} <= {file.name for file in (tmp_path / "to").iterdir()}
    code, _, err = fedexperts(monkeypatch, capsys, "plan", path, "--out", tmp_path / "other", "--export", "ion,bogus")
    assert (code, "--export bogus: unknown format" in err) == (2, True)


def test_names_are_shown_as_they_are(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "m.tle").write_text(MARKUP)
    monkeypatch.setattr(common.output, "_width", 200)  # as wide as that from the start
    plan = {"kind": "orbit", "start": "START", "days": 1.0}
    path = scenario(tmp_path, plan=plan, satellite={"tle": "m.tle", "all": True})
    path.write_text(path.read_text().replace('"START"', "2026-02-01T00:00:00Z"))
    code, out, err = fedexperts(monkeypatch, capsys, "plan", path, "--out", tmp_path / "out [/]")
    assert (code, "X [/] [bold]:cat: <b>" in out) == (0, True)
    assert "warning: satellite 'X [/] [bold]:cat: <b>': its elements are of 2026-01-01" in err
    assert "<b>" not in (tmp_path / "out [/]" / "plan.html").read_text().partition("</script>")[2]
    code, _, err = fedexperts(monkeypatch, capsys, "plan", path, "--set", "satellite.all=false")
    assert (code, "such as: X [/] [bold]:cat: <b>, B" in err) == (2, True)


@pytest.mark.parametrize(
    ("files", "plan", "message"),
    [
        ({}, {"path": "none.json"}, "cannot be read (No such file"),
        ({}, {"path": "/dev/zero"}, "is not a regular file"),
        ({}, {"path": "a\0b"}, "is no path"),
        ({"p.json": "[" * 3000}, {"path": "p.json"}, "nested deeper than 64 levels"),
        ({"p.json": json.dumps(PLAN).replace("600", "9" * 400)}, {"path": "p.json"}, "contacts[0].end_s = inf"),
        ({"p.csv": "cluster,begin\n"}, {"path": "p.csv"}, "p.csv, line 1: 'begin' is no column of a plan"),
        ({"p.json": json.dumps(PLAN)}, {"path": "p.json", "nodes": {"lisbon": 3}, "start": "soon"}, "plan.start"),
        (
            {"p.rc": "a contact +0 +9 2 3 1"},
            {"path": "p.rc", "nodes": {"lisbon": 3}},
            "node 2 (unknown) to node 3 (lisbon): is a relay",
        ),
    ],
)
def test_one_clear_error(files: dict, plan: dict, message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, out, err = fedexperts(monkeypatch, capsys, "plan", scenario(tmp_path, plan={"kind": "file", **plan}), "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = " + "9" * 5000, "[" + "a." * 300 + "b]\nx = 1", "name = 's\xf3'"])
def test_a_scenario_that_no_parser_bears_is_refused(text: str, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "s.toml").write_bytes(text.encode("latin1"))
    code, _, err = fedexperts(monkeypatch, capsys, "plan", tmp_path / "s.toml")
    assert (code, err.startswith("error: ")) == (2, True)
    assert "s.toml" in err
