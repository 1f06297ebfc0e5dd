"""Numbers, times and parts as people say them; without matplotlib, for terminals as for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

EXPERT = "expert:"
"""How the names of experts begin, as parts of a model."""


def duration(seconds: float | None) -> str:
    """Two units at most: 42 s, 4 min 7 s, 17 h 24 min, 2 d 3 h."""
    if seconds is None:
        return "–"
    for size, smaller, unit, small_unit in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        whole = round(seconds / smaller)
        if whole * smaller >= size:
            big, small = divmod(whole, size // smaller)
            return f"{big} {unit} {small} {small_unit}" if small else f"{big} {unit}"
    return f"{seconds:.0f} s"


def count(number: int, noun: str) -> str:
    """How many of something."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def utc(start: str, after_s: float) -> str:
    """A moment so many seconds after the start, in UTC."""
    return f"{datetime.fromisoformat(start).astimezone(UTC) + timedelta(seconds=round(after_s)):%Y-%m-%d %H:%M:%S}"


def size(count_B: float) -> str:
    """Bytes in a unit that fits."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count_B >= scale:
            return f"{count_B / scale:.2f} {unit}" if count_B < 10 * scale else f"{count_B / scale:.1f} {unit}"
    return f"{count_B:.0f} B"


def together(names: Sequence[str]) -> str:
    """Some names, and how many they are."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}, {len(names)} of them"


def listed(parts: Sequence[str], numbered: bool = True) -> str:
    """Parts in words: experts by their numbers or their count, and what travels twice with ×2."""
    experts = [part.removeprefix(EXPERT) for part in parts if part.startswith(EXPERT)]
    once = list(dict.fromkeys(experts))
    words = []
    if once:
        row = [*map(str, range(int(once[0]), int(once[0]) + len(once)))] if once[0].isdigit() else []
        names = f"{once[0]}–{once[-1]}" if len(once) > 2 and once == row else ", ".join(once)
        few = numbered and (len(once) <= 4 or once == row)
        words = [f"expert{'s' * (len(once) > 1)} {names}" if few else count(len(once), "expert")]
        words[0] += _times(len(experts) // len(once))
    others = [part for part in parts if not part.startswith(EXPERT)]
    return " + ".join([*words, *(part + _times(others.count(part)) for part in dict.fromkeys(others))]) or "nothing"


def _times(number: int) -> str:
    return "" if number == 1 else f" ×{number}"


def link_rows(method: Mapping[str, Any]) -> list[list[str]]:
    """Cells of what becomes of a device in an orbital cycle, as `LINKS` heads them; a cluster's clients as their mean."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in method["links"].values():
        groups.setdefault(row["cluster"], []).append(row)
    found = []
    for name, rows in groups.items():
        met, lost = (_mean(rows, key) or 0.0 for key in ("contacts", "lost"))
        counts = [_number(met / method["played_cycles"]), f"{lost / met:.0%}" if met else "–"]
        counts.append(_number(_mean(rows, "rounds_per_cycle")))
        bytes_ = [size(_mean(rows, f"{way}link_B_per_cycle") or 0) for way in ("up", "down")]
        joules = [_mean([row["energy_J_per_cycle"] for row in rows], use) for use in ("radio_J", "compute_J", "idle_J")]
        total = None if None in joules else sum(filter(None, joules))
        found.append([name, *counts, *bytes_, *map(_number, [*joules, total])])
    return found


STAGES = ("link", "stage", "up", "", "down", "")
LINKS = ("cluster", "contacts", "lost", "rounds", "up", "down", "radio J", "compute", "idle", "total J")


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows]
    return None if None in values else sum(values) / len(values)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def stage_rows(method: Mapping[str, Any]) -> list[list[str]]:
    """Cells of what a contact carries, as `STAGES` heads them; alike links in one row.

    Clients of one stage, who change places from round to round, are told of by who carries most.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for stage, links in method["stages"].items():
        by_client = method["by_client"]
        shown = (
            [max(links.items(), key=lambda pair: pair[1]["uplink_B"] + pair[1]["downlink_B"])] if by_client else links.items()
        )
        for name, one in shown:
            ways = [(listed(one[way], not by_client), size(one[f"{way}link_B"])) for way in ("up", "down")]
            rows.setdefault((stage, *ways[0], *ways[1]), []).append("a client, at most" if by_client else name)
    return [[together(names), *cells] for cells, names in rows.items()]
