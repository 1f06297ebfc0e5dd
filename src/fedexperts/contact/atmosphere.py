"""Loss in gases, clouds and rain at a place, by ITU-R P.618 with P.676, P.840 and P.838: ITU-Rpy, the extra ``itu``.

P.618's sum without scintillation, for which a radio has its own field. Gases and clouds follow 1/sin(elevation), the law of
``atmospheric_loss_dB``, exactly; rain rises more slowly towards the horizon, for its cells are small.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..units import Array
from .budget import LOWEST_ELEVATION_DEG
from .site import Site

GRID_DEG = np.linspace(LOWEST_ELEVATION_DEG, 89.9, 86)
"""Elevations between which is interpolated; at 90 itself ITU-Rpy warns as if that were 0."""
MOST_RAIN_PERCENT = 5.0
"""P.618's rain is defined up to here; it rains no longer than that in most places."""
CIRCULAR_DEG = 45.0
"""Polarisation tilt that stands for circular polarisation."""


def slant_loss_dB(elevation_deg: ArrayLike, carrier_Hz: float, site: Site, exceeded_percent: float) -> Array:
    """Loss that is exceeded for this share of an average year; below 5° it is held, as ``atmospheric_loss_dB``.

    Raises:
        InputError: the extra is not installed, or the models have no value for this carrier or place.
    """
    elevation = np.clip(np.asarray(elevation_deg, dtype=np.float64), LOWEST_ELEVATION_DEG, 90.0)
    upright = np.interp(elevation, GRID_DEG, _upright_dB(carrier_Hz, site, exceeded_percent))
    return np.asarray(upright / np.sin(np.radians(elevation)))


@lru_cache(maxsize=4096)
def _upright_dB(carrier_Hz: float, site: Site, exceeded_percent: float) -> Array:
    """The loss times sin(elevation) over the grid: constant but for rain."""
    return exact_loss_dB(GRID_DEG, carrier_Hz, site, exceeded_percent) * np.sin(np.radians(GRID_DEG))


def exact_loss_dB(
    elevation_deg: Array, carrier_Hz: float, site: Site, exceeded_percent: float, tilt_deg: float = CIRCULAR_DEG
) -> Array:
    """ITU-Rpy itself, at elevations from 5 to below 90°; raises as ``slant_loss_dB``."""
    try:
        import itur
    except ImportError as error:
        raise InputError(
            f"radio.itu_exceeded_percent = {exceeded_percent:g}: needs the ITU-R models; pip install 'fedexperts[itu]'"
        ) from error
    if not 1e9 <= carrier_Hz <= 55e9:
        raise InputError(f"carrier_Hz = {carrier_Hz:g}: ITU-R P.618 has 1e9 to 5.5e10; set radio.zenith_loss_dB instead")
    with np.errstate(over="ignore"):  # P.676 at 1 GHz divides by what overflows: the term is 0
        loss = itur.atmospheric_attenuation_slant_path(
            site.latitude_deg,
            site.longitude_deg,
            carrier_Hz / 1e9,
            elevation_deg,
            exceeded_percent,
            D=1.0,  # the antenna's diameter matters to scintillation only
            hs=site.altitude_m / 1e3,
            tau=tilt_deg,
            include_rain=exceeded_percent <= MOST_RAIN_PERCENT,
            include_scintillation=False,
        ).value
    if site.altitude_m > 1e4 or not np.all(np.isfinite(loss)):
        raise InputError(
            f"site {site.name!r}: ITU-R's models have no loss at {site.latitude_deg:g}, {site.longitude_deg:g} and "
            f"altitude_m = {site.altitude_m:g}; they end at 10 km and at the poles: set radio.zenith_loss_dB instead"
        )
    return np.asarray(loss, dtype=np.float64)
