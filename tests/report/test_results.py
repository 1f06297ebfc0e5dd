"""What a run shows of its own: results of clients, warnings, training loss and settings, in tables, JSON and on its page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from charts import lines_of, maps
from fedexperts import InputError
from fedexperts.cli.main import app
from fedexperts.ledger import summary
from fedexperts.report.clients import routing_figure
from fedexperts.report.compare_html import write_comparison
from fedexperts.report.compare_table import comparison_table
from fedexperts.report.html import write_report
from fedexperts.report.losses import loss_figure
from fedexperts.report.table import client_rows, cost_rows, picks_rows, results_table
from fedexperts.runs.comparison import medians
from terminal import printed

OLD = Path(__file__).resolve().parent.parent / "old_runs"
USE = {"a": {"radio_J": 1.0, "compute_J": 1.0, "idle_J": 1.0}, "b": {"radio_J": 1.0, "compute_J": 1.0, "idle_J": 1.0}}


def folder(tmp_path: Path, lines: list[dict[str, Any]], name: str = "run") -> Path:
    (tmp_path / name).mkdir()
    (tmp_path / name / "ledger.jsonl").write_text("".join(json.dumps({"t_s": 0.0, **line}) + "\n" for line in lines))
    return tmp_path / name


def begun(**facts: Any) -> dict[str, Any]:
    clusters = {"a": [3], "b": [3]}
    return {"event": "run", "protocol": "sync", "seed": 1, "clusters": clusters, "target": None, "plateau": [3, 0.01], **facts}


def judged(event: str, **facts: Any) -> dict[str, Any]:
    of = {
        "accuracy": 0.5,
        "loss": 1.0,
        "accuracy_by_cluster": {"a": 0.25, "b": 0.75},
        "steps": 8,
        "uplink_B": 10,
        "downlink_B": 20,
    }
    ended = {"cycles": 2, "late": False, "unsent_rounds": 0} if event == "end" else {"cycle": 0}
    return {"event": event, **of, **ended, **facts}


def trained(cluster: str, loss: float, steps: int = 2, **facts: Any) -> dict[str, Any]:
    return {
        "event": "train",
        "cluster": cluster,
        "phase": "connected",
        "parts": [],
        "rounds": 1,
        "steps": steps,
        "loss": loss,
        **facts,
    }


ENERGY = {"event": "energy", "cycle": 1, "per_device": USE}
LINES = [
    begun(cycles=5),
    judged("evaluate"),
    trained("a", 3.0, steps=3),
    trained("a", 1.0, steps=1),
    trained("b", 4.0),
    ENERGY,
    judged("evaluate", cycle=1),
    trained("b", 2.0),
    trained("b", -1.0, goal="contrast"),
    ENERGY,
    judged("end", unsent_rounds=3),
]


def test_the_training_loss_is_weighed_by_steps_from_evaluation_to_evaluation(tmp_path: Path) -> None:
    history = summary(folder(tmp_path, LINES) / "ledger.jsonl")["history"]
    assert [point["training_loss"] for point in history] == [
        {},
        {"task": {"a": 2.5, "b": 4.0}},
        {"task": {"b": 2.0}, "contrast": {"b": -1.0}},
    ]


@pytest.mark.parametrize("loss", ["low", "1e999", "NaN", "null"])
def test_a_loss_that_is_no_number_is_named_with_its_line(loss: str, tmp_path: Path) -> None:
    path = folder(tmp_path, LINES) / "ledger.jsonl"
    path.write_text(path.read_text().replace('"loss": 4.0', f'"loss": {loss if loss != "low" else json.dumps(loss)}'))
    with pytest.raises(InputError, match="line 5: loss: "):
        summary(path)


def test_a_figure_has_a_panel_for_what_is_learnt_and_a_line_for_each_cluster(tmp_path: Path) -> None:
    figure = loss_figure({"sync": summary(folder(tmp_path, LINES) / "ledger.jsonl")})
    assert figure is not None
    assert [panel.title for panel in figure.panels] == ["sync", "sync, contrast of views"]
    assert [(line.name, list(line.x), list(line.y)) for panel in figure.panels for line in lines_of(panel)] == [
        ("a", [1], [2.5]),
        ("b", [1, 2], [4.0, 2.0]),
        ("b", [2], [-1.0]),
    ]
    many = {f"c{i}": float(i) for i in range(9)}
    row = {"history": [{"cycle": 1, "training_loss": {"task": many}}]}
    figure = loss_figure({"sync": row})
    assert figure is not None
    (line,) = lines_of(figure.panels[0])
    assert (list(line.low), list(line.y), list(line.high)) == ([0.0], [4.0], [8.0])
    assert loss_figure({"old": {"history": [{"cycle": 1}]}}) is None


def test_warnings_stand_in_the_summary_and_on_pages(tmp_path: Path) -> None:
    refused = {"event": "refuse", "cluster": "a", "device": "a/0", "parts": ["gate"], "reason": "not finite"}
    rates = {"event": "rates", "train.lr_gate": 0.5}
    lines = [LINES[0], {"event": "warning", "text": "labels <b>"}, refused, refused, rates, *LINES[1:]]
    run = folder(tmp_path, lines)
    found = summary(run / "ledger.jsonl")
    assert found["warnings"] == [
        "labels <b>",
        "the plan ended after 2 of train.cycles = 5 orbital cycles",
        "up to 3 local rounds of a device were never uploaded; the plan ended before",
        "from 0 s on the run went on with train.lr_gate = 0.5",
        "a/0 has given up gate, as not finite, 2 times",
    ]
    write_report({"one": run}, tmp_path / "page.html", "x")
    write_comparison({"one": [run]}, medians({"one": [found]}), tmp_path / "compared.html", "x")
    for page in ("page.html", "compared.html"):
        text = (tmp_path / page).read_text()
        assert "<li>labels &lt;b&gt;</li>" in text
        assert "the plan ended after 2 of train.cycles = 5 orbital cycles" in text
        assert "up to 3 local rounds of a device were never uploaded" in text
    still = folder(tmp_path, [begun(cycles=2), judged("evaluate"), ENERGY, judged("end")], "still")
    write_report({"one": still}, tmp_path / "page.html", "x")
    assert "Warnings" not in (tmp_path / "page.html").read_text()
    idle = folder(tmp_path, [begun(cycles=2), judged("evaluate"), ENERGY, judged("end", steps=0)], "idle")
    assert "no gradient step was made" in summary(idle / "ledger.jsonl")["warnings"][0]


def test_a_report_says_them_in_the_terminal_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder(tmp_path, LINES)
    app(["report", str(run), "--out", str(tmp_path / "page.html")], standalone_mode=False)
    assert "warning: run: the plan ended after 2 of train.cycles = 5 orbital cycles" in capsys.readouterr().err


def test_a_network_shows_what_clients_get_and_no_gamma() -> None:
    found = summary(OLD / "networked" / "ledger.jsonl")
    assert (found["links"], found["gamma"]) == ("clients", {})
    end = json.loads((OLD / "networked" / "ledger.jsonl").read_text().splitlines()[-1])
    for key in (
        "local_ratio",
        "inference_B",
        "accuracy_by_k",
        "macro_f1",
        "macro_auc",
        "personal_accuracy",
        "routing",
        "even_test",
    ):
        assert found[key] == end[key]
    groups, heads, _ = cost_rows({"network": found})
    assert "γ" not in heads
    assert (groups, heads) == (["", "", *["whole run"] * 3], ["run", "final", "cycles", "steps", "MB up"])
    text = printed(results_table({"network": found}))
    assert "by client" in text
    assert "cluster" not in text
    _, heads, (own, even) = client_rows({"network": found})
    named = dict(zip(heads, own, strict=True))
    assert named["at\nhome"] == f"{end['local_ratio']:.1%}"
    assert named["B a\nsample"] == f"{end['inference_B']:.0f}"
    assert named["macro\nF1"] == f"{end['macro_f1']:.3f}"
    assert named["personal"] == f"{end['personal_accuracy']:.1%}"
    assert dict(zip(heads, even, strict=True))["final"] == f"{end['even_test']['accuracy']:.1%}"
    _, heads, (row,) = picks_rows({"network": found})
    assert dict(zip(heads, row, strict=True)) == {
        "run": "network",
        **{f"k = {k}": f"{share:.1%}" for k, share in end["accuracy_by_k"].items()},
    }
    assert "…" not in text
    figure = routing_figure({"network": found})
    assert figure is not None
    (heat,) = maps(figure.panels[0])
    assert heat.values == end["routing"]
    assert list(heat.rows) == list(end["accuracy_by_cluster"])


def test_the_pages_of_networks_and_alignments_say_it_too(tmp_path: Path) -> None:
    write_report({"network": OLD / "networked"}, tmp_path / "page.html", "x")
    page = (tmp_path / "page.html").read_text()
    for words in ("B a sample", "at home", "k = 2", "Who asks whom", "by client", "even shares", "macro AUC"):
        assert words in page
    assert "γ" not in page
    write_report({"aligned": OLD / "aligned"}, tmp_path / "page.html", "x")
    page = (tmp_path / "page.html").read_text()
    for words in ("<th>personal</th>", "load CV", "CV a round", "by client", "aligned, personalised"):
        assert words in page
    assert "B a sample" not in page
    text = printed(results_table({"aligned": summary(OLD / "aligned" / "ledger.jsonl")}))
    assert "personal" in text
    assert "γ" not in text


def test_gamma_stands_where_clusters_own_experts() -> None:
    found = summary(OLD / "ems-fl" / "ledger.jsonl")
    assert found["links"] == "clusters"
    _, heads, ((_, gamma, *_),) = cost_rows({"ems-fl": found})
    assert heads[1] == "γ"
    assert float(gamma) == pytest.approx(sum(found["gamma"].values()) / len(found["gamma"]), abs=0.005)


def test_f1_and_auc_of_clusters_are_means_over_those_that_have_one(tmp_path: Path) -> None:
    metrics = {"a": {"macro_f1": 0.5, "macro_auc": 0.75}, "b": {"macro_f1": 0.25, "macro_auc": None}}
    lines = [begun(), judged("evaluate"), ENERGY, judged("end", metrics_by_cluster=metrics)]
    found = summary(folder(tmp_path, lines) / "ledger.jsonl")
    assert (found["mean_f1"], found["mean_auc"]) == (0.375, 0.75)
    assert found["metrics_by_cluster"] == metrics


def test_settings_are_on_the_page_folded_and_where_runs_differ(tmp_path: Path) -> None:
    one, other = (Path(shutil.copytree(OLD / "sync", tmp_path / name)) for name in ("one", "other"))
    text = (other / "scenario.toml").read_text()
    rate = re.search(r"^lr_expert = (.*)$", text, re.MULTILINE)
    assert rate is not None
    changed = text.replace(rate[0], "lr_expert = 0.125").replace('name = "small"', 'name = "<script>x"')
    (other / "scenario.toml").write_text(changed)
    write_report({"one": one}, tmp_path / "page.html", "x")
    page = (tmp_path / "page.html").read_text()
    assert "<details class='settings'><summary>one: all settings, with every default</summary>" in page
    assert f"<tr><td>train.lr_expert</td><td>{rate[1]}</td></tr>" in page
    assert "Where runs differ" not in page
    write_report({"one": one, "other": other}, tmp_path / "page.html", "x")
    page = (tmp_path / "page.html").read_text()
    assert f"<tr><td>train.lr_expert</td><td>{rate[1]}</td><td>0.125</td></tr>" in page
    assert "&lt;script&gt;x" in page
    assert "<script>x" not in page
    (other / "scenario.toml").write_text("= <no toml>")
    (one / "scenario.toml").unlink()
    write_report({"one": one, "other": other}, tmp_path / "page.html", "x")
    page = (tmp_path / "page.html").read_text()
    assert "one: no scenario.toml" in page
    assert "other: cannot be read" in page


def seeds(tmp_path: Path, *shares: float) -> list[dict[str, Any]]:
    found = []
    for seed, share in enumerate(shares):
        beside = {"a": {"majority": 0.5, "tfidf": 0.25 + share}, "b": {"majority": 0.125, "tfidf": None}}
        by = {"accuracy": share, "accuracy_by_cluster": {"a": share, "b": 0.5}}
        lines = [begun(seed=seed), {"event": "baselines", "clusters": beside}, judged("evaluate"), ENERGY, judged("end", **by)]
        found.append(summary(folder(tmp_path, lines, f"run{seed}") / "ledger.jsonl"))
    return found


def test_a_comparison_has_results_and_baselines_by_cluster(tmp_path: Path) -> None:
    rows = medians({"sync": seeds(tmp_path, 0.25, 0.75, 0.5)})
    row = rows["sync"]
    assert row["accuracy_by_cluster"] == {"a": 0.5, "b": 0.5}
    assert row["by_seed"]["accuracy_by_cluster"] == [{"a": share, "b": 0.5} for share in (0.25, 0.75, 0.5)]
    assert row["baselines"] == {"a": {"majority": 0.5, "tfidf": 0.75}, "b": {"majority": 0.125, "tfidf": None}}
    lines = [" ".join(line.split()) for line in printed(comparison_table(rows, None)).splitlines()]
    at = lines.index("final accuracy by cluster")
    table = ["run a b", "sync 50.0% 50.0%", "25.0–75.0", "majority 50.0% 12.5%", "TF-IDF 75.0% –"]
    assert lines[at + 1 :] == [*table, "below a result its lowest and its highest over seeds"]
    runs = {"sync": [tmp_path / f"run{seed}" for seed in range(3)]}
    write_comparison(runs, rows, tmp_path / "page.html", "x")
    page = (tmp_path / "page.html").read_text()
    assert "<td>50.0%<br><span class='spread'>25.0–75.0</span></td><td>50.0%</td>" in page
    assert "<td>majority</td><td>50.0%</td><td>12.5%</td>" in page
    assert "</svg>TF-IDF</li>" in page


def test_one_seed_has_no_spread_and_says_so(tmp_path: Path) -> None:
    rows = medians({"sync": seeds(tmp_path, 0.25)})
    text = printed(comparison_table(rows, None))
    assert "seeds" not in text
    assert "target" not in text  # there is none
    assert "–25" not in text
    write_comparison({"sync": [tmp_path / "run0"]}, rows, tmp_path / "page.html", "x")
    page = (tmp_path / "page.html").read_text()
    assert "Of one seed." in page
    for words in ("lowest", "over 1 seed", "median over seeds", "<span class='spread'>"):
        assert words not in page
