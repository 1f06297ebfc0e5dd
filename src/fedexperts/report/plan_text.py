"""What the parts of a plan's page share: looks, and times and numbers as text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .chart import Look, looks


def looks_of(document: Mapping[str, Any]) -> dict[str, Look]:
    """A look for each cluster."""
    return looks(document["clusters"])


def satellites_of(document: Mapping[str, Any]) -> list[str]:
    """Names of the satellites, as they come."""
    known = [*(document.get("tracks") or ()), *document["contacts"]]
    return list(dict.fromkeys(str(one["satellite"]) for one in known if one["satellite"]))


def clock(start: str | None) -> str:
    """A moment as date and time in UTC."""
    if start is None:
        return "the start"
    moment = datetime.fromisoformat(start)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M}" + (f":{moment:%S}" if moment.second else "") + " UTC"


def number(value: float | None, form: str, unit: str = "") -> str:
    """A number in a format, a dash where there is none."""
    return "–" if value is None else f"{value:{form}}{unit}"


def megabytes(count_B: float | None, otherwise: str) -> str:
    """Bytes in 10⁶ B."""
    return otherwise if count_B is None else f"{count_B / 1e6:,.1f}"
