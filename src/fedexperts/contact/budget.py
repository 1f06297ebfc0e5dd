"""The satellite-ground link, one small function per equation: (14)-(19) of the EMS-FL paper and their standards.

Everything is a pure function over arrays (numpy broadcasting). Losses are positive decibels, gains are positive
decibels, elevations are degrees above the horizon. The Earth is a sphere of 6371 km (3GPP TR 38.811 Sec. 6.3).
Which numbers to put in is the business of ``radio.py``.

    received power (17) = transmit power + gains − free-space loss − atmosphere − shadowing     (15) is the last three
    SNR = received power − kTB·F
    rate = B·log₂(1 + SNR) (19), or its mean over Rician fading (18)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expn

from ..errors import InputError
from ..units import (
    BITS_PER_BYTE,
    BOLTZMANN_J_PER_K,
    EARTH_GM_M3_PER_S2,
    EARTH_RADIUS_M,
    SPEED_OF_LIGHT_M_PER_S,
    STANDARD_NOISE_TEMPERATURE_K,
    Array,
    decibel,
    linear,
)

LOG2_E = math.log2(math.e)
LOWEST_ELEVATION_DEG = 5.0
"""Below this the flat-slab law 1/sin(elevation) overstates the atmosphere by more than a tenth (ITU-R P.676 Annex 2
gives the cosecant law from 5° to 90°)."""
SERIES_K_LIMIT = 1e4
"""Largest linear Rician factor that (18) is summed for; above it an expansion is exact to a few 1e-8."""
ASYMPTOTIC_FROM = 500.0
"""From this argument on E_n is taken from its expansion: its own value would underflow."""


def _array(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _need(ok: bool | np.bool_, field: str, values: ArrayLike, bound: str, remedy: str) -> None:
    """Refuse values outside their range, naming field, worst value, bound and remedy."""
    if not ok:
        shown = _array(values)
        text = f"{shown:g}" if shown.ndim == 0 else f"{np.min(shown):g} to {np.max(shown):g}"
        raise InputError(f"{field} = {text}: must be {bound}; {remedy}")


# Geometry


def slant_range_m(elevation_deg: ArrayLike, altitude_km: ArrayLike) -> Array:
    """Distance d(θ) between device and satellite, for (15), over a spherical Earth of 6371 km.

    Source: 3GPP TR 38.811 equation (6.6-3).

    Raises:
        InputError: an elevation outside 0-90° or an altitude that is not positive.
    """
    elevation, altitude = _array(elevation_deg), _array(altitude_km)
    _check_elevation(elevation)
    _need(np.all(altitude > 0), "altitude_km", altitude, "above 0", "give the height above the surface in kilometres")
    up, height_m = EARTH_RADIUS_M * np.sin(np.radians(elevation)), altitude * 1e3
    return np.asarray(np.sqrt(up**2 + height_m**2 + 2 * height_m * EARTH_RADIUS_M) - up)


def coverage_angle_deg(altitude_km: ArrayLike, min_elevation_deg: ArrayLike) -> Array:
    """Angle at the Earth's centre between the sub-satellite point and the edge of coverage (Fig. 3)."""
    elevation, altitude = _array(min_elevation_deg), _array(altitude_km)
    _check_elevation(elevation)
    _need(np.all(altitude > 0), "altitude_km", altitude, "above 0", "give the height above the surface in kilometres")
    ratio = EARTH_RADIUS_M / (EARTH_RADIUS_M + altitude * 1e3)
    return np.asarray(np.degrees(np.arccos(ratio * np.cos(np.radians(elevation)))) - elevation)


def overhead_pass_s(altitude_km: ArrayLike, min_elevation_deg: ArrayLike) -> Array:
    """Length of a pass through the zenith of a circular orbit, the Earth's rotation left out (it adds up to 5 %)."""
    radius_m = EARTH_RADIUS_M + _array(altitude_km) * 1e3
    angle_deg = coverage_angle_deg(altitude_km, min_elevation_deg)
    return np.asarray(2 * np.radians(angle_deg) * np.sqrt(radius_m**3 / EARTH_GM_M3_PER_S2))


def beamwidth_deg(gain_dB: ArrayLike) -> Array:
    """Widest beam that an antenna of this gain can have: θ² = 41253 deg² / G (Kraus, Antennas, Sec. 2-9, no losses).

    Real apertures are a quarter to a third narrower: 3GPP TR 38.821 Table 6.1.1.1-1 has 4.41° at 30 dBi, this 6.4°.
    """
    return np.asarray(np.sqrt(4 * math.pi * np.degrees(1.0) ** 2 / linear(gain_dB)))


def spot_diameter_m(gain_dB: ArrayLike, distance_m: ArrayLike) -> Array:
    """Widest spot of an antenna of this gain straight below, on flat ground."""
    return np.asarray(2 * _array(distance_m) * np.tan(np.radians(beamwidth_deg(gain_dB)) / 2))


def doppler_Hz(range_rate_m_per_s: ArrayLike, carrier_Hz: ArrayLike) -> Array:
    """Doppler shift f_D = v_r/λ (16), v_r the closing speed: positive while the satellite approaches (range falls)."""
    return np.asarray(-_array(range_rate_m_per_s) * _array(carrier_Hz) / SPEED_OF_LIGHT_M_PER_S)


def _check_elevation(elevation: Array) -> None:
    _need(
        np.all((elevation >= 0) & (elevation <= 90)), "elevation_deg", elevation, "within 0-90", "cut the pass at the horizon"
    )


# Losses, (15)


def free_space_loss_dB(distance_m: ArrayLike, carrier_Hz: ArrayLike) -> Array:
    """Free-space loss 20·log₁₀(4πd/λ), the first factor of (15) (ITU-R P.525).

    Raises:
        InputError: a distance or a carrier that is not positive.
    """
    distance, carrier = _array(distance_m), _array(carrier_Hz)
    _need(np.all(distance > 0), "distance_m", distance, "above 0", "give metres between device and satellite")
    _need(np.all(carrier > 0), "carrier_Hz", carrier, "above 0", "give the carrier in hertz, such as 2e9")
    return 2 * decibel(4 * math.pi * distance * carrier / SPEED_OF_LIGHT_M_PER_S)


def carrier_of_loss_Hz(loss_dB: ArrayLike, distance_m: ArrayLike) -> Array:
    """Carrier at which free space loses this much over this distance: which band a constant path loss means."""
    return np.asarray(10 ** (_array(loss_dB) / 20) * SPEED_OF_LIGHT_M_PER_S / (4 * math.pi * _array(distance_m)))


def atmospheric_loss_dB(elevation_deg: ArrayLike, zenith_dB: ArrayLike) -> Array:
    """Atmospheric loss A(θ) = A(90°)/sin θ of (15) (3GPP TR 38.811 equation (6.6-8)).

    Good to a few percent above 10° and to a tenth at 5°. Below 5° a flat slab overstates the path through a round
    atmosphere without bound, so the loss is held at its value for 5°; use ITU-R P.676 Annex 1 there.

    Raises:
        InputError: an elevation outside 0-90° or a negative zenith loss.
    """
    elevation, zenith = _array(elevation_deg), _array(zenith_dB)
    _check_elevation(elevation)
    _need(np.all(zenith >= 0), "zenith_dB", zenith, "0 or above", "a loss is a positive number of decibels")
    return np.asarray(zenith / np.sin(np.radians(np.maximum(elevation, LOWEST_ELEVATION_DEG))))


def draw_shadowing_dB(std_dB: ArrayLike, rng: np.random.Generator, size: int | tuple[int, ...] | None = None) -> Array:
    """Lognormal shadowing ζ of (15): Gaussian in decibels with mean 0, to be added to the received power."""
    std = _array(std_dB)
    _need(np.all(std >= 0), "std_dB", std, "0 or above", "give the standard deviation in decibels")
    return np.asarray(rng.normal(0.0, std, size))


def draw_rician_gain(rician_K: float, rng: np.random.Generator, size: int | tuple[int, ...]) -> Array:
    """Power gain |h̃|² of Rician fading with mean 1, the small-scale part of (14).

    Args:
        rician_K: power of the direct path over that of the scattered ones, as a ratio; 0 is Rayleigh.
        rng: seeded by the caller.
        size: shape of the result.
    """
    _check_K(rician_K)
    if math.isinf(rician_K):
        return np.ones(size)
    scatter = rng.normal(0.0, math.sqrt(0.5 / (1 + rician_K)), (2, *np.empty(size).shape))
    return np.asarray((math.sqrt(rician_K / (1 + rician_K)) + scatter[0]) ** 2 + scatter[1] ** 2)


def _check_K(rician_K: float) -> None:
    _need(rician_K >= 0, "rician_K", rician_K, "0 or above (a ratio, not decibels)", "0 is Rayleigh, inf is no fading")


# Received power, noise, SNR, (17)


def received_power_dBm(tx_power_dBm: ArrayLike, tx_gain_dB: ArrayLike, rx_gain_dB: ArrayLike, path_loss_dB: ArrayLike) -> Array:
    """Mean received power P·G·|a|² of (17)."""
    return np.asarray(_array(tx_power_dBm) + _array(tx_gain_dB) + _array(rx_gain_dB) - _array(path_loss_dB))


def system_temperature_K(noise_figure_dB: ArrayLike, temperature_K: ArrayLike = STANDARD_NOISE_TEMPERATURE_K) -> Array:
    """Noise temperature of antenna and receiver, T_a + T₀(F − 1) (3GPP TR 38.821 Sec. 6.1.3.1).

    Raises:
        InputError: a negative noise figure or a temperature that is not positive.
    """
    figure, temperature = _array(noise_figure_dB), _array(temperature_K)
    _need(np.all(figure >= 0), "noise_figure_dB", figure, "0 or above", "0 dB is a receiver that adds no noise")
    _need(np.all(temperature > 0), "temperature_K", temperature, "above 0", "290 K is usual for an antenna on the ground")
    return np.asarray(temperature + STANDARD_NOISE_TEMPERATURE_K * (linear(figure) - 1))


def noise_power_dBm(
    bandwidth_Hz: ArrayLike, noise_figure_dB: ArrayLike, temperature_K: ArrayLike = STANDARD_NOISE_TEMPERATURE_K
) -> Array:
    """Noise power σ_z² of (17) in a bandwidth; ``temperature_K`` is the antenna's (290 K gives kT₀B·F).

    Raises:
        InputError: a bandwidth that is not positive, and as ``system_temperature_K``.
    """
    bandwidth = _array(bandwidth_Hz)
    _need(np.all(bandwidth > 0), "bandwidth_Hz", bandwidth, "above 0", "give the width of one sub-channel in hertz")
    return decibel(BOLTZMANN_J_PER_K * system_temperature_K(noise_figure_dB, temperature_K) * bandwidth) + 30


def noise_figure_from_G_over_T_dB(gain_dB: float, G_over_T_dB_per_K: float) -> float:
    """Noise figure (antenna at 290 K) of a receiver of which gain and figure of merit G/T are published."""
    return float(gain_dB - G_over_T_dB_per_K - decibel(STANDARD_NOISE_TEMPERATURE_K))


def snr_dB(received_dBm: ArrayLike, noise_dBm: ArrayLike) -> Array:
    """Signal-to-noise ratio in (18) and (19)."""
    return np.asarray(_array(received_dBm) - _array(noise_dBm))


# Capacity, (18) and (19)


def shannon_bps(bandwidth_Hz: ArrayLike, snr_dB: ArrayLike) -> Array:
    """Shannon rate B·log₂(1 + SNR) (19), the upper bound of (18)."""
    return np.asarray(_array(bandwidth_Hz) * np.log1p(linear(snr_dB)) * LOG2_E)


def ergodic_bps(bandwidth_Hz: ArrayLike, snr_dB: ArrayLike, rician_K: float) -> Array:
    """Ergodic rate B·E[log₂(1 + SNR·|h̃|²)] over Rician fading (18), exactly.

    |h̃|²·(1 + K) is a gamma variable of shape j + 1 with j Poisson of mean K, and the mean of ln(1 + a·gamma) has a closed
    form, hence with a = SNR/(1 + K) and E_n the generalised exponential integral

        log₂e · Σ_j Pois(j; K) · Σ_{n=1}^{j+1} e^{1/a}·E_n(1/a).

    Args:
        bandwidth_Hz: width of the channel.
        snr_dB: mean SNR; any shape.
        rician_K: Rician factor as a ratio. 0 is Rayleigh; from 10⁴ on, the second-order expansion in the variance of
            the gain takes over (the sum would need 10⁴ terms and the two differ by less than 1e-6), and infinity is (19).

    Raises:
        InputError: a negative factor.
    """
    _check_K(rician_K)
    snr = linear(snr_dB)
    if rician_K >= SERIES_K_LIMIT:
        variance = 0.0 if math.isinf(rician_K) else (2 * rician_K + 1) / (rician_K + 1) ** 2
        nats = np.log1p(snr) - 0.5 * variance * (snr / (1 + snr)) ** 2
    else:
        nats = _mean_log(snr / (1 + rician_K), rician_K)
    return np.asarray(_array(bandwidth_Hz) * nats * LOG2_E)


def _mean_log(a: Array, rician_K: float) -> Array:
    """Sum over j of Pois(j; K) times sum over n ≤ j + 1 of e^{1/a} E_n(1/a), as one sum over n with P(J ≥ n − 1) weights."""
    last = int(rician_K + 12 * math.sqrt(rician_K) + 40)
    j = np.arange(last + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(j[1:]))])
    log_K = math.log(rician_K) if rician_K > 0 else -math.inf
    pmf = np.exp(-rician_K + np.where(j > 0, j * log_K, 0.0) - log_factorial) if rician_K > 0 else (j == 0).astype(float)
    at_least = np.minimum(np.cumsum(pmf[::-1])[::-1], 1.0)  # P(J ≥ j), summed from the small end
    used = at_least > 1e-18
    n, weight = j[used] + 1, at_least[used]
    total = np.zeros(a.shape)
    flat, out = a.ravel(), total.ravel()  # a view: total is contiguous
    step = max(1, 200_000 // len(n))  # bounds memory
    for begin in range(0, flat.size, step):
        out[begin : begin + step] = weight @ _scaled_expn(n[:, None], flat[None, begin : begin + step])
    return total


def _scaled_expn(n: Array, a: Array) -> Array:
    """e^x·E_n(x) at x = 1/a, without underflow; 0 at a = 0 (Abramowitz & Stegun 5.1.52 for large x)."""
    with np.errstate(divide="ignore", over="ignore"):
        x = 1.0 / a
    near = np.minimum(x, ASYMPTOTIC_FROM)
    value = np.exp(near) * expn(n, near)
    far = np.maximum(x, ASYMPTOTIC_FROM)
    with np.errstate(invalid="ignore"):  # inf / inf where a is 0
        sum_, share, x_share = far + n, n / (far + n), far / (far + n)
        bracket = 1 + share / sum_ + share * (share - 2 * x_share) / sum_**2
        bracket += share * (6 * x_share**2 - 8 * share * x_share + share**2) / sum_**3
        expansion = np.where(np.isinf(x), 0.0, bracket / sum_)
    return np.asarray(np.where(x > ASYMPTOTIC_FROM, expansion, value))


TABLE_dB = (-60.0, 80.0, 0.25)
"""SNR range and step of the table behind ``mean_efficiency``."""


def mean_efficiency(snr_dB: ArrayLike, rician_K_dB: float) -> Array:
    """Ergodic spectral efficiency in bit/s/Hz, (18)/B, for long time series.

    Interpolated from a table of the exact series in the logarithm; within 2e-6 of it (a test holds this). Below −60 dB
    the efficiency is proportional to the SNR, and the SNR is cut at 80 dB.
    """
    snr = _array(snr_dB)
    if math.isinf(rician_K_dB) and rician_K_dB > 0:
        return shannon_bps(1.0, snr)
    low, high, _ = TABLE_dB
    inside = np.clip(snr, low, high)
    return np.asarray(np.exp(_efficiency_table(float(rician_K_dB))(inside)) * linear(np.minimum(snr - low, 0.0)))


@lru_cache(maxsize=64)
def _efficiency_table(rician_K_dB: float) -> Callable[[Array], Array]:
    from scipy.interpolate import CubicSpline  # takes longer to import than most of what needs no fading

    low, high, step = TABLE_dB
    grid = np.linspace(low, high, round((high - low) / step) + 1)
    table: Callable[[Array], Array] = CubicSpline(grid, np.log(ergodic_bps(1.0, grid, float(linear(rician_K_dB)))))
    return table


# From a rate that changes to piecewise-constant contacts


class Segments(NamedTuple):
    """Piecewise-constant rates: segment i holds ``rate_bps[i]`` from ``start_s[i]`` to ``end_s[i]``."""

    start_s: Array
    end_s: Array
    rate_bps: Array


def capacity_B(time_s: ArrayLike, rate_bps: ArrayLike) -> float:
    """Bytes that fit between the first and the last sample, the rate being linear between samples."""
    time, rate = _array(time_s), _array(rate_bps)
    return float(np.sum(np.diff(time) * (rate[1:] + rate[:-1]) / 2)) / BITS_PER_BYTE


def rate_segments(time_s: ArrayLike, rate_bps: ArrayLike, tolerance: float = 0.10) -> Segments:
    """Split a window where its rate drifts by more than ``tolerance`` and give each piece its mean rate.

    Between samples the rate is taken as linear. Inside a segment the largest rate is at most (1 + tolerance) times
    the smallest, and its bytes equal the integral of the rate, so that nothing is gained or lost over the window.

    Args:
        time_s: sample times, increasing.
        rate_bps: rate at these times, all above 0, or infinite throughout (no limit: one segment).
        tolerance: drift allowed within a segment.

    Raises:
        InputError: fewer than two samples, times that do not increase, rates that are not positive (cut the window at
            the mask first) or a tolerance that is not positive.
    """
    time, rate = _array(time_s), _array(rate_bps)
    if time.ndim != 1 or time.shape != rate.shape or len(time) < 2:
        raise InputError(f"time_s {time.shape} and rate_bps {rate.shape}: must be two lists of one length, 2 or more")
    shortest = np.min(time[1:] - time[:-1])
    _need(shortest > 0, "smallest step of time_s", shortest, "above 0", "sort the samples by time")
    _need(tolerance > 0, "tolerance", tolerance, "above 0", "0.1 splits where the rate drifts by 10 %")
    lowest, highest = rate.min(), rate.max()
    if lowest == math.inf:
        return Segments(time[:1], time[-1:], rate[:1])
    positive = lowest > 0 and highest < math.inf
    _need(positive, "rate_bps", rate, "above 0 and finite", "cut the window where the elevation passes the mask")
    if highest > lowest:
        time, rate = _refined(time, rate, tolerance)
    limit = (1 + tolerance) * (1 + 1e-12)
    cuts, bps = [0], rate.tolist()  # plain numbers are faster one by one
    low = high = bps[0]
    for i in range(1, len(bps)) if highest > lowest * limit else ():
        if bps[i] < low:
            low = bps[i]
        elif bps[i] > high:
            high = bps[i]
        if high > low * limit:
            cuts.append(i - 1)
            low, high = min(bps[i - 1], bps[i]), max(bps[i - 1], bps[i])
    edges = time[[*cuts, len(time) - 1]]
    bits = np.add.reduceat((time[1:] - time[:-1]) * (rate[1:] + rate[:-1]) / 2, cuts)
    return Segments(edges[:-1], edges[1:], bits / (edges[1:] - edges[:-1]))


def _refined(time: Array, rate: Array, tolerance: float) -> tuple[Array, Array]:
    """Add samples on the straight lines until neighbours differ by no more than the tolerance."""
    pieces = np.ceil(np.abs(np.diff(np.log(rate))) / math.log1p(tolerance)).astype(int).clip(1)
    if pieces.max() == 1:  # nothing to add, and what follows would give the same numbers
        return time, rate
    i = np.repeat(np.arange(len(pieces)), pieces)
    step = (np.arange(len(i)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) / pieces[i]
    new_rate = rate[i] * (rate[i + 1] / rate[i]) ** step
    rise = rate[i + 1] - rate[i]
    along = np.divide(new_rate - rate[i], rise, out=np.zeros_like(new_rate), where=step > 0)
    new_time = time[i] + along * (time[i + 1] - time[i])
    later = np.diff(new_time, append=time[-1]) > 0  # a step too steep for the clock's resolution has fewer samples
    return np.append(new_time[later], time[-1]), np.append(new_rate[later], rate[-1])
