"""Plans as other tools write them: what a file does not say is nothing, and what cannot be is refused with its place."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedexperts.contact.interchange import load_plan, plan_text
from fedexperts.contact.plan import Contact, ContactPlan, PlanError, Rates, round_robin

TWO = ("lisbon", "nairobi")
START = datetime(2026, 1, 1, tzinfo=UTC)


def hdtn(*rows: tuple[int, int, float, float, float]) -> str:
    keys = ("source", "dest", "startTime", "endTime", "rateBitsPerSec")
    return json.dumps(
        {"contacts": [{"contact": i, **dict(zip(keys, row, strict=True)), "owlt": 1} for i, row in enumerate(rows)]}
    )


def load(tmp_path: Path, name: str, text: str | bytes, **more: Any) -> ContactPlan:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_plan(path, TWO, **more)


def rows(plan: ContactPlan) -> list[tuple[str, float, float, float, float]]:
    return [(c.cluster, c.start_s, c.end_s, c.uplink_bps, c.downlink_bps) for c in plan.contacts]


# ---- one-way contacts


def test_a_direction_without_a_contact_carries_nothing(tmp_path: Path) -> None:
    plan = load(tmp_path, "p.json", hdtn((2, 1, 0, 600, 1e6), (3, 1, 700, 900, 1e6)))
    assert rows(plan) == [("lisbon", 0, 600, 1e6, 0), ("nairobi", 700, 900, 1e6, 0)]
    assert plan.contacts[0].carried_B("down", 0, 600) == 0
    assert any("2 of 2 contacts carry nothing down" in note for note in plan.notes)


def test_rate_0_of_hdtn_is_no_limit_both_ways(tmp_path: Path) -> None:
    plan = load(tmp_path, "p.json", hdtn((1, 2, 0, 600, 0), (2, 1, 0, 600, 0)))
    assert rows(plan) == [("lisbon", 0, 600, math.inf, math.inf)]
    assert json.loads(plan_text(plan, "hdtn"))["contacts"][0]["rateBitsPerSec"] == 0
    path = tmp_path / "again.json"
    path.write_text(plan_text(plan, "hdtn"))
    assert load_plan(path, TWO) == plan


def test_windows_that_differ_keep_their_own(tmp_path: Path) -> None:
    plan = load(tmp_path, "p.json", hdtn((2, 1, 0, 600, 1e6), (1, 2, 0, 500, 1e6), (1, 2, 650, 700, 8)))
    first, second = plan.contacts
    assert (first.start_s, first.end_s, first.rates) == (0, 600, (Rates(500, 1e6, 1e6), Rates(600, 1e6, 0)))
    assert (first.carried_B("up", 0, 600), first.carried_B("down", 0, 600)) == (75e6, 62.5e6)
    assert first.finish_s("down", 499, 1e6) == math.inf
    assert (second.start_s, second.uplink_bps, second.downlink_bps) == (650, 0, 8)


@pytest.mark.parametrize("rate", [1e6, 2e6])  # alike, and contradicting: the last one won
def test_doubled_rows_are_refused(rate: float, tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"p\.json, contact 1: 0-600 s overlaps 0-600 s \(p\.json, contact 0\), both to the server"
    ):
        load(tmp_path, "p.json", hdtn((2, 1, 0, 600, 1e6), (2, 1, 0, 600, rate)))
    with pytest.raises(PlanError, match=r"p\.csv: contacts of cluster 'lisbon' overlap: 0-600 s and 0-600 s"):
        load(tmp_path, "p.csv", f"cluster,start_s,end_s,uplink_bps\nlisbon,0,600,1e6\nlisbon,0,600,{rate}\n")


def test_node_numbers_of_ones_own(tmp_path: Path) -> None:
    text = hdtn((7, 10, 0, 600, 1e6), (10, 7, 0, 600, 1e6), (20, 7, 700, 900, 1e6))
    nodes = {"server": 7, "lisbon": 10, "nairobi": 20}
    plan = load(tmp_path, "p.json", text, nodes=nodes)
    assert rows(plan) == [("lisbon", 0, 600, 1e6, 1e6), ("nairobi", 700, 900, 1e6, 0)]
    assert {row["dest"] for row in json.loads(plan_text(plan, "hdtn", nodes=nodes))["contacts"]} == {7, 10}
    assert load(tmp_path, "p.rc", plan_text(plan, "ion", nodes=nodes), nodes=nodes) == plan
    with pytest.raises(PlanError, match=r"contact 0: from node 7 \(unknown\) to node 10 \(unknown\): is a relay"):
        load(tmp_path, "p.json", text)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"lisbon": 10}, r"plan\.nodes: nairobi: must give a number to each of server, lisbon, nairobi"),
        ({"lisbon": 10, "nairobi": 11, "lima": 12}, r"plan\.nodes: lima: must"),
        ({"lisbon": 10, "nairobi": 10}, r"has a number twice"),
        ({"lisbon": 10, "nairobi": 1}, r"has a number twice.*the server is 1 unless given"),
    ],
)
def test_node_numbers_that_cannot_be(nodes: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        load(tmp_path, "p.json", hdtn((2, 1, 0, 600, 1e6)), nodes=nodes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((2, 3, 0, 9, 1), r"contact 0: from node 2 \(lisbon\) to node 3 \(nairobi\): is a relay"),
        ((1, 10, 0, 9, 1), r"from node 1 \(server\) to node 10 \(unknown\): is not between .* now server = 1, lisbon = 2"),
        ((1, 1, 0, 9, 1), r"is not between the server and a cluster"),
        ((2, 1, 9, 9, 1), r"p\.json, contact 0: 9-9 s: must begin at 0 s or later, and end later"),
        ((2, 1, 9, 5, 1), r"p\.json, contact 0: 9-5 s"),
        ((2, 1, 0, 5, -1), r"rateBitsPerSec = -1: must be a number of at least 0"),
        ((2, 1, 0, 5, True), r"rateBitsPerSec = True"),
        ((2.5, 1, 0, 5, 1), r"source = 2\.5"),
        ((2, 1, "0", 5, 1), r"startTime = '0'"),
        ((2, 1, 0, 5, 1e19), r"p\.json: contact 0 of cluster 'lisbon': uplink_bps = 1e\+19 must be within"),
    ],
)
def test_one_way_contacts_that_cannot_be(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        load(tmp_path, "p.json", hdtn(row))


# ---- ION

ION = """# node 1: server
1 1 ''
m horizon  +0
a range    +0   +600\t\t1 2   0
a contact  +20  +30\t\t1 2   1000000
a contact  +20  +30\t\t2 1   500000 1.0
@ +100
a contact  +0  +10\t\t3 1   1000000
@ 2026/01/01-01:00:00
a contact  +0  2026/01/01-01:00:30\t\t1 3   1
a contact -1 -1 1 1 0
"""


def test_ions_contacts_are_read(tmp_path: Path) -> None:
    plan = load(tmp_path, "host.ionrc", ION, start=START)
    assert rows(plan) == [("lisbon", 20, 30, 4e6, 8e6), ("nairobi", 100, 110, 8e6, 0), ("nairobi", 3600, 3630, 0, 8)]
    notes = " ".join(plan.notes)
    assert "host.ionrc: ranges are ignored; delays between nodes are not simulated" in notes
    assert """no scheduled contact is ignored: line 2, "1 1 ''" and 2 more""" in notes


def test_our_export_to_ion_is_read_again(tmp_path: Path) -> None:
    plan = ContactPlan(
        TWO, (Contact.of("lisbon", 0, [Rates(10, 8e6, 0), Rates(20, 0, 8000)]), Contact("nairobi", 5, 9, 80, 16)), 20
    )
    text = plan_text(plan, "ion", START.astimezone())
    assert "@ 2026/01/01-00:00:00" in text  # UTC, whatever the zone
    assert load(tmp_path, "p.ion.rc", text) == plan


def test_rates_below_a_byte_are_no_contact_in_exports() -> None:
    plan = ContactPlan(TWO, (Contact("lisbon", 0, 10, 0.5, 0.5),), 10)  # HDTN would take 0 for no limit
    assert json.loads(plan_text(plan, "hdtn"))["contacts"] == []
    assert "a contact" not in plan_text(plan, "ion")


def test_a_long_contact_is_exported_at_once(tmp_path: Path) -> None:
    plan = ContactPlan(TWO, (Contact.of("lisbon", 0.5, [Rates(2e9 + 0.25, 8e6, 80), Rates(9e9, 8e6, 0)]),), 9e9)
    assert rows(load(tmp_path, "p.rc", plan_text(plan, "ion"))) == [("lisbon", 1, 9e9, 8e6, pytest.approx(80 * 2 / 9))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a contact +0 +10 1 2", r"p\.rc, line 1: must be a contact start stop from to rate"),
        ("a contact +0 +10 1 2 fast", r"line 1: must be"),
        ("a contact +0 +10 1 2 0", r"the rate 0 above 0"),
        ("a contact +0 +10 1 2 -5", r"line 1: must be"),
        ("a contact +0 +10 1.5 2 5", r"nodes 1\.5 and 2 must be whole numbers"),
        ("a contact 0 10 1 2 5", r"line 1: '0' is no time; write \+seconds or yyyy/mm/dd-hh:mm:ss"),
        ("a contact +10 +5 1 2 5", r"line 1: 10-5 s"),
        ("a contact +0 +10 1 2 5 0.5", r"has a confidence of 0\.5"),
        ("a contact 2026/01/01-00:00:00 2026/01/01-00:01:00 1 2 5", r"is an absolute time; set plan\.start"),
        ("a contact +0 +10 2 3 5", r"line 1: from node 2 \(lisbon\) to node 3 \(nairobi\): is a relay"),
        ("a contact +0 +10 1 2 5\na contact +9 +20 1 2 5", r"line 2: 9-20 s overlaps 0-10 s \(p\.rc, line 1\), both from the"),
        ("a contact +0 +10 1 2 5\nd contact +0 1 2", r"line 2: 'd contact \+0 1 2' changes an earlier contact"),
        (
            "a range +0 +10 1 2 1",
            r"holds no contact; a plan is JSON, CSV in a file that ends in \.csv, or contact commands of ION",
        ),
        ("cluster,start_s,end_s\nlisbon,0,5", r"holds no contact"),
    ],
)
def test_ion_that_cannot_be(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        load(tmp_path, "p.rc", line)


# ---- CSV and JSON of our own


def test_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    header = b"\xef\xbb\xbfcluster,start_s,end_s,uplink_bps,downlink_bps,satellite\r\n"
    text = header + b"lisbon,0,600,1e6,unlimited,a\r\n\r\nnairobi,7,9,,2e6,a\r\n"
    assert rows(load(tmp_path, "p.CSV", text)) == [("lisbon", 0, 600, 1e6, math.inf), ("nairobi", 7, 9, 0, 2e6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cluster,start_s,end_s,uplink_Mbps\nlisbon,0,5,1\n",
            r"p\.csv, line 1: 'uplink_Mbps' is no column .* known are cluster, start_s",
        ),
        ("cluster,start_s,end_s,end_s\nlisbon,0,5,1\n", r"'end_s' is no column of a plan, or is there twice"),
        ("cluster,end_s\nlisbon,5\n", r"line 1: has no column start_s; known are"),
        ("", r"line 1: has no column cluster, start_s, end_s"),
        ("cluster,start_s,end_s\n", r"holds no contact"),
        ("cluster,start_s,end_s\nlisbon,0\n", r"line 2: has 2 cells, and the header 3"),
        ("cluster,start_s,end_s\nlisbon,0,5,6\n", r"line 2: has 4 cells"),
        ("cluster,start_s,end_s\nlisbon,,5\n", r"line 2: start_s = '': must be a number"),
        ("cluster,start_s,end_s\nlisbon,nan,5\n", r"line 2: start_s = 'nan'"),
        ("cluster,start_s,end_s\nlisbon,5,1\n", r"p\.csv, line 2: 5-1 s: must begin"),
        (
            "cluster,start_s,end_s,uplink_bps\nlisbon,0,5,inf\n",
            r"line 2: uplink_bps = 'inf': must be a number of bits per second, .unlim",
        ),
        ("cluster,start_s,end_s,uplink_bps\nlisbon,0,5,-1\n", r"p\.csv: contact 0 of cluster 'lisbon': uplink_bps = -1"),
        (
            "cluster,start_s,end_s\nlima,0,5\n",
            r"p\.csv: contact 0 of cluster 'lima': unknown cluster; known are lisbon, nairobi",
        ),
        ('cluster,start_s,end_s,satellite\nlisbon,0,5,"a\nb"\n', r"line 3: satellite = 'a\\nb': must be text"),
        (f"cluster,start_s,end_s,satellite\nlisbon,0,5,{'x' * 200_000}\n", r"line 2: is not CSV \(field larger"),
    ],
)
def test_csv_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        load(tmp_path, "p.csv", text)


def test_csv_in_another_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan\.path = .*p\.csv', line 3: is not UTF-8 text"):
        load(tmp_path, "p.csv", "cluster,start_s,end_s\nlisbon,0,300\nnairobi,400,700 # Nairóbi\n".encode("latin1"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"contacts":' * 3000, r"p\.json', line 1: is nested deeper than 64"),
        (
            '{"contacts": [{"cluster": "lisbon", "start_s": 5, "end_s": 1}]}',
            r"p\.json: contact 0 of cluster 'lisbon': end_s = 1 must be",
        ),
        (
            '{"contacts": [{"cluster": "lisbon", "start_s": 0, "end_s": 9}, {"cluster": "lisbon", "start_s": 5, "end_s": 12}]}',
            r"p\.json: contacts of cluster 'lisbon' overlap: 0-9 s and 5-12 s",
        ),
        (
            '{"contacts": [{"cluster": "lisbon", "start_s": 7, "end_s": 9}, {"cluster": "lima", "start_s": 5, "end_s": 6}]}',
            r"p\.json: contact 1 of cluster 'lima'",  # numbered as in the file
        ),
        (
            '{"contacts": [{"cluster": "lisbon", "start_s": 0, "end_s": 9}], "horizon": 3}',
            r"p\.json: 'horizon' is no key of a plan",
        ),
        ('{"contacts": [{"cluster": "lisbon", "start_s": 0, "end_s": 9, "end_s": 8}]}', r"has 'end_s' twice"),
        ("5", r'needs a non-empty list under "contacts"'),
    ],
)
def test_json_that_cannot_be(document: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        load(tmp_path, "p.json", document)


def test_a_missing_rate_carries_nothing_and_is_told(tmp_path: Path) -> None:
    plan = load(
        tmp_path, "p.json", '{"contacts": [{"cluster": "lisbon", "start_s": 0, "end_s": 9, "uplink_bps": "unlimited"}]}'
    )
    assert rows(plan) == [("lisbon", 0, 9, math.inf, 0)]
    assert plan.notes == ("p.json: 1 of 1 contacts carry nothing down, for no rate is given",)


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_unlimited_rates_survive_our_files(kind: str, tmp_path: Path) -> None:
    plan = round_robin(TWO, 1, idle_slots=1)
    text = plan_text(plan, kind)
    assert text.count("unlimited") == 4
    assert rows(load(tmp_path, f"p.{kind}", text)) == rows(plan)
