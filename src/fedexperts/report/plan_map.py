"""The map of a contact plan: ground tracks, footprints and sites."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go

from .plan_text import colours_of, style

INKS = ("#222222", "#7a1f5c", "#7a4a00", "#0b5345")  # satellites: darker than any cluster's colour, and dashed apart
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_LABELS = 40  # more names would cover the map


def map_figure(document: Mapping[str, Any]) -> go.Figure:
    """Land, ground tracks, footprints and sites on a plain longitude-latitude grid; no tiles, no geo layer."""
    figure = go.Figure()
    rings = json.loads(files("fedexperts.report").joinpath("land.json").read_text())
    lon, lat = _joined([([x for x, _ in ring], [y for _, y in ring]) for ring in rings])
    fill = {"fill": "toself", "fillcolor": "#e4e0d6", "line": {"color": "#b9b3a4", "width": 0.6}}
    figure.add_scatter(x=lon, y=lat, mode="lines", hoverinfo="skip", showlegend=False, **fill)
    _add_sites(figure, document)
    tracks = document.get("tracks") or ()
    for index, track in enumerate(tracks):
        _add_track(figure, track, INKS[index % len(INKS)], DASHES[index % len(DASHES)], several=len(tracks) > 1)
    fixed = {"fixedrange": True, "constrain": "domain", "gridcolor": "#dde6ec", "zeroline": False}
    degrees = range(-180, 181, 30)
    figure.update_xaxes(range=[-180, 180], tickvals=list(degrees), ticktext=[_compass(d, "EW") for d in degrees], **fixed)
    degrees = range(-90, 91, 30)
    figure.update_yaxes(range=[-90, 90], tickvals=list(degrees), ticktext=[_compass(d, "NS") for d in degrees], **fixed)
    figure.update_yaxes(scaleanchor="x", scaleratio=1)
    margin = {"t": 40 if len(tracks) > 1 else 10, "b": 40, "l": 50, "r": 20}
    style(figure, height=610 + margin["t"], plot_bgcolor="#f1f6f9", dragmode=False, margin=margin)
    return figure


def _add_sites(figure: go.Figure, document: Mapping[str, Any]) -> None:
    sites, colours, reach_deg = sites_of(document), colours_of(document), reach_of(document)
    for name, row in sites.items() if reach_deg is not None else ():
        lon, lat = _joined(small_circle(row["latitude_deg"], row["longitude_deg"], reach_deg or 0.0))
        line = {"color": colours[name], "width": 1.4, "dash": "dot"}
        figure.add_scatter(x=lon, y=lat, mode="lines", line=line, hoverinfo="skip", showlegend=False)
    if not sites:
        return
    figure.add_scatter(
        x=[row["longitude_deg"] for row in sites.values()],
        y=[row["latitude_deg"] for row in sites.values()],
        text=[f"<b>{html.escape(name)}</b>" for name in sites],
        mode="markers+text" if len(sites) <= MOST_LABELS else "markers",
        textposition=["middle left" if row["longitude_deg"] > 140 else "middle right" for row in sites.values()],
        textfont={"size": 13, "color": "#222", "shadow": "0 0 3px white, 0 0 3px white, 0 0 5px white"},
        marker={"size": 11, "color": [colours[name] for name in sites], "line": {"color": "white", "width": 1.5}},
        hovertemplate="%{text}<br>%{y:.2f}°, %{x:.2f}°<extra></extra>",
        cliponaxis=False,
        showlegend=False,
    )


def _add_track(figure: go.Figure, track: Mapping[str, Any], ink: str, dash: str, several: bool) -> None:
    name = html.escape(str(track["satellite"]))
    latitudes, longitudes, minutes = track["latitude_deg"], track["longitude_deg"], [t / 60 for t in track["t_s"]]
    if not minutes:
        return
    ring_lon, ring_lat = _joined(small_circle(latitudes[0], longitudes[0], track["footprint_deg"]))
    ring = {"fill": "toself", "fillcolor": _faint(ink, 0.13), "line": {"color": ink, "width": 1}, "hoverinfo": "skip"}
    figure.add_scatter(x=ring_lon, y=ring_lat, mode="lines", legendgroup=name, showlegend=False, **ring)
    lon, lat, at = cut_track(longitudes, latitudes, minutes)
    plain = {"opacity": 1, "line": {"width": 0}}  # markers of many sizes are pale and framed in white by default
    figure.add_scatter(
        x=lon,
        y=lat,
        customdata=at,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        line={"color": ink, "width": 1.6, "dash": dash, "backoff": 0},
        showlegend=several,
        marker={"symbol": "arrow", "angleref": "previous", "color": ink, "size": _arrows(at, every=12.0), **plain},
        hovertemplate="%{y:.1f}°, %{x:.1f}°<br>%{customdata:.1f} min<extra>" + name + "</extra>",
    )
    figure.add_scatter(
        x=longitudes[:1],
        y=latitudes[:1],
        text=[name],
        mode="markers+text",
        textposition="top center",
        textfont={"color": ink, "shadow": "0 0 3px white, 0 0 3px white"},
        marker={"symbol": "diamond", "size": 12, "color": ink, "line": {"color": "white", "width": 1.5}},
        hoverinfo="skip",
        cliponaxis=False,
        legendgroup=name,
        showlegend=False,
    )


def small_circle(latitude_deg: float, longitude_deg: float, radius_deg: float) -> list[tuple[list[float], list[float]]]:
    """The circle on the sphere as closed curves (longitudes, latitudes) that fill right between ±180°, poles included."""
    lat = math.radians(max(-89.9999, min(89.9999, latitude_deg)))  # at a pole itself no bearing has a meaning
    radius, lon, latitudes, previous = math.radians(radius_deg), [], [], longitude_deg
    for step in range(181):
        bearing = math.tau * (step + 0.5) / 180
        sine = math.sin(lat) * math.cos(radius) + math.cos(lat) * math.sin(radius) * math.cos(bearing)
        east = math.sin(bearing) * math.sin(radius) * math.cos(lat)
        there = longitude_deg + math.degrees(math.atan2(east, math.cos(radius) - math.sin(lat) * sine))
        previous += (there - previous + 180) % 360 - 180  # without jumps
        lon.append(previous)
        latitudes.append(math.degrees(math.asin(max(-1.0, min(1.0, sine)))))
    turn = lon[-1] - lon[0]
    if abs(turn) < 180:
        copies = ([value + shift for value in lon] for shift in (-360, 0, 360))
        return [(copy, latitudes) for copy in copies if max(copy) > -180 and min(copy) < 180]
    pole = math.copysign(90.0, latitude_deg)  # once around the Earth: the pole is inside
    around = [value + shift for shift in sorted((-360, 0, 360), reverse=turn < 0) for value in lon]
    return [([*around, around[-1], around[0], around[0]], [*latitudes * 3, pole, pole, latitudes[0]])]


def cut_track(
    longitudes: Sequence[float], latitudes: Sequence[float], minutes: Sequence[float]
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """The track with a gap where it leaves the map at ±180°, drawn up to the edge on both sides."""
    out: list[tuple[float | None, float | None, float | None]] = []
    points = list(zip(longitudes, latitudes, minutes, strict=True))
    for i, (lon, lat, at) in enumerate(points):
        if i and abs(lon - points[i - 1][0]) > 180:
            lon0, lat0, at0 = points[i - 1]
            edge = math.copysign(180.0, lon0)
            share = (edge - lon0) / (lon + 2 * edge - lon0) if lon + 2 * edge != lon0 else 0.0
            across, when = lat0 + share * (lat - lat0), at0 + share * (at - at0)
            out += [(edge, across, when), (None, None, None), (-edge, across, when)]
        out.append((lon, lat, at))
    return [p[0] for p in out], [p[1] for p in out], [p[2] for p in out]


def _arrows(minutes: Sequence[float | None], every: float) -> list[float]:
    """Marker sizes: an arrow whenever another `every` minutes have gone by, nothing elsewhere."""
    sizes, due = [], every / 2
    for at in minutes:
        arrow = at is not None and at >= due
        sizes.append(12.0 if arrow else 0.0)
        due += every if arrow else 0.0
    return sizes


def sites_of(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The clusters that have a place."""
    return {name: row for name, row in document["clusters"].items() if row.get("latitude_deg") is not None}


def reach_of(document: Mapping[str, Any]) -> float | None:
    """How far from a site a satellite may be: its footprint, where satellites and masks are all alike."""
    masks = {row.get("min_elevation_deg") for row in sites_of(document).values()}
    radii = [track["footprint_deg"] for track in document.get("tracks") or ()]
    if len(masks) != 1 or not radii or max(radii) - min(radii) > 0.5:
        return None
    return float(sum(radii) / len(radii)) if len(sites_of(document)) <= MOST_LABELS else None


def _joined(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float | None], list[float | None]]:
    """Curves one after the other with gaps between them, as one trace wants them."""
    lon: list[float | None] = []
    lat: list[float | None] = []
    for xs, ys in curves:
        lon += [*([None] if lon else []), *(round(x, 2) for x in xs)]
        lat += [*([None] if lat else []), *(round(y, 2) for y in ys)]
    return lon, lat


def _compass(degrees: int, sides: str) -> str:
    return f"{abs(degrees)}°{sides[degrees < 0] if degrees % 180 else ''}"


def _faint(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"
