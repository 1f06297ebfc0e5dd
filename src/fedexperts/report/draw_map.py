"""The Earth drawn on a plain grid of longitudes and latitudes: no tiles, nothing to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .chart import Curves, Map, Track, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = 12
LETTER = 0.62
"""Of the font's size, a letter's width."""
Box = tuple[float, float, float, float]


def draw_map(axes: Axes, earth: Map, width: float) -> None:
    """Land, rings around sites, tracks with arrows, sites with names that lie over no other."""
    axes.set(xlim=(-180, 180), ylim=(-90, 90), aspect="equal", facecolor="#f1f6f9")
    axes.grid(color="#dde6ec", linewidth=0.8)
    _filled(axes, earth.land, facecolor="#e4e0d6", edgecolor="#b9b3a4", linewidth=0.6, gid="data")
    for curves, colour in earth.reach:
        for xs, ys in curves:
            axes.plot(xs, ys, color=colour, linestyle=":", linewidth=1.2)
    for track in earth.tracks:
        _track(axes, track)
    degree = max(width - 60, 200) / 360
    taken = [_around(x, y, 12, 12, degree) for x, y, _ in earth.sites.values()]
    for x, y, colour in earth.sites.values():
        axes.plot([x], [y], marker="o", markersize=8, color=colour, markeredgecolor="white", zorder=4)
    for name, (x, y, _) in earth.sites.items() if earth.labelled else ():
        _label(axes, name, x, y, "#222", degree, taken)
    for track in earth.tracks:
        if track.curves and len(track.curves[0][0]):
            x, y = track.curves[0][0][0], track.curves[0][1][0]
            axes.plot([x], [y], marker="D", markersize=8, color=track.look.colour, markeredgecolor="white", zorder=4)
            taken.append(_around(x, y, 12, 12, degree))
            _label(axes, track.name, x, y, track.look.colour, degree, taken)
    step = 60 if width < 500 else 30
    axes.set_xticks(range(-180, 181, step), [compass(d, "EW") for d in range(-180, 181, step)])
    axes.set_yticks(range(-90, 91, 30), [compass(d, "NS") for d in range(-90, 91, 30)])


def compass(degrees: int, sides: str) -> str:
    """A longitude or latitude with its side: 30°W."""
    return f"{abs(degrees)}°{sides[degrees < 0] if degrees % 180 else ''}"


def _filled(axes: Axes, curves: Curves, **look: object) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    paths = [Outline(list(zip(x, y, strict=True)), closed=True) for x, y in curves if len(x) > 2]
    if paths:
        axes.add_patch(PathPatch(Outline.make_compound_path(*paths), **look))


def _track(axes: Axes, track: Track) -> None:
    look = track.look
    _filled(axes, track.covered, facecolor=look.colour, edgecolor=look.colour, alpha=0.13, linewidth=1)
    for xs, ys in track.curves:
        axes.plot(xs, ys, color=look.colour, linestyle=look.dash, linewidth=1.5)
    for x, y, from_x, from_y in track.arrows:
        arrow = {"arrowstyle": "-|>", "color": look.colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 13}
        axes.annotate("", (x, y), (from_x, from_y), arrowprops=arrow)


def _label(axes: Axes, text: str, x: float, y: float, colour: str, degree: float, taken: list[Box]) -> None:
    """A name beside its point, on the first side where it lies over nothing; none where there is no such side."""
    text = short(text)
    wide, high = len(text) * FONT * LETTER, FONT * 1.25
    sides = ((10 + wide / 2, 0, "left", "center"), (-10 - wide / 2, 0, "right", "center"), (0, 15, "center", "bottom"))
    for across, up, horizontal, vertical in (*sides, (0, -15, "center", "top")):
        box = _around(x + across / degree, y + up / degree, wide, high, degree)
        if box[0] < -186 or box[2] > 186 or box[1] < -92 or box[3] > 92 or any(_meet(box, other) for other in taken):
            continue
        taken.append(box)
        at = (x + (across and (10 if across > 0 else -10)) / degree, y + (up and (8 if up > 0 else -8)) / degree)
        axes.text(*at, text, color=colour, fontsize=FONT, ha=horizontal, va=vertical, zorder=5, gid="halo")
        return


def _around(x: float, y: float, wide: float, high: float, degree: float) -> Box:
    return x - wide / 2 / degree, y - high / 2 / degree, x + wide / 2 / degree, y + high / 2 / degree


def _meet(one: Box, other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
