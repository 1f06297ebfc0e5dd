"""How runs went: accuracy against what it cost, by cluster before and after, and joules."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from .chart import BEFORE, GREYS, Bars, Chart, Line, Look, Panel, looks
from .table import axis, baseline_rows, goal_of, metric_by_cluster, metric_of, one_of

Summaries = Mapping[str, Mapping[str, Any]]
AXES = (
    ("cycle", "orbital cycles", 1.0),
    ("t_s", "simulated hours", 1 / 3600),
    ("steps", "gradient steps, of all devices", 1.0),
    ("uplink_B", "uplink, MB", 1e-6),
)
MOST_BARS = 30
"""Of more clusters or clients the values are drawn in order, as curves."""
JOULES = ("radio_J", "compute_J", "idle_J")


def late_points(row: Mapping[str, Any]) -> list[int]:
    """The number of the last point, if it came after the last cycle, in the final flush."""
    history = row["history"]
    return [len(history) - 1] if history and history[-1]["cycle"] > row["cycles"] else []


def progress_figure(summaries: Summaries) -> Chart:
    """Global accuracy against cycles, simulated time, steps and uplink."""
    times, label = axis(metric_of(summaries))
    data = judged_on(summaries)
    own, panels = looks(summaries), []
    for key, title, scale in AXES:
        lines = [_curve(name, row, own[name], key, scale, times) for name, row in summaries.items()]
        panels.append(Panel(title, f"global {on(label, data)}", lines, target=_target(summaries, times)))
    told = []
    if goal_of(summaries) is not None:
        stars = any(line.stars for panel in panels for line in panel.marks if isinstance(line, Line))
        told.append(f"Dashed: the target, {goal_of(summaries)}.")
        told += ["Stars mark the first evaluation that reached it."] if stars else ["No run reached it."]
    if any(late_points(row) for row in summaries.values()):
        told.append("Open, larger points: after the last cycle, in the final flush. A curve ends where its run ended.")
    return Chart(
        f"{metric_of(summaries).capitalize()} and what it cost",
        f"Global {label} on {data} data of {', '.join(summaries)} against orbital cycles, simulated hours, gradient steps and "
        "uplink MB, a panel each",
        panels,
        " ".join(told),
        share_y=True,
        data=_history(summaries, times, label),
    )


def _curve(name: str, row: Mapping[str, Any], look: Look, key: str, scale: float, times: float) -> Line:
    history = row["history"]
    stars = [i for i, p in enumerate(history) if row["cycles_to_target"] is not None and p["cycle"] == row["cycles_to_target"]]
    return Line(
        name,
        [point[key] * scale for point in history],
        [times * point["accuracy"] for point in history],
        look,
        stars=stars[:1],
        late=late_points(row),
    )


def _history(summaries: Summaries, times: float, label: str) -> tuple[list[str], list[list[object]]]:
    """Every evaluation of every run, with all that it had cost."""
    heads = ["run", *(title for _, title, _ in AXES), "J a device", label, "loss, nats", "final flush"]
    rows: list[list[object]] = []
    for name, row in summaries.items():
        late = late_points(row)
        for i, point in enumerate(row["history"]):
            costs = [point[key] * scale if scale != 1 else point[key] for key, _, scale in AXES]
            joules = _spent(point)
            rows.append([name, *costs, joules, times * point["accuracy"], point.get("loss", ""), "yes" if i in late else ""])
    return heads, rows


def _spent(point: Mapping[str, Any]) -> float:
    used = point.get("energy_J_per_device") or dict.fromkeys(JOULES, 0.0)
    return float(used["radio_J"] + used["compute_J"])


def _target(summaries: Summaries, times: float) -> float | None:
    target = next(iter(summaries.values()))["target"]
    return None if target is None else times * float(target)


def on(label: str, data: str) -> str:
    """An axis with the data that it is read on, before its unit."""
    name, _, unit = label.partition(", ")
    return f"{name} on {data} data" + (f", {unit}" if unit else "")


def judged_on(summaries: Summaries) -> str:
    """Which data the curves are read on."""
    return " or ".join(sorted({row.get("judged_on", "test") for row in summaries.values()}))


def cluster_figure(
    summaries: Summaries, dense: Mapping[str, Mapping[str, float]] = types.MappingProxyType({}), told: str = ""
) -> Chart:
    """Accuracy by cluster or client: before and after on the curves' data, finally on test data, beside baselines."""
    times, label = axis(metric_by_cluster(summaries))
    by, own, data = one_of(summaries), looks(summaries), judged_on(summaries)
    before: dict[str, Mapping[str, float]] = {}
    after = {name: row["history"][-1].get("accuracy_by_cluster", {}) for name, row in summaries.items()}
    for name, row in summaries.items():
        found = row["history"][0].get("accuracy_by_cluster", {})
        if len(row["history"]) > 1 and found and found not in before.values():
            before[f"before training, {name}" if before else "before training"] = found
    first = [Bars(name, _times(values, times), _fainter(i)) for i, (name, values) in enumerate(before.items())]
    final = [Bars(name, _times(row["accuracy_by_cluster"], times), own[name]) for name, row in summaries.items()]
    for name, row in summaries.items():
        if personal := row.get("personal_by_client"):
            look = Look(own[name].colour, ":", own[name].marker, "||", hollow=True)
            final.append(Bars(f"{name}, personalised", _times(personal, times), look))
    for i, (name, shares) in enumerate({**dense, **baseline_rows(summaries)}.items()):
        final.append(Bars(name, _times(shares, times), GREYS[i % len(GREYS)]))
    panels = [Panel(label, by, final, title="final, on test data")]
    if data != "test":
        last = [Bars(name, _times(values, times), own[name]) for name, values in after.items()]
        panels.insert(0, Panel(label, by, [*first, *last], title=f"before and after, on {data} data"))
    else:
        panels = [Panel(label, by, [*first, *final], title="before and after, on test data")]
    metric = metric_by_cluster(summaries)
    return Chart(
        f"{metric.capitalize()} by {by}, before and after",
        f"{label} of every {by} before training and at the end, of {', '.join(summaries)}, beside what needs no model",
        [ranked(panel, by) for panel in panels],
        " ".join(text for text in (f"Final {metric} by {by} is read on test data, once, at the end.", told) if text),
    )


def _times(values: Mapping[str, float], times: float) -> dict[str, float]:
    return {name: times * value for name, value in values.items()}


def _fainter(i: int) -> Look:
    return (
        BEFORE if i == 0 else Look(("#777777", "#999999", "#bbbbbb")[i % 3], ":", "o", ("--", "xx", "//")[i % 3], hollow=True)
    )


def ranked(panel: Panel, by: str) -> Panel:
    """A panel of bars; where there are too many of them each series in order, as a curve."""
    if len(panel.names()) <= MOST_BARS:
        return panel
    lines = []
    for bars in (mark for mark in panel.marks if isinstance(mark, Bars)):
        values = sorted(bars.values.values())
        lines.append(Line(bars.name, [*map(float, range(1, len(values) + 1))], values, bars.look))
    return Panel(f"{by}s, from the lowest to the highest", panel.x, lines, panel.title)


def energy_figure(summaries: Summaries) -> Chart:
    """Global accuracy against the joules that a device spent on radio and computing; the whole run's joules by use."""
    times, label = axis(metric_of(summaries))
    own, lines, bars = looks(summaries), [], []
    for name, row in summaries.items():
        x, y = [_spent(point) for point in row["history"]], [times * point["accuracy"] for point in row["history"]]
        lines.append(Line(name, x, y, own[name], late=late_points(row)))
        total = row["energy_J_per_device"]
        bars.append(Bars(name, {use.removesuffix("_J"): joules for use, joules in total.items() if joules > 0}, own[name]))
    panels = [
        Panel("J a device, radio and compute", f"global {on(label, judged_on(summaries))}", lines),
        Panel("J a device, whole run", "use", bars, rows=[use.removesuffix("_J") for use in JOULES], log="x"),
    ]
    return Chart(
        "Energy",
        f"Global {label} against joules a device, and joules by use of the whole run, of {', '.join(summaries)}",
        panels,
        "Means over devices; idle joules are not counted on the left. Fewer joules are better; the right axis is logarithmic.",
    )
