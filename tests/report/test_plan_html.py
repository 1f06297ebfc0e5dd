import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedexperts.report import plan_html
from fedexperts.report.plan_html import contact_figure, idle_times, pass_figure, write_plan
from fedexperts.report.plan_map import cut_track, map_figure, small_circle
from fedexperts.report.words import duration, listed, together, utc

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


class Page(HTMLParser):
    """What a browser would fetch, and the text that it would show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags = ["html"]
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1] not in ("script", "style"):
            self.texts.append(data)


def written(document: dict[str, Any], tmp_path: Path) -> Page:
    path = tmp_path / "new" / "plan.html"
    write_plan(json.loads(json.dumps(document)), path)
    assert [file.name for file in path.parent.iterdir()] == ["plan.html"]
    return Page(path)


def test_the_page_has_every_part_and_fetches_nothing(tmp_path: Path) -> None:
    page = written(plan(), tmp_path)
    assert page.fetched == []
    assert not {"link", "img", "iframe", "base", "object"} & set(page.tags)
    text = " ".join(page.texts)
    for expected in ("two & more", "2026-01-01 00:00 UTC", "Ground track", "Contacts", "best pass", "17 h 24 min", "1,234.5"):
        assert expected in text
    assert text.count("the upload fits in one contact") == 2
    assert "never in view" in text
    assert "1 cut by the plan's start or end" in text


def test_only_plain_axes_are_used_because_geo_layers_are_fetched() -> None:
    for figure in (map_figure(plan()), contact_figure(plan()), pass_figure(plan())):
        assert {trace.type for trace in figure.data} <= {"scatter", "bar"}
        assert "http" not in figure.to_json()


def test_names_are_not_markup(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    document = plan(contacts=[contact(name, 60.0, satellite=name)], clusters={name: cluster(1.0, 2.0)}, name=name)
    document |= {"tracks": [track(name)], "passes": [best(name, name)]}
    page = written(document, tmp_path)
    plain = written(plan(), tmp_path)
    assert page.tags.count("script") == plain.tags.count("script")
    assert name in "".join(page.texts)
    assert "<script" not in map_figure(document).to_json().replace("\\u003c", "<")


def test_a_plan_without_contacts(tmp_path: Path) -> None:
    clusters = {"Pole": cluster(89.0, 0.0, seen=False)}
    page = written(plan(contacts=[], passes=[], clusters=clusters), tmp_path)
    text = " ".join(page.texts)
    assert "No cluster is ever in view" in text
    assert "nobody in view for 100.0% of the time" in text
    assert "best pass" not in text


def test_a_plan_that_is_not_orbital_has_no_map(tmp_path: Path) -> None:
    contacts = [contact("a", 0.0, max_elevation_deg=None, uplink_bps=5e6), contact("b", 240.0, max_elevation_deg=None)]
    document = plan(contacts=contacts, clusters={"a": cluster(None, None), "b": cluster(None, None)}, tracks=[], passes=[])
    assert "Ground track" not in " ".join(written(document, tmp_path).texts)


def test_a_plan_without_limits_and_without_a_start(tmp_path: Path) -> None:
    free = {"max_elevation_deg": None, "uplink_bps": None, "uplink_B": None, "downlink_B": None}
    contacts = [contact("a", 0.0, satellite="", **free), contact("b", 240.0, satellite="", **free)]
    clusters = {name: cluster(None, None) | {"uplink_B_per_day": None} for name in ("a", "b")}
    document = plan(start=None, contacts=contacts, clusters=clusters, tracks=[], passes=[])
    text = " ".join(written(document, tmp_path).texts)
    assert "1 d from the start · 2 clusters" in text
    assert "∞" in text
    assert "no limit: ∞ MB up" in contact_figure(document).data[0].customdata[0]


def test_bars_take_the_rate_then_the_elevation_then_one_colour() -> None:
    def label(**other: Any) -> tuple[str | None, int]:
        figure = contact_figure(plan(contacts=[contact("Lima", 0.0, **other), contact("Fiji", 9e4, **other)]))
        labels = [trace.marker.colorbar.title.text for trace in figure.data if trace.marker.showscale]
        bars = next(trace for trace in figure.data if trace.type == "bar")
        return next(iter(labels), None), len(set(bars.marker.color))

    assert label(uplink_B=1.0) == ("mean uplink, Mb/s", 2)
    assert label(uplink_bps=5e6) == ("highest elevation, °", 1)
    assert label(uplink_bps=5e6, max_elevation_deg=None) == (None, 1)


def test_a_cluster_never_seen_keeps_its_row() -> None:
    figure = contact_figure(plan())
    assert list(figure.layout.yaxis.ticktext) == ["nobody in view", "Pole", "Fiji", "Lima"]
    assert [(note.text, note.y) for note in figure.layout.annotations] == [("never in view", 1)]


def test_satellites_have_lanes_in_a_row_and_tracks_on_the_map() -> None:
    contacts = [contact("Lima", 600.0, "a"), contact("Lima", 600.0, "b"), contact("Fiji", 600.0, "b")]
    document = plan(contacts=contacts, tracks=[track("a"), track("b", 60.0)], passes=[best("Lima", "a")])
    bars = next(trace for trace in contact_figure(document).data if trace.type == "bar")
    assert bars.y == (3, 3, 2)
    assert bars.offset[0] >= bars.offset[1] + bars.width  # side by side, not one over the other
    names = [trace.name for trace in map_figure(document).data if trace.showlegend is not False]
    assert names == ["a", "b"]
    assert pass_figure(document).data[0].name == "Lima (a, T+1 h)"


def test_a_long_plan_opens_on_its_first_days_with_a_slider() -> None:
    axis = contact_figure(plan(days=7)).layout.xaxis
    assert (axis.range, axis.rangeslider.visible, axis.rangeslider.range) == ((0, 48), True, (0, 168))
    assert contact_figure(plan(days=1)).layout.xaxis.rangeslider.visible is False


def test_too_many_contacts_are_cut_and_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan_html, "MOST_BARS", 2)
    assert "Only the first 2 of 3 contacts are drawn" in " ".join(written(plan(), tmp_path).texts)
    assert contact_figure(plan()).layout.xaxis.maxallowed == 7200 / 3600


def test_panels_without_numbers_are_left_out() -> None:
    one = best("Lima")
    del one["doppler_Hz"]
    one["snr_dB"] = []
    labels = [axis.title.text for axis in pass_figure(plan(passes=[one])).select_yaxes()]
    assert labels == ["elevation, °", "uplink rate, Mb/s", "sent up so far, MB"]


def test_idle_times_are_what_the_contacts_leave() -> None:
    contacts = [contact("a", 100.0), contact("b", 200.0), contact("a", 900.0)]
    assert idle_times(contacts, 1000.0) == [(0.0, 100.0), (440.0, 900.0)]
    assert idle_times([], 1000.0) == [(0.0, 1000.0)]


@pytest.mark.parametrize("way", [1, -1])
def test_a_track_goes_on_at_the_other_edge(way: int) -> None:
    lon, lat, at = cut_track([178.0 * way, -178.0 * way], [10.0, 20.0], [0.0, 1.0])
    assert lon == [178 * way, 180 * way, None, -180 * way, -178 * way]
    assert lat == [10, 15, None, 15, 20]
    assert at == [0, 0.5, None, 0.5, 1]


def distance_deg(lat: float, lon: float, other_lat: float, other_lon: float) -> float:
    a, b, turn = math.radians(lat), math.radians(other_lat), math.radians(lon - other_lon)
    return math.degrees(math.acos(math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(turn)))


@pytest.mark.parametrize(
    ("lat", "lon", "copies"), [(0, 0, 1), (53, 179, 2), (-40, -175, 2), (85, 10, 1), (-88, 170, 1), (90, 0, 1)]
)
def test_a_circle_is_right_at_the_antimeridian_and_around_a_pole(lat: float, lon: float, copies: int) -> None:
    curves = small_circle(lat, lon, 9.1)
    assert len(curves) == copies
    for xs, ys in curves:
        assert all(abs(b - a) < 60 for a, b in pairwise(xs[:181]))  # no line across the map
        on_circle = [(x, y) for x, y in zip(xs, ys, strict=True) if abs(y) < 90]
        assert all(distance_deg(y, x, lat, lon) == pytest.approx(9.1, abs=1e-3) for x, y in on_circle)
        if abs(lat) > 80.9:
            assert min(xs) <= -180
            assert max(xs) >= 180
            assert math.copysign(90, lat) in ys


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((None, "–"), (0, "0 s"), (42.4, "42 s"), (59.7, "1 min"), (247, "4 min 7 s"), (3599.6, "1 h"), (5940, "1 h 39 min")),
        *((62640, "17 h 24 min"), (86400, "1 d"), (86399, "1 d"), (183600, "2 d 3 h")),
    ],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


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


def test_the_page_answers_whether_it_can_be_done(tmp_path: Path) -> None:
    assert "Can it be done?" not in " ".join(written(plan(), tmp_path).texts)
    text = " ".join(written(plan(method=METHOD), tmp_path).texts)
    for expected in (
        "memory of phone (<Lima>): fits",
        "Lima, Fiji",
        "expert 0 + gate",
        "26.1 kB",
        "experts 0, 1 + gate ×2",
        "1,600",
        "33%",
    ):
        assert expected in text


def test_all_passes_are_listed_with_their_times(tmp_path: Path) -> None:
    document = plan()
    text = " ".join(written(document, tmp_path).texts)
    assert f"All {len(document['contacts'])} passes with their times (UTC)" in text
    first = document["contacts"][0]
    assert f"{utc(document['start'], first['start_s'])}" in text
    without = " ".join(written(plan(start=None), tmp_path).texts)
    assert "passes with their times (seconds after the start)" in without


def test_names_of_parts_and_links_in_words() -> None:
    assert listed([]) == "nothing"
    assert listed(["expert:3", "expert:5", "gate"]) == "experts 3, 5 + gate"
    assert listed([f"expert:{m}" for m in range(8)] * 2) == "experts 0–7 ×2"
    assert listed([f"expert:{m}" for m in range(0, 16, 2)]) == "8 experts"
    assert listed(["expert:0.1", "expert:1.1", "head"]) == "experts 0.1, 1.1 + head"
    assert together(["a", "b"]) == "a, b"
    assert together([f"c{k}" for k in range(9)]) == "c0 … c8, 9 of them"
