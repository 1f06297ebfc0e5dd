"""Energy of the devices: what sending, receiving, computing and waiting cost in joules, by class of device.

A device pays for its radio while it sends or receives, for every FLOP it computes, and idle power for all other time. The
energy of a FLOP is what computing adds to idle power, so nothing is counted twice and the sum does not depend on how many
seconds a scenario gives to a local round. A transfer that takes no time (a plan without a rate limit) costs no radio energy.

Where the numbers come from; [E] marks an estimate. They are for orders of magnitude: measure your own device and set it in
``[device.<class>]``.

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
- Linpack runs in FP64. FP32 is twice as fast, and training reaches half of Linpack's speed [E]: the two cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class DeviceClass:
    """What a kind of device consumes.

    Attributes:
        tx_power_W: of the whole device while it sends.
        rx_power_W: of the whole device while it receives.
        compute_J_per_FLOP: added by computing to the idle power.
        idle_power_W: of the whole device at all other times.
    """

    name: str
    tx_power_W: float
    rx_power_W: float
    compute_J_per_FLOP: float
    idle_power_W: float


CLASSES: dict[str, DeviceClass] = {
    kind.name: kind
    for kind in (
        DeviceClass("phone", 3.7, 2.0, 2.0e-11, 0.05),  # 7.5 W / (0.1 · 3.7 TFLOP/s)
        DeviceClass("jetson", 6.3, 4.6, 3.9e-11, 3.1),  # (15 W − 2.6 W) / (0.25 · 1.28 TFLOP/s)
        DeviceClass("laptop", 13.7, 12.0, 1.3e-10, 10.5),  # 39.6 W / 299.93 GFLOP/s
        DeviceClass("sensor-gateway", 3.1, 2.3, 4.3e-10, 2.3),  # (7.2 W − 2.1 W) / 11.889 GFLOP/s
    )
}
PHONE = CLASSES["phone"]


def device_class(name: str, **overrides: float) -> DeviceClass:
    """A built-in class with some numbers replaced, or a class of one's own with all four given.

    Raises:
        InputError: the name is unknown and the numbers do not make a class.
    """
    known = {f.name: getattr(CLASSES[name], f.name) for f in fields(DeviceClass)} if name in CLASSES else {"name": name}
    values: dict[str, Any] = {**known, **overrides}
    if missing := [f.name for f in fields(DeviceClass) if f.name not in values]:
        raise InputError(
            f"device = {name!r}: unknown class; known are {', '.join(sorted(CLASSES))}; choose one of them, or give "
            f"[device.{name}] with {', '.join(missing)}"
        )
    return DeviceClass(**values)


@dataclass
class Meter:
    """Adds up what the devices of one cluster use; read once per orbital cycle.

    Times are device-seconds and FLOPs are summed over the devices; readings are means over them. A transfer counts in the
    cycle in which it ends, training where the ledger has its row.
    """

    kind: DeviceClass
    devices: int
    tx_s: float = 0.0
    rx_s: float = 0.0
    flops: int = 0
    radio_s: float = 0.0  # radio time that is still to be taken out of idle time
    read_s: float = 0.0
    total_J: dict[str, float] = field(default_factory=lambda: {"radio_J": 0.0, "compute_J": 0.0, "idle_J": 0.0})

    def read(self, t_s: float) -> dict[str, float]:
        """Joules per device since the last reading."""
        self.radio_s += self.tx_s + self.rx_s
        span_s = self.devices * (t_s - self.read_s)
        awake_s = min(self.radio_s, span_s)
        used_J = {
            "radio_J": self.tx_s * self.kind.tx_power_W + self.rx_s * self.kind.rx_power_W,
            "compute_J": self.flops * self.kind.compute_J_per_FLOP,
            "idle_J": (span_s - awake_s) * self.kind.idle_power_W,
        }
        self.radio_s -= awake_s
        self.tx_s, self.rx_s, self.flops, self.read_s = 0.0, 0.0, 0, t_s
        for use, joules in used_J.items():
            self.total_J[use] += joules / self.devices
        return {use: joules / self.devices for use, joules in used_J.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: value for name, value in vars(self).items() if name not in ("kind", "devices")}


def shown(joules: Mapping[str, float]) -> dict[str, float]:
    """Six significant digits, for the ledger."""
    return {use: float(f"{value:.6g}") for use, value in joules.items()}
