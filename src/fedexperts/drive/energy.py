"""Energy of the devices: what sending, receiving, computing and waiting cost in joules, by class of device (see `classes`).

A device pays for its radio while it sends or receives, for every FLOP it computes, and idle power for all other time. The
energy of a FLOP is what computing adds to idle power, so nothing is counted twice and the sum does not depend on how many
seconds a scenario gives to a local round. A transfer that takes no time (a plan without a rate limit) costs no radio energy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .classes import DeviceClass


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
