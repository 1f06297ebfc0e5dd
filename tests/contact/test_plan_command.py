"""``fedexperts plan`` on files of others: names as they are, JSON that any parser reads, warnings, and one clear error."""

import html
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
    page = (tmp_path / "out [/]" / "plan.html").read_text()
    assert (":cat: <b>" in page, ":cat: &lt;b&gt;&#x27;: its elements are of 2026-01-01" in page) == (False, True)
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


def test_an_unserved_town_in_a_file_is_told_to_change_the_file(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "p.json").write_text(json.dumps(PLAN))
    places = [{"name": name} for name in ("lisbon", "evora")]
    path = scenario(tmp_path, plan={"kind": "file", "path": "p.json"}, cluster=places)
    code, out, _ = fedexperts(monkeypatch, capsys, "plan", path)
    assert code == 0
    assert "evora: never seen" in out
    assert "add a contact to the file of plan.path, or drop the cluster" in out
    assert "inclination" not in out


MANY = [f"CONSTELLATION-OF-MANY-SATELLITES-{k:04d}" for k in range(9)]
TOWNS = [f"a-town-with-quite-a-long-name-{k}" for k in range(12)]


def crowded(folder: Path, **tables: Any) -> Path:
    rows = [
        {"cluster": town, "start_s": 600.0 * k + 60 * i, "end_s": 600.0 * k + 60 * i + 50, "satellite": MANY[k % 9]}
        for k in range(30)
        for i, town in enumerate(TOWNS)
    ]
    rows = [{**row, "uplink_bps": 1.25e9, "downlink_bps": 9.5e10} for row in sorted(rows, key=lambda row: row["start_s"])]
    (folder / "p.json").write_text(json.dumps({"contacts": rows}))
    table = {"kind": "file", "path": "p.json", "start": "START"}
    places = [{"name": town, "devices": 2, "data": "x"} for town in TOWNS]
    path = scenario(folder, plan=table, cluster=places, **tables)
    path.write_text(path.read_text().replace('"START"', "2026-12-31T22:30:00Z"))
    return path


MODEL = {
    "config": {
        "model_type": "mixtral",
        "vocab_size": 99,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 24,
    }
}


@pytest.mark.parametrize("protocol", ["sync", "ems-fl-enhanced", "aligned"])
def test_tables_stay_whole_in_80_columns(protocol: str, tmp_path: Path, monkeypatch, capsys) -> None:
    path = crowded(tmp_path, model=MODEL, train={"cycles": 4}, protocol=protocol)
    monkeypatch.setattr(common.output, "_width", 80)
    code, out, _ = fedexperts(monkeypatch, capsys, "plan", path)
    assert code == 0
    tables = [
        line
        for line in out.splitlines()
        if not line.startswith(("a-town-with-quite-a-long-name", "memory", "cycle", f"{protocol}: "))
    ]
    assert max(map(len, tables)) <= 80
    first = next(line for line in out.splitlines() if "12-31 22:30:00" in line)
    assert first.split()[2:] == ["12-31", "22:30:00", "22:30:50", "0:00", "h", "0.8", "1250.00", "7812.5", "593750.0"]
    names = {tuple(line.split()[:2]) for line in tables if "12-31 2" in line or "01-01 0" in line}
    assert len(names) == 12  # cut in their middle, names still differ
    assert "360 contacts" in out
    assert "the first 12; all in --json and plan.html" in " ".join(out.split())
    assert "…" in first


def test_times_are_utc_with_the_elapsed_beside_them(tmp_path: Path, monkeypatch, capsys) -> None:
    code, out, _ = fedexperts(monkeypatch, capsys, "plan", crowded(tmp_path), "--json")
    rows = json.loads(out)["contacts"]
    assert code == 0
    assert (rows[0]["start_utc"], rows[0]["start_s"], rows[0]["end_utc"]) == (
        "2026-12-31T22:30:00Z",
        0.0,
        "2026-12-31T22:30:50Z",
    )
    late = next(row for row in rows if row["start_s"] >= 5400)
    assert late["start_utc"].startswith("2027-01-01T00:00:00")


def test_one_protocol_or_another(tmp_path: Path, monkeypatch, capsys) -> None:
    path = crowded(tmp_path, model=MODEL, train={"cycles": 4})
    found = {}
    for protocol in ("sync", "ems-fl", "ems-fl-enhanced", "aligned"):
        code, out, err = fedexperts(monkeypatch, capsys, "plan", path, "--protocol", protocol, "--json")
        assert code == 0, err
        found[protocol] = json.loads(out)
    assert {name: document["method"]["protocol"] for name, document in found.items()} == {name: name for name in found}
    assert (
        found["sync"]["upload_B"]
        > found["ems-fl"]["upload_B"]
        > found["ems-fl-enhanced"]["method"]["parts"]["expert:0"]["upload_B"]
    )
    code, _, err = fedexperts(monkeypatch, capsys, "plan", path, "--protocol", "mine")
    assert (code, "protocol = 'mine'" in err) == (2, True)


def test_a_cycle_beyond_the_plan_has_an_estimate(tmp_path: Path, monkeypatch, capsys) -> None:
    path = crowded(tmp_path, model=MODEL, train={"cycles": 4})
    document = json.loads(fedexperts(monkeypatch, capsys, "plan", path, "--cycles", "10", "--json")[1])
    assert document["method"]["ends"] == {"cycle": 10, "in_plan": True, "t_s": 6110.0, "utc": "2027-01-01 00:11:50"}
    document = json.loads(fedexperts(monkeypatch, capsys, "plan", path, "--cycles", "60", "--json")[1])
    assert document["method"]["ends"]["in_plan"] is False
    assert document["cycles"] == 29
    assert document["method"]["ends"]["t_s"] == pytest.approx(60 * 17510 / 29)
    assert "about, as the plan ends with cycle 29" in document["method"]["answers"][-1]


@pytest.mark.parametrize(
    ("protocol", "tables", "message"),
    [
        ("networked", {}, 'needs a model of model_type "networked_moe"'),
        ("networked", {"model": {"config": {"model_type": "networked_moe", "num_experts": 3}}}, "num_experts = 3: must be 24"),
        ("aligned", {"assignment": {"granularity": "layer"}}, "clients are assigned whole experts"),
        ("ems-fl", {"model": {**MODEL, "lora": {"rank": 99, "alpha": 1.0}}}, "model.lora.rank = 99: must be at most 16"),
        ("ems-fl", {"model": {"path": "nowhere"}}, "model.path = 'nowhere': no such file or folder; build it first"),
        ("ems-fl", {"device": {"fridge": {"idle_power_W": 1.0}}}, "[device.fridge]: is not complete"),
    ],
)
def test_a_method_that_cannot_be_is_refused(
    protocol: str, tables: dict, message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    path = crowded(tmp_path, **{"model": MODEL, "train": {"cycles": 4}, **tables})
    code, out, err = fedexperts(monkeypatch, capsys, "plan", path, "--protocol", protocol)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("protocol", ["sync", "ems-fl", "ems-fl-enhanced", "aligned"])
def test_a_plan_without_a_contact_or_a_cycle_is_told_of(protocol: str, tmp_path: Path, monkeypatch, capsys) -> None:
    pole = [{"name": name, "latitude_deg": north, "longitude_deg": 0.0} for name, north in (("pole", 89.0), ("accra", 5.0))]
    plan = {"kind": "orbit", "start": "START", "days": 0.5}
    tables = {"satellite": {"altitude_km": 600.0, "inclination_deg": 10.0}, "model": MODEL, "train": {"cycles": 2}}
    for places, answer in ((pole, "cycle 2 ends"), (pole[:1], "0 contacts")):
        path = scenario(tmp_path, plan=plan, cluster=places, protocol=protocol, **tables)
        path.write_text(path.read_text().replace('"START"', "2026-01-01T00:00:00Z"))
        code, out, err = fedexperts(monkeypatch, capsys, "plan", path)
        assert (code, err) == (0, "")
        assert answer in out
        assert "pole: never seen: no contact in 0.5 days; use a lower min_elevation_deg" in out


METHOD = """
class Mine:
    def __init__(self, start):
        self.model = dict(start.model)

    async def contact(self, link):
        pass


def no_class():
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "method_of_mine.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    return crowded(tmp_path, model=MODEL, train={"cycles": 4})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("method_of_mine:Mne", "has no attribute 'Mne'"),
        ("method_of_mine:no_class", "is no class"),
        ("nowhere:Mine", "No module"),
    ],
)
def test_a_protocol_of_ones_own_that_is_none_is_refused(name: str, said: str, own: Path, monkeypatch, capsys) -> None:
    code, out, err = fedexperts(monkeypatch, capsys, "plan", own, "--protocol", name)
    assert (code, out) == (2, "")
    assert f"protocol = '{name}': " in err
    assert said in err


@pytest.mark.filterwarnings("always::fedexperts.errors.InputWarning")
def test_of_a_protocol_of_ones_own_it_is_said_who_tells_of_it(own: Path, monkeypatch, capsys) -> None:
    note = "protocol = 'method_of_mine:Mine': whether it works, and what it sends, fedexperts check tells, on your data"
    upload = "14.2 MB, an expert of Llama-3-8B with LoRA of rank 4, as what method_of_mine:Mine sends is not known here"
    words = ("plan", own, "--protocol", "method_of_mine:Mine", "--out", own.parent / "out")
    code, out, err = fedexperts(monkeypatch, capsys, *words, "--json")
    assert f"warning: {note}" in err
    document = json.loads(out)
    assert (code, document["method"], document["warnings"], document["upload_of"]) == (0, None, [note], upload)
    page = html.unescape((own.parent / "out" / "plan.html").read_text())
    assert note in page
    assert f"Uploads are of {upload}." in page
    assert f"upload: {upload}" in fedexperts(monkeypatch, capsys, *words)[1]


def test_without_a_model_the_upload_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    upload = "14.2 MB, an expert of Llama-3-8B with LoRA of rank 4, as no model is given"
    path = from_file(tmp_path)
    assert f"upload: {upload}" in fedexperts(monkeypatch, capsys, "plan", path, "--out", tmp_path / "out")[1]
    assert json.loads(fedexperts(monkeypatch, capsys, "plan", path, "--json")[1])["upload_of"] == upload
    assert f"Uploads are of {upload}." in (tmp_path / "out" / "plan.html").read_text()


def test_all_that_json_prints_is_in_a_file_and_the_plan_beside_it_is_read_again(tmp_path: Path, monkeypatch, capsys) -> None:
    path, out = crowded(tmp_path, model=MODEL, train={"cycles": 4}), tmp_path / "out"
    printed = json.loads(fedexperts(monkeypatch, capsys, "plan", path, "--out", out, "--json")[1])
    assert json.loads((out / "answer.json").read_text()) == printed
    assert printed["method"]["answers"][0] == "ems-fl: yes: every cluster trains, and what it trains arrives"
    assert printed["contacts"][0]["start_utc"] == "2026-12-31T22:30:00Z"
    again = json.loads(fedexperts(monkeypatch, capsys, "plan", path, "--set", f"plan.path={out / 'plan.json'}", "--json")[1])
    assert again == printed
    (out / "answer.json").write_text("mine")
    code, _, err = fedexperts(monkeypatch, capsys, "plan", path, "--out", out)
    assert (code, "answer.json: exists, and fedexperts did not write it" in err) == (2, True)


def test_the_page_has_the_answer_first_and_what_is_lost(tmp_path: Path, monkeypatch, capsys) -> None:
    path = crowded(tmp_path, model=MODEL, train={"cycles": 4})
    assert fedexperts(monkeypatch, capsys, "plan", path, "--out", tmp_path / "out")[0] == 0
    page = html.unescape((tmp_path / "out" / "plan.html").read_text())
    assert "Can it be done?</h2><ul><li>ems-fl: yes: every cluster trains, and what it trains arrives</li>" in page
    assert "<th>lost</th>" in page
    assert "<th>total J</th>" in page


def test_exports_say_whose_rates_they_are(tmp_path: Path, monkeypatch, capsys) -> None:
    path = from_file(tmp_path, {"contacts": [{"cluster": "lisbon", "start_s": 0, "end_s": 9, "uplink_bps": 8e6}]})
    _, _, err = fedexperts(monkeypatch, capsys, "plan", path, "--out", tmp_path / "to", "--export", "ion,hdtn")
    assert "rates of these exports are those of one device, and a node is a cluster of devices" in err
    assert "# rates are those of one device; a node is a cluster" in (tmp_path / "to" / "plan.ion.rc").read_text()


def test_an_unknown_class_of_devices_names_its_cluster_and_the_nearest(tmp_path: Path, monkeypatch, capsys) -> None:
    powers = {"tx_power_W": 1.0, "rx_power_W": 1.0, "idle_power_W": 0.1, "compute_J_per_FLOP": 1e-11}
    path = crowded(tmp_path, model=MODEL, train={"cycles": 4}, device={"board": powers})
    path.write_text(path.read_text().replace(f'name = "{TOWNS[3]}"', f'name = "{TOWNS[3]}", device = "bord"'))
    code, _, err = fedexperts(monkeypatch, capsys, "plan", path)
    assert code == 2
    assert f"cluster '{TOWNS[3]}': device = 'bord': unknown class; did you mean board? known are board, jetson, laptop" in err
