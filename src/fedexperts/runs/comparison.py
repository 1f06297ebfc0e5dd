"""Comparing protocols or policies on one scenario, over seeds: the grid, and its medians."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import InputError
from ..own import label
from ..scenario import Scenario
from .grid import Done, Grid, Key, by_name, over_seeds

Kind = Literal["protocols", "policies"]
MEDIANS = {
    "final_accuracy": "final_accuracy",
    "personal_accuracy": "personal_accuracy",
    "rounds_to_target": "cycles_to_target",
    "rounds_to_plateau": "cycles_to_plateau",
    "load_cv": "load_cv",
    "load_cv_by_round": "load_cv_by_round",
    "uplink_B": "uplink_B",
    "uplink_B_to_target": "uplink_B_to_target",
    "downlink_B": "downlink_B",
    "steps": "steps",
    "steps_to_target": "steps_to_target",
    "rounds": "cycles",
    **{
        key: key
        for key in ("macro_f1", "macro_auc", "mean_f1", "mean_auc", "local_ratio", "inference_B", "peer_B", "unsent_rounds")
    },
}
"""What is compared, and its key in a run's summary. A median of rounds is None where most runs did not get there."""


POLICIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ems-fl": ("assignment", ()),
    "ems-fl-enhanced": ("assignment", ()),
    "aligned": ("alignment", ("random", "greedy", "balanced", "optimal")),
}
"""Of a protocol: the scenario's table that has its ``policy``, and those to compare where none is named."""
FILLS_TABLES = "networked"
"""The protocol that fills the tables of its paper where nothing is named."""
BY_LINK = ("accuracy_by_cluster", "personal_by_client")
"""What is compared cluster by cluster or client by client."""


def variants(scenario: Scenario, protocols: Sequence[str], policies: Sequence[str]) -> tuple[Kind, dict[str, Scenario]]:
    """The scenarios to compare, by name: protocols, or policies of the scenario's protocol; all four where nothing is named.

    Raises:
        InputError: protocols and policies are both given, or one is unknown to the scenario.
    """
    if protocols and policies:
        raise InputError("--protocol and --policy: give one of them; policies are compared under one protocol")
    named = [label(name) for name in (*protocols, *policies)]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InputError(f"{twice[0]}: is given twice; name each protocol or policy once")
    if protocols:
        return "protocols", {label(name): scenario.changed(protocol=name) for name in protocols}
    table, usual = POLICIES.get(scenario.protocol, ("", ()))
    if not table or not (policies or usual):
        raise InputError(
            f"protocol = {scenario.protocol!r}: name what to compare, --protocol sync,ems-fl or --policy algorithm-1,balanced"
        )
    return "policies", {name: scenario.changed(**{table: {"policy": name}}) for name in policies or usual}


def grid(scenario: Scenario, protocols: Sequence[str], policies: Sequence[str], seeds: int) -> Grid:
    """Protocols or policies over seeds; filled in, their `medians`.

    Raises:
        InputError: as `variants`.
    """
    kind, named = variants(scenario, protocols, policies)

    def fill(done: Mapping[Key, Done]) -> dict[str, Any]:
        summaries = {name: [one.summary for one in runs] for name, runs in by_name(done).items()}
        return {"target": scenario.evaluation.target, "seeds": seeds, kind: medians(summaries)}

    metrics = {scenario.task_of(i).metric for i in range(len(scenario.cluster))}
    return Grid(
        kind,
        over_seeds({(name,): changed for name, changed in named.items()}, seeds),
        fill,
        metric=metrics.pop() if len(metrics) == 1 else "score",
    )


def medians(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """For each name the medians over seeds, the values themselves under ``by_seed``, and counts of assignments summed."""
    return {name: _row(rows) for name, rows in summaries.items()}


def _row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_seed = {key: [row.get(found) for row in rows] for key, found in MEDIANS.items()}
    result: dict[str, Any] = {key: median(values) for key, values in by_seed.items()}
    for key in ("target", "judged_on", "metric", "metric_by_cluster", "links"):
        result[key] = rows[0][key]
    tables = {key: [row.get(key, {}) for row in rows] for key in BY_LINK}
    result |= {key: _by_link(found) for key, found in tables.items()}
    result["baselines"] = _baselines([row["baselines"] for row in rows])
    result["by_seed"] = {"seed": [row["seed"] for row in rows], **by_seed, **tables}
    result["never_trained"] = max((row.get("never_trained", {}) for row in rows), key=len)
    result["warnings"] = list(dict.fromkeys(text for row in rows for text in row["warnings"]))
    if counts := [row["assignment_counts"] for row in rows if "assignment_counts" in row]:
        result["clients"] = rows[0]["clients"]
        result["assignment_counts"] = [[sum(cell) for cell in zip(*line, strict=True)] for line in zip(*counts, strict=True)]
        result["sat_out"] = _merged([row["sat_out"] for row in rows])
    return result


def _by_link(tables: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians of what seeds have for each link; clients may lack in some of them."""
    links = dict.fromkeys(link for table in tables for link in table)
    return {link: statistics.median(table[link] for table in tables if link in table) for link in links}


def _baselines(tables: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Medians over seeds, which hold out other rows for validation; None where a kind gives nothing."""
    found: dict[str, dict[str, float | None]] = {}
    for link, row in tables[0].items():
        kinds = {kind: [value for table in tables if (value := table[link][kind]) is not None] for kind in row}
        found[link] = {kind: statistics.median(values) if values else None for kind, values in kinds.items()}
    return found


def _merged(tables: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    merged: dict[str, dict[str, int]] = {}
    for table in tables:
        for client, reasons in table.items():
            for reason, rounds in reasons.items():
                mine = merged.setdefault(client, {})
                mine[reason] = mine.get(reason, 0) + rounds
    return merged


def median(values: Sequence[float | None]) -> float | None:
    """The median; runs that did not get there count as later than all others."""
    inf = float("inf")
    found = statistics.median(inf if value is None else value for value in values)
    return None if found == inf else found
