"""One self-contained page, readable offline, about a contact plan: table, world map, contacts, the best passes."""

from __future__ import annotations

import html
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from .bound_html import bound_section
from .page import COLOURS, cell, cell_row, html_table, shown, text_row, write_page
from .plan_map import map_figure, reach_of, sites_of
from .plan_method import method_section, pass_list
from .plan_text import clock, colours_of, megabytes, number, satellites_of, style
from .words import count, duration

BLUES = ["#92c5de", "#0072b2", "#00284d"]  # the pale end is still seen on white
PANELS = (
    ("elevation_deg", "elevation, °", 1.0),
    ("snr_dB", "SNR, dB", 1.0),
    ("uplink_bps", "uplink rate, Mb/s", 1e-6),
    ("uplink_B", "sent up so far, MB", 1e-6),
    ("doppler_Hz", "Doppler, kHz", 1e-3),
)
COLUMNS = (
    *("cluster", "devices", "mask", "passes", "passes a day", "median pass", "longest pass"),
    *("median gap", "longest gap", "idle", "MB up a day", "MB down a day"),
)
QUIET = {"font": {"color": "#777"}, "bgcolor": "white"}
DAY_S = 86400.0
LONG_S = 3 * DAY_S  # a longer plan opens on its first days, with a slider below
OPENING_S = 2 * DAY_S
MOST_BARS = 5000  # a browser stays quick with these
MOST_CURVES = 8  # as many as there are colours; the others wait in the legend
MOST_LANES = 4  # satellites drawn side by side within a cluster's row
PLAN_STYLE = """
.wide { overflow: auto; max-height: 46rem; }
.wide thead th { position: sticky; top: 0; background: white; }
th { vertical-align: bottom; font-weight: 600; }
tr.numbers td { border-bottom: 0; padding-bottom: 0; white-space: nowrap; }
td.verdict { text-align: left; color: #555; padding-bottom: 0.6rem; }
h2 { margin: 2.2rem 0 0.3rem; font-size: 1.25rem; }
summary { cursor: pointer; color: #0072b2; }
p.note { margin: 0.2rem 0 0.6rem; max-width: none; }
.rangeslider-mask-min, .rangeslider-mask-max { fill: white !important; fill-opacity: 0.65 !important; }
"""


def write_plan(document: Mapping[str, Any], path: Path, beside: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Write the page for a plan, given as what `fedexperts plan --json` prints, and files beside it, by name; all or none.

    The page has our mark and the checksums of these files.

    Raises:
        OSError: one of them cannot be written.
    """
    sections = (_map_section(document), _contact_section(document), pass_list(document), _pass_section(document))
    content = f"""<p>{_headline(document)}</p>
{_table(document["clusters"])}
{method_section(document)}{bound_section(document)}{"".join(sections)}"""
    write_page(path, f"Contact plan: {document['name']}", content, PLAN_STYLE, beside)


# --- the page's parts -------------------------------------------------------------------------------------------------


def _section(title: str, note: str, figure: go.Figure | None) -> str:
    drawn = shown([] if figure is None else [figure], responsive=True)
    return f"<h2>{title}</h2><p class='note'>{note}</p>{drawn}\n"


def _headline(document: Mapping[str, Any]) -> str:
    contacts, horizon_s = document["contacts"], document["horizon_s"]
    idle_s = sum(end - start for start, end in idle_times(contacts, horizon_s))
    cut, satellites = sum(bool(contact["cut"]) for contact in contacts), satellites_of(document)
    parts = [
        f"{duration(horizon_s)} from {clock(document['start'])}",
        *([count(len(satellites), "satellite")] if satellites else []),
        count(len(document["clusters"]), "cluster"),
        count(len(contacts), "contact") + (f" ({cut} cut by the plan's start or end)" if cut else ""),
        f"nobody in view for {idle_s / horizon_s if horizon_s else 1.0:.1%} of the time",
    ]
    return html.escape(" · ".join(parts))


def _table(clusters: Mapping[str, Mapping[str, Any]]) -> str:
    note = "<p class='note'>Rates and bytes are those of one device; MB are 10⁶ B.</p>"
    spanned = f" class='verdict' colspan='{len(COLUMNS)}'"
    body = (
        text_row(_cells(name, found), of="numbers") + cell_row([cell(str(found.get("verdict") or ""), attributes=spanned)])
        for name, found in clusters.items()
    )
    return f"<div class='wide'>{html_table([text_row(COLUMNS, 'th')], body)}</div>{note}"


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        number(row.get("devices"), ",.0f"),
        number(row.get("min_elevation_deg"), "g", "°"),
        number(row.get("passes"), ",.0f"),
        number(row.get("passes_per_day"), ".1f"),
        *(duration(row.get(key)) for key in ("median_duration_s", "longest_duration_s", "median_gap_s", "max_gap_s")),
        number(row.get("idle_share"), ".1%"),
        *(megabytes(row.get(key), "∞" if row.get("passes") else "–") for key in ("uplink_B_per_day", "downlink_B_per_day")),
    ]


def _map_section(document: Mapping[str, Any]) -> str:
    if not (document.get("tracks") or sites_of(document)):
        return ""
    note = "The places of the plan."
    if document.get("tracks"):
        note = (
            "Lines are the ground tracks of the first orbits, arrows show the way; a shaded ring is what its satellite "
            "covers at the start."
        )
    if reach_of(document) is not None:
        note += " A site is in contact while the track runs through the dotted ring around it."
    return _section("Ground track and sites", note, map_figure(document))


def _contact_section(document: Mapping[str, Any]) -> str:
    contacts = document["contacts"]
    if not contacts:
        return _section("Contacts", "No cluster is ever in view: there is no contact to draw.", None)
    note = "The bottom row is grey while nobody is in view. Drag to zoom, double-click to go back; point at a bar to read it."
    satellites = satellites_of(document)
    if 1 < len(satellites) <= MOST_LANES:
        note += f" Within a row, from the top: {html.escape(', '.join(satellites))}."
    if len(contacts) > MOST_BARS:
        note += f" Only the first {MOST_BARS:,} of {len(contacts):,} contacts are drawn."
    if _drawn(document)[1] > LONG_S:
        note += f" The chart opens on the first {OPENING_S / 3600:.0f} h; the slider below it moves through the rest."
    return _section("Contacts", note, contact_figure(document))


def _pass_section(document: Mapping[str, Any]) -> str:
    if not document.get("passes"):
        return ""
    note = (
        "All panels share one clock, which starts at the rise. While the Doppler shift is positive the satellite comes nearer."
    )
    if len(document["passes"]) > MOST_CURVES:
        note += f" The first {MOST_CURVES} clusters are drawn; click a name to add another."
    return _section("The best pass of each cluster", note, pass_figure(document))


# --- the contacts -----------------------------------------------------------------------------------------------------


def contact_figure(document: Mapping[str, Any]) -> go.Figure:
    """One row for each cluster, one bar for each contact; the bottom row is grey while nobody is in view."""
    contacts, horizon_s = _drawn(document)
    names, satellites = list(document["clusters"]), satellites_of(document)
    lanes = max(1, len(satellites)) if len(satellites) <= MOST_LANES else 1
    row_height = 34 + 10 * (lanes - 1) if len(names) < 40 else 16
    height = 130 + max(170, (len(names) + 1) * row_height) + (70 if horizon_s > LONG_S else 0)
    figure = go.Figure()
    colours = _add_scale(figure, contacts, min(height - 130, 320))
    for cut in (False, True):
        chosen = [(c, colour) for c, colour in zip(contacts, colours, strict=True) if bool(c["cut"]) == cut]
        if chosen:
            _add_bars(figure, document, chosen, lanes, cut)
    _add_idle(figure, idle_times(contacts, horizon_s))
    for name in set(names) - {contact["cluster"] for contact in document["contacts"]}:
        row = len(names) - names.index(name)
        figure.add_annotation(x=0.5, xref="x domain", y=row, text="never in view", showarrow=False, **QUIET)
    top = 40 if any(contact["cut"] for contact in contacts) else 10
    style(figure, height=height, barmode="overlay", margin={"t": top, "b": 50, "l": 20, "r": 20})
    _contact_axes(figure, document["start"], horizon_s, names)
    return figure


def _drawn(document: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], float]:
    """The contacts that a browser can bear, in order, and the time up to which they are all there."""
    contacts = sorted(document["contacts"], key=lambda contact: contact["start_s"])
    horizon_s = document["horizon_s"] if len(contacts) <= MOST_BARS else contacts[MOST_BARS]["start_s"]
    return contacts[:MOST_BARS], horizon_s


def _add_scale(figure: go.Figure, contacts: Sequence[Mapping[str, Any]], height: float) -> list[str]:
    """The colour of each bar: its mean rate where rates vary, else its highest elevation, else one for all."""
    rates = [contact["uplink_bps"] / 1e6 for contact in contacts if contact["uplink_bps"] is not None]
    values, label = [*rates], "mean uplink, Mb/s"
    if len(rates) < len(contacts) or max(rates) <= 1.01 * min(rates):
        values, label = [contact["max_elevation_deg"] for contact in contacts], "highest elevation, °"
    known = [value for value in values if value is not None]
    if not known:
        return [COLOURS[0]] * len(values)
    low, high = min(known), max(known)
    shares = [0.5 if value is None or high == low else (value - low) / (high - low) for value in values]
    bar = {"title": {"text": label, "side": "right"}, "thickness": 12, "outlinewidth": 0, "len": height, "lenmode": "pixels"}
    scale = {"colorscale": BLUES, "cmin": low, "cmax": high, "colorbar": {**bar, "y": 1, "yanchor": "top"}, "color": [low]}
    figure.add_scatter(x=[None], y=[None], mode="markers", marker={**scale, "showscale": True}, showlegend=False)
    return [str(colour) for colour in sample_colorscale(BLUES, shares)]


def _add_bars(
    figure: go.Figure, document: Mapping[str, Any], chosen: Sequence[tuple[Mapping[str, Any], str]], lanes: int, cut: bool
) -> None:
    names, satellites = list(document["clusters"]), satellites_of(document)
    contacts, colours = [contact for contact, _ in chosen], [colour for _, colour in chosen]
    width = 0.72 / lanes
    lane = [satellites.index(str(contact["satellite"])) if lanes > 1 and contact["satellite"] else 0 for contact in contacts]
    edge = {"width": 1.6, "color": COLOURS[1]} if cut else {"width": 1.2, "color": colours}
    figure.add_bar(
        orientation="h",
        base=[contact["start_s"] / 3600 for contact in contacts],
        x=[(contact["end_s"] - contact["start_s"]) / 3600 for contact in contacts],
        y=[len(names) - names.index(contact["cluster"]) for contact in contacts],
        offset=[0.36 - width * (k + 1) for k in lane],
        width=width * (0.86 if lanes > 1 else 1),
        marker={"color": colours, "line": edge},  # a few minutes of a day are a few pixels: the edge keeps them seen
        customdata=[_contact_text(contact) for contact in contacts],
        hovertemplate="%{customdata}<extra></extra>",
        name="cut by the plan's start or end",
        showlegend=cut,
    )


def _add_idle(figure: go.Figure, idle: Sequence[tuple[float, float]]) -> None:
    figure.add_bar(
        orientation="h",
        base=[start / 3600 for start, _ in idle],
        x=[(end - start) / 3600 for start, end in idle],
        y=[0.0] * len(idle),
        width=0.72,
        marker={"color": "#c4c4c4", "line": {"width": 0}},
        customdata=[f"nobody in view for {duration(end - start)}, from T+{duration(start)}" for start, end in idle],
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )


def _contact_axes(figure: go.Figure, start: str | None, horizon_s: float, names: Sequence[str]) -> None:
    long, hours = horizon_s > LONG_S, horizon_s / 3600
    shown = OPENING_S / 3600 if long else hours
    figure.update_xaxes(
        range=[0, shown],
        minallowed=0,
        maxallowed=hours,
        nticks=16,
        title_text=f"hours from {clock(start)}",
        rangeslider={"visible": long, "thickness": 0.12, "range": [0, hours], "bgcolor": "#f7f7f7"},
    )
    figure.update_yaxes(
        range=[-0.6, len(names) + 0.6],
        tickvals=list(range(len(names) + 1)),
        ticktext=["nobody in view", *(html.escape(name) for name in reversed(names))],
        fixedrange=True,
        zeroline=False,
        gridcolor="#e2e2e2",
    )


def idle_times(contacts: Sequence[Mapping[str, Any]], horizon_s: float) -> list[tuple[float, float]]:
    """The times of the plan at which no cluster is in view."""
    idle, seen_until = [], 0.0
    for contact in sorted(contacts, key=lambda contact: contact["start_s"]):
        start_s = min(contact["start_s"], horizon_s)
        if start_s > seen_until:
            idle.append((seen_until, start_s))
        seen_until = max(seen_until, contact["end_s"])
    return [*idle, (seen_until, horizon_s)] if seen_until < horizon_s else idle


def _contact_text(contact: Mapping[str, Any]) -> str:
    highest, bps = contact["max_elevation_deg"], contact["uplink_bps"]
    satellite = html.escape(str(contact["satellite"] or ""))
    lines = [
        f"<b>{html.escape(contact['cluster'])}</b>" + (f", {satellite}" if satellite else ""),
        f"T+{duration(contact['start_s'])}, for {duration(contact['end_s'] - contact['start_s'])}"
        + ("" if highest is None else f", highest {highest:.0f}°"),
        ("no limit" if bps is None else f"{bps / 1e6:.2f} Mb/s")
        + f": {megabytes(contact['uplink_B'], '∞')} MB up, {megabytes(contact['downlink_B'], '∞')} MB down",
    ]
    return "<br>".join(lines)


# --- the passes -------------------------------------------------------------------------------------------------------


def pass_figure(document: Mapping[str, Any]) -> go.Figure:
    """Elevation, SNR, rate, bytes and Doppler of each cluster's best pass, one panel below the other."""
    passes, colours, several = document["passes"], colours_of(document), len(satellites_of(document)) > 1
    panels = [panel for panel in PANELS if any(one.get(panel[0]) for one in passes)] or [PANELS[0]]
    figure = make_subplots(rows=len(panels), shared_xaxes=True, vertical_spacing=0.025)
    for index, one in enumerate(passes):
        name = html.escape(str(one["cluster"]))
        satellite = f"{html.escape(str(one['satellite']))}, " if several else ""
        for row, (key, _, scale) in enumerate(panels, start=1):
            line = go.Scatter(
                x=[t / 60 for t in one["t_s"]],
                y=[None if value is None else value * scale for value in one.get(key) or ()],
                name=f"{name} ({satellite}T+{duration(one['start_s'])})",
                legendgroup=f"{index}",
                showlegend=row == 1,
                visible=True if index < MOST_CURVES else "legendonly",
                mode="lines",
                line={"color": colours.get(one["cluster"], COLOURS[-1]), "width": 2},
                hovertemplate="%{x:.1f} min: %{y:.2f}<extra>" + name + "</extra>",
            )
            figure.add_trace(line, row=row, col=1)
    for row, (_, label, _) in enumerate(panels, start=1):
        figure.update_yaxes(title_text=label, row=row, col=1, zeroline=label.startswith("Doppler"), zerolinecolor="#999")
    figure.update_xaxes(title_text="minutes since the rise", row=len(panels), col=1)
    figure.update_xaxes(rangemode="tozero", zeroline=False)
    extra = {"legend": {"orientation": "v"}} if len(passes) > MOST_CURVES else {}  # beside the panels it scrolls
    style(figure, height=90 + 190 * len(panels), **extra, margin={"t": 40, "b": 50, "l": 70, "r": 20})
    return figure
