"""Orbital contact plans: contacts, rates and bytes from orbits, places and a radio."""

import json
import math
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedexperts.contact import schedule
from fedexperts.contact.budget import Segments
from fedexperts.contact.interchange import load_plan, plan_text
from fedexperts.contact.orbit import circular, walker
from fedexperts.contact.passes import passes
from fedexperts.contact.plan import Contact, ContactPlan, PlanError, Rates
from fedexperts.contact.presets import from_preset
from fedexperts.contact.radio import uplink_bps
from fedexperts.contact.schedule import Station, best_passes, contact_rows, orbital_plan, statistics, verdict
from fedexperts.contact.site import Site, look, looks

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_S = 86400.0
SITES = [Site("lisbon", 38.72, -9.14, min_elevation_deg=10), Site("nairobi", -1.29, 36.82, min_elevation_deg=25)]
STATIONS = [Station(site, 4) for site in SITES]
LEO = circular(600, 53, epoch=START)
RANGE = from_preset("paper-range", fixed_downlink_bps=5e7)


@pytest.fixture(scope="module")
def plan() -> ContactPlan:
    return orbital_plan(STATIONS, [LEO], RANGE, START, 2 * DAY_S)


def test_one_satellite_gives_its_passes(plan: ContactPlan) -> None:
    found = passes([LEO], SITES, START, 2 * DAY_S)
    assert len(plan.contacts) == len(found)
    starts = sorted(round(float(t), 6) for t in found.rise_s)
    assert sorted(round(c.start_s, 6) for c in plan.contacts) == starts


def test_bytes_are_the_rate_integrated_over_the_pass(plan: ContactPlan) -> None:
    for contact in plan.contacts[:6]:
        site = next(s for s in SITES if s.name == contact.cluster)
        time_s = np.linspace(contact.start_s, contact.end_s, 2001)
        view = look(LEO, site, time_s, START)
        rate_bps = uplink_bps(RANGE, np.maximum(view.elevation_deg, site.min_elevation_deg), view.slant_range_m, 4)
        exact_B = np.trapezoid(rate_bps, time_s) / 8
        assert contact.carried_B("up", contact.start_s, contact.end_s) == pytest.approx(exact_B, rel=2e-3)


def test_rates_follow_one_another_and_drift_by_a_tenth(plan: ContactPlan) -> None:
    for contact in plan.contacts:
        edges_s = [contact.start_s, *(piece.until_s for piece in contact.rates)]
        assert edges_s == sorted(edges_s)
        assert edges_s[-1] == contact.end_s
        rates = [piece.uplink_bps for piece in contact.rates]
        assert all(0.8 < b / a < 1.25 for a, b in pairwise(rates))


def test_carried_finish_and_begin_agree(plan: ContactPlan) -> None:
    contact = max(plan.contacts, key=lambda c: c.end_s - c.start_s)
    middle_s = (contact.start_s + contact.end_s) / 2
    size_B = contact.carried_B("up", contact.start_s, middle_s)
    assert contact.finish_s("up", contact.start_s, size_B) == pytest.approx(middle_s)
    assert contact.begin_s("up", middle_s, size_B) == pytest.approx(contact.start_s)
    assert math.isinf(contact.finish_s("up", middle_s, 1e12))


def test_by_hand() -> None:
    contact = Contact("a", 10, 30, 0.6e3, 8e3, rates=(Rates(20, 800, 8e3), Rates(30, 400, 8e3)))
    assert contact.carried_B("up", 10, 30) == 1000 + 500
    assert contact.finish_s("up", 10, 1250) == 25
    assert contact.begin_s("up", 30, 1000) == 15
    assert contact.finish_s("down", 12, 3000) == 15


def test_a_cluster_talks_to_one_satellite_of_a_shell_at_a_time() -> None:
    shell = walker(60, 6, 1, 600, 53, epoch=START)
    plan = orbital_plan(STATIONS, shell, RANGE, START, 0.25 * DAY_S)  # the plan itself refuses overlaps
    assert len({c.satellite for c in plan.contacts}) > 5
    single = orbital_plan(STATIONS, shell[:1], RANGE, START, 0.25 * DAY_S)
    assert statistics(plan)["lisbon"]["idle_share"] < statistics(single)["lisbon"]["idle_share"]


@pytest.mark.parametrize("devices", [4, 3000])
def test_contacts_of_a_shell_are_those_of_each_pass_alone(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: what is propagated together, and how rates are cut into pieces, changes no number."""
    shell = walker(24, 3, 1, 600, 80, epoch=START)
    stations = [Station(site, devices) for site in (*SITES, Site("tromso", 69.65, 18.96, 40.0, 5))]
    radio = from_preset("s-band-handheld", total_bandwidth_Hz=20e6)
    plan = orbital_plan(stations, shell, radio, START, 0.3 * DAY_S)
    assert len(plan.contacts) > 60
    assert {len(contact.rates) for contact in plan.contacts} >= {5, 6}
    monkeypatch.setattr(schedule, "TOGETHER", 1)
    monkeypatch.setattr(schedule, "rate_segments", _segments_one_by_one)
    assert orbital_plan(stations, shell, radio, START, 0.3 * DAY_S) == plan


def _segments_one_by_one(time_s: NDArray[np.float64], rate_bps: NDArray[np.float64]) -> Segments:
    """As `rate_segments` was written first."""
    time, rate = _refined(time_s, rate_bps, 0.1)
    limit = 1.1 * (1 + 1e-12)
    cuts, low, high = [0], rate[0], rate[0]
    for i in range(1, len(rate)):
        low, high = min(low, rate[i]), max(high, rate[i])
        if high > low * limit:
            cuts.append(i - 1)
            low, high = min(rate[i - 1], rate[i]), max(rate[i - 1], rate[i])
    edges = time[[*cuts, len(time) - 1]]
    bits = np.add.reduceat(np.diff(time) * (rate[1:] + rate[:-1]) / 2, cuts)
    return Segments(edges[:-1], edges[1:], bits / np.diff(edges))


def _refined(time: NDArray[np.float64], rate: NDArray[np.float64], tolerance: float) -> tuple[Any, Any]:
    pieces = np.ceil(np.abs(np.diff(np.log(rate))) / math.log1p(tolerance)).astype(int).clip(1)
    i = np.repeat(np.arange(len(pieces)), pieces)
    step = (np.arange(len(i)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) / pieces[i]
    new_rate = rate[i] * (rate[i + 1] / rate[i]) ** step
    rise = rate[i + 1] - rate[i]
    along = np.divide(new_rate - rate[i], rise, out=np.zeros_like(new_rate), where=step > 0)
    new_time = time[i] + along * (time[i + 1] - time[i])
    later = np.diff(new_time, append=time[-1]) > 0
    return np.append(new_time[later], time[-1]), np.append(new_rate[later], rate[-1])


def test_looks_at_once_are_looks_one_by_one() -> None:
    times_s = [np.linspace(first_s, first_s + 600, many) for first_s, many in ((0, 7), (5e4, 121), (100, 2))]
    sites = [*SITES, Site("dome-c", -75.1, 123.3, 3233)]
    for view, site, own_s in zip(looks(LEO, sites, times_s, START), sites, times_s, strict=True):
        alone = look(LEO, site, own_s, START)
        assert all(np.array_equal(getattr(view, name), getattr(alone, name)) for name in vars(alone))


def test_a_cluster_that_is_never_seen() -> None:
    plan = orbital_plan([Station(Site("pole", 89.0, 0.0), 1), *STATIONS], [LEO], RANGE, START, DAY_S)
    row = statistics(plan)["pole"]
    assert (row["passes"], row["idle_share"], row["median_duration_s"]) == (0, 1.0, None)
    assert "never seen: no contact in 1 days" in verdict(plan, "pole", 1000)
    assert plan.reachable == ("lisbon", "nairobi")


def test_devices_of_two_clusters_in_view_share_the_satellites_sub_channels() -> None:
    """Two places near each other, 6 and 4 devices, 5 sub-channels: alone 5/6 and 1 of the time, together a half each."""
    near = [Site("lisbon", 38.72, -9.14, min_elevation_deg=25), Site("madrid", 40.42, -3.7, min_elevation_deg=25)]
    radio = from_preset("paper", total_bandwidth_Hz=25e6)
    plan = orbital_plan([Station(site, n) for site, n in zip(near, (6, 4), strict=True)], [LEO], radio, START, DAY_S)
    one, other = ([c for c in plan.contacts if c.cluster == site.name] for site in near)
    pairs = [(a, b) for a in one for b in other if a.start_s < b.end_s and b.start_s < a.end_s]
    assert pairs
    for a, b in pairs:
        both = max(a.start_s, b.start_s), min(a.end_s, b.end_s)
        for contact, alone in ((a, 5 / 6), (b, 1.0)):
            outside_s = contact.end_s - contact.start_s - (both[1] - both[0])
            assert contact.sending_s(*both) == pytest.approx(0.5 * (both[1] - both[0]))
            assert contact.sending_s(0, DAY_S) == pytest.approx(0.5 * (both[1] - both[0]) + alone * outside_s)
            assert contact.carried_B("up", *both) == pytest.approx(0.5 * 5e6 / 8 * (both[1] - both[0]))
            assert contact.carried_B("up", 0, DAY_S) == pytest.approx(contact.sending_s(0, DAY_S) * 5e6 / 8)
    apart = orbital_plan([Station(near[0], 6)], [LEO], radio, START, DAY_S)
    assert all(c.sending_s(c.start_s, c.end_s) == pytest.approx(5 / 6 * (c.end_s - c.start_s)) for c in apart.contacts)


def test_shares_survive_a_file(tmp_path: Path) -> None:
    pieces = (Rates(5.0, 1e3, math.inf, 0.5), Rates(9.0, 2e3, 1e6, 0.25))
    given = ContactPlan(("a",), (Contact.of("a", 1.0, pieces), Contact("a", 10, 12, 8.0, 8.0, uplink_share=0.125)), 12.0)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(given.to_json()))
    assert load_plan(path, ["a"]) == given
    assert given.contacts[0].sending_s(3, 7) == 2 * 0.5 + 2 * 0.25
    with pytest.raises(PlanError, match=r"uplink_share = 0 must be above 0 and at most 1"):
        ContactPlan(("a",), (Contact("a", 10, 12, uplink_share=0.0),), 12.0)


def test_more_devices_than_sub_channels_share() -> None:
    few = orbital_plan([Station(SITES[0], 1000)], [LEO], RANGE, START, DAY_S).contacts[0]
    many = orbital_plan([Station(SITES[0], 2000)], [LEO], RANGE, START, DAY_S).contacts[0]
    assert many.uplink_bps == pytest.approx(few.uplink_bps / 2)
    assert many.downlink_bps == few.downlink_bps  # a broadcast


def test_the_papers_radio_carries_its_300_mb() -> None:
    plan = orbital_plan([Station(SITES[0], 1000)], [LEO], from_preset("paper"), START, 2 * DAY_S)
    longest = max(plan.contacts, key=lambda c: c.end_s - c.start_s)
    assert longest.uplink_bps == pytest.approx(5e6)
    assert longest.carried_B("up", longest.start_s, longest.end_s) > 300e6  # Sec. V-A; with a 10° mask


def test_verdict_by_hand() -> None:
    plan = ContactPlan(("a",), tuple(Contact("a", t, t + 10, 8e6, 8e6) for t in (0, 100, 200)), 43200)
    assert verdict(plan, "a", 10_000_000).startswith("10.0 MB fits 3 of 3 contacts, takes 1 median contact;")
    assert "takes 3 median contacts; 2.0 uploads a day" in verdict(plan, "a", 25_000_000)


def test_rows_have_the_contracts_keys(plan: ContactPlan) -> None:
    row = contact_rows(plan)[0]
    contract = {"cluster", "satellite", "start_s", "end_s", "max_elevation_deg", "uplink_bps", "uplink_B", "downlink_B"}
    assert contract <= set(row)


def test_the_best_pass_is_the_highest(plan: ContactPlan) -> None:
    for row in best_passes(plan, STATIONS, [LEO], RANGE, START):
        peak = max(c.max_elevation_deg for c in plan.contacts if c.cluster == row["cluster"])
        assert max(row["elevation_deg"]) == pytest.approx(peak, abs=0.5)
        assert min(row["uplink_bps"]) > 0
        assert row["doppler_Hz"][0] > 0 > row["doppler_Hz"][-1]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_plans_survive_our_own_files(kind: str, plan: ContactPlan, tmp_path: Path) -> None:
    path = tmp_path / f"plan.{kind}"
    path.write_text(plan_text(plan, kind))
    again = load_plan(path, plan.clusters)
    assert [(c.cluster, c.start_s, c.end_s) for c in again.contacts] == [(c.cluster, c.start_s, c.end_s) for c in plan.contacts]
    for a, b in zip(again.contacts, plan.contacts, strict=True):
        assert a.carried_B("up", a.start_s, a.end_s) == pytest.approx(b.carried_B("up", b.start_s, b.end_s))


def test_hdtn_and_ion_round_inward(plan: ContactPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.hdtn.json"
    path.write_text(plan_text(plan, "hdtn"))
    again = load_plan(path, plan.clusters)
    assert len(again.contacts) == len(plan.contacts)  # no seconds are lost between pieces, which would cut a pass in many
    for contact in again.contacts:
        inside = [
            c
            for c in plan.contacts
            if c.cluster == contact.cluster and c.start_s <= contact.start_s and contact.end_s <= c.end_s
        ]
        assert len(inside) == 1
    total = {p: sum(c.carried_B("up", c.start_s, c.end_s) for c in p.contacts) for p in (plan, again)}
    assert 0.98 * total[plan] < total[again] <= total[plan]
    lines = [line.split() for line in plan_text(plan, "ion", START).splitlines() if line.startswith("a contact")]
    assert {len(line) for line in lines} == {7}
    assert all(line[2].startswith("+") and line[6].isdigit() for line in lines)
    rates = {int(line[6]) for line in lines if line[5] != "1"}
    assert rates == {int(5e7 / 8)}


def test_an_unlimited_rate_cannot_be_exported() -> None:
    plan = ContactPlan(("a",), (Contact("a", 0, 10),), 10)
    with pytest.raises(PlanError, match="unlimited"):
        plan_text(plan, "ion")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"contacts": [{"rateBitsPerSec": 1, "source": 5, "dest": 6, "startTime": 0, "endTime": 1}]}',
            "from node 5 .* to node 6 .*: is a relay",
        ),
        ('{"contacts": [{"rateBitsPerSec": 1, "source": 1}]}', "needs source"),
        ('{"contacts": [{"cluster": "a", "start_s": 5, "end_s": 1}]}', "must be later"),
    ],
)
def test_wrong_plan_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        load_plan(path, ("a",))


def test_wrong_csv(tmp_path: Path) -> None:
    path = tmp_path / "plan.csv"
    path.write_text("cluster,start_s,end_s\na,x,3\n")
    with pytest.raises(PlanError, match="line 2"):
        load_plan(path, ("a",))
