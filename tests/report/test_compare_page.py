"""A comparison on a page: what stands below medians and differences, and what its note says of it."""

from __future__ import annotations

from pathlib import Path

from fedexperts.ledger import summary
from fedexperts.report.compare_html import write_comparison
from fedexperts.report.compare_table import COMPARED, below, between
from fedexperts.runs.comparison import medians
from ledgers import folder, owners_lines


def test_the_page_of_a_comparison_says_of_seeds_what_its_table_does(tmp_path: Path) -> None:
    seeds = {
        name: [folder(tmp_path / f"{name}-{seed}", owners_lines(name, seed=seed)) for seed in (1, 2, 3)]
        for name in ("sync", "ems-fl")
    }
    rows = medians({name: [summary(run / "ledger.jsonl") for run in group] for name, group in seeds.items()})
    rows["ems-fl"]["paired"] = {
        "uplink_B": {"difference": -5e6, "interval": [-6e6, 1.5e6], "ahead": 2, "behind": 1, "of": 3},
        "rounds_to_target": {"difference": None, "interval": None, "ahead": 2, "behind": 0, "of": 3},
        "hours_to_target": {"difference": None, "interval": None, "ahead": 0, "behind": 0, "of": 3},
        "steps": {"difference": 20, "interval": [20, 20], "ahead": 0, "behind": 3, "of": 3},
    }
    rows["sync"]["not_reached"]["rounds_to_target"] = 1
    write_comparison(seeds, rows, tmp_path / "page.html", "x", {"baseline": "sync"})
    text = (tmp_path / "page.html").read_text()
    assert "<p>The target is 50% accuracy on validation data; “final” is judged on test data, once, at the end.</p>" in text
    assert "<td>MB up whole run</td><td>2.4<br><span class='spread'>1.2–3.6</span></td>" in text
    lower, ahead = ("<br><span class='spread'>-6.0 to +1.5</span>", "<br><span class='spread'>ahead: 2 of 3</span>")
    assert f"<td>MB up whole run</td><td>-5.0{lower}{ahead}</td>" in text
    assert f"<td>rounds to target</td><td>–{ahead}</td>" in text
    assert "<td>hours to target</td><td>–</td>" in text
    assert "<td>steps whole run</td><td>+20<br><span class='spread'>ahead: 0 of 3</span></td>" in text
    assert "below them their intervals, by cluster the lowest and the highest, where the two differ." in text
    assert text.count("not reached") == 2  # what a dash is, once, and by whom
    assert "contacts, memory and uplink of a device are of the first seed" in text
    assert "assignments" not in text


def test_an_interval_that_is_one_value_is_not_told_again() -> None:
    column = next(column for column in COMPARED if column.key == "steps")
    row = {"steps": 20, "by_seed": {"steps": [10, 20, 20, 20, 20, 20, 30]}, "interval": {"steps": [20, 20]}}
    assert below([column], row) == ("  interval", [""])
    assert below([column], {**row, "interval": {"steps": None}}) == ("  lowest–highest", ["10–30"])
    assert [between(column, {"interval": ends}) for ends in ([20, 20], [-2, 20], None)] == ["", "-2 to +20", ""]
