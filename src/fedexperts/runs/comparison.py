"""Comparing protocols or policies on one scenario, over seeds: the grid, and what its runs come to."""

from __future__ import annotations

import statistics
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import InputError
from ..own import label
from ..scenario import Scenario
from .cells import cells, check_number
from .grid import Done, Grid, Key, by_name, check_apart, over_seeds
from .measures import MEASURES, against, directions, how, told
from .tuning import tuned

Kind = Literal["protocols", "policies"]
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


def grid(
    scenario: Scenario,
    protocols: Sequence[str],
    policies: Sequence[str],
    seeds: int,
    varied: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    tune: int = 0,
    baseline: str | None = None,
) -> Grid:
    """Protocols or policies, with each combination of values that vary, over seeds; filled in, their `medians`.

    With ``tune`` seeds the values are chosen first, for each protocol or policy: see `tuning.tuned`.

    Raises:
        InputError: as `variants`; a value cannot be, two runs would be the same, or the baseline is none of the rows.
    """
    kind, named = variants(scenario, protocols, policies)
    check_number(len(named), varied, seeds, tune)
    by_cell = {name: cells(one, varied) for name, one in named.items()}
    rows = {", ".join(filter(None, (name, cell))): job for name, found in by_cell.items() for cell, job in found.items()}
    names = list(by_cell) if tune else list(rows)
    first = names[0] if baseline is None else baseline if baseline in names else label(baseline)
    if first not in names:
        raise InputError(f"--baseline {baseline}: is none of what is compared; choose from {'; '.join(names)}")

    def fill(done: Mapping[Key, Done]) -> dict[str, Any]:
        summaries = {name: [one.summary for one in runs] for name, runs in by_name(done).items()}
        facts = {"target": scenario.evaluation.target, "seeds": seeds, "baseline": first, "statistics": how(seeds)}
        metric = next(iter(summaries.values()))[0]["metric"]
        return {**facts, "better": directions(metric), "tuned": None, kind: medians(summaries, first)}

    metrics = {scenario.task_of(i).metric for i in range(len(scenario.cluster))}
    metric = metrics.pop() if len(metrics) == 1 else "score"
    plain = Grid(kind, over_seeds({(name,): job for name, job in rows.items()}, seeds), fill, metric=metric)
    found = tuned(plain, by_cell, varied, seeds, tune) if tune else plain
    check_apart(found.jobs)
    return found


def medians(summaries: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """For each name the medians over seeds, with ``interval`` and ``not_reached``; ``paired`` differences from the baseline.

    The values themselves are under ``by_seed``; counts of assignments are summed. The baseline is the first name if none is
    given; differences are told where both have the same seeds.
    """
    first = next(iter(summaries), None) if baseline is None else baseline
    found = {}
    for name, rows in summaries.items():
        others = summaries[first] if first is not None else ()
        alike = name != first and [row["seed"] for row in rows] == [row["seed"] for row in others]
        found[name] = {**_row(rows), "paired": against(rows, others) if alike else {}}
    return found


def _row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_seed = {one.key: [row.get(one.of) for row in rows] for one in MEASURES}
    result = told(rows)
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
