"""From orbits, places and a radio to a contact plan: who can talk when, and how many bytes fit."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..units import Array
from .budget import doppler_Hz, rate_segments
from .orbit import Satellite
from .passes import passes
from .plan import Contact, ContactPlan, Rates, few_enough
from .radio import Radio, downlink_bps, uplink_bps, uplink_share, uplink_snr_dB
from .site import Look, Site, look, looks, subpoint

SAMPLE_S = 5.0
"""Rates are sampled so often along a pass."""
SHORTEST_S = 1.0
"""What is left of a pass after another satellite's is dropped below this."""
TOGETHER = 500
"""So many contacts of a satellite are propagated at once."""


@dataclass(frozen=True)
class Station:
    """A cluster on the ground: its place with its mask, and how many devices share the uplink."""

    site: Site
    devices: int


def orbital_plan(
    stations: Sequence[Station], satellites: Sequence[Satellite], radio: Radio, start: datetime, duration_s: float
) -> ContactPlan:
    """Contacts of every cluster with every satellite, one satellite at a time.

    A cluster stays with a satellite until it sets, and then takes the next that is up. The server's state is one for all
    satellites: it is carried between them by a gateway on the ground, taken as ideal. A site's mask is the larger of its own
    and the radio's. All devices that a satellite hears at once share its sub-channels, of whatever cluster they are.
    """
    masked = [replace(s.site, min_elevation_deg=max(s.site.min_elevation_deg, radio.min_elevation_deg)) for s in stations]
    found = passes(satellites, masked, start, duration_s)
    chosen: list[_Window] = []
    by_site = np.lexsort((found.rise_s, found.site))  # of one rise in the order of satellites
    for i, mine in enumerate(np.split(by_site, np.searchsorted(found.site[by_site], np.arange(1, len(stations))))):
        free_s = 0.0
        for p in mine:
            begin_s, end_s = max(float(found.rise_s[p]), free_s), float(found.set_s[p])
            if end_s - begin_s < SHORTEST_S:
                continue
            free_s = end_s
            chosen.append(_Window(i, int(p), int(found.satellite[p]), begin_s, end_s))
    few_enough(len(chosen))
    if sum(station.devices for station in stations) <= radio.sub_channels:  # nobody waits for anybody
        crowds = [[(window.end_s, 1)] for window in chosen]
    else:
        crowds = _heard([(w.satellite, w.begin_s, w.end_s, stations[w.station].devices) for w in chosen])
    made: dict[int, Contact] = {}
    for together in _by_satellite(chosen):
        sites, times_s = [masked[chosen[k].station] for k in together], [_samples_s(chosen[k]) for k in together]
        satellite = satellites[chosen[together[0]].satellite]
        rates_bps = _rates(radio, sites, looks(satellite, sites, times_s, start))
        for k, site, time_s, (up_bps, down_bps) in zip(together, sites, times_s, rates_bps, strict=True):
            pieces, p = _pieces(radio, time_s, up_bps, down_bps, crowds[k]), chosen[k].p
            highest_deg, cut = round(float(found.max_elevation_deg[p]), 3), bool(found.cut_start[p] or found.cut_end[p])
            made[k] = Contact.of(site.name, chosen[k].begin_s, pieces, satellite.name, highest_deg, cut)
    return ContactPlan(tuple(s.site.name for s in stations), tuple(made[k] for k in range(len(chosen))), duration_s)


class _Window(NamedTuple):
    """A pass, or what another satellite's leaves of it: indices of station, pass and satellite."""

    station: int
    p: int
    satellite: int
    begin_s: float
    end_s: float


def _by_satellite(windows: Sequence[_Window]) -> Iterator[list[int]]:
    """Which windows are looked at together: some of one satellite's, so that memory is bounded."""
    mine: dict[int, list[int]] = {}
    for k, window in enumerate(windows):
        mine.setdefault(window.satellite, []).append(k)
    for every in mine.values():
        yield from (every[first : first + TOGETHER] for first in range(0, len(every), TOGETHER))


def _samples_s(window: _Window) -> Array:
    many = max(2, math.ceil((window.end_s - window.begin_s) / SAMPLE_S) + 1)
    return np.linspace(window.begin_s, window.end_s, many)


Crowd = list[tuple[float, int]]
"""Until when a satellite hears how many devices, from the beginning of a contact to its end."""


def _heard(windows: Sequence[tuple[int, float, float, int]]) -> list[Crowd]:
    """The crowd of each window, given as (satellite, begin, end, devices)."""
    by_satellite: dict[int, list[tuple[float, float, int]]] = {}
    for s, begin_s, end_s, devices in windows:
        by_satellite.setdefault(s, []).append((begin_s, end_s, devices))
    begins_s, longest_s = dict[int, list[float]](), dict[int, float]()
    for s, mine in by_satellite.items():
        mine.sort()
        begins_s[s], longest_s[s] = [w[0] for w in mine], max(w[1] - w[0] for w in mine)
    crowds = []
    for s, begin_s, end_s, _ in windows:
        first = bisect.bisect_left(begins_s[s], begin_s - longest_s[s] - SHORTEST_S)  # what began before is over
        last = bisect.bisect_left(begins_s[s], end_s)
        beside = [w for w in by_satellite[s][first:last] if w[1] > begin_s]
        edges_s = sorted({end_s, *(t_s for w in beside for t_s in w[:2] if begin_s < t_s < end_s)})
        middle_s = [(a_s + b_s) / 2 for a_s, b_s in pairwise([begin_s, *edges_s])]
        crowds.append([(t_s, sum(n for a, b, n in beside if a < m < b)) for t_s, m in zip(edges_s, middle_s, strict=True)])
    return crowds


def _rates(radio: Radio, sites: Sequence[Site], views: Sequence[Look]) -> list[tuple[Array, Array]]:
    """Rates up and down over each view, worked out at once where the air is not that of the place: it changes no number."""
    if radio.itu_exceeded_percent is not None and len(views) > 1:
        return [both for site, view in zip(sites, views, strict=True) for both in _rates(radio, [site], [view])]
    elevation_deg = np.concatenate(  # the horizon itself is in view
        [np.maximum(view.elevation_deg, site.min_elevation_deg) for site, view in zip(sites, views, strict=True)]
    )
    range_m = np.concatenate([view.slant_range_m for view in views])
    ends = np.cumsum([len(view.slant_range_m) for view in views])[:-1]
    ways = (way(radio, elevation_deg, range_m, site=sites[0]) for way in (uplink_bps, downlink_bps))
    return list(zip(*(np.split(way, ends) for way in ways), strict=True))


def _pieces(radio: Radio, time_s: Array, up_bps: Array, down_bps: Array, crowd: Crowd) -> list[Rates]:
    """Rates that drift by at most a tenth within a piece, the bytes over the window kept."""
    ways = [rate_segments(time_s, up_bps), rate_segments(time_s, down_bps) if np.all(np.isfinite(down_bps)) else None]
    ends_s = [way.end_s.tolist() if way else [] for way in ways]
    found_bps = [way.rate_bps.tolist() if way else [] for way in ways]
    edges_s = sorted({*ends_s[0], *ends_s[1], *(until_s for until_s, _ in crowd)})
    edges_s = [*(a_s for a_s, b_s in pairwise(edges_s) if b_s - a_s > 1e-6), crowd[-1][0]]
    pieces = []
    for t in edges_s:
        share = uplink_share(radio, next(devices for until_s, devices in crowd if t - 1e-6 < until_s))
        rate = [bps[_at(end_s, t)] if end_s else math.inf for bps, end_s in zip(found_bps, ends_s, strict=True)]
        pieces.append(Rates(t, rate[0] * share, rate[1], share))
    return pieces


def _at(end_s: list[float], t_s: float) -> int:
    """The segment that ends at a time or holds it."""
    return min(bisect.bisect_left(end_s, t_s - 1e-6), len(end_s) - 1)


def statistics(plan: ContactPlan, stations: Sequence[Station] = ()) -> dict[str, dict[str, Any]]:
    """Per cluster: passes a day, durations, gaps, share of idle time and bytes a day (per device); None where never seen."""
    places = {station.site.name: station for station in stations}
    days = plan.horizon_s / 86400
    result: dict[str, dict[str, Any]] = {}
    for name, mine in plan.by_cluster.items():
        durations_s = [c.end_s - c.start_s for c in mine]
        edges = [0.0, *(t for c in mine for t in (c.start_s, c.end_s)), plan.horizon_s]
        gaps_s = [b - a for a, b in zip(edges[::2], edges[1::2], strict=True)]
        row: dict[str, Any] = {
            "passes": len(mine),
            "passes_per_day": round(len(mine) / days, 3),
            "median_duration_s": _round(np.median(durations_s)) if mine else None,
            "longest_duration_s": _round(max(durations_s)) if mine else None,
            "median_gap_s": _round(np.median(gaps_s[1:-1])) if len(mine) > 1 else None,
            "max_gap_s": _round(max(gaps_s)),
            "idle_share": round(1 - sum(durations_s) / plan.horizon_s, 6),
            "uplink_B_per_day": _bytes(sum(c.carried_B("up", c.start_s, c.end_s) for c in mine) / days),
            "downlink_B_per_day": _bytes(sum(c.carried_B("down", c.start_s, c.end_s) for c in mine) / days),
        }
        if station := places.get(name):
            row |= {
                "latitude_deg": station.site.latitude_deg,
                "longitude_deg": station.site.longitude_deg,
                "min_elevation_deg": station.site.min_elevation_deg,
                "devices": station.devices,
            }
        result[name] = row
    return result


def _round(value: Any) -> float:
    return round(float(value), 3)


def _bytes(value: float) -> int | None:
    """Whole bytes; None for a link without limit, which JSON cannot say."""
    return int(value) if math.isfinite(value) else None


def _rate(bps: float) -> float | None:
    return _round(bps) if math.isfinite(bps) else None


def contact_rows(plan: ContactPlan) -> list[dict[str, Any]]:
    """The contacts as ``fedexperts plan --json`` prints them; rates and bytes per device, None for no limit, 0 for nothing."""
    rows = []
    for c in plan.contacts:
        up_B, down_B = c.carried_B("up", c.start_s, c.end_s), c.carried_B("down", c.start_s, c.end_s)
        rows.append(
            {
                "cluster": c.cluster,
                "satellite": c.satellite,
                "start_s": _round(c.start_s),
                "end_s": _round(c.end_s),
                "max_elevation_deg": c.max_elevation_deg,
                "uplink_bps": _rate(c.uplink_bps),
                "downlink_bps": _rate(c.downlink_bps),
                "uplink_B": _bytes(up_B),
                "downlink_B": _bytes(down_B),
                "cut": c.cut,
            }
        )
    return rows


def _size(size_B: float) -> str:
    return f"{size_B / 1e6:.1f} MB" if size_B >= 1e5 else f"{size_B / 1e3:.1f} kB"


def verdict(plan: ContactPlan, cluster: str, upload_B: int, remedy: str = "give it contacts", idle: bool = False) -> str:
    """Does this upload fit a contact, in how many does it fit, and how many uploads a day does the plan allow.

    ``remedy`` is what helps a cluster without contacts; ``idle``: nothing is trained there, and so nothing is uploaded.
    """
    mine = plan.by_cluster[cluster]
    if not mine:
        never = f"never seen: no contact in {plan.horizon_s / 86400:.3g} days"
        return f"{never}; {remedy}"
    if not upload_B:
        return "nothing goes up"
    room_B = [c.carried_B("up", c.start_s, c.end_s) for c in mine]
    if math.isinf(min(room_B)):
        return f"{_size(upload_B)} fit every contact (no limit)"
    median_B, days = float(np.median(room_B)), plan.horizon_s / 86400
    if max(room_B) < 1:
        return f"no upload: none of its {len(mine)} contacts carries anything up; give them an uplink_bps"
    whole = sum(size >= upload_B for size in room_B)
    fits = f"{_size(upload_B)} fits {whole} of {len(mine)} contacts" if whole else f"{_size(upload_B)} fits no single contact"
    if idle:
        return f"{fits}; nothing is trained"
    if median_B < 1:
        return f"{fits}; most of them carry nothing up"
    need = max(1, math.ceil(upload_B / median_B))
    often = f"takes {need} median contact{'s' if need > 1 else ''}; {len(mine) / need / days:.1f} uploads a day"
    return f"{fits}, {often}"


def tracks(
    satellites: Sequence[Satellite], start: datetime, mask_deg: float, duration_s: float, most: int = 3
) -> list[dict[str, Any]]:
    """Ground tracks of a few satellites for a map, with the Earth-central angle of their coverage."""
    time_s = np.arange(0.0, duration_s, 60.0)
    rows = []
    for satellite in satellites[:most]:
        below = subpoint(satellite, time_s, start)
        radius_m = 6371e3
        ratio = radius_m * math.cos(math.radians(mask_deg)) / (radius_m + float(below.altitude_m[0]))
        rows.append(
            {
                "satellite": satellite.name,
                "t_s": time_s.tolist(),
                "latitude_deg": np.round(below.latitude_deg, 3).tolist(),
                "longitude_deg": np.round(below.longitude_deg, 3).tolist(),
                "footprint_deg": round(math.degrees(math.acos(ratio)) - mask_deg, 3),
            }
        )
    return rows


def best_passes(
    plan: ContactPlan, stations: Sequence[Station], satellites: Sequence[Satellite], radio: Radio, start: datetime
) -> list[dict[str, Any]]:
    """Elevation, SNR, rate, cumulative bytes and Doppler over the highest pass of each cluster."""
    by_name: Mapping[str, Satellite] = {satellite.name: satellite for satellite in satellites}
    rows = []
    for station in stations:
        mine = plan.by_cluster[station.site.name]
        if not mine:
            continue
        site = station.site
        best = max(mine, key=lambda c: c.max_elevation_deg or 0.0)
        time_s = np.linspace(best.start_s, best.end_s, 121)
        view: Look = look(by_name[best.satellite], site, time_s, start)
        mask_deg = max(site.min_elevation_deg, radio.min_elevation_deg)
        elevation_deg = np.maximum(view.elevation_deg, mask_deg)  # the horizon itself is in view
        rows.append(
            {
                "cluster": best.cluster,
                "satellite": best.satellite,
                "start_s": _round(best.start_s),
                "t_s": np.round(time_s - best.start_s, 2).tolist(),
                "elevation_deg": np.round(elevation_deg, 3).tolist(),
                "snr_dB": np.round(uplink_snr_dB(radio, elevation_deg, view.slant_range_m, site), 3).tolist(),
                "uplink_bps": np.round(
                    uplink_bps(radio, elevation_deg, view.slant_range_m, station.devices, site=site), 1
                ).tolist(),
                "uplink_B": [_bytes(best.carried_B("up", best.start_s, t)) for t in time_s],
                "doppler_Hz": np.round(doppler_Hz(view.range_rate_m_per_s, radio.carrier_Hz), 1).tolist(),
            }
        )
    return rows
