"""Satellites and where they are: circular orbits, Walker shells, TLE and OMM, propagated by sgp4 to Earth-fixed coordinates.

The only file that imports sgp4. Shapes: T times, 3 the axes of an Earth-fixed (ECEF) or sgp4's (TEME) frame.

Frames: TEME is turned into ECEF by Greenwich mean sidereal time alone (GMST 1982 of UT1; Vallado et al., "Revisiting
Spacetrack Report #3", AIAA 2006-6753, appendix C), without polar motion (10 m). UT1 comes from UT1_MINUS_UTC_S; taking UTC
for UT1 would move the ground by up to 0.6 s of rotation, which short passes show. Times between start and event are counted
in UTC without leap seconds (none since 2017).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sgp4.api import SGP4_ERRORS, WGS72, Satrec

from ..errors import InputError
from .elements import omm_messages, two_line_sets

Array = NDArray[np.float64]

EARTH_RADIUS_KM = 6378.137
"""Equatorial radius (WGS-84); altitudes of orbits count from here."""
MU_KM3_PER_S2 = 398600.8
"""Gravitational parameter of WGS-72, which sgp4 uses and all published elements assume."""
DAY_S = 86400.0
OLD_DAYS = 14.0
"""Age of elements from which a plan should be taken with a warning: sgp4 drifts by 1-3 km a day."""
EARTH_TURN_RAD_PER_S = 7.2921158553e-5
"""Rate of GMST; the rate at which TEME turns against the ground."""
STATUS = re.compile(r" \[.\]$")
"""CelesTrak's mark of what a satellite still does, as in "NOAA 19 [+]": not part of the name that people give."""
J2000_JD = 2451545.0
_EPOCH_ZERO = datetime(1949, 12, 31, tzinfo=UTC)  # sgp4init counts days from here

UT1_MINUS_UTC_S = (
    *(0.591, 0.554, 0.517, 0.470, 0.422, 0.381, 0.360, 0.347, 0.336, 0.315, 0.283, 0.249),  # 2017
    *(0.216, 0.196, 0.166, 0.134, 0.102, 0.077, 0.071, 0.070, 0.063, 0.048, 0.019, -0.012),  # 2018
    *(-0.036, -0.061, -0.089, -0.119, -0.149, -0.170, -0.174, -0.160, -0.154, -0.154, -0.159, -0.170),  # 2019
    *(-0.177, -0.191, -0.205, -0.225, -0.242, -0.255, -0.240, -0.208, -0.185, -0.173, -0.175, -0.179),  # 2020
    *(-0.175, -0.167, -0.170, -0.174, -0.183, -0.184, -0.167, -0.143, -0.119, -0.105, -0.104, -0.107),  # 2021
    *(-0.110, -0.107, -0.102, -0.100, -0.098, -0.096, -0.069, -0.037, -0.013, -0.005, -0.010, -0.020),  # 2022
    *(-0.020, -0.015, -0.015, -0.024, -0.034, -0.046, -0.036, -0.015, 0.003, 0.012, 0.011, 0.012),  # 2023
    *(0.009, 0.004, -0.003, -0.014, -0.018, -0.020, -0.004, 0.025, 0.052, 0.059, 0.054, 0.050),  # 2024
    *(0.046, 0.047, 0.046, 0.037, 0.030, 0.029, 0.043, 0.062, 0.085, 0.093, 0.093, 0.080),  # 2025
    *(0.074, 0.071, 0.062, 0.046, 0.033, 0.033, 0.051, 0.079, 0.095, 0.093, 0.089, 0.085),  # 2026, partly predicted
    *(0.088, 0.094, 0.096, 0.097, 0.099, 0.100, 0.102, 0.103, 0.104, 0.106, 0.107, 0.108),  # 2027, predicted
)
"""On the first of each month from 2017-01 (IERS finals2000A, as in skyfield 1.55). Linear in between: within 0.006 s. Held
constant after the end; 0 before the beginning (off by up to 0.6 s)."""
_UT1_JD = np.array([datetime(2017 + m // 12, 1 + m % 12, 1).toordinal() + 1721424.5 for m in range(len(UT1_MINUS_UTC_S))])


@dataclass(frozen=True)
class Satellite:
    """A name, sgp4's record of the orbit and the epoch of its elements (UTC)."""

    name: str
    satrec: Any  # sgp4 ships no types
    epoch: datetime


@dataclass(frozen=True)
class Instants:
    """Times, shape (T,), with what every satellite needs of them: split Julian dates (UTC) and the Earth's angle (GMST)."""

    start: datetime
    times_s: Array
    jd: Array
    fraction: Array
    cos: Array
    sin: Array


def instants(start: datetime, times_s: Array) -> Instants:
    """Prepare times, in seconds after ``start``, for :func:`ecef`.

    Raises:
        InputError: ``start`` has no time zone.
    """
    utc = utc_of(start, "plan.start")
    midnight = utc.replace(hour=0, minute=0, second=0, microsecond=0)
    jd = midnight.toordinal() + 1721424.5
    fraction_T = ((utc - midnight).total_seconds() + np.asarray(times_s, dtype=np.float64)) / DAY_S
    dut1_T = np.interp(jd + fraction_T, _UT1_JD, UT1_MINUS_UTC_S, left=0.0)
    gmst_T = _gmst_rad(jd, fraction_T + dut1_T / DAY_S)
    return Instants(utc, times_s, np.full_like(fraction_T, jd), fraction_T, np.cos(gmst_T), np.sin(gmst_T))


def _gmst_rad(jd_ut1: float, fraction_T: Array) -> Array:
    """Greenwich mean sidereal time 1982 (AIAA 2006-6753, appendix C); days are split so that 1e-11 rad survive."""
    century_T = (jd_ut1 - J2000_JD + fraction_T) / 36525.0
    second_T = 67310.54841 + (8640184.812866 + (0.093104 - 6.2e-6 * century_T) * century_T) * century_T
    turns_T: Array = (jd_ut1 % 1.0 + fraction_T + second_T / DAY_S % 1.0) % 1.0
    return turns_T * math.tau


def utc_of(moment: datetime, field: str) -> datetime:
    """A moment in UTC.

    Raises:
        InputError: it has no time zone.
    """
    if moment.tzinfo is None:
        raise InputError(f"{field} = {moment.isoformat()}: has no time zone; write it as UTC, {moment.isoformat()}Z")
    return moment.astimezone(UTC)


def ecef(satellite: Satellite, at: Instants) -> tuple[Array, Array]:
    """Position (km) and velocity relative to the turning Earth (km/s), both Earth-fixed, shapes (T, 3).

    Raises:
        InputError: sgp4 gives up, for instance because the satellite has decayed by then.
    """
    code_T, r_T3, v_T3 = satellite.satrec.sgp4_array(at.jd, at.fraction)
    if code_T.any():
        k = int(np.flatnonzero(code_T)[0])
        when = at.start + timedelta(seconds=float(at.times_s[k]))
        raise InputError(
            f"satellite {satellite.name!r} at {when:%Y-%m-%dT%H:%M:%SZ}: "
            f"sgp4 error {code_T[k]}: {SGP4_ERRORS[int(code_T[k])]}; its elements are of {satellite.epoch:%Y-%m-%d}: "
            f"take newer ones, a shorter plan or another satellite"
        )
    position_T3, velocity_T3 = np.empty_like(r_T3), np.empty_like(v_T3)
    x, y = r_T3[:, 0], r_T3[:, 1]
    position_T3[:, 0] = at.cos * x + at.sin * y
    position_T3[:, 1] = at.cos * y - at.sin * x
    position_T3[:, 2] = r_T3[:, 2]
    u, v = v_T3[:, 0], v_T3[:, 1]
    velocity_T3[:, 0] = at.cos * u + at.sin * v + EARTH_TURN_RAD_PER_S * position_T3[:, 1]
    velocity_T3[:, 1] = at.cos * v - at.sin * u - EARTH_TURN_RAD_PER_S * position_T3[:, 0]
    velocity_T3[:, 2] = v_T3[:, 2]
    return position_T3, velocity_T3


def circular(
    altitude_km: float,
    inclination_deg: float,
    raan_deg: float = 0.0,
    mean_anomaly_deg: float = 0.0,
    *,
    epoch: datetime,
    name: str = "satellite",
) -> Satellite:
    """A circular orbit: semi-major axis 6378.137 km + altitude, mean motion from it by Kepler's third law (WGS-72), bstar 0.

    Raises:
        InputError: altitude not above 0 km, inclination outside 0..180, an angle that is no number, epoch without zone.
    """
    if not (math.isfinite(altitude_km) and altitude_km > 0):
        raise InputError(
            f"satellite.altitude_km = {altitude_km:g}: an orbit below the surface; "
            f"must be above 0 km (low orbits fly at 300-1200)"
        )
    motion = math.sqrt(MU_KM3_PER_S2 / (EARTH_RADIUS_KM + altitude_km) ** 3) * 60.0
    return _satellite(name, utc_of(epoch, "satellite.epoch"), motion, 0.0, inclination_deg, raan_deg, 0.0, mean_anomaly_deg)


def walker(
    total: int,
    planes: int,
    phasing: int,
    altitude_km: float,
    inclination_deg: float,
    kind: Literal["delta", "star"] = "delta",
    *,
    epoch: datetime,
    name: str = "walker",
) -> tuple[Satellite, ...]:
    """A Walker shell i: total/planes/phasing, named ``name-plane-slot`` (from 0), in the order of planes.

    The planes' nodes are spread over 360° (``"delta"``) or 180° (``"star"``, polar shells); a satellite leads its
    neighbour in the plane to the west by ``phasing`` · 360° / total (J. G. Walker, "Satellite constellations", 1984).

    Raises:
        InputError: total not divisible by planes, phasing outside 0..planes-1, unknown kind, or as :func:`circular`.
    """
    if total < 1 or planes < 1 or total % planes:
        raise InputError(
            f"satellite.walker: total = {total} must be a positive multiple of planes = {planes}; change one of them"
        )
    if not 0 <= phasing < planes:
        raise InputError(f"satellite.walker: phasing = {phasing} must be within 0..{planes - 1} (planes - 1)")
    spreads = {"delta": 360.0, "star": 180.0}
    if kind not in spreads:
        raise InputError(f"satellite.walker: kind = {kind!r} must be 'delta' (nodes over 360 deg) or 'star' (over 180 deg)")
    slots = total // planes
    return tuple(
        circular(
            altitude_km,
            inclination_deg,
            raan_deg=p * spreads[kind] / planes,
            mean_anomaly_deg=(s * 360.0 / slots + p * phasing * 360.0 / total) % 360.0,
            epoch=epoch,
            name=f"{name}-{p}-{s}",
        )
        for p in range(planes)
        for s in range(slots)
    )


def read_tle(path: Path, satellite_name: str | None = None) -> tuple[Satellite, ...]:
    """All satellites of a TLE file (two or three lines each), or the one of that name or catalogue number.

    Raises:
        InputError: a broken file (see :func:`~fedexperts.contact.elements.two_line_sets`), an unknown or ambiguous name,
            or elements that are no orbit above the surface.
    """
    sets = two_line_sets(path)
    names = [(one.name, STATUS.sub("", one.name), one.number, one.number.lstrip("0")) for one in sets]
    chosen = _named(path, satellite_name, names)
    satellites = []
    for one in (sets[i] for i in chosen):
        try:
            satrec = Satrec.twoline2rv(one.line1, one.line2)
        except ValueError as error:
            raise InputError(f"{one.where}: sgp4 cannot read these elements ({error}); download the file again") from error
        days = satrec.jdsatepoch - 2433281.5 + satrec.jdsatepochF
        _check(one.where, one.name, satrec.no_kozai, satrec.ecco, math.degrees(satrec.inclo))
        satellites.append(Satellite(one.name, satrec, _EPOCH_ZERO + timedelta(days=days)))
    return tuple(satellites)


def read_omm(path: Path, satellite_name: str | None = None) -> tuple[Satellite, ...]:
    """All satellites of an OMM file (JSON, XML or KVN), or the one of that name, object id or catalogue number.

    Raises:
        InputError: a broken file (see :func:`~fedexperts.contact.elements.omm_messages`), a value that is no number or
            date, an unknown or ambiguous name, or elements that are no orbit above the surface.
    """
    messages = omm_messages(path)
    names = [(_omm_name(m), m.get("NORAD_CAT_ID", "").lstrip("0"), m.get("OBJECT_ID", "")) for m in messages]
    return tuple(_from_omm(path, i, messages[i]) for i in _named(path, satellite_name, names))


def _omm_name(message: Mapping[str, str]) -> str:
    return message.get("OBJECT_NAME") or f"NORAD {message.get('NORAD_CAT_ID', '?')}"


def _from_omm(path: Path, i: int, message: Mapping[str, str]) -> Satellite:
    where = f"{path.name}, message {i} ({_omm_name(message)})"

    def number(field: str) -> float:
        value: float = _parsed(where, field, message.get(field) or "0", float, "a number")
        return value

    return _satellite(
        _omm_name(message),
        _parsed(where, "EPOCH", message["EPOCH"], _omm_epoch, "a date such as 2026-01-01T00:00:00"),
        number("MEAN_MOTION") * math.tau / 1440.0,
        number("ECCENTRICITY"),
        number("INCLINATION"),
        number("RA_OF_ASC_NODE"),
        number("ARG_OF_PERICENTER"),
        number("MEAN_ANOMALY"),
        number("BSTAR"),
        where,
    )


def _parsed(where: str, field: str, text: str, parse: Callable[[str], Any], wanted: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(f"{where}: {field} = {text}: must be {wanted}") from error


def _omm_epoch(text: str) -> datetime:
    """A CCSDS time, which is UTC: calendar (2026-01-31T…) or day of the year (2026-031T…)."""
    date, _, clock = text.removesuffix("Z").partition("T")
    if date.count("-") == 1:
        date = datetime.strptime(date, "%Y-%j").date().isoformat()
    return datetime.fromisoformat(f"{date}T{clock}" if clock else date).replace(tzinfo=UTC)


def _named(path: Path, wanted: str | None, names: Sequence[tuple[str, ...]]) -> list[int]:
    """Indices of the satellites that are meant: all, or the one of that name."""
    if wanted is None:
        return list(range(len(names)))
    key = wanted.strip().casefold()
    found = [i for i, keys in enumerate(names) if key in {k.casefold() for k in keys if k}]
    if len(found) == 1:
        return found
    if found:
        raise InputError(
            f"satellite_name = {wanted!r}: {path.name} holds it {len(found)} times; keep one element set in the file"
        )
    known = {keys[0].casefold(): keys[0] for keys in names}
    near = difflib.get_close_matches(key, known, n=5, cutoff=0.5) or list(known)[:5]
    listed = ", ".join(known[k] for k in near)
    raise InputError(f"satellite_name = {wanted!r}: not among the {len(names)} satellites of {path.name}; near: {listed}")


def _check(where: str, name: str, motion_rad_per_min: float, eccentricity: float, inclination_deg: float) -> None:
    if not 0 <= eccentricity < 1:
        raise InputError(f"{where}: eccentricity = {eccentricity:g} of {name!r} must be at least 0 and below 1")
    if not 0 <= inclination_deg <= 180:
        raise InputError(f"{where}: inclination_deg = {inclination_deg:g} of {name!r} must be within 0..180")
    if not (math.isfinite(motion_rad_per_min) and motion_rad_per_min > 0):
        raise InputError(f"{where}: mean motion = {motion_rad_per_min * 1440 / math.tau:g} rev/day of {name!r} must be above 0")
    axis_km = (MU_KM3_PER_S2 / (motion_rad_per_min / 60.0) ** 2) ** (1 / 3)
    perigee_km = axis_km * (1 - eccentricity) - EARTH_RADIUS_KM
    if perigee_km <= 0:
        raise InputError(
            f"{where}: perigee of {name!r} at {perigee_km:.1f} km altitude is below the surface; "
            f"it has decayed or its elements are wrong: choose another satellite"
        )


def _satellite(
    name: str,
    epoch: datetime,
    motion_rad_per_min: float,
    eccentricity: float,
    inclination_deg: float,
    raan_deg: float,
    perigee_deg: float,
    anomaly_deg: float,
    bstar: float = 0.0,
    where: str = "satellite",
) -> Satellite:
    """A satellite from mean elements (Kozai's mean motion, as in every TLE)."""
    for field, value in {
        "raan_deg": raan_deg,
        "argument of perigee": perigee_deg,
        "mean_anomaly_deg": anomaly_deg,
        "bstar": bstar,
    }.items():
        if not math.isfinite(value):
            raise InputError(f"{where}: {field} = {value:g} of {name!r} must be a finite number")
    _check(where, name, motion_rad_per_min, eccentricity, inclination_deg)
    satrec = Satrec()
    satrec.sgp4init(
        WGS72,
        "i",  # improved mode, as for published elements
        0,  # catalogue number: the name is ours to keep
        (epoch - _EPOCH_ZERO) / timedelta(days=1),
        bstar,
        0.0,  # derivatives of the mean motion: read by no propagator since SGP
        0.0,
        eccentricity,
        math.radians(perigee_deg % 360.0),
        math.radians(inclination_deg),
        math.radians(anomaly_deg % 360.0),
        motion_rad_per_min,
        math.radians(raan_deg % 360.0),
    )
    return Satellite(name, satrec, epoch)


def epoch_age_days(satellite: Satellite, start: datetime) -> float:
    """Days from the epoch of the elements to ``start``; negative when the epoch lies later."""
    return (utc_of(start, "plan.start") - satellite.epoch) / timedelta(days=1)


def epoch_warnings(satellites: Iterable[Satellite], start: datetime) -> tuple[str, ...]:
    """One warning per satellite whose elements are more than two weeks from ``start``, with the age."""
    aged = ((satellite, epoch_age_days(satellite, start)) for satellite in satellites)
    return tuple(
        f"satellite {satellite.name!r}: its elements are of {satellite.epoch:%Y-%m-%d}, {abs(age):.1f} days "
        f"{'before' if age > 0 else 'after'} the plan's start; sgp4 drifts by kilometres a day, so passes may be off by minutes"
        for satellite, age in aged
        if abs(age) > OLD_DAYS
    )
