"""Passes: golden statistics, skyfield's roots and counts, brute force, and what must always hold."""

import math
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from skyfield.api import EarthSatellite, load, wgs84

from fedexperts.contact.orbit import Satellite, circular, read_omm, read_tle, walker
from fedexperts.contact.passes import Passes, passes
from fedexperts.contact.site import FLATTENING, Site, look, subpoint
from fedexperts.errors import InputError

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_S = 86400.0
DATA = Path(os.environ.get("FEDEXPERTS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "tle" / "raw"
needs_data = pytest.mark.skipif(
    not (DATA / "stations_2024-01-13.txt").exists(),
    reason="no tle/raw/stations_2024-01-13.txt in $FEDEXPERTS_DATA (or ../shared/data)",
)
SKY = load.timescale(builtin=True)


def uniform_sites(count: int, mask_deg: float, seed: int = 0) -> list[Site]:
    """Sites uniform by area."""
    rng = np.random.default_rng(seed)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, count))), rng.uniform(-180, 180, count)
    return [Site(f"s{i}", lat[i], lon[i], 0.0, mask_deg) for i in range(count)]


def omm(
    tmp_path: Path, motion_rev_per_day: float, eccentricity: float, inclination_deg: float, perigee_deg: float
) -> Satellite:
    fields = {"EPOCH": "2026-01-01T00:00:00", "MEAN_MOTION": motion_rev_per_day, "ECCENTRICITY": eccentricity}
    angles = {"INCLINATION": inclination_deg, "RA_OF_ASC_NODE": 10.0, "ARG_OF_PERICENTER": perigee_deg, "MEAN_ANOMALY": 0.0}
    path = tmp_path / "one.kvn"
    path.write_text("\n".join(f"{k} = {v}" for k, v in (fields | angles).items()))
    return read_omm(path)[0]


def skyfield_events(satellite: Satellite, site: Site, start: datetime, duration_s: float) -> np.ndarray:
    """Kinds of events that skyfield finds: 0 rise, 1 culmination, 2 set."""
    body = EarthSatellite.from_satrec(satellite.satrec, SKY)
    place = wgs84.latlon(site.latitude_deg, site.longitude_deg, site.altitude_m)
    first = SKY.from_datetime(start)
    return np.asarray(body.find_events(place, first, first + duration_s / DAY_S, site.min_elevation_deg)[1])


def root_errors_s(satellite: Satellite, sites: list[Site], start: datetime, found: Passes, chosen: np.ndarray) -> np.ndarray:
    """Our rise and set against brentq on skyfield's altitude, for passes that are not cut."""
    body = EarthSatellite.from_satrec(satellite.satrec, SKY)
    errors = []
    for k in chosen:
        site = sites[found.site[k]]
        place = wgs84.latlon(site.latitude_deg, site.longitude_deg, site.altitude_m)

        def altitude(seconds: float, place=place, mask=site.min_elevation_deg) -> float:
            when = SKY.utc(start.year, start.month, start.day, start.hour, start.minute, start.second + seconds)
            return (body - place).at(when).altaz()[0].degrees - mask

        for ours, side in ((found.rise_s[k], -5.0), (found.set_s[k], 5.0)):
            errors.append(brentq(altitude, found.culmination_s[k], ours + side, xtol=1e-7) - ours)
    return np.array(errors)


def assert_sound(found: Passes, sites: list[Site], duration_s: float) -> None:
    """What holds of every set of passes."""
    whole = ~found.cut_start & ~found.cut_end
    assert np.all((found.rise_s >= 0) & (found.set_s <= duration_s) & (found.rise_s <= found.set_s))
    assert np.all((found.rise_s <= found.culmination_s) & (found.culmination_s <= found.set_s))
    assert np.all((found.rise_s[whole] < found.culmination_s[whole]) & (found.culmination_s[whole] < found.set_s[whole]))
    assert np.all((found.rise_s == 0) == found.cut_start)
    assert np.all((found.set_s == duration_s) == found.cut_end)
    masks = np.array([site.min_elevation_deg for site in sites])[found.site]
    assert np.all((found.max_elevation_deg >= masks - 1e-9) & (found.max_elevation_deg <= 90))
    key = np.lexsort((found.rise_s, found.site, found.satellite))
    np.testing.assert_array_equal(key, np.arange(len(found)))
    same = (np.diff(found.satellite) == 0) & (np.diff(found.site) == 0)
    assert np.all(found.rise_s[1:][same] > found.set_s[:-1][same])


@pytest.mark.parametrize("raan_deg", [0.0, 90.0, 215.0])
def test_golden_statistics_of_design_section_4(raan_deg: float) -> None:
    """600 km, 53°, a site at 45° N, mask 25°, 7 days: 4.9 passes/day, median 247 s, longest 306 s, longest gap 17.4 h."""
    found = passes([circular(600, 53, raan_deg=raan_deg, epoch=START)], [Site("x", 45, 0, 0, 25)], START, 7 * DAY_S)
    assert len(found) / 7 == pytest.approx(4.9, abs=0.3)  # 33 to 36 passes, by the phase of the first and last
    assert np.median(found.duration_s) == pytest.approx(247, abs=11)
    assert found.duration_s.max() == pytest.approx(306, abs=0.6)
    assert (found.rise_s[1:] - found.set_s[:-1]).max() / 3600 == pytest.approx(17.4, abs=0.06)


def test_golden_statistics_averaged_over_the_phase() -> None:
    """The golden table's passes a day and median, without the luck of one longitude."""
    sites = [Site(f"{lon}", 45, lon, 0, 25) for lon in range(-180, 180, 10)]
    found = passes([circular(600, 53, epoch=START)], sites, START, 7 * DAY_S)
    assert len(found) / len(sites) / 7 == pytest.approx(4.9, abs=0.05)
    assert np.median(found.duration_s) == pytest.approx(247, abs=2)


def test_the_paper_s_contact_length_needs_a_mask_of_ten_degrees() -> None:
    sites = [Site(f"{lon}", 45, lon, 0, 10) for lon in range(-180, 180, 10)]
    assert np.median(passes([circular(600, 53, epoch=START)], sites, START, 7 * DAY_S).duration_s) == pytest.approx(492, abs=4)


@pytest.mark.parametrize("mask_deg", [25.0, 40.0])
def test_counts_on_a_thousand_uniform_sites_are_skyfield_s(mask_deg: float) -> None:
    satellite, sites = circular(600, 53, epoch=START), uniform_sites(1000, mask_deg)
    found = passes([satellite], sites, START, DAY_S)
    assert_sound(found, sites, DAY_S)
    for i, site in enumerate(sites):
        events = skyfield_events(satellite, site, START, DAY_S)
        mine = found.site == i
        assert (np.sum(~found.cut_start[mine]), np.sum(~found.cut_end[mine])) == (np.sum(events == 0), np.sum(events == 2)), (
            site
        )


def few_and_shortest(found: Passes, few: int, seed: int = 1) -> np.ndarray:
    """Whole passes: some at random, and as many of the shortest, whose roots are the worst conditioned."""
    whole = np.flatnonzero(~found.cut_start & ~found.cut_end)
    shortest = whole[np.argsort(found.duration_s[whole])[:few]]
    return np.unique(np.concatenate([shortest, np.random.default_rng(seed).choice(whole, few)]))


@pytest.mark.parametrize("start", [START, datetime(2026, 2, 14, 13, 7, 11, tzinfo=UTC)], ids=["january", "between"])
def test_rise_and_set_are_within_the_bound_of_skyfield_s_roots(start: datetime) -> None:
    satellite, sites = circular(600, 53, epoch=start), uniform_sites(1000, 25.0)
    found = passes([satellite], sites, start, DAY_S)
    errors = root_errors_s(satellite, sites, start, found, few_and_shortest(found, 25))
    assert np.abs(errors).max() < 0.05
    assert np.median(np.abs(errors)) < 0.002


@pytest.mark.slow
@pytest.mark.parametrize("mask_deg", [0.0, 10.0, 25.0, 40.0, 75.0])
@pytest.mark.parametrize("month", [1, 5, 8])
def test_rise_and_set_of_many_passes_are_within_the_bound(mask_deg: float, month: int) -> None:
    start = START.replace(month=month, day=16)
    satellite, sites = circular(600, 53, epoch=start), uniform_sites(1000, mask_deg, seed=month)
    found = passes([satellite], sites, start, DAY_S)
    chosen = few_and_shortest(found, 150, seed=month)
    errors = root_errors_s(satellite, sites, start, found, chosen[found.duration_s[chosen] > 3])
    assert np.abs(errors).max() < 0.05


@needs_data
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("stations_2024-01-13.txt", "ISS (ZARYA)"),
        ("noaa_2024-01-13.txt", "NOAA 19"),
        ("starlink_2024-01-13.txt", "44713"),
        ("oneweb_2024-01-13.txt", "44057"),
        ("iridium-NEXT_2024-01-13.txt", "41917"),
    ],
)
def test_real_satellites_pass_as_skyfield_says(file: str, name: str) -> None:
    start = datetime(2024, 1, 13, 6, tzinfo=UTC)
    (satellite,), sites = read_tle(DATA / file, name), uniform_sites(60, 25.0, seed=2)
    found = passes([satellite], sites, start, DAY_S)
    assert_sound(found, sites, DAY_S)
    for i, site in enumerate(sites):
        events = skyfield_events(satellite, site, start, DAY_S)
        mine = found.site == i
        assert (np.sum(~found.cut_start[mine]), np.sum(~found.cut_end[mine])) == (np.sum(events == 0), np.sum(events == 2)), (
            site
        )
    assert np.abs(root_errors_s(satellite, sites, start, found, few_and_shortest(found, 8))).max() < 0.05


def brute_force(satellite: Satellite, site: Site, duration_s: float, step_s: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Rise and set on a fine grid of exact elevations."""
    times_s = np.arange(0.0, duration_s, step_s)
    up = look(satellite, site, times_s, START).elevation_deg >= site.min_elevation_deg
    return times_s[np.flatnonzero(~up[:-1] & up[1:])], times_s[np.flatnonzero(up[:-1] & ~up[1:])]


@pytest.mark.parametrize(
    ("motion", "eccentricity", "inclination_deg", "perigee_deg"),
    [
        (2.0057, 0.72, 63.4, 270.0),  # Molniya
        (2.25, 0.73, 7.0, 178.0),  # geostationary transfer: perigee at 200 km, over the equator
        (16.2, 0.001, 97.0, 0.0),  # very low
        (1.0027, 0.1, 50.0, 90.0),  # geosynchronous, inclined and eccentric: several maxima a day
        (14.9, 0.0001, 0.0, 0.0),  # equatorial
        (14.9, 0.0001, 90.0, 0.0),  # polar
        (15.0, 0.001, 180.0, 0.0),  # retrograde equatorial
    ],
    ids=["molniya", "gto", "low", "geosynchronous", "equatorial", "polar", "retrograde"],
)
@pytest.mark.parametrize("mask_deg", [0.0, 25.0, 80.0])
def test_odd_orbits_against_brute_force(
    tmp_path: Path, motion: float, eccentricity: float, inclination_deg: float, perigee_deg: float, mask_deg: float
) -> None:
    satellite = omm(tmp_path, motion, eccentricity, inclination_deg, perigee_deg)
    poles = [Site("north", 90, 0, 0, mask_deg), Site("south", -90, 77, 2800, mask_deg), Site("equator", 0, 180, 0, mask_deg)]
    sites = uniform_sites(12, mask_deg, seed=5) + poles
    found = passes([satellite], sites, START, DAY_S)
    assert_sound(found, sites, DAY_S)
    for i, site in enumerate(sites):
        rises, sets = brute_force(satellite, site, DAY_S)
        mine = (found.site == i) & ~(found.duration_s < 5)  # shorter ones may hide
        ours_up, ours_down = found.rise_s[mine & ~found.cut_start], found.set_s[mine & ~found.cut_end]
        assert len(ours_up) == len(rises)
        assert len(ours_down) == len(sets)
        assert np.all((ours_up >= rises - 0.01) & (ours_up <= rises + 5.01))
        assert np.all((ours_down >= sets - 0.01) & (ours_down <= sets + 5.01))


def test_a_geostationary_satellite_is_one_pass_cut_at_both_ends(tmp_path: Path) -> None:
    satellite = omm(tmp_path, 1.0027379, 0.0, 0.0, 0.0)
    below = subpoint(satellite, np.zeros(1), START).longitude_deg[0]
    sites = [Site("below", 0, below, 0, 25), Site("beyond", 0, (below + 360) % 360 - 180, 0, 0)]
    found = passes([satellite], sites, START, DAY_S)
    assert (found.site.tolist(), found.rise_s.tolist(), found.set_s.tolist()) == ([0], [0.0], [DAY_S])
    assert found.cut_start[0]
    assert found.cut_end[0]
    assert found.max_elevation_deg[0] > 89


@pytest.mark.parametrize("margin_deg", [1e-2, 1e-4, 1e-7])
def test_grazing_passes_are_found_and_near_misses_are_not(margin_deg: float) -> None:
    """A mask a hair below a pass's maximum gives a pass of a fraction of a second; a hair above gives none."""
    satellite = circular(600, 53, epoch=START)
    wide = passes([satellite], [Site("x", 45, 0, 0, 5)], START, 2 * DAY_S)
    assert len(wide) > 8
    for k in range(len(wide)):
        if wide.max_elevation_deg[k] > 80:
            continue
        fine = wide.culmination_s[k] + np.linspace(-0.05, 0.05, 1001)
        top = look(satellite, Site("x", 45, 0), fine, START).elevation_deg.max()
        for sign in (-1, 1):
            found = passes([satellite], [Site("x", 45, 0, 0, top + sign * margin_deg)], START, 2 * DAY_S)
            near = np.abs(found.culmination_s - wide.culmination_s[k]) < 60
            if margin_deg > 1e-5:  # the Hermite curve is that true
                assert near.sum() == (sign < 0)
            assert np.all(found.duration_s[near] < 60)


def test_cut_passes_are_flagged_not_dropped() -> None:
    satellite, site = circular(600, 53, epoch=START), Site("x", 45, 0, 0, 25)
    whole = passes([satellite], [site], START, DAY_S)
    middle = float(whole.culmination_s[1])
    left = passes([satellite], [site], START, middle - 20)
    assert (left.cut_start.tolist(), left.cut_end.tolist()) == ([False, False], [False, True])
    assert left.set_s[-1] == left.culmination_s[-1] == middle - 20  # culminates at the cut, still climbing
    assert left.rise_s[-1] == pytest.approx(whole.rise_s[1], abs=1e-3)
    assert left.max_elevation_deg[-1] < whole.max_elevation_deg[1]
    inside = passes([satellite], [site], START, middle + 20)
    assert inside.culmination_s[-1] == pytest.approx(middle, abs=1e-2)
    later = START.replace(second=0, microsecond=0).fromtimestamp(START.timestamp() + middle + 20, UTC)
    right = passes([satellite], [site], later, DAY_S)
    assert right.cut_start[0]
    assert not right.cut_end[0]
    assert right.rise_s[0] == right.culmination_s[0] == 0
    assert right.set_s[0] + middle + 20 == pytest.approx(whole.set_s[1], abs=1e-3)
    for short_s in (0.5, 40.0, 61.0):  # up all the time
        inner = passes([satellite], [site], later, short_s)
        assert (inner.rise_s.tolist(), inner.set_s.tolist(), inner.cut_start.all(), inner.cut_end.all()) == (
            [0],
            [short_s],
            True,
            True,
        )


def test_blocks_of_sites_and_several_satellites_give_the_same_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = [Site(s.name, s.latitude_deg, s.longitude_deg, 100.0 * i, i % 50) for i, s in enumerate(uniform_sites(90, 0))]
    shell = walker(6, 3, 1, 550, 70, epoch=START)
    whole = passes(shell, sites, START, DAY_S)
    assert_sound(whole, sites, DAY_S)
    monkeypatch.setattr("fedexperts.contact.passes.BLOCK", 20_000)  # 13 sites a block
    blocks = passes(shell, sites, START, DAY_S)
    for field in ("satellite", "site", "rise_s", "set_s", "culmination_s", "max_elevation_deg", "cut_start", "cut_end"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(blocks, field))
    alone = passes([shell[4]], sites, START, DAY_S)
    np.testing.assert_array_equal(alone.rise_s, whole.rise_s[whole.satellite == 4])


def test_nobody_and_nothing_give_empty_columns() -> None:
    satellite, site = circular(600, 10, epoch=START), Site("far", 89, 0, 0, 25)
    for found in (
        passes([], [site], START, DAY_S),
        passes([satellite], [], START, DAY_S),
        passes([satellite], [site], START, DAY_S),  # never seen
    ):
        assert len(found) == 0
        assert found.rise_s.dtype == np.float64
        assert found.site.dtype == np.int32
        assert found.cut_end.dtype == np.bool_


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Site("oslo", 95, 0), r"site 'oslo': latitude_deg = 95 must be within -90\.\.90"),
        (lambda: Site("oslo", math.nan, 0), r"latitude_deg = nan"),
        (lambda: Site("oslo", 0, 200), r"longitude_deg = 200 must be within -180\.\.180; east is positive, so write -160"),
        (lambda: Site("oslo", 0, -181), r"longitude_deg = -181 .*east is positive$"),
        (lambda: Site("oslo", 0, 0, 0, 90), r"min_elevation_deg = 90 must be at least 0 and below 90"),
        (lambda: Site("oslo", 0, 0, 0, -1), r"min_elevation_deg = -1"),
        (lambda: Site("oslo", 0, 0, 1e6), r"altitude_m = 1e\+06 must be within"),
        (lambda: passes([], [], START, 0), r"plan duration = 0 s"),
        (lambda: passes([], [], START, math.inf), r"plan duration = inf s"),
        (lambda: passes([], [], datetime(2026, 1, 1), 1), r"has no time zone"),
    ],
)
def test_wrong_input_is_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_look_agrees_with_skyfield() -> None:
    satellite, site = circular(600, 53, epoch=START), Site("x", 45, 7, 1200, 10)
    found = passes([satellite], [site], START, DAY_S)
    times_s = np.concatenate([np.linspace(a, b, 9) for a, b in zip(found.rise_s, found.set_s, strict=True)])
    seen = look(satellite, site, times_s, START)
    place = wgs84.latlon(45, 7, 1200)
    at = (EarthSatellite.from_satrec(satellite.satrec, SKY) - place).at(SKY.utc(2026, 1, 1, 0, 0, times_s))
    elevation, azimuth, distance, _, _, rate = at.frame_latlon_and_rates(place)
    np.testing.assert_allclose(seen.elevation_deg, elevation.degrees, atol=2e-4)
    np.testing.assert_allclose((seen.azimuth_deg - azimuth.degrees + 180) % 360 - 180, 0, atol=1e-2)  # worst near the zenith
    np.testing.assert_allclose(seen.slant_range_m, distance.m, atol=10)
    np.testing.assert_allclose(seen.range_rate_m_per_s, rate.m_per_s, atol=0.5)


def test_range_rate_is_the_derivative_of_the_range() -> None:
    satellite, site = circular(600, 97.8, epoch=START), Site("x", 45, 7)
    seen = look(satellite, site, np.arange(0, 6000, 0.5), START)
    slope = (seen.slant_range_m[2:] - seen.slant_range_m[:-2]) / 1.0
    np.testing.assert_allclose(seen.range_rate_m_per_s[1:-1], slope, atol=0.1)


@pytest.mark.parametrize(("inclination_deg", "khz"), [(97.8, (42, 84, 631)), (53.0, (40, 80, 603))])
def test_golden_doppler(inclination_deg: float, khz: tuple[float, float, float]) -> None:
    """Max Doppler at 600 km above 25° with Earth rotation (DESIGN section 4), over many places."""
    satellite, fastest = circular(600, inclination_deg, epoch=START), 0.0
    sites = uniform_sites(150, 25.0, seed=3)
    found = passes([satellite], sites, START, DAY_S)
    for i, site in enumerate(sites):
        times_s = np.concatenate([found.rise_s[found.site == i], found.set_s[found.site == i]])
        if len(times_s):
            fastest = max(fastest, np.abs(look(satellite, site, times_s, START).range_rate_m_per_s).max())
    for carrier_hz, expected in zip((2e9, 4e9, 30e9), khz, strict=True):
        assert fastest / 299792458 * carrier_hz / 1e3 == pytest.approx(expected, rel=0.012)


def test_subpoint_agrees_with_skyfield() -> None:
    satellite, times_s = circular(600, 97.8, epoch=START), np.linspace(0, 12000, 200)
    below = subpoint(satellite, times_s, START)
    at = EarthSatellite.from_satrec(satellite.satrec, SKY).at(SKY.utc(2026, 1, 1, 0, 0, times_s))
    expected = wgs84.geographic_position_of(at)
    np.testing.assert_allclose(below.latitude_deg, expected.latitude.degrees, atol=2e-4)
    np.testing.assert_allclose(
        (below.longitude_deg - expected.longitude.degrees + 180) % 360 - 180, 0, atol=2e-2
    )  # near the pole
    np.testing.assert_allclose(below.altitude_m, expected.elevation.m, atol=5)
    assert abs(below.latitude_deg).max() > 80


@given(latitude_deg=st.floats(-90, 90), longitude_deg=st.floats(-180, 180), seconds=st.floats(0, DAY_S))
@settings(max_examples=40, deadline=None)
def test_a_site_at_the_subpoint_sees_the_satellite_overhead(latitude_deg: float, longitude_deg: float, seconds: float) -> None:
    satellite = circular(700, abs(latitude_deg), raan_deg=longitude_deg % 360, epoch=START)
    times_s = np.array([seconds])
    below = subpoint(satellite, times_s, START)
    seen = look(satellite, Site("x", below.latitude_deg[0], below.longitude_deg[0]), times_s, START)
    assert seen.elevation_deg[0] == pytest.approx(90, abs=1e-6)
    assert seen.slant_range_m[0] == pytest.approx(below.altitude_m[0], abs=0.01)


orbits = st.builds(
    circular,
    st.floats(160, 3000),
    st.floats(0, 180),
    raan_deg=st.floats(0, 360),
    mean_anomaly_deg=st.floats(0, 360),
    epoch=st.just(START),
)
places = st.builds(Site, st.just("x"), st.floats(-90, 90), st.floats(-180, 180), st.floats(-400, 8000), st.floats(0, 85))


@given(satellite=orbits, site=places, duration_s=st.floats(1, 2 * DAY_S))
@settings(max_examples=150, deadline=None)
def test_passes_are_sound_and_end_at_the_mask(satellite: Satellite, site: Site, duration_s: float) -> None:
    found = passes([satellite], [site], START, duration_s)
    assert_sound(found, [site], duration_s)
    edges_s = np.concatenate([found.rise_s[~found.cut_start], found.set_s[~found.cut_end]])
    exact = look(satellite, site, edges_s, START).elevation_deg
    np.testing.assert_allclose(exact, site.min_elevation_deg, rtol=0, atol=4e-4)  # 0.4 ms in the lowest orbit, at 1 deg/s
    tops = look(satellite, site, found.culmination_s, START).elevation_deg
    np.testing.assert_allclose(tops, found.max_elevation_deg, rtol=0, atol=2e-3)  # near the zenith arcsine is steep


@given(satellite=orbits, site=places)
@settings(max_examples=40, deadline=None)
def test_no_pass_is_missed(satellite: Satellite, site: Site) -> None:
    found = passes([satellite], [site], START, DAY_S / 2)
    times_s = np.arange(0.0, DAY_S / 2, 5.0)
    up = look(satellite, site, times_s, START).elevation_deg >= site.min_elevation_deg + 1e-3
    covered = np.zeros(len(times_s), bool)
    for rise_s, set_s in zip(found.rise_s, found.set_s, strict=True):
        covered |= (times_s >= rise_s) & (times_s <= set_s)
    assert not np.any(up & ~covered)


@given(turn_deg=st.floats(-170, 170), latitude_deg=st.floats(-60, 60), inclination_deg=st.floats(30, 150))
@settings(max_examples=40, deadline=None)
def test_turning_site_and_orbit_together_changes_nothing(turn_deg: float, latitude_deg: float, inclination_deg: float) -> None:
    """The ellipsoid and sgp4's near-Earth model are symmetric about the axis."""
    found, turned = (
        passes(
            [circular(600, inclination_deg, raan_deg=(100 + by) % 360, epoch=START)],
            [Site("x", latitude_deg, by, 0, 15)],
            START,
            DAY_S,
        )
        for by in (0.0, turn_deg)
    )
    assert len(found) == len(turned)
    short = found.duration_s < 30  # a graze's length is sensitive to the last micrometre
    np.testing.assert_allclose(turned.rise_s[~short], found.rise_s[~short], atol=1e-3)
    np.testing.assert_allclose(turned.duration_s[~short], found.duration_s[~short], atol=2e-3)


def test_sites_stand_on_the_ellipsoid() -> None:
    """The range to a site on the pole and on the equator, from a satellite far away, by hand."""
    satellite = circular(600, 90, mean_anomaly_deg=90, epoch=START)
    height_m = subpoint(satellite, np.zeros(1), START).altitude_m[0]
    seen = look(satellite, Site("pole", 90, 0), np.zeros(1), START)
    assert seen.slant_range_m[0] == pytest.approx(height_m, rel=1e-3)
    assert height_m == pytest.approx(600_000 + 6378137 * FLATTENING, abs=20_000)
