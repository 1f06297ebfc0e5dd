"""The results tables of the terminal, and as texts what pages show of them."""

from __future__ import annotations

import statistics
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from rich.console import Group

from ..caveats import LOWER, who_never_trained
from .stacked import Stacked

ACCURACY = "accuracy"
"""The one metric that is written in percent."""
NAMES = {
    "f1": "F1",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "macro_auc_left_out": "classes without AUC",
    "tfidf": "TF-IDF",
}
"""Metrics and baselines whose names in tables are not their keys."""
WIDEST = 8
"""Clusters that a terminal's table has columns for; of more, clients say, it shows the spread."""


def results_table(summaries: Mapping[str, Mapping[str, Any]]) -> Group:
    """One row a run: final accuracy; what the target cost in cycles, gradient steps and uplink MB; the whole run's cost.

    Below it the accuracy by cluster or client and, where the runs have that, what else is told of clients.
    """
    goal = goal_of(summaries)
    groups, heads, rows = cost_rows(summaries)
    title = "the run" if goal is None else f"cost to {goal}, then of the whole run"
    first = [i for i, group in enumerate(groups) if group == TO_TARGET]
    found: list[Stacked | str] = [Stacked(title, heads, rows, bold=first), "", accuracy_table(summaries)]
    found += never_notes(summaries)
    for title, heads, rows in (client_rows(summaries), picks_rows(summaries), ladder_rows(summaries)):
        if rows:
            found += ["", Stacked(title, heads, rows)]
    return Group(*found)


def never_notes(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of each run how many clients or clusters never trained, and why."""
    told = {name: row for name, row in summaries.items() if row.get("never_trained")}
    return [
        (f"{name}: " if len(summaries) > 1 else "")
        + who_never_trained(row["never_trained"], len(row["accuracy_by_cluster"]), row["links"])
        for name, row in told.items()
    ]


Rows = list[list[str]]


TO_TARGET, WHOLE = "to the target", "whole run"


def cost_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[str], Rows]:
    """Groups of columns, their heads, and a row for each run; MB are 10⁶ B, a dash means that the target was not reached.

    γ stands where experts are owned by clusters, and costs to the target where there is one.
    """
    gamma, target = any(row["gamma"] for row in summaries.values()), goal_of(summaries) is not None
    costs = ["cycles", "steps", "MB up"]
    groups = ["", *[""] * gamma, "", *[TO_TARGET] * 3 * target, *[WHOLE] * 3]
    heads = ["run", *["γ"] * gamma, final_head(summaries), *costs * target, *costs]
    return groups, heads, [_cells(name, row, gamma, target) for name, row in summaries.items()]


def final_head(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """ "final", and of a mean of several metrics that it is one."""
    several = {m for row in summaries.values() for m in row.get("metric_by_cluster", {}).values()}
    mixed = any(" and " in row.get("metric", ACCURACY) for row in summaries.values())  # "mean of f1 and accuracy"
    return f"final, mean\nof {len(several)} metrics" if mixed else "final"


def _cells(name: str, row: Mapping[str, Any], gamma: bool, target: bool) -> list[str]:
    gammas = list(row["gamma"].values())
    uplink_B = row["uplink_B_to_target"]
    reached = [
        "–" if row["cycles_to_target"] is None else str(row["cycles_to_target"]),
        "–" if row["steps_to_target"] is None else str(row["steps_to_target"]),
        "–" if uplink_B is None else mega(uplink_B),
    ]
    return [
        name,
        *([f"{sum(gammas) / len(gammas):.2f}" if gammas else "–"] if gamma else []),
        written(row["final_accuracy"], row.get("metric", ACCURACY)),
        *(reached if target else []),
        str(row["cycles"]),
        str(row["steps"]),
        mega(row["uplink_B"]),
    ]


def _plain(value: float) -> str:
    return f"{value:.3f}"


OF_CLIENTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("personal", "personal_accuracy", lambda share: f"{share:.1%}"),
    ("macro\nF1", "macro_f1", _plain),
    ("macro\nAUC", "macro_auc", _plain),
    ("mean\nF1", "mean_f1", _plain),
    ("mean\nAUC", "mean_auc", _plain),
    ("at\nhome", "local_ratio", lambda share: f"{share:.1%}"),
    ("B a\nsample", "inference_B", lambda size_B: f"{size_B:.0f}"),
    ("MB\nbetween", "peer_B", lambda size_B: mega(size_B)),
    ("load\nCV", "load_cv", _plain),
    ("CV a\nround", "load_cv_by_round", _plain),
)
"""What is told of clients beside their accuracy: a head of one or two lines, the key of a summary, and how it is written."""


OTHERS = {"even_test": "even shares", "one_shot": "averaged once"}
"""What else a run judges, in a row below its own."""


def client_rows(summaries: Mapping[str, Mapping[str, Any]], without: Collection[str] = ()) -> tuple[str, list[str], Rows]:
    """A title, heads, and a row for each run, and for each of its other judgements; no rows where no run tells such things.

    Macro F1 and AUC are over all clients' test data, their means over clients, or clusters, one by one. ``without`` names keys
    that are shown elsewhere.
    """
    facts: list[tuple[str, Mapping[str, Any]]] = []
    for name, row in summaries.items():
        facts.append((name, {**row, "accuracy": row["final_accuracy"], "peer_B": row.get("peer_B") or None}))
        facts += [(f"– {label}", row[key]) for key, label in OTHERS.items() if row.get(key)]
    columns = [
        column
        for column in OF_CLIENTS
        if column[1] not in without and any(found.get(column[1]) is not None for _, found in facts)
    ]
    if not columns:
        return "", [], []
    if len(facts) > len(summaries):
        columns.insert(0, ("final", "accuracy", lambda share: f"{share:.1%}"))
    told = [
        (name, found) for name, found in facts if any(found.get(key) is not None for _, key, _ in columns if key != "accuracy")
    ]
    rows = [
        [name, *("–" if found.get(key) is None else write(found[key]) for _, key, write in columns)] for name, found in told
    ]
    title = f"over {' and '.join(links_of(summaries))}, on test data"
    return title, ["run", *(head for head, _, _ in columns)], rows


def picks_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str], Rows]:
    """Accuracy by how many experts are asked: a title, heads, and a row for each run that tells it."""
    found = {name: row["accuracy_by_k"] for name, row in summaries.items() if row.get("accuracy_by_k")}
    ks = sorted({int(k) for by_k in found.values() for k in by_k})
    rows = [[name, *(written(by_k.get(str(k)), ACCURACY) for k in ks)] for name, by_k in found.items()]
    return "accuracy by the number of experts asked, k", ["run", *(f"k = {k}" for k in ks)], rows


RUNGS = {
    "random": "random",
    "central": "central\ngate",
    "all": "all\nexperts",
    "oracle": "oracle",
    "probe": "probe",
    "majority": "majority",
}
"""What stands beside a gate on the same experts, by its key, and its head in a table."""


def ladder_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str], Rows]:
    """Accuracy of a network's own gate and of what could stand in its place: a title, heads, a row a run and even shares."""
    found: list[tuple[str, float, Mapping[str, Any]]] = []
    for name, row in summaries.items():
        even = row.get("even_test", {})
        found += [(name, row["final_accuracy"], row["ladder"])] if row.get("ladder") else []
        found += [(f"– {OTHERS['even_test']}", even["accuracy"], even["ladder"])] if even.get("ladder") else []
    rows = [
        [name, written(own, ACCURACY), *(written(rungs.get(key, {}).get("accuracy"), ACCURACY) for key in RUNGS)]
        for name, own, rungs in found
    ]
    return "accuracy beside other gates on the same experts", ["run", "final", *RUNGS.values()], rows


def named(metric: str) -> str:
    """A metric's name, and that lower is better, where it is."""
    return NAMES.get(metric, metric) + (" (lower is better)" if metric in LOWER else "")


def metrics_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str], Rows]:
    """Other metrics of each cluster or client than its own: a title, heads, and a row for each run and metric."""
    own = {name: row.get("metrics_by_cluster") or {} for name, row in summaries.items()}
    links = list(dict.fromkeys(link for found in own.values() for link in found))
    if len(links) > WIDEST:  # their means stand in the table of clients
        return "", [], []
    rows = []
    for name, found in own.items():
        for metric in dict.fromkeys(metric for values in found.values() for metric in values):
            values = [found.get(link, {}).get(metric) for link in links]
            rows.append([name, named(metric), *(written(value, metric) for value in values)])
    return f"all metrics by {one_of(summaries)}, on test data", ["run", "metric", *links], rows


def links_of(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the runs keep results by: clusters, clients, or both."""
    usual = {name: "clients" if row.get("personal_by_client") else "clusters" for name, row in summaries.items()}
    return sorted({row.get("links", usual[name]) for name, row in summaries.items()}, reverse=True)


def one_of(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """One of these: "cluster or client"."""
    return " or ".join(link.removesuffix("s") for link in links_of(summaries))


def goal_of(summaries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The target in words, and which data it is read on."""
    row = next(iter(summaries.values()))
    on = row.get("judged_on", "test")
    return None if row["target"] is None else f"{goal(row['target'], metric_of(summaries))} on {on} data"


def goal(target: float, metric: str) -> str:
    """A target of a metric, as a target is given: an accuracy in whole percent."""
    return f"{target:.0%} accuracy" if metric == ACCURACY else f"{metric} {target:.3f}"


def metric_of(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the runs' figures over all clusters are: "score" where they differ."""
    return _common(row.get("metric", ACCURACY) for row in rows.values())


def metric_by_cluster(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """What the figures of single clusters are: "score" where they differ."""
    return _common(m for row in summaries.values() for m in row.get("metric_by_cluster", {"": ACCURACY}).values())


def _common(metrics: Iterable[str]) -> str:
    names = set(metrics)
    return names.pop() if len(names) == 1 else "score"


def written(value: float | None, metric: str) -> str:
    """A value of a metric: an accuracy is a percentage, others are plain numbers."""
    return "–" if value is None else f"{value:.1%}" if metric == ACCURACY else f"{value:.3f}"


def axis(metric: str) -> tuple[float, str]:
    """By what a figure multiplies a metric, and how its axis is called."""
    return (100.0, "accuracy, %") if metric == ACCURACY else (1.0, named(metric))


def accuracy_table(
    summaries: Mapping[str, Mapping[str, Any]], ranges: Mapping[str, Mapping[str, str]] = types.MappingProxyType({})
) -> Stacked:
    """`link_rows` for the terminal: a metric in a head is below the name."""
    title, heads, rows = link_rows(summaries, ranges)
    if metric_by_cluster(summaries) == "score":
        heads = [",\n".join(head.rsplit(", ", 1)) for head in heads]
    return Stacked(title, heads, [cells for cells, _ in rows], dim=[i for i, (_, dim) in enumerate(rows) if dim])


def link_rows(
    summaries: Mapping[str, Mapping[str, Any]], ranges: Mapping[str, Mapping[str, str]] = types.MappingProxyType({})
) -> tuple[str, list[str], list[tuple[list[str], bool]]]:
    """Final accuracy on each cluster's or client's own test data, or its spread over them; below it the personalised one.

    Clusters that are judged by other metrics have these, by name. Rows are a title, heads, and cells with whether they are
    beside the point: baselines, and the ``ranges`` over seeds of a name, by cluster, in a row of their own.
    """
    rows: dict[str, Mapping[str, float]] = {name: row["accuracy_by_cluster"] for name, row in summaries.items()}
    metrics = {name: row.get("metric_by_cluster", {}) for name, row in summaries.items()}
    for name, row in summaries.items():
        if personal := row.get("personal_by_client"):
            rows[f"{name}, personalised"], metrics[f"{name}, personalised"] = personal, metrics[name]
    baselines = baseline_rows(summaries)
    for label in baselines:  # "majority", or "majority, run"
        metrics[label] = metrics.get(label.partition(", ")[2]) or next((of for of in metrics.values() if of), {})
    names = sorted({name for values in [*rows.values(), *baselines.values()] for name in values})
    one = metric_by_cluster(summaries)
    heads = {c: _common(metrics[name].get(c, ACCURACY) for name, row in rows.items() if c in row) for c in names}
    wide, by = len(names) > WIDEST, one_of(summaries)
    shown = [c if one != "score" or heads[c] == "score" else f"{c}, {heads[c]}" for c in names]
    found: list[tuple[list[str], bool]] = []
    for name, values in {**rows, **baselines}.items():
        of = metrics[name]
        each = [_cell(values.get(c), of.get(c, ACCURACY), heads[c]) for c in names]
        found.append(([name, *(spread(values, one) if wide else each)], name in baselines))
        if not wide and any(ranges.get(name, {}).values()):
            found.append((["", *(ranges[name].get(c, "") for c in names)], True))
    title = f"final {one} over {len(names)} {by.replace(' or ', 's or ')}s" if wide else f"final {one} by {by}"
    return title, ["run", *(SPREAD if wide else shown)], found


def _cell(value: float | None, metric: str, head: str) -> str:
    """A value, with its metric where the column's head has none."""
    own = value is not None and head == "score" and metric != ACCURACY
    return f"{written(value, metric)} {metric}" if own else written(value, metric)


SPREAD = ("lowest", "", "median", "highest", "")


def spread(values: Mapping[str, float], metric: str = ACCURACY) -> list[str]:
    """Lowest, median and highest of many clusters or clients, and who has the lowest and the highest."""
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    middle = statistics.median(values.values())
    return [written(values[low], metric), low, written(middle, metric), written(values[high], metric), high]


def baseline_rows(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What needs no model, by cluster: a row for each baseline, or for each run where runs differ in their data."""
    rows: dict[str, dict[str, float]] = {}
    for label, kind in (("majority", "majority"), ("TF-IDF", "tfidf")):
        found: list[dict[str, float]] = []
        for run, row in summaries.items():
            values = {c: v[kind] for c, v in row["baselines"].items() if v[kind] is not None}
            if values and values not in found:
                rows[f"{label}, {run}" if found else label] = values
                found.append(values)
    return rows


def mega(size_B: float) -> str:
    """MB (10⁶ B); small runs send kilobytes."""
    return f"{size_B / 1e6:.1f}" if size_B >= 1e6 else f"{size_B / 1e6:.3f}"
