"""The contacts of runs over time, from their ledgers: what was in view, what was lost, what the final flush collected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .chart import Chart, Look, Panel, Spans

Lines = Sequence[Mapping[str, Any]]
Span = tuple[str, float, float]
MOST_PANELS = 4
MOST_LINKS = 60
MOST_SPANS = 1200
"""Of a panel; the first of them are drawn."""
KINDS = {
    "contact": Look("#0072b2"),
    "contact that was lost": Look("#d55e00", hatch="xxx"),
    "final flush": Look("#009e73", hatch="///", hollow=True),
}


def contact_figure(runs: Mapping[str, Lines]) -> Chart | None:
    """A row for each cluster or client; runs with the same contacts share a panel. None where there was no contact."""
    groups: dict[str, tuple[list[str], dict[str, list[Span]], list[float], float]] = {}
    for name, lines in runs.items():
        found = spans(lines)
        if not any(found.values()):
            continue
        end_s = float(lines[-1]["t_s"])
        same = next((group for group in groups.values() if group[1] == found and group[3] == end_s), None)
        if same is None:
            groups[name] = ([name], found, cycle_ends(lines), end_s)
        else:
            same[0].append(name)
    if not groups:
        return None
    scale_s, unit = _unit(max(group[3] for group in groups.values()))
    panels, cut, more = [], False, 0
    for names, found, ends_s, _ in list(groups.values())[:MOST_PANELS]:
        rows, labels = _rows(found)
        if len(rows) > MOST_LINKS:
            more = max(more, len(rows))
            rows = rows[:MOST_LINKS]
            labels = {link: row for link, row in labels.items() if row in set(rows)}
        some: dict[str, list[Span]] = {}
        for kind, times in found.items():
            kept = [(labels[row], a / scale_s, b / scale_s) for row, a, b in times if row in labels]
            cut, some[kind] = cut or len(kept) > MOST_SPANS, kept[:MOST_SPANS]
        marks = [Spans(kind, times, KINDS[kind]) for kind, times in some.items() if times]
        title = "" if len(groups) == 1 else ", ".join(names)
        panels.append(Panel(f"{unit} after the start", "", marks, title, rules=[t / scale_s for t in ends_s], rows=rows))
    told = ["Thin upright lines: ends of orbital cycles. Each panel ends where its run ends."]
    if cut:
        told.append(f"Of each kind the first {MOST_SPANS:,} are drawn.")
    if more:
        told.append(f"The first {MOST_LINKS} of {more} are drawn.")
    if len(groups) > MOST_PANELS:
        told.append(f"{len(groups) - MOST_PANELS} more runs have other contacts.")
    alt = f"Contacts of each cluster or client over time, of {', '.join(runs)}: kept, lost, and of the final flush"
    return Chart("Contacts", alt, panels, " ".join(told), columns=1)


def spans(lines: Lines) -> dict[str, list[Span]]:
    """Of each kind who was in view from when to when, in seconds; a contact that is lost ends there."""
    found: dict[str, list[Span]] = {kind: [] for kind in KINDS}
    under_way: dict[str, tuple[str, float, float]] = {}
    end_s = float(lines[-1]["t_s"])

    def close(link: str) -> None:
        kind, start, until = under_way.pop(link)
        found[kind].append((link, start, min(until, max(end_s, start))))

    for line in lines:
        link = str(line.get("cluster", ""))
        if line["event"] in ("contact", "flush"):
            if link in under_way:
                close(link)
            kind = "contact" if line["event"] == "contact" else "final flush"
            under_way[link] = (kind, float(line["t_s"]), float(line.get("until_s", line["t_s"])))
        elif line["event"] == "lost" and link in under_way:
            _, start, _ = under_way.pop(link)
            found["contact that was lost"].append((link, start, float(line["t_s"])))
    for link in list(under_way):
        close(link)
    return found


def cycle_ends(lines: Lines) -> list[float]:
    """When orbital cycles ended, in seconds."""
    return sorted({float(line["t_s"]) for line in lines if line["event"] == "evaluate" and line.get("cycle")})


def _rows(found: Mapping[str, Sequence[Span]]) -> tuple[list[str], dict[str, str]]:
    """Names of rows, and the row of each link that is drawn: links that are in view together share one."""
    by_link: dict[str, list[tuple[str, float, float]]] = {}
    for kind, times in found.items():
        for link, start, end in times:
            by_link.setdefault(link, []).append((kind, start, end))
    together: dict[tuple[tuple[str, float, float], ...], list[str]] = {}
    for link, times in by_link.items():
        together.setdefault(tuple(times), []).append(link)
    if len(together) * 2 > len(by_link):  # clusters one by one
        names = list(by_link)
        return names, dict(zip(names, names, strict=True))
    labels = {links[0]: links[0] if len(links) == 1 else f"{links[0]} and {len(links) - 1} more" for links in together.values()}
    return list(labels.values()), labels


def _unit(seconds: float) -> tuple[float, str]:
    for size, unit in ((3 * 86400.0, "days"), (2 * 3600.0, "hours"), (120.0, "minutes")):
        if seconds > size:
            return {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[unit], unit
    return 1.0, "seconds"
