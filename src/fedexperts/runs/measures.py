"""What is compared over seeds, which way is better, and what is told of it: median, interval, difference, not reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..caveats import LOWER
from ..statistics import LEVEL, Cost, Ends, Paired, covers, interval, median, paired, paired_costs

Better = Literal["higher", "lower"]
Rows = Sequence[Mapping[str, Any]]
"""Summaries of one name's runs, in the order of their seeds."""


@dataclass(frozen=True)
class Measure:
    """One figure of a run.

    Attributes:
        key: in a row of a comparison.
        of: in a run's summary.
        better: which way is; None where neither is.
        ended: of a cost of getting somewhere, what a run had spent of it by its end.
    """

    key: str
    of: str
    better: Better | None = None
    ended: Callable[[Mapping[str, Any]], float] | None = None


def better(metric: str) -> Better:
    """Which way a task's metric is better."""
    return "lower" if LOWER.intersection(metric.split()) else "higher"


def _last(key: str, times: float = 1.0) -> Callable[[Mapping[str, Any]], float]:
    return lambda summary: times * float(summary["history"][-1][key])


def _joules(summary: Mapping[str, Any]) -> float:
    return float(sum(summary["history"][-1]["energy_J_per_device"].values()))


TO_TARGET = (
    Measure("rounds_to_target", "cycles_to_target", "lower", _last("cycle")),
    Measure("hours_to_target", "hours_to_target", "lower", _last("t_s", 1 / 3600)),
    Measure("steps_to_target", "steps_to_target", "lower", _last("steps")),
    Measure("uplink_B_to_target", "uplink_B_to_target", "lower", _last("uplink_B")),
    Measure("joules_to_target", "joules_to_target", "lower", _joules),
)
MEASURES = (
    Measure("final_accuracy", "final_accuracy", "higher"),
    Measure("final_loss", "final_loss", "lower"),
    Measure("perplexity", "perplexity", "lower"),
    Measure("personal_accuracy", "personal_accuracy", "higher"),
    *TO_TARGET,
    Measure("rounds_to_plateau", "cycles_to_plateau", ended=_last("cycle")),
    Measure("load_cv", "load_cv", "lower"),
    Measure("load_cv_by_round", "load_cv_by_round", "lower"),
    *(Measure(key, key, "lower") for key in ("uplink_B", "downlink_B", "steps")),
    Measure("rounds", "cycles"),
    *(Measure(key, key, "higher") for key in ("macro_f1", "macro_auc", "mean_f1", "mean_auc")),
    Measure("local_ratio", "local_ratio"),
    *(Measure(key, key, "lower") for key in ("inference_B", "peer_B", "unsent_rounds")),
)


def directions(metric: str) -> dict[str, Better]:
    """Which way each measure is better, of runs whose accuracies are of this metric; those of which neither is are left out."""
    found: dict[str, Better] = {one.key: one.better for one in MEASURES if one.better}
    return found | {key: better(metric) for key in ("final_accuracy", "personal_accuracy")}


def told(rows: Rows) -> dict[str, Any]:
    """The median of each measure, ``interval``, and under ``not_reached`` how many runs did not get to what they are to reach.

    The median of what some runs cannot tell, as an AUC without positives, is None, and so is that of what most did not reach.
    """
    goal = rows[0]["target"] is not None
    medians: dict[str, float | None] = {}
    ends: dict[str, list[float | None] | None] = {}
    not_reached: dict[str, int] = {}
    for one in MEASURES:
        medians[one.key] = ends[one.key] = None
        values = [row.get(one.of) for row in rows]
        if one.ended and (goal or one not in TO_TARGET):
            not_reached[one.key] = values.count(None)
        elif None in values:
            continue
        medians[one.key], ends[one.key] = median(values), _listed(interval(values))
    return {**medians, "interval": ends, "not_reached": not_reached}


def against(rows: Rows, baseline: Rows) -> dict[str, Any]:
    """Of each measure with a direction: the difference from the baseline's runs, seed by seed, and who is ahead."""
    ways, goal = directions(rows[0].get("metric", "accuracy")), rows[0]["target"] is not None
    found: dict[str, dict[str, Any]] = {}
    for one in MEASURES:
        ours, others = ([row[one.of] for row in group if row.get(one.of) is not None] for group in (rows, baseline))
        if one.key not in ways:
            continue
        if one.ended is not None and goal:
            found[one.key] = _plain(paired_costs(_costs(one, rows), _costs(one, baseline)))
        elif len(ours) == len(others) == len(rows):
            found[one.key] = _plain(paired(ours, others, ways[one.key] == "lower"))
    return found


def _plain(found: Paired) -> dict[str, Any]:
    return {**asdict(found), "interval": _listed(found.interval)}


def _listed(ends: Ends | None) -> list[float | None] | None:
    return None if ends is None else list(ends)


def _costs(one: Measure, rows: Rows) -> list[Cost]:
    """What each run had spent when it got there, or by its end."""
    assert one.ended is not None
    found = [(row, row.get(one.of)) for row in rows]
    return [Cost(one.ended(row) if spent is None else spent, spent is not None) for row, spent in found]


def how(seeds: int) -> dict[str, Any]:
    """What intervals are, and how often one of so many seeds holds what it is an interval of."""
    return {"interval": "bootstrap of the median over seeds, percentiles", "level": LEVEL, "covers": covers(seeds)}
