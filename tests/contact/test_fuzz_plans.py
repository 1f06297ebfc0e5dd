"""Readers of plans, elements and scenarios, given files that were made wrong: each is read, or refused with `InputError`."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import mutate
from fedexperts.contact.interchange import load_plan, plan_text
from fedexperts.contact.orbit import ecef, instants, read_omm, read_tle
from fedexperts.contact.plan import Contact, ContactPlan, Rates
from fedexperts.contact.schedule import contact_rows, statistics, verdict
from fedexperts.scenario import Network
from fedexperts.setup.plan import network_plan

PLAN = ContactPlan(
    ("a", "b"),
    (
        Contact.of("a", 0, [Rates(10, 1e6, 2e6), Rates(20, 5e5, 0)], "s1"),
        Contact("b", 15, 60.5, 1e4, 2e4),
        Contact("a", 90, 95, 1, 8),
    ),
    100.0,
)
START = datetime(2026, 1, 1, tzinfo=UTC)
NODES = {"server": 1, "a": 2, "b": 3}
OMM = {
    "OBJECT_NAME": "ISS (ZARYA)",
    "OBJECT_ID": "1998-067A",
    "REF_FRAME": "TEME",
    "EPOCH": "2026-01-01T12:25:40.104192",
    "MEAN_MOTION": 15.72125391,
    "ECCENTRICITY": 0.0006703,
    "INCLINATION": 51.6416,
    "RA_OF_ASC_NODE": 247.4627,
    "ARG_OF_PERICENTER": 130.5360,
    "MEAN_ANOMALY": 325.0288,
    "EPHEMERIS_TYPE": 0,
    "NORAD_CAT_ID": 25544,
    "BSTAR": 0.11606e-4,
}
TLE = b"""ISS
1 25544U 98067A   26001.00000000  .00016717  00000-0  10270-3 0  9994
2 25544  51.6400 208.9163 0006317  69.9862  25.2906 15.50000000    10
NEXT
1 A5544U 98067A   26001.00000000  .00016717  00000-0  10270-3 0  9992
2 A5544  51.6400 208.9163 0006317  69.9862  25.2906 15.50000000    18
"""
XML = "<ndm><omm><body><segment><a>" + "".join(f"<{k}>{v}</{k}>" for k, v in OMM.items()) + "</a></segment></body></omm></ndm>"
KVN = "CCSDS_OMM_VERS = 2.0\n" + "".join(f"{k} = {v}\n" for k, v in OMM.items())
CSV = ",".join(OMM) + "\n" + ",".join(str(v) for v in OMM.values()) + "\n"


def use(path: Path) -> None:
    """Read a plan, and do with it what `fedexperts plan` does."""
    plan = load_plan(path, PLAN.clusters, NODES, START)
    text = json.dumps([contact_rows(plan), statistics(plan), plan.cycle_ends_s], allow_nan=False)
    assert text
    for cluster in plan.clusters:
        assert verdict(plan, cluster, 10**7)
    for kind in ("json", "csv", "hdtn"):
        plan_text(plan, kind)


@pytest.mark.parametrize("kind", ["json", "csv", "hdtn", "ion"])
def test_plans(kind: str, tmp_path: Path) -> None:
    text = plan_text(PLAN, kind)
    if kind == "ion":
        text += "a contact 2026/01/01-00:02:00 2026/01/01-00:03:00 2 1 100\n@ +200\na contact +0 +9 3 1 50 1.0\n"
    trees = [mutate.mutated_tree(json.loads(text)).map(mutate.as_json)] if kind in ("json", "hdtn") else []
    mutate.hold(use, tmp_path / {"csv": "plan.csv", "ion": "plan.rc"}.get(kind, "plan.json"), text.encode(), *trees)


def fly(read):
    def use(path: Path) -> None:
        for satellite in read(path):
            position_km, _ = ecef(satellite, instants(START, np.linspace(0, 86400, 9)))
            assert np.all(np.linalg.norm(position_km, axis=1) < 2e6)

    return use


def test_tle(tmp_path: Path) -> None:
    unsummed = b"\n".join(line[:68] for line in TLE.split(b"\n"))  # without checksums, which would catch most changes
    mutate.hold(fly(read_tle), tmp_path / "some.tle", TLE, mutate.mutated_bytes(unsummed))


@pytest.mark.parametrize("text", [json.dumps([OMM, OMM]), XML, KVN + KVN, CSV], ids=["json", "xml", "kvn", "csv"])
def test_omm(text: str, tmp_path: Path) -> None:
    trees = [mutate.mutated_tree([OMM, OMM]).map(mutate.as_json)] if text.startswith("[") else []
    mutate.hold(fly(read_omm), tmp_path / "some.omm", text.encode(), *trees)


SCENARIO = {
    "name": "s",
    "seed": 1,
    "plan": {"kind": "orbit", "start": START, "days": 0.1, "min_elevation_deg": 10.0, "nodes": {"server": 1, "x": 2}},
    "satellite": {"altitude_km": 600, "inclination_deg": 53.0, "epoch": START, "raan_deg": 1.0},
    "radio": {"preset": "paper-range", "fixed_downlink_bps": 5e7},
    "cluster": [{"name": "x", "latitude_deg": 38.7, "longitude_deg": -9.1, "altitude_m": 5.0, "devices": 2}],
}
ROBIN = {"name": "s", "plan": {"slot_s": 60.0, "idle_slots": 1, "days": 0.1}, "cluster": [{"name": "x"}, {"name": "y"}]}


def load(path: Path) -> None:
    network_plan(Network.load(path))


@pytest.mark.parametrize("document", [SCENARIO, ROBIN], ids=["orbit", "round-robin"])
def test_scenario(document: dict, tmp_path: Path) -> None:
    def toml(tree: object) -> bytes:
        try:
            return tomli_w.dumps(tree).encode()
        except (TypeError, ValueError, AttributeError):
            return b""

    mutate.hold(load, tmp_path / "s.toml", toml(document), mutate.mutated_tree(document).map(toml))
