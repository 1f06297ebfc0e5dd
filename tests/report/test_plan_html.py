import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from charts import lines_of, spans
from documents import METHOD, best, cluster, contact, plan, track
from fedexperts.report import plan_html
from fedexperts.report.chart import Chart, Map
from fedexperts.report.plan_html import contact_figure, idle_times, pass_figure, write_plan
from fedexperts.report.plan_map import cut_track, map_figure, small_circle
from fedexperts.report.words import duration, listed, together, utc


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
    assert all(url.startswith(("data:application/octet-stream", "#")) for url in page.fetched)
    assert not {"link", "img", "iframe", "base", "object"} & set(page.tags)
    text = " ".join(page.texts)
    for expected in ("two & more", "2026-01-01 00:00 UTC", "Ground track", "Contacts", "best pass", "17 h 24 min", "1,234.5"):
        assert expected in text
    assert text.count("the upload fits in one contact") == 2
    assert "never in view" in text
    assert "1 cut by the plan's start or end" in text


def test_names_are_not_markup(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    document = plan(contacts=[contact(name, 60.0, satellite=name)], clusters={name: cluster(1.0, 2.0)}, name=name)
    document |= {"tracks": [track(name)], "passes": [best(name, name)]}
    page = written(document, tmp_path)
    assert "script" not in page.tags
    assert name in "".join(page.texts)


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
    assert [mark.name for mark in spans(contact_figure(document).panels[0])] == ["in view", "nobody in view"]


def test_bars_take_the_rate_then_the_elevation_then_one_colour() -> None:
    def kinds(**other: Any) -> list[str]:
        figure = contact_figure(plan(contacts=[contact("Lima", 0.0, **other), contact("Fiji", 8e4, **other)]))
        return [mark.name for mark in spans(figure.panels[0])][:-1]

    assert kinds(uplink_B=1.0) == ["5.00–5.02 Mb/s up", "5.06–5.08 Mb/s up"]
    high = [contact("Lima", 0.0, uplink_bps=5e6), contact("Fiji", 8e4, uplink_bps=5e6, max_elevation_deg=81.0)]
    figure = contact_figure(plan(contacts=high))
    assert [mark.name for mark in spans(figure.panels[0])] == ["61–66 ° at most", "76–81 ° at most", "nobody in view"]
    assert kinds(uplink_bps=5e6) == ["in view"]
    assert kinds(uplink_bps=5e6, max_elevation_deg=None) == ["in view"]


def test_a_cluster_never_seen_keeps_its_row_and_says_so() -> None:
    (panel,) = contact_figure(plan()).panels
    assert panel.names() == ["Lima", "Fiji", "Pole, never in view", "nobody in view"]


def test_contacts_that_the_plan_cuts_are_told_apart() -> None:
    (panel,) = contact_figure(plan()).panels
    cut = next(mark for mark in spans(panel) if mark.name == "cut by the plan's start or end")
    assert list(cut.spans) == [("Fiji", 2.0, pytest.approx(7440 / 3600))]


def earth(chart: Chart) -> Map:
    return next(mark for mark in chart.panels[0].marks if isinstance(mark, Map))


def test_satellites_have_rows_and_tracks_on_the_map() -> None:
    contacts = [contact("Lima", 600.0, "a"), contact("Lima", 600.0, "b"), contact("Fiji", 600.0, "b")]
    document = plan(contacts=contacts, tracks=[track("a"), track("b", 60.0)], passes=[best("Lima", "a")])
    (panel,) = contact_figure(document).panels
    assert panel.names() == ["Lima, a", "Lima, b", "Fiji, b", "Pole, never in view", "nobody in view"]
    chart = map_figure(document)
    assert [track.name for track in earth(chart).tracks] == ["a", "b"]
    assert list(chart.key()) == ["a", "b"]
    assert lines_of(pass_figure(document).panels[0])[0].name == "Lima (a, T+1 h)"


def test_arrows_show_the_way_along_the_track() -> None:
    (found,) = earth(map_figure(plan())).tracks
    assert len(found.arrows) == pytest.approx(199 / 12, abs=1)
    for x, y, from_x, from_y in found.arrows:
        assert abs(x - from_x) < 10  # none across the map, where the track leaves it
        assert (x, y) != (from_x, from_y)


def test_a_long_plan_is_drawn_day_by_day_and_says_what_is_left_out() -> None:
    week = contact_figure(plan(days=7, contacts=[contact("Lima", 86400.0 * day + 600) for day in range(7)]))
    assert [panel.title for panel in week.panels] == [f"day {day}" for day in range(1, 8)]
    first = next(mark for mark in spans(week.panels[1]) if mark.name != "nobody in view")
    assert list(first.spans) == [("Lima", pytest.approx(24 + 600 / 3600), pytest.approx(24 + 840 / 3600))]
    assert "Drawn are" not in week.note
    assert "Drawn are the first 7 d of 30 d." in contact_figure(plan(days=30)).note
    assert len(contact_figure(plan(days=1)).panels) == 1


def test_too_many_contacts_are_cut_and_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan_html, "MOST_BARS", 2)
    assert "Only the first 2 of 3 contacts are drawn" in " ".join(written(plan(), tmp_path).texts)
    gaps = next(mark for mark in spans(contact_figure(plan()).panels[0]) if mark.name == "nobody in view")
    assert max(end for _, _, end in gaps.spans) <= 7200 / 3600


def test_panels_without_numbers_are_left_out() -> None:
    one = best("Lima")
    del one["doppler_Hz"]
    one["snr_dB"] = []
    labels = [panel.y for panel in pass_figure(plan(passes=[one])).panels]
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
