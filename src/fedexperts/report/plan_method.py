"""Of a plan's page: whether a method can work with the plan, and every pass with its times."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from .page import html_table, text_row, warnings_html
from .plan_text import megabytes, number
from .words import LINKS, STAGES, duration, link_rows, stage_rows, utc

MOST_LISTED = 20_000
"""So many rows a browser still scrolls."""


def method_section(document: Mapping[str, Any]) -> str:
    """What goes up and down, what a device spends, whether it holds the model, and when it ends; nothing without a model."""
    method, warned = document.get("method"), warnings_html({"": document.get("warnings") or []})
    if method is None:
        upload = document.get("upload_of")
        return warned + (f"<p class='note'>Uploads are of {html.escape(upload)}.</p>" if upload else "")
    answers = "".join(f"<li>{html.escape(answer)}</li>" for answer in method["answers"])
    stages = html_table([text_row(STAGES, "th")], (text_row(row) for row in stage_rows(method)))
    links = html_table([text_row(LINKS, "th")], (text_row(row) for row in link_rows(method)))
    what = html.escape(f"{method['protocol']}, {method['trained']}")
    note = (
        f"What becomes of a device in an orbital cycle of this plan, up to the end of cycle {method['played_cycles']} and "
        "without the flush after it. Lost are contacts that end before the protocol is done. Rounds follow from contacts and "
        "gaps; joules of computing are estimated from the model's size, and counted by fedexperts check."
    )
    return f"""{warned}<h2>Can it be done?</h2><ul>{answers}</ul>
<p class='note'>What a contact carries for each device ({what}), where it has the room:</p>{stages}
<p class='note'>{note}</p>{links}
"""


def pass_list(document: Mapping[str, Any]) -> str:
    """Every contact with its times, folded until it is asked for."""
    contacts, start = document["contacts"], document["start"]
    if not contacts:
        return ""
    more = f"; the first {MOST_LISTED:,}, and the rest in plan.json" if len(contacts) > MOST_LISTED else ""
    named = any(contact["satellite"] for contact in contacts)
    heads = ["rise", "set", "after the start", "cluster", *(["satellite"] if named else [])]
    heads += ["lasts", "peak", "Mb/s up", "MB up", "MB down", ""]
    rows = (text_row(_cells(contact, start, named)) for contact in contacts[:MOST_LISTED])
    since = "UTC" if start else "seconds after the start"
    return f"""<details><summary>All {len(contacts):,} passes with their times ({since}){more}</summary>
{html_table([text_row(heads, "th")], rows)}</details>
"""


def _cells(contact: Mapping[str, Any], start: str | None, named: bool) -> list[str]:
    begin_s, end_s, bps = contact["start_s"], contact["end_s"], contact["uplink_bps"]
    return [
        *((utc(start, t_s) if start else f"{t_s:,.0f}") for t_s in (begin_s, end_s)),
        duration(begin_s),
        contact["cluster"],
        *([str(contact["satellite"] or "")] if named else []),
        duration(end_s - begin_s),
        number(contact["max_elevation_deg"], ".1f", "°"),
        "∞" if bps is None else f"{bps / 1e6:.2f}",
        megabytes(contact["uplink_B"], "∞"),
        megabytes(contact["downlink_B"], "∞"),
        "cut" if contact["cut"] else "",
    ]
