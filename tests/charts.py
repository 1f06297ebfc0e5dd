"""The marks of a chart's panels, by kind."""

from __future__ import annotations

from fedexperts.report.chart import Bars, Heat, Line, Panel, Spans


def lines_of(panel: Panel) -> list[Line]:
    return [mark for mark in panel.marks if isinstance(mark, Line)]


def bars(panel: Panel) -> list[Bars]:
    return [mark for mark in panel.marks if isinstance(mark, Bars)]


def maps(panel: Panel) -> list[Heat]:
    return [mark for mark in panel.marks if isinstance(mark, Heat)]


def spans(panel: Panel) -> list[Spans]:
    return [mark for mark in panel.marks if isinstance(mark, Spans)]
