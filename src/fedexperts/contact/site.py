"""Places on Earth, what they see of a satellite, and where it stands on the map.

Shapes: S sites, T times, N rows of vectors; 3 Earth-fixed axes. Elevation is geometric, above the geodetic (WGS-84) horizon,
without refraction (0.1 degrees at 5 degrees elevation, 0.03 at 25).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime

import numpy as np

from ..errors import InputError
from .orbit import EARTH_RADIUS_KM, Array, Satellite, ecef, instants

FLATTENING = 1 / 298.257223563  # WGS-84


@dataclass(frozen=True)
class Site:
    """A place on or above the WGS-84 ellipsoid with the elevation below which its antenna sees nothing.

    Raises:
        InputError: latitude outside ±90, longitude outside ±180, mask outside [0, 90), altitude not within -1..100 km.
    """

    name: str
    latitude_deg: float
    longitude_deg: float
    altitude_m: float = 0.0
    min_elevation_deg: float = 10.0

    def __post_init__(self) -> None:
        where = f"site {self.name!r}"
        if not -90 <= self.latitude_deg <= 90:
            raise InputError(f"{where}: latitude_deg = {self.latitude_deg:g} must be within -90..90; north is positive")
        if not -180 <= self.longitude_deg <= 180:
            remedy = "east is positive"
            if 180 < self.longitude_deg <= 360:
                remedy += f", so write {self.longitude_deg - 360:g}"
            raise InputError(f"{where}: longitude_deg = {self.longitude_deg:g} must be within -180..180; {remedy}")
        if not 0 <= self.min_elevation_deg < 90:
            raise InputError(
                f"{where}: min_elevation_deg = {self.min_elevation_deg:g} must be at least 0 and below 90; "
                f"usual masks are 10..40"
            )
        if not -1e3 <= self.altitude_m <= 1e5:
            raise InputError(
                f"{where}: altitude_m = {self.altitude_m:g} must be within -1000..100000 metres above the ellipsoid"
            )


@dataclass(frozen=True, eq=False)
class Ground:
    """Sites as arrays: position (km) and geodetic up, shapes (S, 3); sine of the mask and mask, (S,)."""

    position: Array
    up: Array
    sin_mask: Array
    mask_rad: Array

    def part(self, chosen: slice) -> Ground:
        """Some of the sites."""
        return Ground(*(getattr(self, field.name)[chosen] for field in fields(self)))


def ground_of(sites: Sequence[Site]) -> Ground:
    """Positions and verticals of sites on the WGS-84 ellipsoid."""
    lat_S, lon_S, altitude_m_S, mask_S = (
        np.array([(s.latitude_deg, s.longitude_deg, s.altitude_m, s.min_elevation_deg) for s in sites], dtype=np.float64)
        .reshape(len(sites), 4)
        .T
    )
    lat_S, lon_S, mask_S = np.radians(lat_S), np.radians(lon_S), np.radians(mask_S)
    up_S3 = np.stack([np.cos(lat_S) * np.cos(lon_S), np.cos(lat_S) * np.sin(lon_S), np.sin(lat_S)], axis=-1)
    squared = (1 - FLATTENING) ** 2
    normal_S = EARTH_RADIUS_KM / np.sqrt(np.cos(lat_S) ** 2 + squared * np.sin(lat_S) ** 2)
    radius_S3 = np.stack([normal_S, normal_S, squared * normal_S], axis=-1) + altitude_m_S[:, None] / 1e3
    return Ground(radius_S3 * up_S3, up_S3, np.sin(mask_S), mask_S)


def dot(a_N3: Array, b_N3: Array) -> Array:
    """Dot product row by row."""
    product: Array = np.einsum("nk,nk->n", a_N3, b_N3)
    return product


@dataclass(frozen=True, eq=False)
class Look:
    """What a site sees at times T; azimuth from north over east, range rate positive when receding (ground turning along)."""

    elevation_deg: Array
    azimuth_deg: Array
    slant_range_m: Array
    range_rate_m_per_s: Array


def look(satellite: Satellite, site: Site, times_s: Array, start: datetime) -> Look:
    """Elevation, azimuth, range and range rate of a satellite from a site at times T, in seconds after ``start`` (UTC).

    Propagated exactly at every time; elevation is geometric (no refraction), range rate includes the Earth's rotation.

    Raises:
        InputError: as :func:`~fedexperts.contact.passes.passes`.
    """
    return looks(satellite, [site], [times_s], start)[0]


def looks(satellite: Satellite, sites: Sequence[Site], times_s: Sequence[Array], start: datetime) -> list[Look]:
    """What each of some sites sees of a satellite, at times of its own: the same to the bit as `look`, propagated at once.

    Raises:
        InputError: as :func:`~fedexperts.contact.passes.passes`.
    """
    ends = np.cumsum([len(own_s) for own_s in times_s])
    parts = [slice(end - len(own_s), end) for end, own_s in zip(ends, times_s, strict=True)]
    position_T3, velocity_T3 = ecef(satellite, instants(start, np.concatenate(times_s, dtype=np.float64)))
    ground, to_T3 = ground_of(sites), np.empty_like(position_T3)
    up_T, east_T, north_T = np.empty((3, len(to_T3)))
    for i, (part, site) in enumerate(zip(parts, sites, strict=True)):
        lon = math.radians(site.longitude_deg)
        up_3, east_3 = ground.up[i], np.array([-math.sin(lon), math.cos(lon), 0.0])
        north_3 = _cross(up_3, east_3)
        to = np.subtract(position_T3[part], ground.position[i], out=to_T3[part])
        up_T[part], east_T[part], north_T[part] = to @ up_3, to @ east_3, to @ north_3
    range_T = np.linalg.norm(to_T3, axis=1)
    whole = Look(
        elevation_deg=np.degrees(np.arctan2(up_T, np.hypot(east_T, north_T))),
        azimuth_deg=np.degrees(np.arctan2(east_T, north_T)) % 360.0,
        slant_range_m=range_T * 1e3,
        range_rate_m_per_s=dot(to_T3, velocity_T3) / range_T * 1e3,
    )
    return [Look(*(getattr(whole, field.name)[part] for field in fields(Look))) for part in parts]


def _cross(a_3: Array, b_3: Array) -> Array:
    """Of two vectors: numpy's own takes ten times as long for so few."""
    return np.array([a_3[1] * b_3[2] - a_3[2] * b_3[1], a_3[2] * b_3[0] - a_3[0] * b_3[2], a_3[0] * b_3[1] - a_3[1] * b_3[0]])


@dataclass(frozen=True, eq=False)
class Subpoint:
    """Geodetic position of the satellite at times T (WGS-84)."""

    latitude_deg: Array
    longitude_deg: Array
    altitude_m: Array


def subpoint(satellite: Satellite, times_s: Array, start: datetime) -> Subpoint:
    """Where the satellite stands above the WGS-84 ellipsoid at times T, in seconds after ``start`` (UTC).

    Raises:
        InputError: as :func:`~fedexperts.contact.passes.passes`.
    """
    position_T3, _ = ecef(satellite, instants(start, np.asarray(times_s, dtype=np.float64)))
    flat_T = np.hypot(position_T3[:, 0], position_T3[:, 1])
    z_T = position_T3[:, 2]
    squared = FLATTENING * (2 - FLATTENING)
    lat_T = np.arctan2(z_T, flat_T)
    for _ in range(5):  # contracts by 1/150 a step: below 1e-10 rad from anywhere
        bulge_T = EARTH_RADIUS_KM * squared * np.sin(lat_T) / np.sqrt(1 - squared * np.sin(lat_T) ** 2)
        lat_T = np.arctan2(z_T + bulge_T, flat_T)
    normal_T = EARTH_RADIUS_KM / np.sqrt(1 - squared * np.sin(lat_T) ** 2)
    altitude_T = flat_T * np.cos(lat_T) + (z_T + bulge_T) * np.sin(lat_T) - normal_T
    return Subpoint(np.degrees(lat_T), np.degrees(np.arctan2(position_T3[:, 1], position_T3[:, 0])), altitude_T * 1e3)
