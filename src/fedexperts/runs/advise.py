"""Which settings reach a goal, by the bounds of `contact.bound`: nothing is trained, and updates are not accuracy.

Each combination of what may vary gets the seconds at which, in its protocol's own order, the wanted update of every cluster can
stand, and what that takes of a device. A run may need longer; no run needs less.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contact.bound import MOST_UPDATES, synchronous
from ..contact.plan import LONGEST_S, ContactPlan
from ..errors import InputError
from ..overrides import varied
from ..scenario import Prospect
from ..setup.plan import network_plan
from .allowed import Owners, Sizes, check_rates, in_its_order, sizes, taken

UNITS_S = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
RESOURCES = {
    "hours": "hours until they stand",
    "uplink_MB": "MB that a device sends",
    "downlink_MB": "MB that it gets",
    "device_J": "joules of a device",
}
"""What a limit may be of, and what is compared but for ``downlink_MB``."""
COMPARED = ("hours", "uplink_MB", "device_J")
MOST_COMBINATIONS = 500
OF_THE_PLAN = ("plan", "satellite", "radio", "cluster")
"""Tables that contacts depend on."""


@dataclass(frozen=True)
class Wish:
    """What is wanted, by when, within what.

    Attributes:
        updates: complete updates of every cluster; of the baseline, rounds of each.
        by_s: seconds after the plan's start.
        over: keys of the scenario and the values to try, as texts in TOML.
        limits: the most of a resource.
    """

    updates: int
    by_s: float
    over: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, float]


def wish(goal: str, by: str, over: Sequence[str], limits: Sequence[str]) -> Wish:
    """Read what the command line says.

    Raises:
        InputError: a goal, a time, a key or a limit that cannot be.
    """
    tried = varied("--over", over)
    if (many := math.prod(map(len, tried.values()))) > MOST_COMBINATIONS:
        raise InputError(f"--over: {many:,} combinations; at most {MOST_COMBINATIONS}: give fewer values")
    bounds: dict[str, float] = {}
    for text in limits:
        name, _, number = text.partition("=")
        if name.strip() not in RESOURCES:
            known = ", ".join(f"{one} ({meaning})" for one, meaning in RESOURCES.items())
            raise InputError(f"--limit {text}: unknown resource; known are {known}")
        if name.strip() in bounds:
            raise InputError(f"--limit {text}: {name.strip()} is given twice; give one limit")
        bounds[name.strip()] = _number(f"--limit {text}", number)
    return Wish(_updates(goal), _seconds(by), tried, bounds)


def _updates(goal: str) -> int:
    name, equals, number = goal.partition("=")
    if not equals or name.strip() != "updates":
        raise InputError(
            f"--goal {goal}: must say of what, as updates=20: complete updates of every cluster (they are not accuracy)"
        )
    if not re.fullmatch(r"\s*\d{1,9}\s*", number) or not 1 <= int(number) <= MOST_UPDATES:
        raise InputError(f"--goal {goal}: must be a whole number from 1 to {MOST_UPDATES:,}, as updates=20")
    return int(number)


def _seconds(by: str) -> float:
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([a-z]*)\s*", by)
    if not match or match[2] not in UNITS_S:
        raise InputError(f'--by {by!r}: must be a number with its unit, one of {", ".join(UNITS_S)}, as "3 d" or "36 h"')
    by_s = _number(f"--by {by!r}", match[1]) * UNITS_S[match[2]]
    if by_s > LONGEST_S:
        raise InputError(f"--by {by!r}: must be at most {LONGEST_S:g} s; no plan is longer")
    return by_s


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{where}: must be a number above 0")
    return value


def advise(
    scenario: str | Path,
    goal: str,
    by: str,
    over: Sequence[str] = (),
    limits: Sequence[str] = (),
    overrides: Sequence[str] = (),
    owners: Owners | None = None,
) -> dict[str, Any]:
    """Which settings can reach a goal over a scenario's plan, by its bounds; no data are needed, and updates are not accuracy.

    Args:
        scenario: the path of its file.
        goal: ``"updates=20"``: complete updates of every cluster.
        by: when after the plan's start, with its unit: ``"3 d"``, ``"36 h"``, ``"90 min"``, ``"600 s"``.
        over: what may vary, as ``"model.lora.rank=4,8,16"``.
        limits: the most of a resource, as ``"uplink_MB=300"``, ``"downlink_MB=…"``, ``"device_J=…"``, ``"hours=…"``.
        overrides: values of the scenario to change, as ``"train.cycles=5"``.
        owners: expert parts by cluster; dealt in turn if left out.

    Returns:
        What ``fedexperts advise --json`` prints: ``front`` is not worse in hours, megabytes and joules than any other.

    Raises:
        InputError: nothing reaches the goal, and then the nearest that can be had is named; or something given cannot be.
    """
    return advised(Path(scenario), wish(goal, by, over, limits), overrides, owners)


def advised(path: Path, wanted: Wish, overrides: Sequence[str] = (), owners: Owners | None = None) -> dict[str, Any]:
    """The same for a wish that is read already.

    Raises:
        InputError: the scenario cannot be bounded, or nothing reaches the goal; then the nearest that can be had is named.
    """
    options, refused = [], []
    plans: dict[tuple[str, ...], ContactPlan] = {}
    for values in itertools.product(*wanted.over.values()):
        changes = [f"{key}={value}" for key, value in zip(wanted.over, values, strict=True)]
        try:
            options.append(_option(path, [*overrides, *changes], changes, wanted, owners, plans))
        except InputError as error:
            if not wanted.over:
                raise
            refused.append({"changes": changes, "reason": str(error)})
    if not options:
        raise InputError(f"--over: none of the combinations can be: {refused[0]['reason']}")
    fits = [one for one in options if not one["misses"]]
    if not fits:
        raise InputError(f"nothing reaches updates={wanted.updates} within the limits; {_nearest(options, wanted)}")
    front = [one for one in fits if not any(_better(other, one) for other in fits)]
    front.sort(key=lambda one: one["hours"])
    return {
        "goal": {"updates": wanted.updates, "by_s": wanted.by_s, "limits": dict(wanted.limits)},
        "front": [{key: value for key, value in one.items() if key != "misses"} for one in front],
        "others": [one for one in options if one not in front],
        "refused": refused,
        "note": "bounds of what a plan allows: no run is earlier, and updates are not accuracy",
    }


def _option(
    path: Path,
    overrides: Sequence[str],
    changes: list[str],
    wanted: Wish,
    owners: Owners | None,
    plans: dict[tuple[str, ...], ContactPlan],
) -> dict[str, Any]:
    scenario = Prospect.load(path, overrides)
    key = tuple(change for change in changes if change.split(".")[0] in OF_THE_PLAN)
    if key not in plans:
        plans[key] = network_plan(scenario)
        check_rates(plans[key])
    known, dealt = sizes(scenario, owners)
    found = _reached(scenario, plans[key], known, dealt, wanted)
    misses = [name for name, most in wanted.limits.items() if found[name] is None or found[name] > most]
    if found["hours"] is None or found["hours"] * 3600 > wanted.by_s:
        misses.append("by")
    return {"changes": changes, **found, "misses": misses}


def _reached(scenario: Prospect, plan: ContactPlan, known: Sizes, dealt: Owners, wanted: Wish) -> dict[str, Any]:
    windows, k = plan.by_cluster, wanted.updates
    busy = [name for name in dealt if dealt[name] or scenario.protocol == "sync"]
    if scenario.protocol == "sync":
        ends_s = {name: synchronous(windows[name], known.whole(name), k) for name in busy}
        steps: dict[str, Any] = {}
    else:
        bounds = in_its_order(scenario, plan, {name: known.load(name, dealt[name]) for name in busy}, k)
        ends_s, steps = {name: bound.update_s for name, bound in bounds.items()}, bounds
    most = min((len(times_s) for times_s in ends_s.values()), default=0)
    by_then = min((sum(t_s <= wanted.by_s for t_s in times_s) for times_s in ends_s.values()), default=0)
    if most < k:
        return {**dict.fromkeys(RESOURCES), "updates": by_then}
    stands_s = max(times_s[k - 1] for times_s in ends_s.values())
    rows = [taken(known, name, dealt[name], windows[name], steps.get(name), k, stands_s) for name in busy]
    worst = {key: max(row[key] for row in rows) for key in ("uplink_B", "downlink_B", "device_J")}
    return {
        "hours": round(stands_s / 3600, 3),
        "uplink_MB": worst["uplink_B"] / 1e6,
        "downlink_MB": worst["downlink_B"] / 1e6,
        "device_J": worst["device_J"],
        "updates": by_then,
    }


def _better(other: Mapping[str, Any], one: Mapping[str, Any]) -> bool:
    pairs = [(other[key], one[key]) for key in COMPARED]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _nearest(options: Sequence[Mapping[str, Any]], wanted: Wish) -> str:
    """The fastest of those that keep the limits, or the most updates in the time, in words."""
    kept = [one for one in options if one["hours"] is not None and one["misses"] == ["by"]]
    if kept:
        one = min(kept, key=lambda one: one["hours"])
        return (
            f"the nearest is {_named(one)}: {wanted.updates} updates after {one['hours']:.1f} h, and {one['updates']} by then"
        )
    timely = [one for one in options if one["hours"] is not None and "by" not in one["misses"]]
    if timely:
        one = min(timely, key=lambda one: max(one[name] / wanted.limits[name] for name in one["misses"]))
        over = ", ".join(f"{name} {one[name]:.4g} where {wanted.limits[name]:.4g} is the limit" for name in one["misses"])
        return f"the nearest is {_named(one)}: in time, with {over}"
    one = max(options, key=lambda one: (one["updates"], -(one["hours"] or math.inf)))
    return f"the nearest is {_named(one)}: {one['updates']} updates of every cluster by then"


def _named(one: Mapping[str, Any]) -> str:
    return ", ".join(one["changes"]) or "the scenario as it is"
