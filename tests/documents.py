"""What `fedexperts plan --json` prints, by hand."""

from __future__ import annotations

import math
from typing import Any

from fedexperts.report import plan_html

NEVER = dict.fromkeys(
    ("median_duration_s", "longest_duration_s", "median_gap_s", "max_gap_s", "uplink_B_per_day", "downlink_B_per_day")
)
SEEN = dict(zip(NEVER, (247.0, 306.0, 5940.0, 62640.0, 1.2345e9, 2e9), strict=True))


def cluster(latitude: float | None, longitude: float | None, seen: bool = True) -> dict[str, Any]:
    place = {} if latitude is None else {"latitude_deg": latitude, "longitude_deg": longitude}
    counts = {"passes": 2, "passes_per_day": 2.0, "idle_share": 0.994, "verdict": "the upload fits in one contact"}
    if not seen:
        counts = {"passes": 0, "passes_per_day": 0.0, "idle_share": 1.0, "verdict": "never in view"}
    return {**place, "min_elevation_deg": 25.0, "devices": 10, **counts, **(SEEN if seen else NEVER)}


def contact(name: str, start_s: float, satellite: str = "leo", **other: Any) -> dict[str, Any]:
    numbers = {"max_elevation_deg": 61.0, "uplink_bps": 5e6 + start_s, "uplink_B": 1.5e8, "downlink_B": 3e8, "cut": False}
    return {"cluster": name, "satellite": satellite, "start_s": start_s, "end_s": start_s + 240, **numbers, **other}


def track(satellite: str = "leo", latitude: float = 10.0, longitude: float = 175.0) -> dict[str, Any]:
    t_s = [60.0 * i for i in range(200)]
    lon = [(longitude + 3.6 * i + 180) % 360 - 180 for i in range(200)]
    lat = [latitude * math.cos(i / 15) for i in range(200)]
    return {"satellite": satellite, "t_s": t_s, "latitude_deg": lat, "longitude_deg": lon, "footprint_deg": 9.1}


def best(name: str, satellite: str = "leo") -> dict[str, Any]:
    t_s = [10.0 * i for i in range(25)]
    curves = {key: [float(i) for i in range(25)] for key, _, _ in plan_html.PANELS}
    return {"cluster": name, "satellite": satellite, "start_s": 3600.0, "t_s": t_s, **curves}


def plan(days: float = 1.0, **other: Any) -> dict[str, Any]:
    return {
        "name": "two & more",
        "start": "2026-01-01T00:00:00+00:00",
        "horizon_s": 86400 * days,
        "contacts": [contact("Lima", 600.0), contact("Fiji", 700.0), contact("Fiji", 7200.0, cut=True)],
        "clusters": {"Lima": cluster(-12.05, -77.04), "Fiji": cluster(-17.7, 178.0), "Pole": cluster(89.0, 0.0, seen=False)},
        "tracks": [track()],
        "passes": [best("Lima"), best("Fiji")],
        **other,
    }


METHOD = {
    "protocol": "ems-fl",
    "trained": "adapters",
    "by_client": False,
    "played_cycles": 3,
    "answers": ["memory of phone (<Lima>): fits"],
    "stages": {
        "training": {
            name: {
                "up": ["expert:0", "gate"],
                "uplink_B": 26112,
                "down": ["expert:0", "expert:1", "gate", "gate"],
                "downlink_B": 102400,
            }
            for name in ("Lima", "Fiji")
        }
    },
    "links": {
        name: {
            "cluster": name,
            "contacts": 3,
            "lost": 1,
            "rounds_per_cycle": None,
            "uplink_B_per_cycle": 1000,
            "downlink_B_per_cycle": 2000,
            "energy_J_per_cycle": {"radio_J": 1.5, "compute_J": None, "idle_J": 1600.0},
        }
        for name in ("Lima", "Fiji")
    },
}
