"""What all pages share: their frame, colours, tables, and the look of figures."""

from __future__ import annotations

import base64
import gzip
import html
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import legible
from ..writing import mark, write_together
from .chart import Chart, as_csv, number
from .table import goal_of

MOST_ROWS = 200
"""Of a figure's numbers, on the page; all of them are in its CSV."""
PLAIN_B = 40_000
"""More bytes of CSV are compressed."""
PACKED_B = 80_000
"""Of these so many at most, or a page would be large for its figures' numbers."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a page may load: nothing, and no script runs in it."""
ALLOWED = "; script-src 'unsafe-inline'"
"""But where the page brings one."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, h3, p, li, summary, td, th { overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin: 2.2rem 0 0.3rem; line-height: 1.3; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.95rem; }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; overflow-wrap: normal; }
th { vertical-align: bottom; font-weight: 600; }
th:first-child, td:first-child { text-align: left; min-width: 4.2rem; }
span.spread { color: #666; font-size: 0.8rem; white-space: nowrap; }
div.wide { overflow-x: auto; }
div.warning { border-left: 4px solid #d55e00; padding: 0.1rem 1rem; background: #fdf3ec; }
details { margin: 0.5rem 0; } summary { cursor: pointer; color: #0072b2; }
details.settings th:nth-child(2) { text-align: left; }
details.settings td:nth-child(2) { text-align: left; font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
p.note { color: #555; max-width: 60rem; margin: 0.2rem 0 0.6rem; }
figure { margin: 0.5rem 0 0; } figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; } figure svg text { font-family: "DejaVu Sans", Verdana, sans-serif !important; }
figure svg g.halo text { paint-order: stroke; stroke: white; stroke-width: 3px; }
figure svg.narrow { display: none; max-width: 30rem; }
ul.key { list-style: none; display: flex;
  flex-wrap: wrap; gap: 0.1rem 1.2rem; padding: 0; margin: 0.3rem 0; font-size: 0.9rem; }
ul.key li { display: flex; align-items: center; gap: 0.45rem; } ul.key svg { flex: none; }
div.data { font-size: 0.85rem; display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: baseline; color: #666; }
div.data details { margin: 0; min-width: 0; } div.data a { color: #0072b2; }
@media screen and (max-width: 40rem) {
  body { margin-top: 1rem; } h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; } th, td { padding: 0.25rem 0.45rem; }
  figure svg.narrow { display: block; } figure svg.wide { display: none; }
}
@media print {
  body { margin: 0; padding: 0; max-width: none; font-size: 10pt; } h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; } section.figure { break-inside: avoid; }
  div.wide { overflow: visible; } table { font-size: 8pt; } th, td { padding: 0.15rem 0.3rem; overflow-wrap: anywhere; }
  div.data, details.settings > summary { display: none; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def write_page(
    path: Path,
    title: str,
    content: str,
    style: str = "",
    beside: Mapping[str, str] = types.MappingProxyType({}),
    script: str = "",
) -> None:
    """A page that is readable offline, and files beside it, by name; all of them appear when they are complete, or none.

    The page has our mark and the checksums of these files.

    Args:
        path: the page.
        title: its title, as text.
        content: what stands below it, as HTML.
        style: what this page adds to the common style.
        beside: texts of the files.
        script: what runs in the page, if anything does.

    Raises:
        OSError: one of them cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{mark(beside.values())}<meta http-equiv="Content-Security-Policy" content="{POLICY}{script and ALLOWED}">
<title>{html.escape(title)}</title>
<style>{STYLE}{style}</style>{script and f"<script>{script}</script>"}</head><body>
<h1>{html.escape(title)}</h1>
{content}
</body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_together({path: page, **{path.with_name(name): text for name, text in beside.items()}})


def warnings_html(warnings: Mapping[str, Sequence[str]]) -> str:
    """What a reader should know before the results, by run; nothing where there is nothing."""
    items = "".join(
        f"<li>{html.escape(f'{name}: ' if len(warnings) > 1 else '')}{html.escape(legible(text))}</li>"
        for name, texts in warnings.items()
        for text in texts
    )
    return f"<div class='warning'><b>Warnings</b><ul>{items}</ul></div>" if items else ""


def target_html(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands above a table of costs to the target; nothing where there is none."""
    goal = goal_of(summaries)
    return f"<p>The target is {goal}; “final” is judged on test data, once, at the end.</p>" if goal else ""


def shown(charts: Iterable[Chart | None]) -> str:
    """Figures as HTML: each with a heading, its key above it, so that it lies over no curve, and its numbers below."""
    return "".join(_section(chart) for chart in charts if chart is not None)


def _section(chart: Chart) -> str:
    from .draw import NARROW, WIDE, svg, swatch

    items = "".join(f"<li>{swatch(*of)}{html.escape(legible(name))}</li>" for name, of in chart.key().items())
    key = f"<ul class='key'>{items}</ul>" if items else ""
    note = f"<p class='note'>{html.escape(chart.note)}</p>" if chart.note else ""
    wide = svg(chart, WIDE).replace("<svg", "<svg class='wide'", 1)
    narrow = svg(chart, NARROW, told=False).replace("<svg", "<svg class='narrow'", 1)
    return (
        f"<section class='figure'><h2>{html.escape(legible(chart.title))}</h2>{note}{key}"
        f"<figure>{wide}{narrow}</figure>{_data(chart)}</section>\n"
    )


def _data(chart: Chart) -> str:
    """A figure's numbers: to be downloaded, and as a table that is folded away."""
    heads, rows = chart.table()
    name = re.sub(r"[^a-z0-9]+", "-", chart.title.lower()).strip("-")[:60] or "figure"
    file, coded, kept = _csv(heads, rows)
    cut = f", the first {kept:,} of {len(rows):,} rows" if kept < len(rows) else ""
    link = f"<a download='{name}.{file}' href='data:application/octet-stream;base64,{coded}'>{file.upper()}{cut}</a>"
    more = f", the first {MOST_ROWS} of {len(rows):,}" if len(rows) > MOST_ROWS else ""
    table = html_table([text_row(heads, "th")], (text_row(map(number, row)) for row in rows[:MOST_ROWS]))
    return f"<div class='data'>{link}<details><summary>numbers of this figure{more}</summary>{table}</details></div>"


def _csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[str, str, int]:
    """How a figure's numbers are written, in base 64, and how many rows; compressed where they are many, cut where too many."""
    text = as_csv(heads, rows).encode()
    if len(text) <= PLAIN_B:
        return "csv", base64.b64encode(text).decode(), len(rows)
    packed = gzip.compress(text, mtime=0)
    if len(packed) <= PACKED_B:
        return "csv.gz", base64.b64encode(packed).decode(), len(rows)
    return _csv(heads, rows[: len(rows) * PACKED_B // (len(packed) + 1)])


def html_table(heads: Sequence[str], rows: Iterable[str]) -> str:
    """A table of rows as `text_row` and `cell_row` make them; where it is wider than the page it scrolls by itself."""
    return f"<div class='wide'><table><thead>{''.join(heads)}</thead><tbody>{''.join(rows)}</tbody></table></div>"


def text_row(cells: Iterable[str], tag: str = "td", of: str = "") -> str:
    """A row of texts; ``tag`` is "th" for a head's, ``of`` the row's class."""
    return cell_row((cell(text, tag) for text in cells), of)


def cell_row(cells: Iterable[str], of: str = "") -> str:
    """A row of cells as `cell` and `spread_cell` make them."""
    return f"<tr{f' class={of!r}' if of else ''}>{''.join(cells)}</tr>"


def cell(text: str, tag: str = "td", attributes: str = "") -> str:
    """A cell of a table."""
    return f"<{tag}{attributes}>{html.escape(text)}</{tag}>"


def spread_cell(middle: str, *spreads: str) -> str:
    """A median, and below it the range, if there is one, and what else is said of it, a line each."""
    below = "".join(f"<br><span class='spread'>{html.escape(spread)}</span>" for spread in spreads if spread)
    return f"<td>{html.escape(middle)}{below}</td>"


def over_seeds(seeds: int) -> str:
    """How a note begins that explains such cells."""
    return f"Medians over {seeds} seeds, below them the lowest and the highest" if seeds > 1 else "Of one seed"
