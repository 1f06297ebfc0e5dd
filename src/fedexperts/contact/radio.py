"""Radios: the numbers that go into the equations of ``link.py``, as tables, presets and rates over a pass.

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
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..units import STANDARD_NOISE_TEMPERATURE_K, Array, decibel
from .atmosphere import slant_loss_dB
from .budget import (
    atmospheric_loss_dB,
    free_space_loss_dB,
    mean_efficiency,
    noise_figure_from_G_over_T_dB,
    noise_power_dBm,
    received_power_dBm,
    snr_dB,
)
from .site import Site


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


@dataclass(frozen=True)
class Radio:
    """Both directions of the link between one satellite and the devices of a cluster.

    Attributes:
        carrier_Hz: uplink carrier.
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
        zenith_loss_dB: atmospheric loss straight up, both ways; None takes it from the carrier (``zenith_loss_dB``).
        itu_exceeded_percent: share of an average year for which the loss by gases, clouds and rain at the cluster's place may
            be higher; it then comes from ITU-R P.618 (the extra ``itu``) in place of the clear sky of ``zenith_loss_dB``.
        scintillation_loss_dB: loss kept for scintillation.
        shadowing_margin_dB: loss kept for shadowing; draw with ``shadowing_std_dB`` instead where a draw is wanted.
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
            self._need(name, math.isfinite(getattr(self, name)), "finite", "leave it out for the preset's value")
        for name in POSITIVE:
            self._need(name, getattr(self, name) > 0, "above 0", "leave it out for the preset's value")
        for name in LOSSES:
            self._need(name, getattr(self, name) >= 0, "0 or above", "losses, margins and noise figures are positive decibels")
        self._need("implementation_efficiency", 0 < self.implementation_efficiency <= 1, "within (0, 1]", "1 is the capacity")
        self._need("min_elevation_deg", 0 <= self.min_elevation_deg < 90, "from 0 to below 90", "10 to 40 degrees are usual")
        self._need("rician_K_dB", self.rician_K_dB > -math.inf, "finite or inf", "use -100 for Rayleigh fading")
        self._need("total_bandwidth_Hz", self.sub_channels >= 1, f"at least bandwidth_Hz = {self.bandwidth_Hz:g}", "widen it")
        for name in ("zenith_loss_dB", "fixed_path_loss_dB"):
            value = getattr(self, name)
            self._need(name, value is None or 0 <= value < math.inf, "0 or above", "a loss is a positive number of decibels")
        for name in ("fixed_rate_bps", "fixed_downlink_bps"):
            value = getattr(self, name)
            self._need(name, value is None or value > 0, "above 0", "leave it out to compute the rate")

        percent, others = self.itu_exceeded_percent, (self.zenith_loss_dB, self.fixed_path_loss_dB)
        if percent is not None:
            self._need("itu_exceeded_percent", 0.001 <= percent <= 50, "from 0.001 to 50", "1 is four days of a year")
            self._need(
                "itu_exceeded_percent",
                others == (None, None),
                "used without zenith_loss_dB and fixed_path_loss_dB",
                "drop one; the preset paper has a fixed loss",
            )

    def _need(self, name: str, ok: bool, bound: str, remedy: str) -> None:
        if not ok:
            raise RadioError(f"radio.{name} = {getattr(self, name):g}: must be {bound}; {remedy}")

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


def _presets() -> dict[str, Radio]:
    # EMS-FL Sec. II-B and V-A. 10 dB is the noise figure at which (19) gives the 5 Mb/s that the paper states. It names no
    # carrier; −160 dB over 600 km is 3.98 GHz. "The downlink transmission process is neglected due to the high-capacity
    # broadcast capability": no limit; the downlink numbers below only matter when fixed_downlink_bps is set aside.
    paper = Radio(
        carrier_Hz=4e9,
        bandwidth_Hz=5e6,
        total_bandwidth_Hz=5e9,
        tx_power_dBm=23.0,
        tx_gain_dB=0.0,
        rx_gain_dB=40.0,
        noise_figure_dB=10.0,
        downlink_carrier_Hz=4e9,
        downlink_bandwidth_Hz=30e6,
        downlink_EIRP_dBm=78.8,
        downlink_rx_gain_dB=0.0,
        downlink_noise_figure_dB=7.0,
        fixed_path_loss_dB=160.0,
        fixed_rate_bps=5e6,
        fixed_downlink_bps=math.inf,
    )
    # The same radio with the distance that a pass has: a mask of 10° makes contacts of 5 to 8.5 minutes, and a noise figure
    # of 3 dB brings the mean over a median one (peak at 30°) back to about 5 Mb/s.
    paper_range = replace(paper, noise_figure_dB=3.0, min_elevation_deg=10.0, fixed_path_loss_dB=None, fixed_rate_bps=None)
    # TR 38.821 Table 6.1.1.1-1 (set 1, LEO-600, S band: 34 dBW/MHz, 30 dBi, G/T 1.1 dB/K), Table 6.1.1.1-3 (handheld: 23 dBm,
    # 0 dBi, noise figure 7 dB) and cases SC9 of Table 6.1.3.3-1 (30 MHz down, 360 kHz up, shadowing margin 3 dB, scintillation
    # 2.2 dB). Rician factor: TR 38.811 Table 6.7.2-7a, rural, 30°. Mask: TR 38.821 Table 4.2-2, service link. G/T, the 360 kHz,
    # the shadowing margin and the mask are from memory, not checked against the document (test_link.py says what was).
    handheld = Radio(
        carrier_Hz=2e9,
        bandwidth_Hz=360e3,
        total_bandwidth_Hz=30e6,
        tx_power_dBm=23.0,
        tx_gain_dB=0.0,
        rx_gain_dB=30.0,
        noise_figure_dB=noise_figure_from_G_over_T_dB(30.0, 1.1),
        downlink_carrier_Hz=2e9,
        downlink_bandwidth_Hz=30e6,
        downlink_EIRP_dBm=34.0 + 30.0 + float(decibel(30.0)),
        downlink_rx_gain_dB=0.0,
        downlink_noise_figure_dB=7.0,
        scintillation_loss_dB=2.2,
        shadowing_margin_dB=3.0,
        rician_K_dB=8.05,
        min_elevation_deg=10.0,
    )
    # TR 38.821 Table 6.1.1.1-1 (set 1, LEO-600, Ka band: 4 dBW/MHz, 38.5 dBi, G/T 13 dB/K), Table 6.1.1.1-3 (VSAT of 60 cm:
    # 33 dBm, 43.2 dBi up, 39.7 dBi down, noise figure 1.2 dB, antenna at 150 K) and case SC6 of Table 6.1.3.3-1 (400 MHz each
    # way, no shadowing margin, scintillation 0.3 dB). Rician factor: TR 38.811 Table 6.7.2-7b, rural, 30°. Clear sky.
    # G/T and the mask are from memory.
    terminal = Radio(
        carrier_Hz=30e9,
        bandwidth_Hz=400e6,
        total_bandwidth_Hz=400e6,
        tx_power_dBm=33.0,
        tx_gain_dB=43.2,
        rx_gain_dB=38.5,
        noise_figure_dB=noise_figure_from_G_over_T_dB(38.5, 13.0),
        downlink_carrier_Hz=20e9,
        downlink_bandwidth_Hz=400e6,
        downlink_EIRP_dBm=4.0 + 30.0 + float(decibel(400.0)),
        downlink_rx_gain_dB=39.7,
        downlink_noise_figure_dB=1.2,
        downlink_antenna_K=150.0,
        scintillation_loss_dB=0.3,
        rician_K_dB=8.40,
        min_elevation_deg=10.0,
    )
    return {"paper": paper, "paper-range": paper_range, "s-band-handheld": handheld, "ka-terminal": terminal}


PRESETS: Mapping[str, Radio] = MappingProxyType(_presets())


def from_preset(preset: str = "paper", **changes: Any) -> Radio:
    """A preset with some fields changed, as a scenario's ``[radio]`` table gives it.

    Setting a field that enters a constant of the preset (say ``noise_figure_dB`` beside the paper's fixed rate) does not
    lift that constant: choose ``paper-range``, or set ``fixed_rate_bps=None``.

    Raises:
        RadioError: an unknown preset or field, or a value outside its range.
    """
    if preset not in PRESETS:
        raise RadioError(f"radio.preset = {preset!r}: unknown; choose one of {', '.join(PRESETS)}")
    known = [field.name for field in fields(Radio)]
    for name in changes:
        if name not in known:
            raise RadioError(f"radio.{name}: no such field; known are {', '.join(known)}")
    return replace(PRESETS[preset], **changes)


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
