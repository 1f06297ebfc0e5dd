"""What ``fedexperts plan`` says of a scenario that a test has at hand."""

from __future__ import annotations

from typing import Any

from fedexperts.planned import described as describe
from fedexperts.scenario import Network, Prospect
from fedexperts.setup.plan import network_plan


def method_of(scenario: Network) -> dict[str, Any]:
    """The answers of ``plan --json`` about the scenario's method."""
    found: dict[str, Any] = document_of(scenario)["method"]
    return found


def planned_B(scenario: Network) -> int:
    """The most that a device sends in a contact."""
    return int(document_of(scenario)["upload_B"])


def document_of(scenario: Network) -> dict[str, Any]:
    """All of ``plan --json``."""
    prospect = Prospect.parse(scenario.model_dump(exclude_none=True, exclude={"base"}), scenario.base)
    cycles = prospect.train.cycles + 1 if prospect.train else None
    return describe(prospect, network_plan(prospect, cycles), None)
