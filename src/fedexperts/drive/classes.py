"""Classes of devices: what they consume, how fast they are and what they can carry.

Where the numbers come from; [E] marks an estimate. They are for orders of magnitude: measure your own device and set it in
``[device.<class>]``.

Power:

- *LTE modem* in a USB dongle at 5 V: idle 0.1 A, connected 0.306 A, sending chain + 0.11 A, receiving chain + 0.098 A (the
  measurements of Jensen et al., VTC Fall 2012, as the ns-3 module of Pasca et al., ANTS 2016, has them): 0.5 W idle, 2.0 W
  receiving. Sending adds the power amplifier: 23 dBm (0.2 W, 3GPP power class 3) at 12.5 % efficiency [E], 3.7 W in all.
- *Phone*: radio as the modem (Lauridsen et al. 2014 find later phones below it). Standby 0.05 W [E]: a Nokia N900 takes 5 mA at
  4 V at best (wiki.maemo.org). Compute: Snapdragon 8 Gen 2, 7.5 W with its GPU loaded (notebookcheck.com 676270), 3.7 TFLOP/s
  in FP32 at peak, of which training reaches 10 % [E].
- *Jetson* Orin Nano 8GB with the modem: 1,024 cores × 2 × 625 MHz = 1.28 TFLOP/s in FP32 at 15 W (data sheet), of which
  training reaches 25 % [E]; 2.6 W idle, whole board set up for low power (forums.developer.nvidia.com 348662).
- *Laptop* with the modem: 10 W idle [E] (a MacBook Pro browsing, mtech.news 175284). Compute: Apple M4, Linpack at 299.93
  GFLOP/s and 39.6 W (github.com/geerlingguy/top500-benchmark); idle power not known and not subtracted: an upper bound.
- *Sensor gateway*: Raspberry Pi 4, 2.1 W idle (The MagPi 88), Linpack at 11.889 GFLOP/s and 7.2 W (the same benchmark);
  Iridium 9602: 45 mA at 5 V idle and receiving, at most 1.0 W on average in a message transfer (developer's guide, table 9).
- *Linpack* runs in FP64. FP32 is twice as fast, and training reaches half of Linpack's speed [E]: the two cancel.

Capacity. Speeds are those that the powers above belong to, what training reaches and not the peak. Memory is what a training
job may use beside the system, a half of what is built in or less [E]: of 8 GB in the phone 2 (Android gives an app with a large
heap less, native code more), of 8 in the Orin Nano (data sheet) 4, of 16 in the laptop 8, of 4 in the gateway 2. Rates, where
the contact plan has none: phone and Jetson LTE, 10 Mb/s up and 50 down, the laptop a fixed line, 40 and 90, near the world's
medians of 2023 in Ookla's Speedtest index [E: rounded, from memory]; the gateway one short burst message of 340 bytes up and
270 down about every 20 s (Iridium 9602; the interval is [E]). Nobody is away unless a scenario says so: Bonawitz et al. (SysML
2019) see four times fewer phones idle, charging and on Wi-Fi by day than at night.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np

from ..assign.scores import Capacity
from ..errors import InputError


@dataclass(frozen=True)
class DeviceClass:
    """A kind of device.

    Attributes:
        tx_power_W: of the whole device while it sends.
        rx_power_W: of the whole device while it receives.
        compute_J_per_FLOP: added by computing to the idle power.
        idle_power_W: of the whole device at all other times.
        memory_B: what training may use.
        flops_per_s: what training reaches.
        up_bps: uplink rate where the contact plan has none.
        down_bps: downlink rate where the contact plan has none.
        availability: share of the contacts for which a client is there.
        lora_rank: of its adapters; None: the model's.
    """

    name: str
    tx_power_W: float
    rx_power_W: float
    compute_J_per_FLOP: float
    idle_power_W: float
    memory_B: float = math.inf
    flops_per_s: float = math.inf
    up_bps: float = math.inf
    down_bps: float = math.inf
    availability: float = 1.0
    lora_rank: int | None = None

    def capacity(self, up_bps: float, down_bps: float) -> Capacity:
        """What a client of this class can carry over a link with these rates."""
        return Capacity(self.memory_B, self.flops_per_s, up_bps, down_bps)


CLASSES: dict[str, DeviceClass] = {
    kind.name: kind
    for kind in (
        DeviceClass("phone", 3.7, 2.0, 2.0e-11, 0.05, 2e9, 3.7e11, 1e7, 5e7),  # 7.5 W / (0.1 · 3.7 TFLOP/s)
        DeviceClass("jetson", 6.3, 4.6, 3.9e-11, 3.1, 4e9, 3.2e11, 1e7, 5e7),  # (15 W − 2.6 W) / (0.25 · 1.28 TFLOP/s)
        DeviceClass("laptop", 13.7, 12.0, 1.3e-10, 10.5, 8e9, 3.0e11, 4e7, 9e7),  # 39.6 W / 299.93 GFLOP/s
        DeviceClass("sensor-gateway", 3.1, 2.3, 4.3e-10, 2.3, 2e9, 1.19e10, 136.0, 108.0),  # (7.2 W − 2.1 W) / 11.889 GFLOP/s
    )
}
PHONE = CLASSES["phone"]


def device_class(name: str, has_table: bool = False, /, **overrides: float) -> DeviceClass:
    """A built-in class with some numbers replaced, or a class of one's own with its four powers given; the rest is no limit.

    ``has_table`` says that there is a ``[device.<class>]``, be it without a number.

    Raises:
        InputError: the name is unknown and the numbers do not make a class.
    """
    known = {f.name: getattr(CLASSES[name], f.name) for f in fields(DeviceClass)} if name in CLASSES else {"name": name}
    values: dict[str, Any] = {**known, **overrides}
    if missing := [f.name for f in fields(DeviceClass) if f.default is MISSING and f.name not in values]:
        if overrides or has_table:
            raise InputError(
                f"[device.{name}]: is not complete, and none of {', '.join(sorted(CLASSES))}, whose numbers can be changed one "
                f"by one; add {', '.join(missing)}"
            )
        raise InputError(
            f"device = {name!r}: unknown class; known are {', '.join(sorted(CLASSES))}; choose one of them, or give "
            f"[device.{name}] with {', '.join(missing)}"
        )
    return DeviceClass(**values)


def drawn(mix: str | Mapping[str, float], rng: np.random.Generator) -> str:
    """A class, or one drawn from a mix of classes by weight."""
    if isinstance(mix, str):
        return mix
    weights = np.array(list(mix.values()))
    return str(rng.choice(list(mix), p=weights / weights.sum()))
