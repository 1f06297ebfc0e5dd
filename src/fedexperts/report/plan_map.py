"""The map of a contact plan: ground tracks, footprints and sites."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from .chart import Chart, Curves, Look, Map, Panel, Track
from .plan_text import looks_of

INKS = ("#222222", "#7a1f5c", "#7a4a00", "#0b5345")  # satellites: darker than any cluster's colour, and dashed apart
DASHES = ("-", "--", ":", "-.")
MOST_LABELS = 40  # more names would cover the map
ARROW_EVERY_MIN = 12.0


def map_figure(document: Mapping[str, Any], note: str = "") -> Chart:
    """Land, ground tracks, footprints and sites on a plain longitude-latitude grid."""
    rings = json.loads(files("fedexperts.report").joinpath("land.json").read_text())
    land = [([x for x, _ in ring], [y for _, y in ring]) for ring in rings]
    sites, own, reach_deg = sites_of(document), looks_of(document), reach_of(document)
    places = {name: (row["longitude_deg"], row["latitude_deg"], own[name].colour) for name, row in sites.items()}
    reach = []
    if reach_deg is not None:
        reach = [(small_circle(lat, lon, reach_deg), colour) for lon, lat, colour in places.values()]
    tracks = [
        _track(track, Look(INKS[i % len(INKS)], DASHES[i % len(DASHES)]))
        for i, track in enumerate(document.get("tracks") or ())
        if track["t_s"]
    ]
    rows = [[name, row["latitude_deg"], row["longitude_deg"]] for name, row in sites.items()]
    names = ", ".join(track.name for track in tracks)
    return Chart(
        "Ground track and sites" if tracks else "Sites",
        f"Map of the Earth with {len(sites)} sites: {', '.join(sites)}" + (f"; ground tracks of {names}" if names else ""),
        [Panel("longitude", "latitude", [Map(land, tracks, places, reach, labelled=len(sites) <= MOST_LABELS)])],
        note,
        columns=1,
        data=(["site", "latitude, °", "longitude, °"], rows),
    )


def _track(track: Mapping[str, Any], look: Look) -> Track:
    latitudes, longitudes, minutes = track["latitude_deg"], track["longitude_deg"], [t / 60 for t in track["t_s"]]
    lon, lat, at = cut_track(longitudes, latitudes, minutes)
    covered = small_circle(latitudes[0], longitudes[0], track["footprint_deg"])
    return Track(str(track["satellite"]), _curves(lon, lat), _arrows(lon, lat, at), covered, look)


def _curves(lon: Sequence[float | None], lat: Sequence[float | None]) -> Curves:
    """Parts between gaps."""
    found: list[tuple[list[float], list[float]]] = [([], [])]
    for x, y in zip(lon, lat, strict=True):
        if x is None or y is None:
            found.append(([], []))
        else:
            found[-1][0].append(x)
            found[-1][1].append(y)
    return [curve for curve in found if curve[0]]


def _arrows(
    lon: Sequence[float | None], lat: Sequence[float | None], minutes: Sequence[float | None]
) -> list[tuple[float, float, float, float]]:
    """Where an arrow's head is and where it comes from, whenever so many minutes have gone by."""
    found, due = [], ARROW_EVERY_MIN / 2
    for i in range(1, len(lon)):
        x, y, before_x, before_y, at = lon[i], lat[i], lon[i - 1], lat[i - 1], minutes[i]
        if x is None or y is None or before_x is None or before_y is None or at is None or at < due:
            continue
        found.append((x, y, before_x, before_y))
        due += ARROW_EVERY_MIN
    return found


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
