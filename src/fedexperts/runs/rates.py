"""What of a scenario may change when a run goes on: learning rates while it has not ended, and more cycles when it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..reading import settings, short
from ..scenario import Scenario

NAMES = ("train.lr_expert", "train.lr_gate", "networked.gate_lr")
CYCLES = "train.cycles"
MOST_NAMED = 3
"""Keys of another scenario that a message names."""


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


def differences(before: Scenario, now: Scenario) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as a scenario writes them (``cluster[0].data``), with both; None where there is no such key."""
    old, new = (dict(settings(scenario.model_dump(exclude_none=True))) for scenario in (before, now))
    keys = dict.fromkeys([*old, *new])
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def named(found: Mapping[str, tuple[Any, Any]]) -> str:
    """For a message: the first few differences."""
    shown = [f"{key} = {short(old)} there, {short(new)} here" for key, (old, new) in list(found.items())[:MOST_NAMED]]
    return "; ".join(shown) + (f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else "")
