"""Figures of client–expert alignment: their data, and what a page of a comparison holds."""

import json
from pathlib import Path
from typing import Any

from fedexperts.ledger import summary
from fedexperts.report.alignment import WHOLE, heatmap_figure, load_figure, periods, sat_out_table
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
    first, second, third, whole = (trace.z for trace in heatmap_figure({"balanced": LINES}).data)
    assert first == ([1, 0], [0, 1])
    assert second == ([1, 0], [0, 0])  # b sat out
    assert third == ([0, 1], [1, 0])
    assert whole == ([0.5, 0.5], [0.5, 0.25])


def test_every_policy_has_a_row_of_panels_and_every_round_is_in_one_third() -> None:
    figure = heatmap_figure({"random": LINES, "optimal": LINES})
    titles = [note.text for note in figure.layout.annotations]
    assert len(figure.data) == 8
    assert titles[0] == "random: first third"
    assert titles[-1] == "optimal: whole run"
    found = periods(LINES)
    whole = found.pop(WHOLE)
    assert [assigned for third in found.values() for assigned in third] == whole


def test_a_run_of_two_rounds_has_no_thirds() -> None:
    short = ledger([{"a": [0]}, {"a": [1]}], [[5, 0], [0, 5]], [0.1, 0.2, 0.3])
    assert [note.text for note in heatmap_figure({"random": short}).layout.annotations] == ["random: whole run"]


def test_loads_are_those_of_the_whole_run() -> None:
    (bar,) = load_figure({"balanced": LINES}, {"balanced": "#000000"}).data
    assert list(bar.y) == [20, 15]


def test_bands_reach_from_the_lowest_seed_to_the_highest(tmp_path: Path) -> None:
    other = [{**line, "accuracy": line["accuracy"] + 0.2} if "accuracy" in line else line for line in LINES]
    group = [summary(written(lines, tmp_path / name) / "ledger.jsonl") for name, lines in (("one", LINES), ("two", other))]
    band, line = curve_figure({"balanced": group}, "accuracy", "", {"balanced": "#000000"}).data[:2]
    assert [round(y) for y in line.y] == [20, 30, 40, 60, 70, 70]
    assert [round(y) for y in band.y][:6] == [30, 40, 50, 70, 80, 80]
    assert [round(y) for y in band.y][6:] == [60, 60, 50, 30, 20, 10]


def test_without_clients_there_is_no_personalised_panel() -> None:
    plain = {"accuracy_by_cluster": {"plain": 0.5}}
    both = plain | {"personal_by_client": {"plain/0": 0.6}}
    colours = {"sync": "#000000", "aligned": "#111111"}
    assert len(client_figure({"sync": [plain]}, colours).data) == 1
    assert [list(bar.y) for bar in client_figure({"sync": [plain], "aligned": [both]}, colours).data] == [[50], [50], [], [60]]


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
