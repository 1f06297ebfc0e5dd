"""Physical constants with their sources, and conversions between decibels and plain ratios."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
"""Exact (SI, BIPM SI brochure 2019)."""
BOLTZMANN_J_PER_K = 1.380649e-23
"""Exact (SI, BIPM SI brochure 2019)."""
EARTH_RADIUS_M = 6_371_000.0
"""Mean radius of the spherical Earth of link budgets (3GPP TR 38.811 Sec. 6.3); orbits use WGS-72 instead."""
EARTH_GM_M3_PER_S2 = 3.986004418e14
"""Geocentric gravitational constant (IERS Conventions 2010, Table 1.1)."""
STANDARD_NOISE_TEMPERATURE_K = 290.0
"""T₀, to which noise figures refer (ITU-R P.372, IEEE Std 161)."""
BITS_PER_BYTE = 8


def decibel(ratio: ArrayLike) -> Array:
    """10·log₁₀ of a ratio of powers; 0 gives −∞."""
    with np.errstate(divide="ignore"):
        return np.asarray(10.0 * np.log10(np.asarray(ratio, dtype=np.float64)))


def linear(value_dB: ArrayLike) -> Array:
    """Ratio of powers that a number of decibels stands for."""
    return np.asarray(10.0 ** (np.asarray(value_dB, dtype=np.float64) / 10.0))
