"""Sources of satellites and sgp4's frame: against published elements and skyfield."""

import json
import math
import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skyfield.api import EarthSatellite, load, wgs84
from skyfield.framelib import itrs

from fedexperts.contact.elements import checksum
from fedexperts.contact.orbit import (
    EARTH_RADIUS_KM,
    MU_KM3_PER_S2,
    Satellite,
    beside,
    circular,
    ecef,
    epoch_age_days,
    epoch_warnings,
    instants,
    read_omm,
    read_tle,
    walker,
)
from fedexperts.errors import InputError

START = datetime(2026, 1, 1, tzinfo=UTC)
DATA = Path(os.environ.get("FEDEXPERTS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "tle" / "raw"
needs_data = pytest.mark.skipif(
    not (DATA / "SGP4-VER.TLE").exists(), reason="no tle/raw/SGP4-VER.TLE in $FEDEXPERTS_DATA (or ../shared/data)"
)
SKY = load.timescale(builtin=True)

ISS = (  # the example of CelesTrak's "TLE format" page: 2008, checksums 7 and 7
    "1 25544U 98067A   08264.51782528 -.00002182  00000-0 -11606-4 0  2927",
    "2 25544  51.6416 247.4627 0006703 130.5360 325.0288 15.72125391563537",
)
OMM = {
    "OBJECT_NAME": "ISS (ZARYA)",
    "OBJECT_ID": "1998-067A",
    "CENTER_NAME": "EARTH",
    "REF_FRAME": "TEME",
    "TIME_SYSTEM": "UTC",
    "MEAN_ELEMENT_THEORY": "SGP4",
    "EPOCH": "2008-09-20T12:25:40.104192",
    "MEAN_MOTION": 15.72125391,
    "ECCENTRICITY": 0.0006703,
    "INCLINATION": 51.6416,
    "RA_OF_ASC_NODE": 247.4627,
    "ARG_OF_PERICENTER": 130.5360,
    "MEAN_ANOMALY": 325.0288,
    "NORAD_CAT_ID": 25544,
    "BSTAR": -0.11606e-4,
}
META = {"OBJECT_NAME", "OBJECT_ID", "CENTER_NAME", "REF_FRAME", "TIME_SYSTEM", "MEAN_ELEMENT_THEORY"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def tle(tmp_path: Path, *lines: str) -> Path:
    return write(tmp_path / "some.tle", "\n".join(lines) + "\n")


def positions_km(satellite: Satellite, start: datetime = START, hours: float = 6) -> np.ndarray:
    return ecef(satellite, instants(start, np.linspace(0, hours * 3600, 25)))[0]


def as_xml(message: dict, namespace: str = "") -> str:
    def tags(keys):
        return "".join(f"<{key}>{message[key]}</{key}>" for key in keys)

    meta, elements = [k for k in message if k in META], [k for k in message if k not in META | {"BSTAR", "NORAD_CAT_ID"}]
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><!-- a comment --><ndm{namespace}>'
        '<omm id="CCSDS_OMM_VERS" version="2.0"><body><segment>'
        f"<metadata>{tags(meta)}</metadata><data><meanElements>{tags(elements)}</meanElements>"
        f"<tleParameters>{tags(['NORAD_CAT_ID', 'BSTAR'])}</tleParameters></data></segment></body></omm></ndm>"
    )


def as_kvn(message: dict) -> str:
    units = {"MEAN_MOTION": " [rev/day]", "INCLINATION": " [deg]"}
    rows = [f"{key} = {value}{units.get(key, '')}" for key, value in message.items()]
    return "\n".join(["CCSDS_OMM_VERS = 2.0", "COMMENT made by hand", "CREATION_DATE=2026-01-01T00:00:00", "", *rows]) + "\n"


def test_circular_orbit_has_the_public_contract_s_mean_motion_and_stays_circular() -> None:
    satellite = circular(600, 53, epoch=START)
    expected = math.sqrt(398600.8 / 6978.137**3) * 60
    assert satellite.satrec.no_kozai == pytest.approx(expected, rel=1e-12)
    assert satellite.satrec.bstar == 0
    radius_km = np.linalg.norm(positions_km(satellite), axis=1)
    assert np.ptp(radius_km) < 25  # J2's short periods only
    assert abs(radius_km.mean() - 6978.137) < 10
    assert satellite.epoch == START


def test_circular_orbit_begins_where_it_is_told() -> None:
    satellite = circular(600, 90, raan_deg=0, mean_anomaly_deg=90, epoch=START)  # a quarter turn past the node: over the pole
    assert positions_km(satellite)[0][2] > 6950


def test_epochs_of_other_zones_are_turned_into_utc() -> None:
    east = START.astimezone(timezone(timedelta(hours=5)))
    np.testing.assert_array_equal(positions_km(circular(600, 53, epoch=east)), positions_km(circular(600, 53, epoch=START)))
    np.testing.assert_array_equal(
        positions_km(circular(600, 53, epoch=START), east), positions_km(circular(600, 53, epoch=START))
    )


def test_walker_delta_spreads_planes_and_phases() -> None:
    shell = walker(12, 3, 1, 600, 53, epoch=START, name="w")
    assert [s.name for s in shell[:5]] == ["w-0-0", "w-0-1", "w-0-2", "w-0-3", "w-1-0"]
    assert [round(math.degrees(s.satrec.nodeo)) for s in shell[::4]] == [0, 120, 240]
    assert [round(math.degrees(s.satrec.mo)) for s in shell[:4]] == [0, 90, 180, 270]
    assert [round(math.degrees(s.satrec.mo)) for s in shell[::4]] == [0, 30, 60]  # one phasing unit is 360/12 degrees


def test_walker_star_spreads_planes_over_half_a_turn() -> None:
    shell = walker(6, 3, 0, 780, 86.4, "star", epoch=START)
    assert [round(math.degrees(s.satrec.nodeo)) for s in shell[::2]] == [0, 60, 120]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: circular(0, 53, epoch=START), r"altitude_km = 0: an orbit below the surface"),
        (lambda: circular(-20, 53, epoch=START), r"altitude_km = -20"),
        (lambda: circular(math.nan, 53, epoch=START), r"altitude_km = nan"),
        (lambda: circular(600, 181, epoch=START), r"inclination_deg = 181.*0\.\.180"),
        (lambda: circular(600, math.nan, epoch=START), r"inclination_deg = nan"),
        (lambda: circular(600, 53, raan_deg=math.inf, epoch=START), r"raan_deg = inf.*finite"),
        (lambda: circular(600, 53, epoch=datetime(2026, 1, 1)), r"epoch = 2026-01-01T00:00:00: has no time zone"),
        (lambda: instants(datetime(2026, 1, 1), np.zeros(1)), r"plan\.start = 2026-01-01T00:00:00: has no time zone"),
        (lambda: walker(10, 3, 0, 600, 53, epoch=START), r"total = 10 must be a positive multiple of planes = 3"),
        (lambda: walker(0, 1, 0, 600, 53, epoch=START), r"total = 0"),
        (lambda: walker(9, 3, 3, 600, 53, epoch=START), r"phasing = 3 must be within 0\.\.2"),
        (lambda: walker(9, 3, 0, 600, 53, "rose", epoch=START), r"kind = 'rose' must be 'delta'"),  # type: ignore[arg-type]
    ],
)
def test_impossible_orbits_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_tle_with_and_without_names(tmp_path: Path) -> None:
    assert [checksum(line) for line in ISS] == [7, 7]
    two, three, zero = tle(tmp_path, *ISS), tmp_path / "three.tle", tmp_path / "zero.tle"
    write(three, "# comment\r\n" + "\r\n".join(["ISS (ZARYA)      ", *ISS, "", "1 SECOND", *ISS]))
    write(zero, "\n".join(["0 ISS (ZARYA)", *ISS]))
    assert [s.name for s in read_tle(two)] == ["NORAD 25544"]
    assert [s.name for s in read_tle(three)] == ["ISS (ZARYA)", "1 SECOND"]
    assert [s.name for s in read_tle(zero, "iss (zarya)")] == ["ISS (ZARYA)"]
    assert [s.name for s in read_tle(zero, "25544")] == ["ISS (ZARYA)"]
    old = tle(tmp_path, "ISS [+]", *(summed(line[:2] + "00044" + line[7:]) for line in ISS))
    assert [read_tle(old, key)[0].name for key in ("ISS", "iss [+]", "44", "00044")] == ["ISS [+]"] * 4
    (satellite,) = read_tle(zero)
    assert abs(satellite.epoch - datetime(2008, 9, 20, 12, 25, 40, 104192, tzinfo=UTC)) < timedelta(microseconds=100)
    assert math.degrees(satellite.satrec.inclo) == pytest.approx(51.6416)


def changed(line: str, column: int, to: str) -> str:
    return line[:column] + to + line[column + 1 :]


def summed(line: str) -> str:
    return line[:68] + str(checksum(line))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((changed(ISS[0], 20, "9"), ISS[1]), r"some\.tle, line 1: checksum digit is '7', but 4 follows"),
        ((ISS[0], changed(ISS[1], 68, "3")), r"some\.tle, line 2: checksum digit is '3', but 7 follows"),
        (("NAME", ISS[0], changed(ISS[1], 68, "x")), r"line 3: checksum digit is 'x', but 7"),
        ((ISS[0][:60], ISS[1]), r"line 1: has 60 columns, a TLE line has 69"),
        ((ISS[0],), r"line 1: no second line"),
        ((ISS[1], ISS[0]), r"line 2: no second line"),
        (("A", "B", *ISS), r"line 2: 'B' is not the first line"),
        ((*ISS, "TAIL"), r"line 3: 'TAIL' is not the first line"),
        ((ISS[0], summed(changed(ISS[1], 3, "1"))), r"line 2: is of satellite 21544, line 1 of 25544"),
        (
            (ISS[0], summed(ISS[1][:52] + "17.50000000" + ISS[1][63:])),
            r"perigee of 'NORAD 25544' at -\d+\.\d km altitude is below",
        ),
        ((ISS[0], summed(changed(ISS[1], 9, "9").replace(" 91.6416", "191.6416"))), r"inclination_deg = 191\.642 .*0\.\.180"),
        ((ISS[0], summed(ISS[1][:52] + "abcdefghijk" + ISS[1][63:])), r"line 2, column 55: is 'c', must be a decimal point"),
        ((ISS[0], summed(ISS[1][:52] + " 0.00000000" + ISS[1][63:])), r"mean motion = 0 rev/day"),
        (("",), r"is empty"),
    ],
)
def test_broken_tle_files_are_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tle(tle(tmp_path, *lines))


def test_unknown_and_ambiguous_names_are_refused_with_neighbours(tmp_path: Path) -> None:
    other = [summed(line[:2] + "20580" + line[7:]) for line in ISS]
    path = tle(tmp_path, "ISS (ZARYA)", *ISS, "HUBBLE", *ISS, "HUBBLE", *other)
    with pytest.raises(
        InputError, match=r"satellite_name = 'ISS': not among the 3 satellites of some\.tle; near: ISS \(ZARYA\)"
    ):
        read_tle(path, "ISS")
    with pytest.raises(InputError, match=r"'HUBBLE': some\.tle has 2 satellites of this name, with .* 25544, 20580; give the"):
        read_tle(path, "HUBBLE")
    with pytest.raises(InputError, match=r"near: ISS \(ZARYA\), HUBBLE"):
        read_tle(path, "qqqq")


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tle = .*cannot be read \(No such file"):
        read_tle(tmp_path / "absent.tle")
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"omm = .*is not UTF-8"):
        read_omm(tmp_path / "bin")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([OMM]),
        json.dumps({key: str(value) for key, value in OMM.items()}),
        as_xml(OMM),
        as_xml(OMM, ' xmlns="urn:ccsds:recommendation:navigation:schema:ndmxml"'),
        as_kvn(OMM),
        as_kvn(OMM | {"EPOCH": "2008-264T12:25:40.104192Z"}),
    ],
    ids=["json", "json-text", "xml", "xml-namespace", "kvn", "kvn-day-of-year"],
)
def test_omm_formats_give_the_orbit_of_the_tle(tmp_path: Path, text: str) -> None:
    (satellite,) = read_omm(write(tmp_path / "iss.omm", text))
    (expected,) = read_tle(tle(tmp_path, *ISS))
    start = datetime(2008, 9, 21, tzinfo=UTC)
    assert satellite.name == "ISS (ZARYA)"
    assert satellite.epoch == datetime(2008, 9, 20, 12, 25, 40, 104192, tzinfo=UTC)
    np.testing.assert_allclose(positions_km(satellite, start), positions_km(expected, start), atol=1e-3)


def test_omm_of_several_chosen_by_name_number_or_designator(tmp_path: Path) -> None:
    other = OMM | {"OBJECT_NAME": "OTHER", "NORAD_CAT_ID": 123456789, "OBJECT_ID": "2030-001A"}
    paths = [
        write(tmp_path / "a", json.dumps([OMM, other])),
        write(tmp_path / "b", as_kvn(OMM) + as_kvn(other)),
    ]
    for path in paths:
        assert [s.name for s in read_omm(path)] == ["ISS (ZARYA)", "OTHER"]
        for key in ("other", "123456789", "2030-001a"):
            assert [s.name for s in read_omm(path, key)] == ["OTHER"]
        with pytest.raises(InputError, match="not among the 2 satellites"):
            read_omm(path, "absent")


def without(key: str) -> str:
    return json.dumps({k: v for k, v in OMM.items() if k != key})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty"),
        ("{", r"is not JSON \(line 1"),
        ("[1]", r"must be an object, or a list"),
        ("[]", r"holds no orbit mean-elements message"),
        ("<a>", r"is not XML"),
        ("<a/>", r"holds no orbit"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', r"iss\.omm', line 1: declares a DOCTYPE or entities"),
        ("nonsense", r"iss\.omm, line 1: 'nonsense' is not KEYWORD = value"),
        (without("MEAN_MOTION"), r"message 0 \('ISS \(ZARYA\)'\): MEAN_MOTION missing"),
        (json.dumps(OMM | {"REF_FRAME": "GCRF"}), r"REF_FRAME = GCRF: sgp4 reads elements as TEME only"),
        (json.dumps(OMM | {"MEAN_ELEMENT_THEORY": "DSST"}), r"MEAN_ELEMENT_THEORY = DSST"),
        (json.dumps(OMM | {"ECCENTRICITY": 1.2}), r"eccentricity = 1\.2.*below 1"),
        (json.dumps(OMM | {"ECCENTRICITY": -0.1}), r"eccentricity = -0\.1"),
        (json.dumps(OMM | {"ECCENTRICITY": 0.5}), r"perigee of 'ISS \(ZARYA\)' at -\d+.* below the surface"),
        (json.dumps(OMM | {"INCLINATION": "steep"}), r"INCLINATION = steep: must be a number"),
        (json.dumps(OMM | {"INCLINATION": 200}), r"inclination_deg = 200"),
        (json.dumps(OMM | {"MEAN_MOTION": -1}), r"mean motion = -1 rev/day"),
        (json.dumps(OMM | {"MEAN_ANOMALY": "nan"}), r"MEAN_ANOMALY = nan: must be a number"),
        (json.dumps(OMM | {"EPOCH": "yesterday"}), r"EPOCH = yesterday: must be a date"),
    ],
)
def test_broken_omm_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_omm(write(tmp_path / "iss.omm", text))


def test_old_elements_are_warned_about_with_their_age(tmp_path: Path) -> None:
    (satellite,) = read_tle(tle(tmp_path, *ISS))
    later = satellite.epoch + timedelta(days=20.5)
    assert epoch_age_days(satellite, later) == pytest.approx(20.5)
    (warning,) = epoch_warnings([satellite], later)
    assert "'NORAD 25544': its elements are of 2008-09-20, 20.5 days before the plan's start" in warning
    (warning,) = epoch_warnings([satellite], satellite.epoch - timedelta(days=30))
    assert "30.0 days after" in warning
    assert epoch_warnings([satellite], satellite.epoch + timedelta(days=13.9)) == ()


def test_a_satellite_that_decays_during_the_plan_is_refused_with_time_and_meaning(tmp_path: Path) -> None:
    drag = json.dumps(OMM | {"MEAN_MOTION": 16.3, "BSTAR": 0.05})
    (satellite,) = read_omm(write(tmp_path / "low.json", drag))
    with pytest.raises(InputError, match=r"'ISS \(ZARYA\)' at 20\d\d-.*Z: sgp4 error \d: .*2008-09-20, .*: take newer ones"):
        ecef(satellite, instants(satellite.epoch, np.arange(0, 30 * 86400.0, 600)))


@pytest.mark.parametrize("year", [2018, 2021, 2024, 2026])
def test_frame_agrees_with_skyfield(year: int) -> None:
    start = datetime(year, 5, 15, 7, tzinfo=UTC)
    satellite = circular(600, 53, epoch=start)
    times_s = np.linspace(0, 86400, 50)
    position, velocity = ecef(satellite, instants(start, times_s))
    when = SKY.utc(year, 5, 15, 7, 0, times_s)
    expected = EarthSatellite.from_satrec(satellite.satrec, SKY).at(when).frame_xyz_and_velocity(itrs)
    assert np.abs(position - expected[0].km.T).max() < 0.012  # 0.02 s of UT1 turn the orbit by 10 m
    assert np.abs(velocity - expected[1].km_per_s.T).max() < 2e-5
    pole = wgs84.latlon(90, 0).itrs_xyz.km[2]
    assert pole == pytest.approx(EARTH_RADIUS_KM * (1 - 1 / 298.257223563))


def test_frame_s_velocity_is_the_derivative_of_its_position() -> None:
    position, velocity = ecef(circular(600, 53, epoch=START), instants(START, np.arange(0.0, 600.0, 0.5)))
    np.testing.assert_allclose(
        (position[2:] - position[:-2]) / 1.0, velocity[1:-1], atol=2e-5
    )  # sgp4's own is first-order in J2


@needs_data
def test_sgp4_reproduces_its_verification_cases(tmp_path: Path) -> None:
    """Every case of Spacetrack Report #3 revisited (SGP4-VER.TLE, tcppver.out) that is an orbit above the surface."""
    lines = [line[:69] for line in (DATA / "SGP4-VER.TLE").read_text().splitlines() if line[:2] in ("1 ", "2 ")]
    cases: list[tuple[str, list[list[float]]]] = []
    for line in (DATA / "tcppver.out").read_text().splitlines():
        words = line.split()
        if words[1:] == ["xx"]:
            cases.append((words[0].zfill(5), []))
        elif words:
            cases[-1][1].append([float(w) for w in words[:7]])
    refused, compared = [], 0
    for number, line1, line2, (case, rows) in zip((x[2:7] for x in lines[::2]), lines[::2], lines[1::2], cases, strict=True):
        assert number == case
        try:
            (satellite,) = read_tle(tle(tmp_path, summed(line1), summed(line2)))  # three cases have wrong checksums
        except InputError:
            refused.append(number)
            continue
        for minutes, *expected in rows:
            code, r, v = satellite.satrec.sgp4_tsince(minutes)
            if code == 0:
                np.testing.assert_allclose(r, expected[:3], rtol=0, atol=2e-6)  # km
                np.testing.assert_allclose(v, expected[3:], rtol=0, atol=2e-9)
                compared += 1
    assert refused == ["28872", "33333", "33334"]  # decaying on purpose: perigees at -49 and -6294 km, error 3 at once
    assert compared == 650


@needs_data
@pytest.mark.parametrize(
    "name", ["noaa_2024-01-13.txt", "stations_2024-01-13.txt", "starlink_2024-01-13.txt", "weather_2023-09-08.txt"]
)
def test_catalogue_files_are_read_whole(name: str) -> None:
    satellites = read_tle(DATA / name)
    lines = [line for line in (DATA / name).read_text().splitlines() if line.strip()]
    assert len(satellites) == len(lines) / 3
    assert [s.name for s in satellites] == [line.strip() for line in lines[::3]]
    (one,) = read_tle(DATA / name, lines[1][2:7])  # names recur in some files, numbers do not
    reference = EarthSatellite(lines[1], lines[2], ts=SKY)
    assert abs(one.epoch - reference.epoch.utc_datetime()) < timedelta(milliseconds=1)


def test_constants_are_sgp4_s() -> None:
    satrec = circular(600, 53, epoch=START).satrec
    assert satrec.radiusearthkm == 6378.135  # sgp4's own unit of length; altitudes count from WGS-84's
    assert satrec.mu == MU_KM3_PER_S2


def test_one_more_satellite_is_midway_to_the_next_in_its_plane() -> None:
    epoch = datetime(2026, 1, 1, tzinfo=UTC)
    alone = circular(600, 53, 20, 30, epoch=epoch)
    shell = walker(12, 3, 1, 600, 53, epoch=epoch)
    for first, flying, ahead_deg in ((alone, [alone], 180.0), (shell[0], shell, 45.0)):
        added = beside(first, flying)
        angle_deg = math.degrees(math.acos(float(np.dot(*(_direction(one) for one in (first, added))))))
        assert angle_deg == pytest.approx(ahead_deg, abs=0.2)
        assert added.satrec.inclo == first.satrec.inclo
        assert added.name != first.name


def _direction(satellite: Any) -> np.ndarray:
    at = ecef(satellite, instants(datetime(2026, 1, 1, tzinfo=UTC), np.zeros(1)))[0][0]
    return at / np.linalg.norm(at)
