"""Figures of client–expert alignment: their data, and what a page of a comparison holds."""

import json
from pathlib import Path
from typing import Any

from charts import bars, lines_of, maps
from fedexperts.ledger import summary
from fedexperts.report.alignment import WHOLE, heatmap_figure, load_figure, periods, sat_out_table
from fedexperts.report.chart import Look, looks
from fedexperts.report.compare_html import client_figure, curve_figure, write_comparison
from fedexperts.runs.comparison import medians

CLIENTS = ("a", "b")
USE = {"per_device": {c: {"radio_J": 0.0, "compute_J": 0.0, "idle_J": 0.0} for c in CLIENTS}}


def ledger(assigned: list[dict[str, list[int]]], loads: list[list[float]], accuracy: list[float]) -> list[dict[str, Any]]:
    """An aligned run by hand: one client may sit out a round."""
    found: list[dict[str, Any]] = [
        {
            "event": "run",
            "clusters": {c: [5] for c in CLIENTS},
            "seed": 1,
            "target": 0.5,
            "plateau": [5, 0.01],
            "protocol": "aligned",
        }
    ]
    for cycle, score in enumerate(accuracy):
        if cycle:
            sat_out = {c: "memory" for c in CLIENTS if c not in assigned[cycle - 1]}
            found.append({"event": "align", "cycle": cycle - 1, "assigned": assigned[cycle - 1], "sat_out": sat_out})
            found.append({"event": "round", "cycle": cycle - 1, "load": loads[cycle - 1]})
            found.append({"event": "energy", **USE})
        found.append({"event": "evaluate", **point(cycle, score)})
    cycles = len(accuracy) - 1
    end = {**point(cycles, accuracy[-1]), "cycles": cycles, "late": False, "unsent_rounds": 0, "downlink_B": 9}
    return [{"t_s": 0.0, **line} for line in [*found, {"event": "end", **end}]]


def point(cycle: int, score: float) -> dict[str, Any]:
    by_client = dict.fromkeys(CLIENTS, score)
    totals = {"cycle": cycle, "steps": 10 * cycle, "uplink_B": 10**6 * cycle, "downlink_B": 9, "accuracy": score}
    return {
        **totals,
        "loss": 1 - score,
        "accuracy_by_cluster": by_client,
        "personal_accuracy": score,
        "personal_by_client": by_client,
    }


LINES = ledger(
    [{"a": [0], "b": [1]}, {"a": [0]}, {"a": [1], "b": [0]}, {"a": [1], "b": [0]}],
    [[5, 5], [5, 0], [5, 5], [5, 5]],
    [0.1, 0.2, 0.3, 0.5, 0.6],
)


def written(lines: list[dict[str, Any]], at: Path) -> Path:
    at.mkdir(parents=True)
    (at / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return at


def test_cells_are_shares_of_a_periods_rounds() -> None:
    first, second, third, whole = (maps(panel)[0].values for panel in heatmap_figure({"balanced": LINES}).panels)
    assert first == [[1, 0], [0, 1]]
    assert second == [[1, 0], [0, 0]]  # b sat out
    assert third == [[0, 1], [1, 0]]
    assert whole == [[0.5, 0.5], [0.5, 0.25]]


def test_every_policy_has_a_row_of_panels_and_every_round_is_in_one_third() -> None:
    chart = heatmap_figure({"random": LINES, "optimal": LINES})
    titles = [panel.title for panel in chart.panels]
    assert len(titles) == 8
    assert titles[0] == "random: first third"
    assert titles[-1] == "optimal: whole run"
    found = periods(LINES)
    whole = found.pop(WHOLE)
    assert [assigned for third in found.values() for assigned in third] == whole


def test_a_run_of_two_rounds_has_no_thirds() -> None:
    short = ledger([{"a": [0]}, {"a": [1]}], [[5, 0], [0, 5]], [0.1, 0.2, 0.3])
    assert [panel.title for panel in heatmap_figure({"random": short}).panels] == ["random: whole run"]


def test_loads_are_those_of_the_whole_run() -> None:
    ((bar,),) = (bars(panel) for panel in load_figure({"balanced": LINES}, {"balanced": Look()}).panels)
    assert bar.values == {"0": 20, "1": 15}


def test_bands_reach_from_the_lowest_seed_to_the_highest(tmp_path: Path) -> None:
    other = [{**line, "accuracy": line["accuracy"] + 0.2} if "accuracy" in line else line for line in LINES]
    group = [summary(written(lines, tmp_path / name) / "ledger.jsonl") for name, lines in (("one", LINES), ("two", other))]
    line = lines_of(curve_figure({"balanced": group}, "accuracy", "", {"balanced": Look()}).panels[0])[0]
    assert [round(y) for y in line.y] == [20, 30, 40, 60, 70, 70]
    assert [round(y) for y in line.high] == [30, 40, 50, 70, 80, 80]
    assert [round(y) for y in line.low] == [10, 20, 30, 50, 60, 60]


def test_without_clients_there_is_no_personalised_panel() -> None:
    plain = {"accuracy_by_cluster": {"plain": 0.5}}
    both = plain | {"personal_by_client": {"plain/0": 0.6}}
    own = looks(["sync", "aligned"])
    assert [panel.title for panel in client_figure({"sync": [plain]}, own).panels] == ["global model"]
    panels = client_figure({"sync": [plain], "aligned": [both]}, own).panels
    assert [[dict(bar.values) for bar in bars(panel)] for panel in panels] == [
        [{"plain": 50}, {"plain": 50}],
        [{"plain/0": 60}],
    ]


def test_a_page_of_two_kinds_of_protocols_stands_alone(tmp_path: Path) -> None:
    plain = [line for line in LINES if line["event"] not in ("align", "round")]
    plain = [{k: v for k, v in line.items() if not k.startswith("personal")} for line in plain]
    runs = {"sync <x>": [written(plain, tmp_path / "sync")], "aligned": [written(LINES, tmp_path / "aligned")]}
    rows = medians({name: [summary(at / "ledger.jsonl") for at in group] for name, group in runs.items()})
    write_comparison(runs, rows, tmp_path / "report.html", "Two & more")
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Two &amp; more</h1>" in page
    assert "sync &lt;x&gt;" in page
    assert "aligned: whole run" in page
    assert "memory 1" in page
    for outside in ('src="http', "src='http", "<link", "@import"):
        assert outside not in page


def test_who_sat_out_is_escaped() -> None:
    table = sat_out_table({"x": {"sat_out": {"<b>": {"memory": 2}}}})
    assert "&lt;b&gt;" in table
    assert "memory 2" in table
    assert "No client" in sat_out_table({"x": {}})
