"""Pages in a real headless Chromium: at the widths of a phone, a tablet and a desktop, and as they are printed.

Widths are set by the browser's own protocol, which has no least width, and print by its media; one browser for all.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import chromium
from chromium import Browser
from documents import METHOD, best, cluster, contact, plan, track
from fedexperts.ledger import summary
from fedexperts.report.compare_html import write_comparison
from fedexperts.report.html import write_report
from fedexperts.report.networked_html import write_tables
from fedexperts.report.page import write_page
from fedexperts.report.plan_html import write_plan
from fedexperts.runs.comparison import medians
from ledgers import NAME, aligned_lines, folder, owners_lines, tables

OLD = Path(__file__).resolve().parent.parent / "old_runs"
WIDTHS = {"phone": (390, "screen"), "tablet": (768, "screen"), "desktop": (1400, "screen"), "print": (718, "print")}
"""The last is A4 without its margins of 1 cm, in pixels of 1/96 inch."""
MOST_B = 10**6


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of every kind, with names that would be markup, and long ones."""
    at = tmp_path_factory.mktemp("pages")
    runs = {
        "ems-fl": folder(at / "ems-fl", owners_lines("ems-fl", seed=1, flush=True)),
        f"sync {NAME}": folder(at / "sync", owners_lines("sync", seed=1)),
        "ems-fl, γ ≈ 1": folder(at / "control", owners_lines("ems-fl", seed=2)),
    }
    write_report(runs, at / "owners.html", f"Owners {NAME}")
    write_report(
        {"aligned": folder(at / "aligned", aligned_lines(clients=12, experts=8, rounds=6))}, at / "aligned.html", "Aligned"
    )
    write_report(
        {"many": folder(at / "many", aligned_lines(clients=70, experts=8, rounds=3))}, at / "many.html", "Many clients"
    )
    network = Path(shutil.copytree(OLD / "networked", at / "networked"))
    write_report({"network": network}, at / "networked.html", "Networked")
    adapters = Path(shutil.copytree(OLD / "ems-fl", at / "adapters"))
    write_report({"adapters": adapters}, at / "adapters.html", "Through adapters")
    seeds = {
        name: [folder(at / f"{name}-{seed}", owners_lines(name, seed=seed, flush=name == "ems-fl")) for seed in (1, 2, 3)]
        for name in ("sync", "ems-fl")
    }
    rows: dict[str, Any] = medians({name: [summary(one / "ledger.jsonl") for one in group] for name, group in seeds.items()})
    rows["ems-fl"] |= {
        "interval": {"final_accuracy": [0.4, 0.75], "rounds_to_target": [1, None]},
        "paired": {"final_accuracy": {"difference": 0.0625, "interval": [-0.125, 0.25], "ahead": 2, "behind": 1, "of": 3}},
    }
    write_comparison(seeds, rows, at / "compared.html", "Compared")
    write_tables(tables(), at / "tables.html", "Tables")
    many = plan(days=7, method=METHOD, contacts=[contact(f"Lima{i % 3}", 9e3 * i, satellite=f"s{i % 2}") for i in range(60)])
    many["clusters"] = {f"Lima{i}": cluster(-12.05 + i, -77.04 + i) for i in range(3)} | {NAME: cluster(60.0, 20.0, seen=False)}
    many |= {"tracks": [track("s0"), track("s1", 60.0, 20.0)], "passes": [best("Lima0", "s0"), best("Lima1", "s1")]}
    write_plan(json.loads(json.dumps(many)), at / "plan.html")
    return {path.stem: path for path in sorted(at.glob("*.html"))}


KINDS = ("adapters", "aligned", "compared", "many", "networked", "owners", "plan", "tables")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_readable_at_every_width_and_in_print(kind: str, browser: Browser, pages: dict[str, Path]) -> None:
    for at, (width, media) in WIDTHS.items():
        page = browser.open(pages[kind], width, media)
        assert page.faults() == [], at
        assert page.measured()["figures"] >= 2
        assert page.measured()["scripts"] == 0


def test_all_kinds_are_tried(pages: dict[str, Path]) -> None:
    assert sorted(pages) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_small_and_stands_alone(kind: str, pages: dict[str, Path]) -> None:
    text = pages[kind].read_text()
    assert len(text.encode()) <= MOST_B
    for outside in ("src=", "@import", "<link", "<script", "plotly"):
        assert outside not in text
    assert "default-src 'none'" in text


def test_names_show_as_text(browser: Browser, pages: dict[str, Path]) -> None:
    for kind in ("owners", "plan"):
        page = browser.open(pages[kind], 1400)
        assert NAME in page.measured()["text"]
        assert page.run("window.alerted") is None
        drawn = page.run("[...document.querySelectorAll('figure svg.wide text')].map((e) => e.textContent)")
        assert any(text.startswith("<script>alert(") for text in drawn), "an axis cuts it, and shows it as text"


def test_numbers_of_a_figure_can_be_opened_and_are_those_of_its_csv(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.open(pages["owners"], 390)
    page.run("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert page.faults() == []
    text, table = (
        page.run(code)
        for code in (
            "decodeURIComponent(escape(atob(document.querySelector('div.data a').href.split(',')[1])))",
            "[...document.querySelector('div.data tbody').rows].map((row) => row.innerText.split('\\t').map((c) => c.trim()))",
        )
    )
    heads, *rows = csv.reader(text.splitlines())
    assert heads[:3] == ["run", "orbital cycles", "simulated hours"]
    assert rows == table
    assert {row[0] for row in rows} == {"ems-fl", f"sync {NAME}", "ems-fl, γ ≈ 1"}


def test_the_drawing_fits_the_width(browser: Browser, pages: dict[str, Path]) -> None:
    for width, wanted in ((390, "narrow"), (768, "wide"), (1400, "wide")):
        page = browser.open(pages["owners"], width)
        drawn = "[...document.querySelectorAll('figure svg')].filter((e) => e.checkVisibility()).map((e) => e.classList[0])"
        assert set(page.run(drawn)) == {wanted}


def test_it_prints(browser: Browser, pages: dict[str, Path]) -> None:
    printed = browser.open(pages["aligned"], 1400, "print").printed()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 2


SCRIPTED = "<script>window.ran = 1</script><img src='https://example.invalid/a.png'>"
FAULTY = """<section class='figure'><h2>x</h2><figure><svg width='300' height='100' role='img' aria-label='short'>
<text x='10' y='20'>one text</text><text x='14' y='22'>another text</text></svg></figure></section>
<p style='width: 3000px'>wide</p><p style='font-size: 5px'>tiny</p>"""


def test_faults_are_found_where_there_are_some(browser: Browser, tmp_path: Path) -> None:
    write_page(tmp_path / "x.html", "x", FAULTY)
    found = browser.open(tmp_path / "x.html", 390).measured()
    assert any("one text" in text and "another text" in text for text in found["overlaps"])
    assert any(text.startswith("P.: 30") for text in found["wide"])
    assert any("marks" in text for text in found["empty"])
    assert found["nameless"]
    assert any("tiny" in text for text in found["small"])


def test_the_policy_of_a_page_stops_what_would_run_or_be_fetched(browser: Browser, tmp_path: Path) -> None:
    write_page(tmp_path / "x.html", "x", SCRIPTED)
    page = browser.open(tmp_path / "x.html", 1400)
    assert page.run("window.ran") is None
    assert any("violates" in text for text in page.messages())
    assert page.faults()


def test_it_says_why_it_is_skipped_and_fails_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "NAMES", ("no-such-browser",))
    monkeypatch.delenv(chromium.NEEDED, raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no headless browser.*install one"):
        chromium.chromium()
    monkeypatch.setenv(chromium.NEEDED, "1")
    with pytest.raises(pytest.fail.Exception, match="no headless browser"):
        chromium.chromium()
    ci = (Path(__file__).parents[2] / ".ci" / "run").read_text()
    assert f"export {chromium.NEEDED}=1" in ci
    assert "apt-get install" in ci
