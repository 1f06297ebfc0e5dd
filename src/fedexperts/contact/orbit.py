"""Satellites and where they are: circular orbits, Walker shells, TLE and OMM, propagated by sgp4 to Earth-fixed coordinates.

The only file that imports sgp4. Shapes: T times, 3 the axes of an Earth-fixed (ECEF) or sgp4's (TEME) frame.

Frames: TEME is turned into ECEF by Greenwich mean sidereal time alone (GMST 1982 of UT1; Vallado et al., "Revisiting
Spacetrack Report #3", AIAA 2006-6753, appendix C), without polar motion (10 m). UT1 comes from UT1_MINUS_UTC_S; taking UTC
for UT1 would move the ground by up to 0.6 s of rotation, which short passes show. Times between start and event are counted
in UTC without leap seconds (none since 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sgp4.api import SGP4_ERRORS, WGS72, Satrec

from ..errors import InputError
from .elements import ElementSet, chosen, two_line_sets
from .omm import element_set, number_of, omm_messages

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
SLOWEST_A_DAY, FASTEST_A_DAY = 0.005, 20.0
"""Turns a day of an orbit that the Earth holds (1.4 million km), and of none above the surface."""
APOGEE_GROWTH = 1.3
"""Farther out than so many times its apogee a satellite has left its orbit: sgp4 follows a fall through the Earth."""
HIGHEST_KM = 1e6
MOST_SATELLITES = 100_000
"""Of one shell; the largest that was ever filed for has 30,000."""
SAMPLES = 65
"""Times between the epoch of old elements and the plan at which a satellite must still be up."""
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
    """A name, sgp4's record of the orbit and the epoch of its elements (UTC); the rest is of those that come from a file.

    ``number`` is the one in the catalogue, and ``notes`` are what to tell of the file.
    """

    name: str
    satrec: Any  # sgp4 ships no types
    epoch: datetime
    number: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def farthest_km(self) -> float:
        """How far from the Earth's centre it can be: well beyond its apogee, which the Sun and the Moon move."""
        return APOGEE_GROWTH * (1 + float(self.satrec.alta)) * float(self.satrec.radiusearthkm)


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
    fallen_T = (code_T != 0) | ~(np.linalg.norm(r_T3, axis=1) <= satellite.farthest_km)
    if fallen_T.any():
        k = int(np.flatnonzero(fallen_T)[0])
        raise _lost(satellite, at.start + timedelta(seconds=float(at.times_s[k])), int(code_T[k]), r_T3[k])
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


def _lost(satellite: Satellite, when: datetime, code: int, at_km: Array) -> InputError:
    far = f"it would be {np.linalg.norm(at_km):.3g} km from the Earth's centre, where its orbit cannot take it"
    why = f"sgp4 error {code}: {SGP4_ERRORS[code]}" if code else far
    return InputError(
        f"satellite {satellite.name!r} at {when:%Y-%m-%dT%H:%M:%SZ}: {why}; its elements are of {satellite.epoch:%Y-%m-%d}, "
        "and by them it is not in orbit then: take newer ones, a shorter plan or another satellite"
    )


def check_up(satellites: Iterable[Satellite], start: datetime) -> None:
    """Refuse satellites that fall between the epoch of their elements and ``start``: sgp4 may find them an orbit again after.

    Raises:
        InputError: one falls, with the time.
    """
    for satellite in satellites:
        if abs(epoch_age_days(satellite, start)) > 1:
            ecef(satellite, instants(satellite.epoch, np.linspace(0.0, epoch_age_days(satellite, start) * DAY_S, SAMPLES)))


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
    if not 0 < altitude_km <= HIGHEST_KM:
        raise InputError(
            f"satellite.altitude_km = {altitude_km:g}: an orbit below the surface, or beyond the Earth's hold; "
            f"must be above 0 km (low orbits fly at 300-1200) and at most {HIGHEST_KM:g}"
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
    if total > MOST_SATELLITES:
        raise InputError(f"satellite.walker: total = {total} must be at most {MOST_SATELLITES:,}; take a smaller shell")
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


def beside(satellite: Satellite, others: Iterable[Satellite]) -> Satellite:
    """One more satellite in the orbit of one, midway to the next of the ``others`` that flies in the same plane."""
    of, degrees = satellite.satrec, math.degrees
    plane = [
        (degrees(o.satrec.mo + o.satrec.argpo) - degrees(of.mo + of.argpo)) % 360.0
        for o in others
        if abs(o.satrec.inclo - of.inclo) + abs(math.remainder(o.satrec.nodeo - of.nodeo, math.tau)) < 0.01
    ]
    ahead_deg = min((turn for turn in plane if turn > 1e-6), default=360.0) / 2
    angles = (degrees(of.inclo), degrees(of.nodeo), degrees(of.argpo), degrees(of.mo) + ahead_deg)
    return _satellite(f"{satellite.name}, one more", satellite.epoch, of.no_kozai, of.ecco, *angles, of.bstar)


def read_tle(path: Path, satellite_name: str | None = None) -> tuple[Satellite, ...]:
    """All satellites of a TLE file (two or three lines each), or the one of that name or catalogue number.

    Raises:
        InputError: a broken file (see :func:`~fedexperts.contact.elements.two_line_sets`), an unknown or ambiguous name,
            or elements that are no orbit above the surface.
    """
    sets = two_line_sets(path)
    satellites = []
    for i, notes in chosen(path, satellite_name, sets).items():
        one = sets[i]
        try:
            satrec = Satrec.twoline2rv(one.line1, one.line2)
        except ValueError as error:
            raise InputError(f"{one.where}: sgp4 cannot read these elements ({error}); download the file again") from error
        days = satrec.jdsatepoch - 2433281.5 + satrec.jdsatepochF
        _check(one.where, one.name, satrec.no_kozai, satrec.ecco, math.degrees(satrec.inclo))
        satellite = _checked(one.where, one.name, satrec, _EPOCH_ZERO + timedelta(days=days))
        satellites.append(replace(satellite, number=one.number, notes=(*one.notes, *notes)))
    return tuple(satellites)


def read_omm(path: Path, satellite_name: str | None = None) -> tuple[Satellite, ...]:
    """All satellites of an OMM file (JSON, XML, KVN or CSV), or the one of that name, object id or catalogue number.

    Raises:
        InputError: a broken file (see :func:`~fedexperts.contact.omm.omm_messages`), a value that is no number or
            date, an unknown or ambiguous name, or elements that are no orbit above the surface.
    """
    messages = omm_messages(path)
    sets = [element_set(path, i, message) for i, message in enumerate(messages)]
    return tuple(_from_omm(sets[i], messages[i], notes) for i, notes in chosen(path, satellite_name, sets).items())


def _from_omm(one: ElementSet, message: Mapping[str, str], notes: tuple[str, ...]) -> Satellite:
    fields = ("MEAN_MOTION", "ECCENTRICITY", "INCLINATION", "RA_OF_ASC_NODE", "ARG_OF_PERICENTER", "MEAN_ANOMALY", "BSTAR")
    motion, eccentricity, inclination_deg, *others = (number_of(one.where, message, field) for field in fields)
    raan_deg, perigee_deg, anomaly_deg, bstar = others
    angles = (inclination_deg, raan_deg, perigee_deg, anomaly_deg)
    satellite = _satellite(one.name, one.epoch, motion * math.tau / 1440.0, eccentricity, *angles, bstar, one.where)
    return replace(satellite, number=one.number, notes=notes)


def _check(where: str, name: str, motion_rad_per_min: float, eccentricity: float, inclination_deg: float) -> None:
    if not 0 <= eccentricity < 1:
        raise InputError(f"{where}: eccentricity = {eccentricity:g} of {name!r} must be at least 0 and below 1")
    if not 0 <= inclination_deg <= 180:
        raise InputError(f"{where}: inclination_deg = {inclination_deg:g} of {name!r} must be within 0..180")
    turns_a_day = motion_rad_per_min * 1440 / math.tau
    if not SLOWEST_A_DAY <= turns_a_day <= FASTEST_A_DAY:
        raise InputError(
            f"{where}: mean motion = {turns_a_day:g} rev/day of {name!r} must be within {SLOWEST_A_DAY:g}..{FASTEST_A_DAY:g}, "
            "as for every orbit around the Earth"
        )
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
    return _checked(where, name, satrec, epoch)


def _checked(where: str, name: str, satrec: Any, epoch: datetime) -> Satellite:
    """A satellite, if sgp4 finds an orbit at the epoch of its elements."""
    code, at_km, _ = satrec.sgp4_tsince(0.0)
    satellite = Satellite(name, satrec, epoch)
    if code or not math.hypot(*at_km) <= satellite.farthest_km:
        why = SGP4_ERRORS.get(code, f"it would be {math.hypot(*at_km):g} km from the Earth's centre")
        raise InputError(f"{where}: {name!r} has no orbit at the epoch of its elements ({why}); download them again")
    return satellite


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
