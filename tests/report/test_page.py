"""What a report's page says of runs, and what must not stand on one."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from charts import bars, lines_of, maps, spans
from fedexperts import InputError
from fedexperts.cli.main import app
from fedexperts.ledger import read, summary
from fedexperts.report.chart import Bars, Chart, Line, Panel, as_csv, looks, short
from fedexperts.report.contacts import contact_figure
from fedexperts.report.contacts import spans as spans_of
from fedexperts.report.draw import NARROW, WIDE, figure, svg
from fedexperts.report.html import relevance_figure, write_report
from fedexperts.report.measured import bound_section, dense_rows
from fedexperts.report.page import shown
from fedexperts.report.progress import cluster_figure, progress_figure
from fedexperts.report.work import cost_table, expert_figure, peak_B, stage_table
from ledgers import NAME, aligned_lines, folder, owners_lines

OLD = Path(__file__).resolve().parent.parent / "old_runs"


def summaries(*runs: Path) -> dict[str, Any]:
    return {run.name: summary(run / "ledger.jsonl") for run in runs}


def lines(run: Path) -> list[dict[str, Any]]:
    return list(read(run / "ledger.jsonl"))


def page(tmp_path: Path, *runs: Path) -> str:
    write_report({run.name: run for run in runs}, tmp_path / "page.html", "x")
    return (tmp_path / "page.html").read_text()


# --- what it says


def test_curves_end_where_the_run_ends_and_the_flush_is_marked(tmp_path: Path) -> None:
    flushed, plain = (folder(tmp_path / name, owners_lines("sync", seed=1, flush=name == "f")) for name in ("f", "p"))
    chart = progress_figure(summaries(flushed, plain))
    assert [panel.x for panel in chart.panels] == [
        "orbital cycles",
        "simulated hours",
        "gradient steps, of all devices",
        "uplink, MB",
    ]
    first, second = lines_of(chart.panels[0])
    assert (list(first.x), first.late) == ([0, 1, 2, 3, 4, 5, 6, 7], [7])
    assert (list(second.x), second.late) == ([0, 1, 2, 3, 4, 5, 6, 6], [])
    assert list(lines_of(chart.panels[1])[0].x)[-1] == pytest.approx((6 * 5400 + 500) / 3600)
    assert "in the final flush" in chart.note
    assert "flush" not in progress_figure(summaries(plain)).note
    assert "after the final flush" in svg(chart, WIDE)
    heads, rows = chart.table()
    assert [row[heads.index("final flush")] for row in rows if row[0] == "f"][-2:] == ["", "yes"]


def test_the_first_evaluation_at_the_target_has_a_star(tmp_path: Path) -> None:
    row = summaries(folder(tmp_path / "r", owners_lines("sync", seed=1)))["r"]
    (line,) = lines_of(progress_figure({"r": row}).panels[0])
    assert [line.x[i] for i in line.stars] == [row["cycles_to_target"]]
    assert line.y[next(iter(line.stars))] >= 50


def test_bars_stand_before_and_after_and_beside_baselines(tmp_path: Path) -> None:
    one, other = (folder(tmp_path / name, owners_lines(name, seed=seed)) for name, seed in (("sync", 1), ("ems-fl", 2)))
    before_after, final = cluster_figure(summaries(one, other)).panels
    assert [(bar.name, bar.values["lisbon"]) for bar in bars(before_after)] == [
        ("before training", 10),
        ("sync", 87.5),
        ("ems-fl", 87.5),
    ]
    assert [bar.name for bar in bars(final)] == ["sync", "ems-fl", "majority", "TF-IDF"]
    assert bars(final)[2].values["lisbon"] == 20
    assert "lisbon" not in bars(final)[3].values


def test_many_clients_are_drawn_in_order(tmp_path: Path) -> None:
    many = folder(tmp_path / "many", aligned_lines(clients=70, experts=8, rounds=3))
    chart = cluster_figure(summaries(many))
    assert not any(bars(panel) for panel in chart.panels)
    curve = lines_of(chart.panels[0])[0]
    assert list(curve.y) == sorted(curve.y)
    assert len(curve.y) == 70
    assert chart.panels[0].x == "clients, from the lowest to the highest"


def test_contacts_that_are_lost_end_there_and_the_flush_is_told_apart(tmp_path: Path) -> None:
    run = folder(tmp_path / "r", owners_lines("sync", seed=1, flush=True))
    found = spans_of(lines(run))
    assert found["contact that was lost"] == [("a cluster with quite a long name", 12600, 12920)]
    assert found["final flush"] == [("lisbon", 32460, 32900)]  # the plan would end it at 33,000 s, and the run ended before
    assert len(found["contact"]) == 17
    chart = contact_figure({"r": lines(run), "same": lines(run)})
    assert chart is not None
    (panel,) = chart.panels  # alike, so they share it
    assert panel.x == "hours after the start"
    assert [mark.name for mark in spans(panel)] == ["contact", "contact that was lost", "final flush"]
    assert list(panel.rules) == pytest.approx([1.5 * cycle for cycle in range(1, 7)])
    assert contact_figure({"r": [line for line in lines(run) if line["event"] not in ("contact", "flush")]}) is None


def test_clients_that_are_in_view_together_share_a_row(tmp_path: Path) -> None:
    run = folder(tmp_path / "r", aligned_lines(clients=12, experts=4, rounds=2))
    chart = contact_figure({"r": lines(run)})
    assert chart is not None
    assert chart.panels[0].names() == ["town-0/0 and 11 more"]


def test_of_many_clusters_the_first_are_drawn(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = [{"event": "run"}]
    for i in range(300):
        found.append({"event": "contact", "cluster": f"c{i}", "satellite": "s", "t_s": 60.0 * i, "until_s": 60.0 * i + 50})
    chart = contact_figure({"r": [*({"t_s": 0.0, **line} for line in found), {"t_s": 18000.0, "event": "end"}]})
    assert chart is not None
    assert len(chart.panels[0].names()) == 60
    assert "The first 60 of 300 are drawn." in chart.note


def test_the_load_of_experts_is_in_steps(tmp_path: Path) -> None:
    run = folder(tmp_path / "r", owners_lines("sync", seed=1))
    chart = expert_figure({"r": lines(run)})
    assert chart is not None
    assert bars(chart.panels[0])[0].values == {str(m): 24 for m in range(6)}
    assert expert_figure({"r": lines(folder(tmp_path / "a", aligned_lines(4, 4, 2)))}) is None


def test_memory_and_uplink_are_those_of_a_device(tmp_path: Path) -> None:
    one, other = (folder(tmp_path / str(seed), owners_lines("sync", seed=seed)) for seed in (1, 2))
    table = cost_table({"one": lines(one), "other": lines(other)}, {"one": one, "other": other})
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    # two experts of 20 kB and a gate of 0.4 kB; 80 kB of two devices; 1.2 and 2.4 MB of six
    assert cells[0] == ["one", "0.040", "0.040", "0.040", "0.200", "× 1.00", "0.50"]
    assert cells[1] == ["other", "0.040", "0.040", "0.040", "0.400", "× 2.00", "0.50"]


def test_a_run_that_sends_nothing_is_not_the_least_that_others_are_measured_by(tmp_path: Path) -> None:
    one, other = (folder(tmp_path / name, owners_lines("sync", seed=2)) for name in ("one", "other"))
    silent = [{**line, "uplink_B": 0} if "uplink_B" in line else line for line in lines(other)]
    table = cost_table({"one": lines(one), "other": silent}, {"one": one, "other": other})
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [row[4:6] for row in cells] == [["0.400", "× 1.00"], ["0.000", "–"]]


def test_stages_of_a_network_have_their_rounds_and_bytes() -> None:
    table = stage_table({"n": lines(OLD / "networked")})
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [row[1:6] for row in cells] == [
        ["fedsc", "1", "0–0", "3", "6"],
        ["experts", "1", "1–1", "3", "6"],
        ["federated", "1", "2–2", "3", "6"],
    ]
    end = lines(OLD / "networked")[-1]
    assert sum(float(row[8]) for row in cells) == pytest.approx(end["peer_B"] / 1e6, abs=1e-3)
    assert sum(float(row[6]) for row in cells) == pytest.approx(end["uplink_B"] / 1e6, abs=0.1)
    assert stage_table({"s": lines(OLD / "sync")}) == ""


def test_owned_experts_are_framed(tmp_path: Path) -> None:
    chart = relevance_figure({"r": lines(folder(tmp_path / "r", owners_lines("ems-fl", seed=1)))})
    (heat,) = maps(chart.panels[0])
    assert list(heat.rows) == ["lisbon", "a cluster with quite a long name", NAME]
    assert heat.framed == {(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5)}
    assert heat.values[1] == [0.1, 0.1, 0.8, 0.8, 0.1, 0.1]


BOUND = {
    "ems_fl": {"published": 12.5, "corrected": None},
    "sync": {"published": 25.0, "corrected": 30.0},
    "constants": {"grad_expert": 1.5, "grad_gate": 0.25},
}


def test_bounds_stand_beside_measured_gradients_where_they_were_computed(tmp_path: Path) -> None:
    one, other = (folder(tmp_path / name, owners_lines("sync", seed=seed)) for name, seed in (("one", 1), ("other", 2)))
    assert bound_section({"one": one, "other": other}) == ""
    (one / "bound.json").write_text(json.dumps(BOUND))
    (other / "bound.json").write_text('{"ems_fl": 3}')
    text = bound_section({"one": one, "other": other})
    assert "<td>one</td><td>12.5</td><td>–</td><td>25</td><td>30</td><td>1.5</td><td>0.25</td>" in text
    assert "other: bound.json cannot be read" in text
    (other / "bound.json").write_text(json.dumps(BOUND).replace("12.5", "1" + "0" * 400))
    assert "other: bound.json cannot be read" in bound_section({"other": other})
    os.mkfifo(tmp_path / "fifo")
    (other / "runtime.jsonl").unlink()
    (other / "runtime.jsonl").symlink_to(tmp_path / "fifo")
    assert peak_B(other) is None  # and does not wait for whoever would write into it


def judged(model: str, dense: bool = True, **scores: float) -> dict[str, Any]:
    return {
        "model": model,
        "dense": dense,
        "clusters": {name: {"metric": "accuracy", "accuracy": score} for name, score in scores.items()},
    }


def test_the_best_dense_model_stands_beside_where_models_were_judged(tmp_path: Path) -> None:
    run = folder(tmp_path / "one", owners_lines("ems-fl", seed=1))
    models = [judged("law", lisbon=0.25), judged("medicine", lisbon=0.375), judged("moe", dense=False, lisbon=0.75)]
    (run / "eval.json").write_text(json.dumps({"models": models}))
    rows, told = dense_rows({"one": run}, summaries(run))
    assert rows == {"best dense model": {"lisbon": 0.375}}
    assert told == "Best dense model: lisbon medicine."
    final = cluster_figure(summaries(run), rows, told).panels[1]
    assert {bar.name: bar.values.get("lisbon") for bar in bars(final)}["best dense model"] == 37.5
    assert told in page(tmp_path, run)
    for text in ("[]", "{", '{"models": 3}', json.dumps(models[0]).replace("0.25", "1" + "0" * 400)):
        (run / "eval.json").write_text(text)
        assert dense_rows({"one": run}, summaries(run))[1].startswith("one: eval.json cannot be read")


def test_what_a_run_can_be_repeated_from(tmp_path: Path) -> None:
    text = page(tmp_path, folder(tmp_path / "one", owners_lines("sync", seed=1)))
    assert "<th>python</th>" in text
    assert "<td>3.11.2</td>" in text
    assert "download='scenario.toml'" in text


def test_words_are_those_of_what_ledgers_hold(tmp_path: Path) -> None:
    text = page(tmp_path, folder(tmp_path / "one", aligned_lines(clients=4, experts=4, rounds=3)))
    assert "γ" not in text
    assert "client" in text
    assert "who owns them" not in text
    assert "Stages" not in text
    assert "the target" not in text


def test_other_targets_are_a_warning(tmp_path: Path) -> None:
    other = [{**line, "target": 0.625} if line["event"] == "run" else line for line in owners_lines("sync", seed=2)]
    text = page(tmp_path, folder(tmp_path / "one", owners_lines("sync", seed=1)), folder(tmp_path / "two", other))
    assert "targets differ (one 0.5, two 0.625)" in text


# --- its bytes


@pytest.mark.slow
def test_the_same_ledger_gives_the_same_page_in_any_process(tmp_path: Path) -> None:
    run = folder(tmp_path / "one", owners_lines("ems-fl", seed=1, flush=True))
    code = (
        "import sys, pathlib\nfrom fedexperts.report.html import write_report\n"
        "write_report({'one': pathlib.Path(sys.argv[1])}, pathlib.Path(sys.argv[2]), 'x')\n"
    )
    words = [sys.executable, "-c", code, str(run), str(tmp_path / "other.html")]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert (tmp_path / "other.html").read_text() == page(tmp_path, run)


def test_a_long_run_has_a_small_page() -> None:
    own = looks([f"run {i}" for i in range(8)])
    x = [float(i) for i in range(2000)]
    curves = [Line(name, x, [i * (j % 7) for j in range(2000)], look) for i, (name, look) in enumerate(own.items())]
    chart = Chart("x", "a figure of eight long runs", [Panel("cycles", "accuracy, %", curves)] * 4)
    assert len(svg(chart, WIDE)) + len(svg(chart, NARROW)) < 1_500_000
    assert svg(chart, WIDE).count("<title>") <= 4 * 8 * 32


def test_a_user_s_own_style_of_figures_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    chart = Chart("x", "a figure", [Panel("x", "y", [Line("a", [0, 1], [1, 2])])])
    before = svg(chart, WIDE)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert svg(chart, WIDE) == before
    assert matplotlib.rcParams["svg.fonttype"] == "path"  # and theirs is as it was


@pytest.mark.parametrize("name", ["$x$", "$\\frac{", "東京", "_hidden", "a\nb", "a\x07b", "<b>&amp;", "", "x" * 400])
def test_any_name_is_drawn_as_it_is_and_in_silence(name: str) -> None:
    panels = [
        Panel("x", "y", [Line(name, [0, 1], [1, 2]), Line("other", [0, 1], [2, 1])], title=name),
        Panel("x", "y", [Bars(name, {name: 1.0, "b": 2.0})]),
    ]
    drawn = svg(Chart(name, f"of {name}", panels), WIDE)
    texts = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", drawn)]
    assert short(name) in texts or not name  # beside its bar
    assert "<b>" not in drawn


def test_series_differ_without_colours() -> None:
    found = list(looks([f"r{i}" for i in range(8)]).values())
    for kind in ("dash", "marker", "hatch", "colour"):
        assert len({str(getattr(look, kind)) for look in found}) == 8
    first, control = looks(["sync", "sync, γ ≈ 1"]).values()
    assert first.colour == control.colour
    assert (control.hollow, control.dash) == (True, ":")


def test_numbers_of_a_figure_are_its_marks() -> None:
    panel = Panel("J", "use", [Bars("r", {"radio": 1.25, "idle, all": 3.0})])
    assert as_csv(*Chart("x", "a", [panel]).table()) == 'series,of,J\nr,radio,1.25\nr,"idle, all",3\n'
    band = Line("r", [0.0, 1.0], [1.0, 2.0], low=[0.5, 1.5], high=[1.5, 2.5])
    text = as_csv(*Chart("x", "a", [Panel("cycles", "loss", [band], "one"), Panel("cycles", "loss", [band], "two")]).table())
    assert text.splitlines()[:2] == ["panel,series,cycles,loss,low,high", "one,r,0,1,0.5,1.5"]
    assert len(text.splitlines()) == 5


def downloads(text: str) -> list[tuple[str, bytes]]:
    found = re.findall(r"download='([^']*)' href='data:application/octet-stream;base64,([^']*)'", text)
    return [(name, base64.b64decode(data)) for name, data in found]


def test_many_numbers_are_compressed_and_too_many_are_cut_and_said_so() -> None:
    def shown_of(rows: int) -> tuple[str, list[tuple[str, bytes]]]:
        x = [float(i) for i in range(rows)]
        curve = Line("r", x, [1 / (1 + math.sin(i) ** 2) for i in range(rows)])
        text = shown([Chart("Long", "a long run", [Panel("x", "y", [curve])])])
        return text, downloads(text)

    text, ((name, data),) = shown_of(100)
    assert (name, len(data.splitlines())) == ("long.csv", 101)
    assert ">CSV</a>" in text
    text, ((name, data),) = shown_of(8000)
    assert (name, len(gzip.decompress(data).splitlines())) == ("long.csv.gz", 8001)
    text, ((name, data),) = shown_of(60_000)
    kept = len(gzip.decompress(data).splitlines()) - 1
    assert len(data) <= 80_000
    assert f"CSV.GZ, the first {kept:,} of 60,000 rows" in text


def test_a_figure_that_a_run_has_not_is_not_shown() -> None:
    assert shown([None]) == ""


def test_axes_have_whole_numbers_where_all_are_whole() -> None:
    drawn = figure(Chart("x", "a", [Panel("cycles", "loss", [Line("r", [0, 1, 2], [0.5, 0.25, 0.125])])]))
    drawn.draw_without_rendering()
    assert [label.get_text() for label in drawn.axes[0].get_xticklabels() if 0 <= label.get_position()[0] <= 2] == [
        "0",
        "1",
        "2",
    ]


# --- what must not stand on one page


def report(*words: object) -> None:
    app(["report", *map(str, words)], standalone_mode=False)


def test_one_run_twice_is_refused(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", owners_lines("sync", seed=4))
    copy = Path(shutil.copytree(one, tmp_path / "copy"))
    with pytest.raises(InputError, match=r"one and .*copy: are one run twice, sync with seed 4, to the byte; name one of them"):
        report(one, copy, "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_runs_of_different_tasks_are_refused(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", owners_lines("sync", seed=1))
    other = [
        {**line, "metric": "spearman"} if line["event"] in ("evaluate", "end") else line for line in owners_lines("sync", 2)
    ]
    with pytest.raises(
        InputError, match="of different tasks, judged by accuracy and spearman; give each task a report of its own"
    ):
        report(one, folder(tmp_path / "two", other), "--out", tmp_path / "page.html")
    elsewhere = folder(tmp_path / "three", aligned_lines(clients=4, experts=4, rounds=3))
    with pytest.raises(InputError, match=r"of different tasks, with clusters .* and town-0; give each"):
        report(one, elsewhere, "--out", tmp_path / "page.html")


def test_a_half_written_run_is_named_with_what_mends_it(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", owners_lines("sync", seed=1))
    half = folder(tmp_path / "half", owners_lines("sync", seed=2)[:-1])
    with (half / "ledger.jsonl").open("a") as file:
        file.write('{"t_s": 9, "event": "en')  # torn, as by a kill
    with pytest.raises(InputError, match=r"half/ledger.jsonl: the run has not ended; finish it with fedexperts run --resume"):
        report(one, half, "--out", tmp_path / "page.html")
