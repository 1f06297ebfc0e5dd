"""Radios to begin with: the paper's, and those of 3GPP TR 38.821 V16 (Table 6.1.3.3-1).

Where the numbers come from:

- *paper*: EMS-FL Sec. II-B and V-A. 10 dB is the noise figure at which (19) gives the 5 Mb/s that the paper states. It names
  no carrier; −160 dB over 600 km is 3.98 GHz. "The downlink transmission process is neglected due to the high-capacity
  broadcast capability": no limit; its downlink numbers only matter when fixed_downlink_bps is set aside.
- *paper-range*: The same radio with the distance that a pass has: a mask of 10° makes contacts of 5 to 8.5 minutes, and a
  noise figure of 3 dB brings the mean over a median one (peak at 30°) back to about 5 Mb/s.
- *s-band-handheld*: TR 38.821 Table 6.1.1.1-1 (set 1, LEO-600, S band: 34 dBW/MHz, 30 dBi, G/T 1.1 dB/K), Table 6.1.1.1-3
  (handheld: 23 dBm, 0 dBi, noise figure 7 dB) and cases SC9 of Table 6.1.3.3-1 (30 MHz down, 360 kHz up, shadowing margin 3
  dB, scintillation 2.2 dB). Rician factor: TR 38.811 Table 6.7.2-7a, rural, 30°. Mask: TR 38.821 Table 4.2-2, service link.
  G/T, the 360 kHz, the shadowing margin and the mask are from memory, not checked against the document (test_budget.py says
  what was).
- *ka-terminal*: TR 38.821 Table 6.1.1.1-1 (set 1, LEO-600, Ka band: 4 dBW/MHz, 38.5 dBi, G/T 13 dB/K), Table 6.1.1.1-3 (VSAT
  of 60 cm: 33 dBm, 43.2 dBi up, 39.7 dBi down, noise figure 1.2 dB, antenna at 150 K) and case SC6 of Table 6.1.3.3-1 (400 MHz
  each way, no shadowing margin, scintillation 0.3 dB). Rician factor: TR 38.811 Table 6.7.2-7b, rural, 30°. Clear sky. G/T and
  the mask are from memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from ..units import decibel
from .budget import noise_figure_from_G_over_T_dB
from .radio import Radio
from .surroundings import RadioError


def _presets() -> dict[str, Radio]:
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
    paper_range = replace(paper, noise_figure_dB=3.0, min_elevation_deg=10.0, fixed_path_loss_dB=None, fixed_rate_bps=None)
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
