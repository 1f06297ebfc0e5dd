"""What surrounds a device, from tables: gases overhead, shadowing and the Rician factor by environment.

TR 38.811 is 3GPP TR 38.811 V15.4.0 (channel models for non-terrestrial networks).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..units import Array


class RadioError(InputError):
    """A radio that cannot be."""


ZENITH_GHZ = np.array([1, 2, 4, 6, 8, 10, 12, 15, 18, 20, 22, 23, 24, 25, 26, 28, 30, 35, 40.0])
ZENITH_DB = np.array(
    [
        *(0.030, 0.035, 0.039, 0.042, 0.048, 0.053, 0.067, 0.111, 0.184, 0.250),
        *(0.458, 0.52, 0.52, 0.5, 0.45, 0.32, 0.25, 0.291, 0.4),
    ]
)
"""Zenith attenuation by gases, mean global reference atmosphere: ITU-R P.676 Figure 6, as 3GPP TR 38.811 Sec. 6.6.4
prescribes; digitised values as in ns-3 (three-gpp-propagation-loss-model). Clear sky: no rain, no cloud. At the
presets' carriers P.676-12 itself gives 0.02 dB less or the same; beside the water line (15-18, 24-28 GHz) to 0.18 dB less."""

SHADOWING_STD_DB: Mapping[tuple[str, str], tuple[float, ...]] = MappingProxyType(
    {
        ("dense-urban", "S"): (3.5, 3.4, 2.9, 3.0, 3.1, 2.7, 2.5, 2.3, 1.2),
        ("dense-urban", "Ka"): (2.9, 2.4, 2.7, 2.4, 2.4, 2.7, 2.6, 2.8, 0.6),
        ("urban", "S"): (4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0),
        ("urban", "Ka"): (4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0),
        ("suburban", "S"): (1.79, 1.14, 1.14, 0.92, 1.42, 1.56, 0.85, 0.72, 0.72),
        ("suburban", "Ka"): (1.9, 1.6, 1.9, 2.3, 2.7, 3.1, 3.0, 3.6, 0.4),
        ("rural", "S"): (1.79, 1.14, 1.14, 0.92, 1.42, 1.56, 0.85, 0.72, 0.72),
        ("rural", "Ka"): (1.9, 1.6, 1.9, 2.3, 2.7, 3.1, 3.0, 3.6, 0.4),
    }
)
"""Shadow fading in line of sight, σ_SF in dB at 10°, 20° … 90°: TR 38.811 Tables 6.6.2-1 (dense urban), 6.6.2-2 (urban) and
6.6.2-3 (suburban and rural, one table for both)."""

RICIAN_K_DB: Mapping[tuple[str, str], tuple[float, ...]] = MappingProxyType(
    {
        ("suburban", "S"): (11.40, 19.45, 20.80, 21.20, 21.60, 19.75, 12.00, 12.85, 12.85),
        ("suburban", "Ka"): (8.9, 14.0, 11.3, 9.0, 7.5, 6.6, 5.9, 5.5, 5.4),
        ("rural", "S"): (24.72, 12.31, 8.05, 6.21, 5.04, 4.42, 3.92, 3.65, 3.59),
        ("rural", "Ka"): (25.43, 12.72, 8.40, 6.52, 5.24, 4.57, 4.02, 3.70, 3.62),
    }
)
"""Mean Rician factor in line of sight, μ_K in dB at 10°, 20° … 90°: TR 38.811 Tables 6.7.2-5a, -5b, -7a and -7b."""


def zenith_loss_dB(carrier_Hz: float) -> float:
    """Gaseous loss straight up at this carrier, for ``atmospheric_loss_dB`` (ITU-R P.676 Figure 6, clear sky).

    Raises:
        RadioError: a carrier outside the table's 1-40 GHz.
    """
    if not ZENITH_GHZ[0] <= carrier_Hz / 1e9 <= ZENITH_GHZ[-1]:
        raise RadioError(f"carrier_Hz = {carrier_Hz:g}: the table of zenith losses has 1e9 to 4e10; set radio.zenith_loss_dB")
    return float(np.interp(carrier_Hz / 1e9, ZENITH_GHZ, ZENITH_DB))


def shadowing_std_dB(elevation_deg: ArrayLike, carrier_Hz: float, environment: str = "rural") -> Array:
    """Standard deviation of lognormal shadowing in line of sight, at the nearest tabulated elevation as TR 38.811 does.

    Below 10° the value for 10° holds; below 13 GHz the S-band row is used, from there the Ka-band row (as ns-3 splits).

    Raises:
        RadioError: an environment that the tables do not have.
    """
    return _by_elevation(SHADOWING_STD_DB, elevation_deg, carrier_Hz, environment)


def typical_rician_K_dB(elevation_deg: ArrayLike, carrier_Hz: float, environment: str = "rural") -> Array:
    """Mean Rician factor in line of sight, at the nearest tabulated elevation; as ``shadowing_std_dB``."""
    return _by_elevation(RICIAN_K_DB, elevation_deg, carrier_Hz, environment)


def _by_elevation(
    table: Mapping[tuple[str, str], tuple[float, ...]], elevation_deg: ArrayLike, carrier_Hz: float, environment: str
) -> Array:
    row = table.get((environment, "S" if carrier_Hz < 13e9 else "Ka"))
    if row is None:
        known = ", ".join(sorted({name for name, _ in table}))
        raise RadioError(f"environment = {environment!r}: unknown; choose one of {known}")
    nearest = np.floor(np.clip(np.asarray(elevation_deg, dtype=np.float64), 10, 90) / 10 + 0.5).astype(int) - 1
    return np.asarray(np.asarray(row, dtype=np.float64)[nearest])
