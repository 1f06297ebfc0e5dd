"""What must not stand side by side on one page: runs of different tasks, and one run twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError


def check_comparable(summaries: Mapping[str, Mapping[str, Any]], directories: Mapping[str, Path]) -> None:
    """Refuse what would be read as a comparison, and is none.

    Raises:
        InputError: two runs are one, or are judged by other metrics or on other clusters; with the remedy.
    """
    seen: dict[str, str] = {}
    for name, directory in directories.items():
        digest = hashlib.sha256((directory / "ledger.jsonl").read_bytes()).hexdigest()
        if digest in seen:
            seed, protocol = summaries[name]["seed"], summaries[name]["protocol"]
            raise InputError(
                f"{directories[seen[digest]]} and {directory}: are one run twice, {protocol} with seed {seed}, to the byte; "
                "name one of them, or run the other with a seed of its own"
            )
        seen[digest] = name
    first = next(iter(summaries))
    for name in list(summaries)[1:]:
        for what, one, other in _facts(summaries[first], summaries[name]):
            raise InputError(
                f"{directories[first]} and {directories[name]}: are of different tasks, {what} {one} and {other}; "
                "give each task a report of its own"
            )


def _facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    if one["metric"] != other["metric"]:
        found.append(("judged by", one["metric"], other["metric"]))
    names = [{name.rpartition("/")[0] or name for name in row["accuracy_by_cluster"]} for row in (one, other)]
    if not names[0] & names[1]:
        ours, others = (", ".join(sorted(group)[:4]) for group in names)
        found.append(("with clusters", ours, others))
    return found


def targets_differ(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """A warning on all runs together, where they have other targets: costs to the target are then each run's own."""
    targets = {name: row["target"] for name, row in summaries.items()}
    if len(set(targets.values())) < 2:
        return {}
    told = ", ".join(f"{name} {'none' if target is None else f'{target:g}'}" for name, target in targets.items())
    return {"all": [f"targets differ ({told}): costs to the target are to each run's own, and figures show the first"]}
