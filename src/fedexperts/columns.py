"""A ledger as columns: what tables, data frames and files for other programs are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Columns = dict[str, list[Any]]
SCALES = {"uplink_B": ("uplink_MB", 1e6), "downlink_B": ("downlink_MB", 1e6), "t_s": ("hours", 3600.0)}
"""What stands beside a column in a unit that people read, 10⁶ bytes and hours."""


def of_history(history: Sequence[Mapping[str, Any]]) -> Columns:
    """A row for each evaluation: what it had cost, the scores, those of each cluster or client as ``accuracy/NAME``."""
    rows = []
    for point in history:
        row: dict[str, Any] = {}
        for key, value in point.items():
            row |= _flat(key.removesuffix("_by_cluster"), value)
            if key in SCALES:
                name, scale = SCALES[key]
                row[name] = value / scale
        if used := point.get("energy_J_per_device"):
            row["joules"] = used["radio_J"] + used["compute_J"]
        rows.append(row)
    return together(rows)


def _flat(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {name: found for inner, of in value.items() for name, found in _flat(f"{key}/{inner}", of).items()}
    return {key: value}


def of_lines(lines: Sequence[Mapping[str, Any]]) -> Columns:
    """A row for each line; what is no number, text, yes or no is JSON."""
    return together([{key: _plain(value) for key, value in line.items()} for line in lines])


def _plain(value: Any) -> Any:
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | Sequence) and not isinstance(value, str) else value
    )


def together(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Rows as columns; None where a row lacks one. Of numbers all are floats if one is; of mixed kinds all are text."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [row.get(key) for row in rows] for key in keys}
    for key, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            columns[key] = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            columns[key] = [
                None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values
            ]
    return columns
