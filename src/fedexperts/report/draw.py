"""Charts drawn by matplotlib: as figures, and as SVG that is part of a page, with text as text and the same bytes every time.

matplotlib is loaded when something is drawn.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .chart import LONG_NAME, Bars, Chart, Heat, Line, Look, Map, Panel, Spans, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 940, 358
"""Widths in pixels: of a desktop's page or a sheet of paper, and of a phone's."""
FONT = 13
"""Pixels, in both."""
MOST_POINTS = 30
"""Of a line: markers, with what they say."""
MOST_WRITTEN = 100
"""Cells of a map whose numbers stand in them."""
MOST_RULED = 40
"""Rows and columns of a map that have lines between them."""
MOST_TOLD = 200
"""Spans that say what they are."""
DATA = "data"
"""What the figure is of is of this class, not its axes."""
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedexperts",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.8,
    "path.simplify_threshold": 0.3,
}


@contextmanager
def _settings() -> Iterator[None]:
    """Ours, whatever the user's are; and names that the fonts lack are measured as they can be, in silence."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def figure(chart: Chart, width: float = WIDE, legend: bool = False) -> Figure:
    """A chart as a figure of matplotlib, so many pixels of 1/72 inch wide; its key in a legend above the axes, if wanted."""
    with _settings():
        drawn = _drawn(chart, width, chart.columns if width > 600 else chart.narrow, [])
        if legend and (key := chart.key()):
            handles = [_handle(look, kind) for look, kind in key.values()]
            columns = max(1, int(width / (8 * max(map(len, key)) + 50)))
            drawn.legend(handles, list(key), loc="outside upper left", ncols=min(columns, len(key)), frameon=False)
        return drawn


def _handle(look: Look, kind: str) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if kind == "area":
        return Patch(**_area(look))
    face = "white" if look.hollow else look.colour
    style = look.dash if kind == "line" else "none"
    return Line2D([], [], color=look.colour, linestyle=style, marker=look.marker, markerfacecolor=face, markersize=5.5)


def svg(chart: Chart, width: float, told: bool = True) -> str:
    """A chart as an ``<svg>`` to stand in a page; where ``told``, points and bars say what they are when one points at them."""
    texts: list[list[str]] = []
    with _settings():
        return _svg(
            _drawn(chart, width, chart.columns if width > 600 else chart.narrow, texts), chart.alt, texts if told else []
        )


def _drawn(chart: Chart, width: float, columns: int, texts: list[list[str]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, len(chart.panels))
    lines = [chart.panels[i : i + columns] for i in range(0, len(chart.panels), columns)]
    inner = width / columns
    heights = [max(_height(panel, inner) for panel in line) for line in lines]
    layout = ConstrainedLayoutEngine(w_pad=6 / 72, h_pad=5 / 72, wspace=0.01, hspace=0.0)
    drawn = Figure(figsize=(width / 72, sum(heights) / 72), dpi=72, layout=layout)
    grid = drawn.add_gridspec(len(lines), columns, height_ratios=heights)
    shared: Axes | None = None
    for i, panel in enumerate(chart.panels):
        axes = drawn.add_subplot(grid[i // columns, i % columns], sharey=shared if chart.share_y else None)
        shared = shared or axes
        _panel(axes, panel, inner, texts)
    return drawn


def _height(panel: Panel, width: float) -> float:
    if any(isinstance(mark, Heat) for mark in panel.marks):
        rows = max(len(mark.rows) for mark in panel.marks if isinstance(mark, Heat))
        return 85 + rows * (20 if rows <= 24 else 14 if rows <= 60 else max(2, 900 / rows))
    if any(isinstance(mark, Map) for mark in panel.marks):
        return 60 + (width - 60) / 2
    if names := panel.names():
        bars = sum(isinstance(mark, Bars) for mark in panel.marks)
        each = max(22, 12 * bars + 8) if bars else 26 if len(names) < 30 else 13
        return 80 + each * len(names)
    return 250 if width > 400 else 225


def _panel(axes: Axes, panel: Panel, width: float, texts: list[list[str]]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    names = panel.names()
    heat = next((mark for mark in panel.marks if isinstance(mark, Heat)), None)
    most = LONG_NAME if width > 420 else LONG_NAME - 6
    beside = max((min(most, len(name)) for name in (heat.rows if heat else names)), default=5)
    wrap = max(12, int((width - 20) / 7.6 - beside))
    above = [line for text in (panel.title, panel.y) if text for line in textwrap.wrap(text, wrap)]
    axes.set_title("\n".join(above), loc="left", fontsize=FONT, color="#222", pad=8)
    axes.set_xlabel("\n".join(textwrap.wrap(panel.x, wrap)), fontsize=FONT, color="#222")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT - 1, colors="#444", length=3)
    if heat:
        _heat(axes, heat, width, most)
        return
    if earth := next((mark for mark in panel.marks if isinstance(mark, Map)), None):
        from .draw_map import draw_map

        draw_map(axes, earth, width)
        return
    axes.set_axisbelow(True)
    axes.grid(axis="x" if names else "both", color="#e4e4e4", linewidth=0.8)
    number = FuncFormatter(lambda value, _: f"{value:,.6g}".replace("-", "−"))
    for axis, letter in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        if letter in panel.log:
            (axes.set_xscale if letter == "x" else axes.set_yscale)("log")
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(4 if width < 420 else 6, steps=[1, 2, 5, 10], integer=_whole(panel, letter)))
        axis.set_major_formatter(number)
    for x in panel.rules:
        axes.axvline(x, color="#bbb", linewidth=0.7, zorder=0.5)
    if panel.target is not None:
        draw = axes.axvline if names else axes.axhline
        draw(panel.target, color="#555", linestyle=(0, (4, 3)), linewidth=1)
    if names:
        _rows(axes, panel, names, most, texts)
    else:
        for mark in panel.marks:
            if isinstance(mark, Line):
                _line(axes, mark, panel, texts)
        axes.margins(x=0.03, y=0.08)


def _whole(panel: Panel, letter: str) -> bool:
    """Whether an axis of curves has whole numbers alone, and wants no others between them."""
    values = [value for mark in panel.marks if isinstance(mark, Line) for value in (mark.x if letter == "x" else mark.y)]
    return bool(values) and all(float(value).is_integer() for value in values)


def _line(axes: Axes, line: Line, panel: Panel, texts: list[list[str]]) -> None:
    look = line.look
    x, y = list(line.x), list(line.y)
    if line.low:
        axes.fill_between(x, line.low, line.high, color=look.colour, alpha=0.15, linewidth=0, gid=DATA)
    if line.joined:
        style = "steps-post" if line.step else "default"
        axes.plot(x, y, color=look.colour, linestyle=look.dash, linewidth=1.8, drawstyle=style, gid=DATA)
    if line.step or not line.marked:
        return
    every = max(1, -(-len(x) // MOST_POINTS))
    special = {*line.stars, *line.late}
    groups = {
        "plain": [i for i in range(len(x)) if (i % every == 0 or i == len(x) - 1) and i not in special],
        "star": [i for i in line.stars if i not in line.late],
        "late": list(line.late),
    }
    for kind, chosen in groups.items():
        chosen = [i for i in chosen if x[i] == x[i] and y[i] == y[i]]
        if not chosen:
            continue
        (drawn,) = axes.plot(
            [x[i] for i in chosen],
            [y[i] for i in chosen],
            linestyle="none",
            marker="*" if any(i in line.stars for i in chosen) else look.marker,
            markersize=15 if kind == "star" or any(i in line.stars for i in chosen) else 7 if kind == "late" else 5.5,
            color=look.colour,
            markerfacecolor="white" if look.hollow or kind == "late" else look.colour,
            markeredgewidth=1.6 if kind == "late" else 1,
            zorder=3,
        )
        said = {"plain": "", "star": ", target reached", "late": ", after the final flush"}[kind]
        _tell(drawn, [f"{line.name}: {panel.x} {x[i]:,.6g}, {panel.y} {y[i]:,.6g}{said}" for i in chosen], texts)


def _rows(axes: Axes, panel: Panel, names: Sequence[str], most: int, texts: list[list[str]]) -> None:
    """Bars or spans, from the top."""
    from matplotlib.ticker import FixedFormatter

    bars = [mark for mark in panel.marks if isinstance(mark, Bars)]
    spans = [mark for mark in panel.marks if isinstance(mark, Spans)]
    told = sum(len(mark.spans) for mark in spans) <= MOST_TOLD
    height, place = 0.8 / max(1, len(bars)), {name: at for at, name in reversed(list(enumerate(names)))}
    for i, mark in enumerate(bars):
        for name, value in mark.values.items():
            at = place[name] - 0.4 + (i + 0.5) * height
            (drawn,) = axes.barh(at, value, height * 0.9, **_area(mark.look))
            _tell(drawn, [f"{mark.name}, {name}: {panel.x} {value:,.6g}"], texts)
            if name in mark.low:
                axes.plot([mark.low[name], mark.high[name]], [at, at], color="#000", linewidth=1.3, marker="|", markersize=6)
    for kind in spans:
        for name, start, end in kind.spans:
            (drawn,) = axes.barh(place[name], end - start, 0.66, start, **_area(kind.look))
            drawn.set_gid(DATA)
            if told:
                _tell(drawn, [f"{name}: {kind.name}, {start:,.6g} to {end:,.6g} {panel.x}"], texts)
    axes.set_yticks(range(len(names)), [short(name, most) for name in names] if len(names) <= 60 else [])
    axes.yaxis.set_major_formatter(FixedFormatter([short(name, most) for name in names] if len(names) <= 60 else []))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    if spans:
        axes.margins(x=0.01)
    elif bars and "x" not in panel.log:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _area(look: Look) -> dict[str, Any]:
    """Of bars and spans."""
    face = "white" if look.hollow else look.colour
    edge = look.colour if look.hollow else "white" if look.hatch else look.colour
    return {"facecolor": face, "edgecolor": edge, "hatch": look.hatch, "linewidth": 0.9}


def _heat(axes: Axes, heat: Heat, width: float, most: int) -> None:
    rows, columns = len(heat.rows), len(heat.columns)
    axes.imshow(heat.values, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="none")
    if rows <= MOST_RULED and columns <= MOST_RULED:
        axes.hlines([r - 0.5 for r in range(1, rows)], -0.5, columns - 0.5, color="white", linewidth=1)
        axes.vlines([c - 0.5 for c in range(1, columns)], -0.5, rows - 0.5, color="white", linewidth=1)
    room = (width - 60 - 7 * min(most, max(map(len, heat.rows), default=0))) / max(1, columns)
    if room >= 31 and rows * columns <= MOST_WRITTEN:
        for r, values in enumerate(heat.values):
            for c, value in enumerate(values):
                look: dict[str, Any] = {"color": "white" if value > 0.65 else "#222", "fontsize": 11}
                weight = "bold" if (r, c) in heat.framed else "normal"
                axes.text(c, r, f"{value:.2f}", ha="center", va="center_baseline", fontweight=weight, **look)
    for r, c in heat.framed:
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle((c - 0.46, r - 0.44), 0.92, 0.88, fill=False, edgecolor="#d55e00", linewidth=2))
    longest = max(map(len, heat.columns), default=1)
    every = max(1, -(-columns // max(1, int((width - 100) / (8.0 * longest + 6)))))
    axes.set_xticks(list(range(0, columns, every)), [short(heat.columns[c], 12) for c in range(0, columns, every)])
    shown = range(0, rows, max(1, -(-rows // 60)))
    axes.set_yticks(list(shown), [short(heat.rows[r], most) for r in shown] if rows <= 60 else ["" for _ in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _tell(artist: Any, said: list[str], texts: list[list[str]]) -> None:
    artist.set_gid(f"told-{len(texts)}")
    texts.append(said)


@lru_cache(maxsize=256)
def swatch(look: Look, kind: str) -> str:
    """What stands beside a series' name: a piece of its line, its marker, or its area."""
    from matplotlib.figure import Figure

    with _settings():
        drawn = Figure(figsize=(36 / 72, 14 / 72), dpi=72)
        axes = drawn.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 36), ylim=(0, 14))
        if kind == "area":
            axes.barh(7, 32, 11, 2, **_area(look))
        else:
            style = look.dash if kind == "line" else "none"
            axes.plot([1, 18, 35], [7, 7, 7], color=look.colour, linestyle=style, linewidth=1.8)
            face = "white" if look.hollow else look.colour
            axes.plot([18], [7], color=look.colour, marker=look.marker, markersize=6, markerfacecolor=face)
        return _svg(drawn, "", [])


# --- matplotlib's SVG as a part of a page -----------------------------------------------------------------------------

_TAG = re.compile(r"<[^>]*>")
_FINE = re.compile(r"(?<![\w.#])-?\d+\.\d{3,}(?:e[-+]?\d+)?")
_ID = re.compile(r'\bid="([^"]*)"')


def _svg(drawn: Figure, alt: str, texts: Sequence[Sequence[str]]) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.StringIO()
    FigureCanvasSVG(drawn).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _embedded(file.getvalue(), alt, texts)


def _embedded(text: str, alt: str, texts: Sequence[Sequence[str]]) -> str:
    """Without what a page has already, with names that no other figure of the page has, and with what things say."""
    _, _, body = text[text.index("<svg") :].partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r">\s+<", "><", body).replace("\n", " ").replace("xlink:href", "href")
    body = re.sub(r""" transform="rotate\(-?0 [^"]*\)"|font-family: 'DejaVu Sans'; ?""", "", body)
    for i, said in reversed(list(enumerate(texts))):
        body = _said(body, f"told-{i}", said)
    body = _TAG.sub(lambda tag: _FINE.sub(_rounded, tag[0]), body)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    prefix = hashlib.sha256((body + alt).encode()).hexdigest()[:7]
    body = re.sub(r'id="(?:told-\d+|data)"', 'class="data"', body).replace('id="halo"', 'class="halo"')
    body = _ID.sub(lambda found: f'id="{prefix}{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}", body)
    body = re.sub(r"<(\w+) +>", r"<\1>", body).replace("<defs></defs>", "")
    named = f'role="img" aria-label="{html.escape(alt)}"' if alt else 'aria-hidden="true"'
    size = f'width="{float(box[1]):g}" height="{float(box[2]):g}" viewBox="0 0 {float(box[1]):g} {float(box[2]):g}"'
    return f"<svg {size} {named}>{body.strip()}"


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _said(body: str, name: str, said: Sequence[str]) -> str:
    """Give each thing of a group its ``<title>``."""
    start = body.find(f'<g id="{name}">')
    if start < 0:
        return body
    end, inner = body.index("</g>", start), start + len(f'<g id="{name}">')
    # a group of markers holds another, which clips them: what follows the definitions are the uses, one each
    if "<use" not in body[inner:end]:
        further = body.find("<use", inner)
        if 0 <= further < body.find('<g id="', inner + 1) or (further >= 0 and body.find('<g id="', inner + 1) < 0):
            end = body.index("</g>", further)
    part = body[inner:end]
    if "<use" not in part:
        return f"{body[:inner]}<title>{html.escape(said[0])}</title>{body[inner:]}"
    left: Iterator[str] = iter(said)
    named = re.sub(r"<use([^>]*?)/>", lambda use: f"<use{use[1]}><title>{html.escape(next(left, ''))}</title></use>", part)
    return body[:inner] + named + body[end:]
