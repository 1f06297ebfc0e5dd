"""Training loss by cluster or client, from the ledgers of runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .chart import Chart, Line, Look, Panel, looks
from .table import WIDEST, one_of

GOALS = {"task": "", "contrast": "contrast of views", "own-id": "whose sample it is"}
"""What was learnt, in words."""
Points = Sequence[tuple[int, Mapping[str, float]]]


def loss_figure(summaries: Mapping[str, Mapping[str, Any]]) -> Chart | None:
    """Training loss by cycle, a panel for each run and for what was learnt; None where no run tells it.

    A line is a cluster or client; of many the median, in a band from the lowest to the highest.
    """
    panels = {}
    for name, row in summaries.items():
        points = [(p["cycle"], p["training_loss"]) for p in row["history"] if p.get("training_loss")]
        for goal in dict.fromkeys(goal for _, found in points for goal in found):
            of = GOALS.get(goal, goal)
            panels[f"{name}, {of}" if of else name] = [(cycle, found[goal]) for cycle, found in points if goal in found]
    if not panels:
        return None
    own = looks(dict.fromkeys(link for points in panels.values() for _, found in points for link in found))
    drawn = []
    for title, points in panels.items():
        links = list(dict.fromkeys(link for _, found in points for link in found))
        lines = [_band(points)] if len(links) > WIDEST else [_line(points, link, own[link]) for link in links]
        drawn.append(Panel("orbital cycles", "loss, nats (lower is better)", lines, title))
    by = one_of(summaries)
    return Chart(
        f"Training loss by {by}",
        f"Training loss of each {by} over orbital cycles, a panel a run: {', '.join(panels)}",
        drawn,
        f"The mean over the steps since the last evaluation, each on its batch before the step. Of more than {WIDEST} the "
        "median, in a band from the lowest to the highest.",
        columns=min(3, len(drawn)),
    )


def _line(points: Points, link: str, look: Look) -> Line:
    mine = [(float(cycle), found[link]) for cycle, found in points if link in found]
    return Line(link, [cycle for cycle, _ in mine], [loss for _, loss in mine], look)


def _band(points: Points) -> Line:
    low, middle, high = ([f(found.values()) for _, found in points] for f in (min, statistics.median, max))
    return Line("median", [float(cycle) for cycle, _ in points], middle, low=low, high=high)
