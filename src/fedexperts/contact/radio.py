"""Radios: the numbers that go into the equations of ``budget.py``, and rates over a pass.

Sources. TR 38.811 is 3GPP TR 38.811 V15.4.0 (channel models for non-terrestrial networks), TR 38.821 is 3GPP TR 38.821
V16 (its link budgets are Table 6.1.3.3-1, LEO at 600 km seen at 30°). The EMS-FL paper's budget is in Sec. II-B and V-A:
23 dBm, −160 dB, 40 dBi, 5 MHz, 5 Mb/s: an SNR of 10 dB without a noise figure, and 0 dB with the 10 dB that 5 Mb/s implies.

How far that is from TR 38.821 over the same 5 MHz (tests hold the numbers): the handheld has an SNR of −8.7 dB, that is 8.7 dB
below the paper's working point (10 dB less satellite gain, 5.3 dB for shadowing, scintillation and atmosphere, but a better
receiver by 5.7 dB and 0.9 dB less free-space loss at half the carrier) and 0.9 Mb/s; no bandwidth brings it to 1 Mb/s. The
Ka-band terminal, with a dish, has 37.4 dB.

Every cluster has J devices. They share the uplink in sub-channels: as many as fit the total bandwidth send at once, more
take turns. The downlink is a broadcast: one copy serves all devices of the cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from ..units import STANDARD_NOISE_TEMPERATURE_K, Array
from .atmosphere import slant_loss_dB
from .budget import (
    atmospheric_loss_dB,
    free_space_loss_dB,
    mean_efficiency,
    noise_power_dBm,
    received_power_dBm,
    snr_dB,
)
from .site import Site
from .surroundings import RadioError, zenith_loss_dB


@dataclass(frozen=True)
class Radio:
    """Both directions of the link between one satellite and the devices of a cluster.

    Attributes:
        carrier_Hz: uplink carrier; the way down keeps its own, ``downlink_carrier_Hz``.
        bandwidth_Hz: width of one uplink sub-channel; a device sends on one at a time.
        total_bandwidth_Hz: uplink bandwidth that a cluster shares (Sec. V-A: 5 GHz).
        tx_power_dBm: a device's transmit power.
        tx_gain_dB: a device's antenna gain when it sends.
        rx_gain_dB: the satellite's antenna gain when it receives, G_sat of (17).
        noise_figure_dB: the satellite's receiver, its antenna at 290 K.
        downlink_carrier_Hz: downlink carrier.
        downlink_bandwidth_Hz: width of the broadcast.
        downlink_EIRP_dBm: the satellite's radiated power over that width.
        downlink_rx_gain_dB: a device's antenna gain when it receives.
        downlink_noise_figure_dB: a device's receiver.
        downlink_antenna_K: noise temperature of a device's antenna.
        zenith_loss_dB: atmospheric loss straight up, both ways; where there is none, that of a clear sky at the carrier.
        itu_exceeded_percent: share of an average year for which the loss by gases, clouds and rain at the cluster's place may
            be higher; it then comes from ITU-R P.618 (the extra ``itu``) in place of the clear sky.
        scintillation_loss_dB: loss kept for scintillation.
        shadowing_margin_dB: loss kept for shadowing; who wants draws in code has `draw_shadowing_dB` instead.
        margin_dB: anything else that is kept back (pointing, polarisation, rain).
        rician_K_dB: Rician factor of small-scale fading; infinity is none, so that the rate is (19), else it is (18).
        implementation_efficiency: share of the capacity that modulation, coding and signalling leave.
        min_elevation_deg: θ_min of (14): below it the rate is 0.
        fixed_path_loss_dB: replaces free space and atmosphere by a constant.
        fixed_rate_bps: replaces the uplink rate of a sub-channel by a constant.
        fixed_downlink_bps: replaces the downlink rate by a constant; infinity is no limit.

    Raises:
        RadioError: a field outside its range.
    """

    carrier_Hz: float
    bandwidth_Hz: float
    total_bandwidth_Hz: float
    tx_power_dBm: float
    tx_gain_dB: float
    rx_gain_dB: float
    noise_figure_dB: float
    downlink_carrier_Hz: float
    downlink_bandwidth_Hz: float
    downlink_EIRP_dBm: float
    downlink_rx_gain_dB: float
    downlink_noise_figure_dB: float
    downlink_antenna_K: float = STANDARD_NOISE_TEMPERATURE_K
    zenith_loss_dB: float | None = None
    itu_exceeded_percent: float | None = None
    scintillation_loss_dB: float = 0.0
    shadowing_margin_dB: float = 0.0
    margin_dB: float = 0.0
    rician_K_dB: float = math.inf
    implementation_efficiency: float = 1.0
    min_elevation_deg: float = 0.0
    fixed_path_loss_dB: float | None = None
    fixed_rate_bps: float | None = None
    fixed_downlink_bps: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise RadioError(f"radio.{field.name} = {value!r}: must be a number")
        for name in FINITE:
            self._need(name, math.isfinite(getattr(self, name)), "leave it out for the preset's value", "finite")
        for name in POSITIVE:
            self._need(name, getattr(self, name) > 0, "leave it out for the preset's value")
        for name in LOSSES:
            self._need(name, getattr(self, name) >= 0, "losses, margins and noise figures are positive decibels")
        self._need("implementation_efficiency", 0 < self.implementation_efficiency <= 1, "1 is the capacity")
        self._need("min_elevation_deg", 0 <= self.min_elevation_deg < 90, "10 to 40 degrees are usual")
        self._need("rician_K_dB", self.rician_K_dB > -math.inf, "use -100 for Rayleigh fading")
        self._need("total_bandwidth_Hz", self.sub_channels >= 1, "widen it", f"at least bandwidth_Hz = {self.bandwidth_Hz:g}")
        for name in ("zenith_loss_dB", "fixed_path_loss_dB"):
            value = getattr(self, name)
            self._need(name, value is None or 0 <= value < math.inf, "a loss is a positive number of decibels")
        for name in ("fixed_rate_bps", "fixed_downlink_bps"):
            value = getattr(self, name)
            self._need(name, value is None or value > 0, "leave it out to compute the rate")

        percent, others = self.itu_exceeded_percent, (self.zenith_loss_dB, self.fixed_path_loss_dB)
        if percent is not None:
            self._need("itu_exceeded_percent", 0.001 <= percent <= 50, "1 is four days of a year")
            self._need(
                "itu_exceeded_percent",
                others == (None, None),
                "drop one; the preset paper has a fixed loss",
                "used without zenith_loss_dB and fixed_path_loss_dB",
            )

    def _need(self, name: str, ok: bool, remedy: str, bound: str | None = None) -> None:
        if not ok:
            raise RadioError(f"radio.{name} = {getattr(self, name):g}: must be {bound or BOUNDS[name]}; {remedy}")

    @property
    def sub_channels(self) -> int:
        """How many devices can send at once (Sec. V-A: 1,000)."""
        return math.floor(self.total_bandwidth_Hz / self.bandwidth_Hz * (1 + 1e-12))


POSITIVE = (
    *("carrier_Hz", "bandwidth_Hz", "total_bandwidth_Hz", "downlink_carrier_Hz", "downlink_bandwidth_Hz"),
    "downlink_antenna_K",
)
LOSSES = ("noise_figure_dB", "downlink_noise_figure_dB", "scintillation_loss_dB", "shadowing_margin_dB", "margin_dB")
GAINS = ("tx_power_dBm", "tx_gain_dB", "rx_gain_dB", "downlink_EIRP_dBm", "downlink_rx_gain_dB")
FINITE = (*POSITIVE, *LOSSES, *GAINS)
BOUNDS = {
    **dict.fromkeys(POSITIVE, "above 0"),
    **dict.fromkeys((*LOSSES, "zenith_loss_dB", "fixed_path_loss_dB"), "0 or above"),
    **dict.fromkeys(GAINS, "finite"),
    **dict.fromkeys(("fixed_rate_bps", "fixed_downlink_bps"), "above 0"),
    "itu_exceeded_percent": "from 0.001 to 50",
    "rician_K_dB": "finite or inf",
    "implementation_efficiency": "within (0, 1]",
    "min_elevation_deg": "from 0 to below 90",
}
"""Of each field, in words."""


# Along a pass


def path_loss_dB(
    radio: Radio, elevation_deg: ArrayLike, distance_m: ArrayLike, carrier_Hz: float, site: Site | None = None
) -> Array:
    """Large-scale loss of (15): free space, atmosphere, scintillation, shadowing margin; or the radio's constant.

    ``site`` is the cluster's place; only a radio with ``itu_exceeded_percent`` asks for it.

    Raises:
        RadioError: such a radio without a site.
    """
    kept_dB = radio.scintillation_loss_dB + radio.shadowing_margin_dB + radio.margin_dB
    if radio.fixed_path_loss_dB is not None:
        shape = np.broadcast_shapes(np.shape(elevation_deg), np.shape(distance_m))
        return np.full(shape, radio.fixed_path_loss_dB + kept_dB)
    if radio.itu_exceeded_percent is None:
        zenith_dB = zenith_loss_dB(carrier_Hz) if radio.zenith_loss_dB is None else radio.zenith_loss_dB
        air_dB = atmospheric_loss_dB(elevation_deg, zenith_dB)
    elif site is None:
        raise RadioError(f"radio.itu_exceeded_percent = {radio.itu_exceeded_percent:g}: needs a site; give the cluster's place")
    else:
        air_dB = slant_loss_dB(elevation_deg, carrier_Hz, site, radio.itu_exceeded_percent)
    return free_space_loss_dB(distance_m, carrier_Hz) + air_dB + kept_dB


def uplink_snr_dB(radio: Radio, elevation_deg: ArrayLike, distance_m: ArrayLike, site: Site | None = None) -> Array:
    """Mean SNR at the satellite in one sub-channel, (17)."""
    loss_dB = path_loss_dB(radio, elevation_deg, distance_m, radio.carrier_Hz, site)
    received_dBm = received_power_dBm(radio.tx_power_dBm, radio.tx_gain_dB, radio.rx_gain_dB, loss_dB)
    return snr_dB(received_dBm, noise_power_dBm(radio.bandwidth_Hz, radio.noise_figure_dB))


def downlink_snr_dB(radio: Radio, elevation_deg: ArrayLike, distance_m: ArrayLike, site: Site | None = None) -> Array:
    """Mean SNR at a device over the broadcast's bandwidth."""
    loss_dB = path_loss_dB(radio, elevation_deg, distance_m, radio.downlink_carrier_Hz, site)
    received_dBm = received_power_dBm(radio.downlink_EIRP_dBm, 0.0, radio.downlink_rx_gain_dB, loss_dB)
    noise_dBm = noise_power_dBm(radio.downlink_bandwidth_Hz, radio.downlink_noise_figure_dB, radio.downlink_antenna_K)
    return snr_dB(received_dBm, noise_dBm)


def uplink_share(radio: Radio, devices: int) -> float:
    """Share of the time that each of J devices in view holds a sub-channel: 1 while they all fit (Sec. V-A).

    Raises:
        RadioError: no device.
    """
    if devices < 1:
        raise RadioError(f"devices = {devices}: must be 1 or more; a cluster without devices needs no link")
    return min(1.0, radio.sub_channels / devices)


def uplink_bps(
    radio: Radio,
    elevation_deg: ArrayLike,
    distance_m: ArrayLike,
    devices: int = 1,
    shadowing_dB: ArrayLike = 0.0,
    site: Site | None = None,
) -> Array:
    """Rate at which each of a cluster's devices sends, over the samples of a pass; 0 below the radio's mask (14).

    Args:
        radio: which radio.
        elevation_deg: elevation of the satellite at each sample.
        distance_m: distance to it.
        devices: how many devices of the cluster share the sub-channels.
        shadowing_dB: drawn shadowing (``draw_shadowing_dB``), added to the received power; set the margin to 0 with it.
        site: the cluster's place, for ``itu_exceeded_percent``.
    """
    if radio.fixed_rate_bps is None:
        snr = uplink_snr_dB(radio, elevation_deg, distance_m, site) + np.asarray(shadowing_dB, dtype=np.float64)
        efficiency = mean_efficiency(snr, radio.rician_K_dB)
        rate = radio.bandwidth_Hz * radio.implementation_efficiency * efficiency
    else:
        rate = np.asarray(radio.fixed_rate_bps)
    return _masked(radio, elevation_deg, rate * uplink_share(radio, devices))


def downlink_bps(
    radio: Radio,
    elevation_deg: ArrayLike,
    distance_m: ArrayLike,
    shadowing_dB: ArrayLike = 0.0,
    site: Site | None = None,
) -> Array:
    """Rate of the broadcast, which every device of the cluster receives whole; 0 below the radio's mask (14)."""
    if radio.fixed_downlink_bps is None:
        snr = downlink_snr_dB(radio, elevation_deg, distance_m, site) + np.asarray(shadowing_dB, dtype=np.float64)
        efficiency = mean_efficiency(snr, radio.rician_K_dB)
        rate = radio.downlink_bandwidth_Hz * radio.implementation_efficiency * efficiency
    else:
        rate = np.asarray(radio.fixed_downlink_bps)
    return _masked(radio, elevation_deg, rate)


def _masked(radio: Radio, elevation_deg: ArrayLike, rate_bps: Array) -> Array:
    return np.asarray(np.where(np.asarray(elevation_deg) >= radio.min_elevation_deg - 1e-9, rate_bps, 0.0))
