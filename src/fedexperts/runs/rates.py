"""Learning rates: all of a scenario that may change when a run that stopped goes on."""

from __future__ import annotations

from collections.abc import Mapping

from ..scenario import Scenario

NAMES = ("train.lr_expert", "train.lr_gate", "networked.gate_lr")


def rates(scenario: Scenario) -> dict[str, float]:
    """The learning rates by their keys."""
    found = {}
    for name in NAMES:
        table, key = name.split(".")
        found[name] = float(getattr(getattr(scenario, table), key))
    return found


def changed_rates(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Those of ``now`` that were others before."""
    return {name: rate for name, rate in now.items() if before[name] != rate}


def apart_from_rates(scenario: Scenario) -> str:
    """The scenario as text, alike for all learning rates."""
    ones: dict[str, dict[str, float]] = {}
    for name in NAMES:
        table, key = name.split(".")
        ones.setdefault(table, {})[key] = 1.0
    return scenario.changed(**ones).to_toml()


def shown(found: Mapping[str, float]) -> str:
    """For a message."""
    return ", ".join(f"{name} = {rate:g}" for name, rate in found.items())
