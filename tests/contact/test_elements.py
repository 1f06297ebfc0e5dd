"""Files of elements as they are found: other propagators, fallen satellites, several sets, strange characters."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fedexperts.contact.orbit import circular, ecef, instants, read_omm, read_tle, walker
from fedexperts.contact.passes import passes
from fedexperts.contact.site import Site
from fedexperts.errors import InputError
from fedexperts.scenario import Network
from fedexperts.setup.plan import network_plan, orbit

START = datetime(2026, 1, 1, tzinfo=UTC)
ISS = (
    "1 25544U 98067A   26001.00000000  .00016717  00000-0  10270-3 0  9994",
    "2 25544  51.6400 208.9163 0006317  69.9862  25.2906 15.50000000    10",
)
ALPHA = (
    "1 A5544U 98067A   26001.00000000  .00016717  00000-0  10270-3 0  9992",
    "2 A5544  51.6400 208.9163 0006317  69.9862  25.2906 15.50000000    18",
)
NEWER = ("1 25544U 98067A   26003.00000000  .00016717  00000-0  10270-3 0  9996", ISS[1])
COURIER = (  # columns 65-68 end at 68: no checksum
    "1 00058U 60013A   97142.85906518  .00000093  00000-0 +10762-4 0  274",
    "2 00058 028.3286 356.4726 0164991 158.6392 202.1128 13.4602145880282",
)
ZEROS = (
    "1 00511U 62049D   26042.24585084  .00000071  00000-0  72510-4 0  9995",
    "2   511  80.4307 316.8090 0031021 302.1739 213.9845 13.68550625162350",
)
FALLEN = (
    "1 55897U 22151AAV 25058.12407234  .09435527  24934+0  44853-1 0  9999",
    "2 55897  98.5849 110.9278 0014449 269.2407  90.7207 15.92146194 26688",
)
OMM = {
    "OBJECT_NAME": "STARLINK-31001",
    "OBJECT_ID": "2024-149A",
    "EPOCH": "2026-01-01T00:00:00.000000",
    "MEAN_MOTION": 15.05,
    "ECCENTRICITY": 0.0001,
    "INCLINATION": 53.05,
    "RA_OF_ASC_NODE": 100.0,
    "ARG_OF_PERICENTER": 90.0,
    "MEAN_ANOMALY": 10.0,
    "EPHEMERIS_TYPE": 0,
    "CLASSIFICATION_TYPE": "C",
    "NORAD_CAT_ID": 25544,
    "BSTAR": 0.0001,
}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def as_json(message: dict) -> str:
    return json.dumps([message])


def as_xml(message: dict) -> str:
    fields = "".join(f"<{key}>{value}</{key}>" for key, value in message.items())
    return f"<?xml version='1.0' encoding='UTF-8'?><ndm><omm><body><segment><data>{fields}</data></segment></body></omm></ndm>"


def as_kvn(message: dict) -> str:
    return "CCSDS_OMM_VERS = 2.0\n" + "".join(f"{key} = {value}\n" for key, value in message.items())


def as_csv(*messages: dict) -> str:
    return "\n".join(",".join(str(value) for value in row) for row in (messages[0], *(m.values() for m in messages))) + "\n"


FORMS = pytest.mark.parametrize("form", [as_json, as_xml, as_kvn, as_csv])


# ---- another propagator


@pytest.mark.parametrize("kind", ["1", "3", "4", "6"])
def test_a_tle_for_another_propagator_is_refused(kind: str, tmp_path: Path) -> None:
    line = ISS[0][:62] + kind + ISS[0][63:68]
    with pytest.raises(InputError, match=rf"xp\.tle, line 2: ephemeris type {kind}.*another propagator than sgp4"):
        read_tle(write(tmp_path / "xp.tle", "XP", line, ISS[1]))


@FORMS
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"EPHEMERIS_TYPE": 4}, r"xp\.omm, message 0 \('STARLINK-31001'\): EPHEMERIS_TYPE: ephemeris type 4 is SGP4-XP"),
        ({"MEAN_ELEMENT_THEORY": "SGP4-XP"}, r"MEAN_ELEMENT_THEORY = SGP4-XP: sgp4 reads elements as"),
        ({"BTERM": 0.02}, r"BTERM belongs to SGP4-XP"),
    ],
)
def test_an_omm_for_another_propagator_is_refused(form, change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_omm(write(tmp_path / "xp.omm", form(OMM | change)))


@FORMS
def test_every_form_of_omm_is_one_orbit(form, tmp_path: Path) -> None:
    (satellite,) = read_omm(write(tmp_path / "some.omm", form(OMM)))
    assert (satellite.name, satellite.number, satellite.epoch) == ("STARLINK-31001", 25544, START)
    assert satellite.satrec.no_kozai == pytest.approx(15.05 * 2 * np.pi / 1440)
    assert satellite.satrec.bstar == 1e-4


def test_omm_as_csv_of_several(tmp_path: Path) -> None:
    path = write(tmp_path / "some.csv", as_csv(OMM, OMM | {"OBJECT_NAME": "B", "NORAD_CAT_ID": 799501299}))
    assert [s.name for s in read_omm(path)] == ["STARLINK-31001", "B"]
    assert read_omm(path, "799501299")[0].number == 799501299


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (as_csv(OMM) + "1,2\n", r"some\.omm, line 3: has 2 cells, and the header 13"),
        (as_csv(OMM).replace("OBJECT_ID", "OBJECT_NAME"), r"line 2: OBJECT_NAME is there twice"),
        (as_csv({"EPOCH": 1, "X": 2}), r"message 0 \('NORAD \?'\): MEAN_MOTION, ECCENTRICITY"),
        (
            as_csv(OMM | {"NORAD_CAT_ID": "1234567890"}),
            r"NORAD_CAT_ID = 1234567890: must be a whole number of at most 9 digits",
        ),
        (as_kvn(OMM) + "EPOCH = 2026-01-02T00:00:00\n", r"message 0: EPOCH is there twice"),
        (as_xml(OMM).replace("</data>", "<EPOCH>x</EPOCH></data>"), r"message 0: EPOCH is there twice"),
        (as_json(OMM | {"OBJECT_NAME": {"a": 1}}), r"some\.omm, message 0: 'OBJECT_NAME' holds more than a value"),
        (as_json(OMM | {"OBJECT_NAME": "a\u001b[2J"}), r"OBJECT_NAME holds a character that cannot be shown"),
        (as_json(OMM | {"EPOCH": "2026-01-01T00:00:00+05:00"}), r"EPOCH = 2026-01-01T00:00:00\+05:00: must be a date"),
        (as_json(OMM | {"INCLINATION": "1_0"}), r"INCLINATION = 1_0: must be a number"),
        ("[" * 3000, r"omm = .*some\.omm', line 1: is nested deeper than 64"),
        ("<a>" * 3000 + "</a>" * 3000, r"is nested deeper than 64"),
        (
            "<?xml version='1.0'?>\n<!DOCTYPE a [<!ATTLIST a b CDATA 'c'>]><a/>",
            r"some\.omm', line 2: declares a DOCTYPE or entities",
        ),
    ],
)
def test_messages_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_omm(write(tmp_path / "some.omm", text))


@pytest.mark.parametrize("motion", ["1e-300", "0.004", "21", "1e299"])
def test_a_mean_motion_that_no_orbit_has_is_refused(motion: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"some\.omm, message 0 .*mean motion = .* must be within 0\.005\.\.20"):
        read_omm(write(tmp_path / "some.omm", as_kvn(OMM | {"MEAN_MOTION": motion})))


def test_circular_orbits_end_where_the_earth_holds_nothing() -> None:
    with pytest.raises(InputError, match=r"altitude_km = 1e\+300.*at most 1e\+06"):
        circular(1e300, 53, epoch=START)


# ---- fallen


@pytest.mark.parametrize("start", [datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 5, 1, tzinfo=UTC), START])
def test_a_fallen_satellite_is_refused_with_the_time(start: datetime, tmp_path: Path) -> None:
    write(tmp_path / "fallen.tle", *FALLEN)
    with pytest.raises(
        InputError, match=r"satellite 'NORAD 55897' at 2025-0[23]-\d\dT.*Z: .*its elements are of 2025-02-27.*take newer"
    ):
        network_plan(network(tmp_path, start=start, tle="fallen.tle"))


def test_a_radius_beyond_the_orbit_is_no_position(tmp_path: Path) -> None:
    (satellite,) = read_tle(write(tmp_path / "fallen.tle", *FALLEN))
    with pytest.raises(InputError, match=r"at 2024-12-01T00:00:00Z: it would be 1\.46e\+15 km from the Earth's centre"):
        ecef(satellite, instants(datetime(2024, 12, 1, tzinfo=UTC), np.zeros(1)))


# ---- characters, columns, numbers


@pytest.mark.parametrize(
    ("c", "name"), [("\u00a0", r"U\+00A0 NO-BREAK SPACE"), ("\u200b", "U.200B"), ("\t", r"U\+0009 a control"), ("é", "U.00E9")]
)
def test_a_character_that_is_no_ascii_is_named_with_its_place(c: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"some\.tle, line 2, column 8: {name}"):
        read_tle(write(tmp_path / "some.tle", "CICERO 8", ISS[0][:7] + c + ISS[0][8:], ISS[1]))


def test_absent_checksums_are_read_with_a_warning(tmp_path: Path) -> None:
    (satellite,) = read_tle(write(tmp_path / "old.tle", "#COURIER 1B", *COURIER))
    assert (satellite.name, satellite.number) == ("NORAD 58", 58)
    assert [note.split(":")[0] for note in satellite.notes] == ["old.tle, line 2", "old.tle, line 3"]
    assert "has no checksum (68 columns instead of 69)" in satellite.notes[0]
    assert satellite.satrec.no_kozai * 1440 / (2 * np.pi) == pytest.approx(13.46021458)


def test_zeros_and_spaces_before_a_number_are_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "some.tle", "X", *ZEROS)
    assert [read_tle(path, key)[0].number for key in ("511", "00511", "x")] == [511] * 3


def test_a_letter_in_the_number_stands_for_ten_thousands(tmp_path: Path) -> None:
    path = write(tmp_path / "some.tle", "X", *ALPHA)
    assert [read_tle(path, key)[0].number for key in ("A5544", "105544")] == [105544] * 2


@pytest.mark.parametrize(
    ("line", "column", "to", "message"),
    [
        (2, 53, "O", r"line 2, columns 53-63: .*is no number"),  # a letter O counts 0 in the checksum
        (2, 12, " ", r"line 2, column 12: is ' ', must be a decimal point"),
        (2, 17, "1", r"line 2, column 17: is '1', must be blank"),
        (1, 40, "O", r"line 1, columns 34-61: .* are no numbers"),
        (1, 21, "9", r"line 1: columns 19-32, '26901\.00000000': must be a year and a day"),
        (2, 4, "x", r"line 2: columns 3-7, '2x544': must be a catalogue number"),
    ],
)
def test_columns_that_hold_something_else_are_refused(line: int, column: int, to: str, message: str, tmp_path: Path) -> None:
    lines = [text[:68] for text in ISS]
    lines[line - 1] = lines[line - 1][: column - 1] + to + lines[line - 1][column:]
    with pytest.raises(InputError, match=message):
        read_tle(write(tmp_path / "some.tle", *lines))


# ---- which satellites


def network(folder: Path, start: datetime = START, days: float = 0.1, **satellite) -> Network:
    places = [{"name": "lisbon", "latitude_deg": 38.72, "longitude_deg": -9.14}]
    plan = {"kind": "orbit", "start": start, "days": days}
    return Network.parse({"name": "n", "satellite": satellite, "plan": plan, "cluster": places}, folder)


def test_of_one_satellites_sets_the_newest_is_taken_and_told(tmp_path: Path) -> None:
    write(tmp_path / "two.tle", "ISS", *NEWER, "ISS", *ISS)
    (satellite,) = orbit(network(tmp_path, tle="two.tle")).satellites
    assert satellite.epoch.day == 3
    assert satellite.notes == ("two.tle: 2 element sets of 'ISS'; the newest is taken, of 2026-01-03T00:00:00Z",)
    assert satellite.notes[0] in network_plan(network(tmp_path, tle="two.tle")).notes


def test_two_satellites_of_one_name_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path / "two.tle", "ISS", *ISS, "ISS", *ALPHA)
    with pytest.raises(InputError, match=r"satellite_name = 'iss': two\.tle has 2 satellites of this name, .* 25544, 105544"):
        orbit(network(tmp_path, tle="two.tle", satellite_name="iss"))
    with pytest.raises(InputError, match=r"set satellite_name to one of them \(such as: ISS \(25544\), ISS \(105544\)\)"):
        orbit(network(tmp_path, tle="two.tle"))
    with pytest.raises(InputError, match=r"satellite\.name = ISS: given twice"):
        orbit(network(tmp_path, tle="two.tle", all=True))
    assert orbit(network(tmp_path, tle="two.tle", satellite_name="105544")).satellites[0].number == 105544


@pytest.mark.parametrize("key", ["tle", "omm"])
def test_many_satellites_fly_only_if_asked_for(key: str, tmp_path: Path) -> None:
    write(tmp_path / "tle", "SENTINEL-1A", *ISS, "SENTINEL-2A", *ALPHA)
    write(tmp_path / "omm", json.dumps([OMM | {"OBJECT_NAME": f"SENTINEL-{i}A", "NORAD_CAT_ID": i} for i in (1, 2)]))
    with pytest.raises(
        InputError, match=rf"{key} holds 2 satellites; set satellite_name .*SENTINEL-1A.*or all = true to fly every one"
    ):
        orbit(network(tmp_path, **{key: key}))
    with pytest.raises(InputError, match=r"satellite\.name = 'sentinel-2B' does not choose.*satellite_name.*near: SENTINEL-2A"):
        orbit(network(tmp_path, **{key: key}, name="sentinel-2B"))
    assert len(orbit(network(tmp_path, **{key: key}, all=True)).satellites) == 2
    assert [s.name for s in orbit(network(tmp_path, **{key: key}, satellite_name="sentinel-2a")).satellites] == ["SENTINEL-2A"]


def test_a_name_that_is_not_the_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "one.tle", "ISS", *ISS)
    assert len(orbit(network(tmp_path, tle="one.tle", name="iss")).satellites) == 1
    with pytest.raises(
        InputError, match=r"satellite\.name = 'SENTINEL-2A' does not choose from a file\. one\.tle holds 1 satellite;"
    ):
        orbit(network(tmp_path, tle="one.tle", name="SENTINEL-2A"))


@pytest.mark.parametrize(
    ("satellite", "message"),
    [
        ({"tle": "one.tle", "all": True, "satellite_name": "ISS"}, r"give satellite_name .* or all = true"),
        ({"altitude_km": 600, "inclination_deg": 53, "all": True}, r"satellite_name and all choose from a file"),
        ({"altitude_km": 600, "inclination_deg": 53, "satellite_name": "x"}, r"satellite_name and all choose from a file"),
    ],
)
def test_keys_that_choose_from_no_file_are_refused(satellite: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        network(tmp_path, **satellite)


# ---- bounded work


def test_shells_and_plans_that_are_too_large_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"walker: total = 2147483648 must be at most 100,000"):
        walker(2**31, 1, 0, 600, 53, epoch=START)
    with pytest.raises(InputError, match=r"plan\.days = 2000: must be at most 1,100 for an orbit"):
        passes([circular(600, 53, epoch=START)], [Site("a", 0, 0)], START, 2000 * 86400)
    with pytest.raises(
        InputError, match=r"1,000 satellites, 1,000 clusters and 1000 days are 1\.4e\+12 looks.*2e\+10 are the most"
    ):
        passes([circular(600, 53, epoch=START)] * 1000, [Site("a", 0, 0)] * 1000, START, 1000 * 86400)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"slot_s": 1e-4}, r"plan\.slot_s = 0\.0001: .*greater than or equal to 0\.001"),
        ({"slot_s": 1e-3, "days": 3.0}, r"the plan has 259,200,000 contacts, and 200,000 are the most"),
        ({"kind": "always-on", "slot_s": 1e-3}, r"86,400,000 contacts"),
        ({"days": 1e300}, r"plan\.days = 1e\+300: .*less than or equal to 100000"),
        ({"idle_slots": 10**9}, r"plan\.idle_slots = 1000000000"),
        ({"start": datetime(9999, 12, 31, tzinfo=UTC)}, r"start = 9999-12-31.*must be within 1957\.\.2199"),
        ({"nodes": {"server": 0}}, r"plan\.nodes\.server = 0"),
    ],
)
def test_schedules_that_are_too_large_are_refused_before_work(plan: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network_plan(Network.parse({"name": "n", "plan": plan, "cluster": [{"name": "a"}]}))


def test_a_million_cycles_are_refused() -> None:
    given = Network.parse({"name": "n", "cluster": [{"name": "a"}]})
    with pytest.raises(InputError, match=r"1,000,000 contacts, and 200,000 are the most; take longer slots .*train\.cycles"):
        network_plan(given, cycles=10**6)
