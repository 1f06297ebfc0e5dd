"""What all pages share: their frame, colours, tables, and the look of figures."""

from __future__ import annotations

import html
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from ..errors import legible
from ..writing import mark, write_together

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.95rem; }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
span.spread { color: #777; font-size: 0.8rem; white-space: nowrap; }
div.wide { overflow-x: auto; }
div.warning { border-left: 4px solid #d55e00; padding: 0.1rem 1rem; background: #fdf3ec; }
details { margin: 0.5rem 0; } summary { cursor: pointer; }
details th:nth-child(2) { text-align: left; }
details td:nth-child(2) { text-align: left; font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
p.note { color: #555; max-width: 60rem; }
"""


def write_page(
    path: Path, title: str, content: str, style: str = "", beside: Mapping[str, str] = types.MappingProxyType({})
) -> None:
    """A page that is readable offline, and files beside it, by name; all of them appear when they are complete, or none.

    The page has our mark and the checksums of these files.

    Args:
        path: the page.
        title: its title, as text.
        content: what stands below it, as HTML.
        style: what this page adds to the common style.
        beside: texts of the files.

    Raises:
        OSError: one of them cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
{mark(beside.values())}<title>{html.escape(title)}</title>
<style>{STYLE}{style}</style><script>{get_plotlyjs()}</script></head><body>
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


def shown(figures: Iterable[go.Figure], **config: Any) -> str:
    """Figures as HTML, to be put into a page that holds plotly."""
    config = {"displayModeBar": False, **config}
    return "".join(figure.to_html(full_html=False, include_plotlyjs=False, config=config) for figure in figures)


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


def spread_cell(middle: str, spread: str) -> str:
    """A median, and below it the range, if there is one."""
    below = f"<br><span class='spread'>{html.escape(spread)}</span>" if spread else ""
    return f"<td>{html.escape(middle)}{below}</td>"


def over_seeds(seeds: int) -> str:
    """How a note begins that explains such cells."""
    return f"Medians over {seeds} seeds, below them the lowest and the highest" if seeds > 1 else "Of one seed"


def look(figure: go.Figure, height: float, **layout: Any) -> None:
    """The look of a figure, and what is its own."""
    figure.update_layout(template="plotly_white", height=height, **layout)


def legend_above(y: float) -> dict[str, Any]:
    """A legend in one line above the panels, and the room for it."""
    return {"legend": {"orientation": "h", "y": y}, "margin": {"t": 60}}


def share_map(z: Sequence[Sequence[float]], **own: Any) -> go.Heatmap:
    """A map of shares between 0 and 1."""
    return go.Heatmap(z=z, zmin=0, zmax=1, colorscale="Blues", **own)


def target_line(figure: go.Figure, target: float | None, times: float) -> None:
    """A dashed line at the target, if there is one, on an axis of so many times its unit."""
    if target is not None:
        figure.add_hline(y=times * target, line={"color": "#888", "dash": "dash", "width": 1})
