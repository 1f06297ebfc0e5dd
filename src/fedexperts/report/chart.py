"""Figures as plain data: panels of lines, bars, maps and spans, which `draw` draws and a page shows with their numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

Dash = str | tuple[int, tuple[int, ...]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
DASHES: tuple[Dash, ...] = (
    *("-", "--", "-."),
    *((0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1)), (0, (10, 3, 2, 3)), (0, (2, 1))),
)  # dots are for controls
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||", "+++", "//--")  # of lines alone: dots are a hundred times as long
LONG_NAME = 22
"""Characters that an axis has room for."""
CONTROL = ", γ ≈ 1"
"""How the names of runs end that are the γ ≈ 1 control of another."""


@dataclass(frozen=True)
class Look:
    """How a series looks: apart by colour, and without colours by dashes, markers and hatches."""

    colour: str = COLOURS[0]
    dash: Dash = "-"
    marker: str = "o"
    hatch: str = ""
    hollow: bool = False


BEFORE = Look("#777777", marker="o", hollow=True)
"""Of what was before training."""
GREYS = (Look("#bbbbbb", ":", "_", "|||"), Look("#777777", ":", "|", "\\\\"), Look("#999999", ":", "x", "//||"))
"""Of what needs no model of ours."""


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name; a γ ≈ 1 control is its run's, hollow and dotted."""
    names = list(names)
    of = {name: i for i, name in enumerate(dict.fromkeys(name.removesuffix(CONTROL) for name in names))}
    found = {}
    for name in names:
        i = of[name.removesuffix(CONTROL)]
        look = Look(COLOURS[i % 8], DASHES[i % 8], MARKERS[i % 8], HATCHES[i % 8])
        found[name] = replace(look, dash=":", hollow=True) if name.endswith(CONTROL) else look
    return found


@dataclass(frozen=True)
class Line:
    """A curve of points.

    Attributes:
        low: with ``high`` a band around it.
        stars: numbers of its points that reached the target first.
        late: numbers of points that came after the last cycle, in the final flush.
        step: a value holds until the next.
        joined: whether points are joined.
        marked: whether points have markers.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look = field(default_factory=Look)
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    stars: Collection[int] = ()
    late: Collection[int] = ()
    step: bool = False
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True)
class Bars:
    """A value for each of some names; ``low`` and ``high`` an interval around it, by name."""

    name: str
    values: Mapping[str, float]
    look: Look = field(default_factory=Look)
    low: Mapping[str, float] = field(default_factory=dict)
    high: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Heat:
    """A map of shares from 0 to 1: rows by columns; ``framed`` cells are marked."""

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    framed: Collection[tuple[int, int]] = ()


@dataclass(frozen=True)
class Spans:
    """Times from start to end, by row; those of one kind look alike."""

    name: str
    spans: Sequence[tuple[str, float, float]]
    look: Look = field(default_factory=Look)


Curves = Sequence[tuple[Sequence[float], Sequence[float]]]
"""Longitudes and latitudes of curves, in degrees."""


@dataclass(frozen=True)
class Track:
    """A ground track, arrows that show the way (where they end and come from), and what is covered at the start."""

    name: str
    curves: Curves
    arrows: Sequence[tuple[float, float, float, float]]
    covered: Curves
    look: Look


@dataclass(frozen=True)
class Map:
    """The Earth by longitude and latitude.

    Attributes:
        land: outlines.
        tracks: of satellites.
        sites: longitude, latitude and colour by name.
        reach: curves around sites, within which they are in contact.
        labelled: whether sites have their names beside them.
    """

    land: Curves
    tracks: Sequence[Track]
    sites: Mapping[str, tuple[float, float, str]]
    reach: Sequence[tuple[Curves, str]] = ()
    labelled: bool = True


Mark = Line | Bars | Heat | Spans | Map


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with their units in their labels.

    Attributes:
        title: what stands above it.
        target: a dashed line across, on the value's axis.
        rules: thin upright lines, on the x axis.
        rows: of spans and of bars, from the top; those of the marks where nothing is given.
        log: which axes are logarithmic, "x", "y" or both.
    """

    x: str
    y: str
    marks: Sequence[Mark]
    title: str = ""
    target: float | None = None
    rules: Sequence[float] = ()
    rows: Sequence[str] = ()
    log: str = ""

    def names(self) -> list[str]:
        """Rows of bars or spans."""
        if self.rows:
            return list(self.rows)
        bars = [name for mark in self.marks if isinstance(mark, Bars) for name in mark.values]
        return list(dict.fromkeys(bars + [row for mark in self.marks if isinstance(mark, Spans) for row, _, _ in mark.spans]))


SHARES = {
    f"{share:g}": (Look(colour), "area")
    for share, colour in ((0.25, "#c6dbef"), (0.5, "#6aaed6"), (0.75, "#2070b4"), (1.0, "#08306b"))
}
"""The colours of a map; nothing is white."""


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    Attributes:
        title: its heading.
        alt: what it shows, for who does not see it.
        panels: its axes.
        note: what to know to read it.
        columns: panels beside each other where there is room.
        narrow: the same on a phone.
        data: heads and rows of its numbers; where none are given, those of its marks.
        share_y: whether panels have one scale of values.
    """

    title: str
    alt: str
    panels: Sequence[Panel]
    note: str = ""
    columns: int = 2
    narrow: int = 1
    data: tuple[Sequence[str], Sequence[Sequence[object]]] | None = None
    share_y: bool = False

    def key(self) -> dict[str, tuple[Look, str]]:
        """Of each series its look and whether it is of lines or areas, of a map its shares; none where there is one alone."""
        found: dict[str, tuple[Look, str]] = {}
        for panel in self.panels:
            for mark in panel.marks:
                if isinstance(mark, Map):
                    found |= {track.name: (track.look, "line") for track in mark.tracks}
                elif isinstance(mark, Heat):
                    found |= SHARES
                else:
                    kind = "line" if isinstance(mark, Line) and mark.joined else "point" if isinstance(mark, Line) else "area"
                    found.setdefault(mark.name, (mark.look, kind))
        return found if len(found) > 1 else {}

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Heads and rows of the numbers."""
        if self.data is not None:
            return list(self.data[0]), [list(row) for row in self.data[1]]
        panels = [self._named(i) for i in range(len(self.panels))]
        one = [len(labels) == 1 for labels in ({panel.x for panel in self.panels}, {panel.y for panel in self.panels})]
        first, heat = self.panels[0], any(isinstance(m, Heat) for p in self.panels for m in p.marks)
        spans, bars = (any(isinstance(m, kind) for p in self.panels for m in p.marks) for kind in (Spans, Bars))
        heads = ["panel", *(("row", "column", "share") if heat else ("series", "row", "from", "to") if spans else ())]
        if not heat and not spans:
            heads += ["series", "of" if bars else first.x if one[0] else "x"]
            heads += [first.x if bars and one[0] else first.y if one[1] and not bars else "value", "low", "high"]
        rows = [[name, *row] for name, panel in zip(panels, self.panels, strict=True) for m in panel.marks for row in _rows(m)]
        keep = [i for i in range(len(heads)) if any(row[i] != "" for row in rows)] if rows else list(range(len(heads)))
        if len(self.panels) == 1:
            keep = keep[1:]
        return [heads[i] for i in keep], [[row[i] for i in keep] for row in rows]

    def _named(self, i: int) -> str:
        panel = self.panels[i]
        return panel.title or (panel.x if len({p.x for p in self.panels}) > 1 else panel.y)


def _rows(mark: Mark) -> list[list[object]]:
    if isinstance(mark, Line):
        bands = zip(mark.low, mark.high, strict=True) if mark.low else [("", "")] * len(mark.x)
        return [[mark.name, x, y, *band] for x, y, band in zip(mark.x, mark.y, bands, strict=True)]
    if isinstance(mark, Bars):
        return [[mark.name, of, value, mark.low.get(of, ""), mark.high.get(of, "")] for of, value in mark.values.items()]
    if isinstance(mark, Spans):
        return [[mark.name, *span] for span in mark.spans]
    if isinstance(mark, Map):
        return [["site", longitude, name, latitude] for name, (longitude, latitude, _) in mark.sites.items()]
    return [
        [row, column, value]
        for row, values in zip(mark.rows, mark.values, strict=True)
        for column, value in zip(mark.columns, values, strict=True)
    ]


def short(name: str, most: int = LONG_NAME) -> str:
    """A name that an axis has room for; whole it stands in the figure's table."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - 8]}…{name[-7:]}"


def number(value: object) -> str:
    """A cell of a table of numbers, to six digits."""
    if isinstance(value, float):
        return "" if not math.isfinite(value) else f"{value:.6g}"
    return str(value)


def as_csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *([number(value) for value in row] for row in rows)])
    return text.getvalue()
