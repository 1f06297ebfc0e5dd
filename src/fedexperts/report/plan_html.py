"""One self-contained page, readable offline, about a contact plan: table, world map, contacts, the best passes."""

from __future__ import annotations

import html
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .bound_html import bound_section
from .chart import Chart, Line, Look, Panel, Spans
from .page import cell, cell_row, html_table, shown, text_row, write_page
from .plan_map import map_figure, reach_of, sites_of
from .plan_method import method_section, pass_list
from .plan_text import clock, looks_of, megabytes, number, satellites_of
from .words import count, duration

BLUES = ("#9ecae1", "#4f9bcb", "#0072b2", "#00284d")
"""Of bars, from the least to the most; the pale end is still seen on white, and they differ in greys."""
CUT = Look("#d55e00", hatch="xxx", hollow=True)
IDLE = Look("#c4c4c4")
NOBODY = "nobody in view"
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
DAY_S = 86400.0
LONG_S = 3 * DAY_S
"""A longer plan is drawn day by day, a panel each."""
MOST_DAYS = 7
MOST_BARS = 1500
"""So many a page has room for; all contacts are in its list."""
MOST_CURVES = 8
"""As many as there are colours."""
MOST_LANES = 4
"""Satellites with rows of their own for each cluster."""
PLAN_STYLE = """
body { max-width: 74rem; } figure svg { max-width: 62rem; }
div.wide { overflow: auto; max-height: 46rem; }
div.wide thead th { position: sticky; top: 0; background: white; }
tr.numbers td { border-bottom: 0; padding-bottom: 0; white-space: nowrap; }
td.verdict { text-align: left; color: #555; padding-bottom: 0.6rem; }
@media print { div.wide { max-height: none; } }
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
    return html_table([text_row(COLUMNS, "th")], body) + note


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
    return shown([map_figure(document, note)])


def _contact_section(document: Mapping[str, Any]) -> str:
    if not document["contacts"]:
        return "<h2>Contacts</h2><p class='note'>No cluster is ever in view: there is no contact to draw.</p>"
    return shown([contact_figure(document)])


def _pass_section(document: Mapping[str, Any]) -> str:
    return shown([pass_figure(document)]) if document.get("passes") else ""


# --- the contacts -----------------------------------------------------------------------------------------------------


def contact_figure(document: Mapping[str, Any]) -> Chart:
    """One row for each cluster, or for each satellite that it sees, one bar for each contact; of a long plan a panel a day."""
    contacts, horizon_s = _drawn(document)
    lanes = 1 < len(satellites_of(document)) <= MOST_LANES
    kinds = _kinds(contacts)
    place = {name: i for i, name in enumerate(document["clusters"])}
    ordered = sorted(contacts, key=lambda c: (place[c["cluster"]], str(c["satellite"])))
    rows = list(dict.fromkeys(_row(c, lanes) for c in ordered))
    seen = {c["cluster"] for c in document["contacts"]}
    unseen = [name for name in document["clusters"] if name not in seen]
    rows = [*rows, *(f"{name}, never in view" for name in unseen), NOBODY]
    idle = idle_times(contacts, horizon_s)
    length_s = DAY_S if horizon_s > LONG_S else horizon_s
    days = min(MOST_DAYS, max(1, -(-int(horizon_s) // int(length_s or 1)))) if len(rows) <= 24 or horizon_s <= LONG_S else 1
    panels = []
    for day in range(days):
        begin_s, end_s = day * length_s, min((day + 1) * length_s, horizon_s)
        marks = []
        for kind, look in {**{name: look for _, name, look in kinds}, CUT_NAME: CUT}.items():
            spans = [
                (_row(c, lanes), max(begin_s, c["start_s"]) / 3600, min(end_s, c["end_s"]) / 3600)
                for c, name, _ in kinds
                if (CUT_NAME if c["cut"] else name) == kind and c["start_s"] < end_s and c["end_s"] > begin_s
            ]
            if spans:
                marks.append(Spans(kind, spans, look))
        gaps = [(NOBODY, max(a, begin_s) / 3600, min(b, end_s) / 3600) for a, b in idle if a < end_s and b > begin_s]
        marks += [Spans(NOBODY, gaps, IDLE)] if gaps else []
        title = f"day {day + 1}" if days > 1 else ""
        panels.append(Panel(f"hours from {clock(document['start'])}", "", marks, title, rows=rows))
    drawn_s = days * length_s
    note = "The bottom row is grey while nobody is in view. Every contact with its times is in the list below."
    if len(document["contacts"]) > len(contacts):
        note += f" Only the first {len(contacts):,} of {len(document['contacts']):,} contacts are drawn."
    elif drawn_s < horizon_s:
        note += f" Drawn are the first {duration(drawn_s)} of {duration(horizon_s)}."
    alt = f"When each of {len(document['clusters'])} clusters is in view: {', '.join(document['clusters'])}"
    return Chart("Contacts", alt, panels, note, columns=1, data=_contact_rows(document["contacts"]))


CUT_NAME = "cut by the plan's start or end"


def _row(contact: Mapping[str, Any], lanes: bool) -> str:
    return f"{contact['cluster']}, {contact['satellite']}" if lanes and contact["satellite"] else str(contact["cluster"])


def _drawn(document: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], float]:
    """The contacts that a page has room for, in order, and the time up to which they are all there."""
    contacts = sorted(document["contacts"], key=lambda contact: contact["start_s"])
    horizon_s = document["horizon_s"] if len(contacts) <= MOST_BARS else contacts[MOST_BARS]["start_s"]
    return contacts[:MOST_BARS], horizon_s


def _kinds(contacts: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str, Look]]:
    """Of each contact how it is called and looks: by its mean rate where rates vary, else its highest elevation, else alike."""
    rates = [contact["uplink_bps"] / 1e6 for contact in contacts if contact["uplink_bps"] is not None]
    values: list[float | None] = [*rates]
    unit, digits = "Mb/s up", 2
    if len(rates) < len(contacts) or max(rates) <= 1.01 * min(rates):
        values, unit, digits = [contact["max_elevation_deg"] for contact in contacts], "° at most", 0
    known = [value for value in values if value is not None]
    if not known or max(known) == min(known):
        return [(contact, "in view", Look(BLUES[2])) for contact in contacts]
    low, high = min(known), max(known)
    step = (high - low) / len(BLUES)
    found: dict[int, str] = {
        i: f"{low + i * step:.{digits}f}–{low + (i + 1) * step:.{digits}f} {unit}" for i in range(len(BLUES))
    }
    each = []
    for contact, value in zip(contacts, values, strict=True):
        i = len(BLUES) // 2 if value is None else min(len(BLUES) - 1, int((value - low) / step))
        each.append((contact, found[i], Look(BLUES[i])))
    order = list(found.values())
    return sorted(each, key=lambda one: order.index(one[1]))


def _contact_rows(contacts: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[object]]]:
    heads = ["cluster", "satellite", "from, s", "to, s", "highest, °", "uplink, bit/s", "up, B", "down, B", "cut"]
    keys = ("cluster", "satellite", "start_s", "end_s", "max_elevation_deg", "uplink_bps", "uplink_B", "downlink_B", "cut")
    rows: list[list[object]] = []
    for contact in contacts[:MOST_BARS]:
        cells = [contact.get(key) for key in keys]
        rows.append(["" if cell is None else ("yes" if cell else "") if isinstance(cell, bool) else cell for cell in cells])
    return heads, rows


def idle_times(contacts: Sequence[Mapping[str, Any]], horizon_s: float) -> list[tuple[float, float]]:
    """The times of the plan at which no cluster is in view."""
    idle, seen_until = [], 0.0
    for contact in sorted(contacts, key=lambda contact: contact["start_s"]):
        start_s = min(contact["start_s"], horizon_s)
        if start_s > seen_until:
            idle.append((seen_until, start_s))
        seen_until = max(seen_until, contact["end_s"])
    return [*idle, (seen_until, horizon_s)] if seen_until < horizon_s else idle


# --- the passes -------------------------------------------------------------------------------------------------------


def pass_figure(document: Mapping[str, Any]) -> Chart:
    """Elevation, SNR, rate, bytes and Doppler of each cluster's best pass, a panel each."""
    passes, own, several = document["passes"], looks_of(document), len(satellites_of(document)) > 1
    panels = []
    for key, label, scale in [panel for panel in PANELS if any(one.get(panel[0]) for one in passes)] or [PANELS[0]]:
        lines = []
        for one in passes[:MOST_CURVES]:
            satellite = f"{one['satellite']}, " if several else ""
            known = [(t / 60, v * scale) for t, v in zip(one["t_s"], one.get(key) or (), strict=False) if v is not None]
            name = f"{one['cluster']} ({satellite}T+{duration(one['start_s'])})"
            x, y = [at for at, _ in known], [value for _, value in known]
            lines.append(Line(name, x, y, own.get(one["cluster"], Look()), marked=False))
        panels.append(Panel("minutes since the rise", label, lines))
    note = (
        "All panels share one clock, which starts at the rise. While the Doppler shift is positive the satellite comes nearer."
    )
    if len(passes) > MOST_CURVES:
        note += f" The first {MOST_CURVES} of {len(passes)} clusters are drawn."
    alt = f"The best pass of each cluster over its minutes: {', '.join(panel.y for panel in panels)}"
    return Chart("The best pass of each cluster", alt, panels, note)
