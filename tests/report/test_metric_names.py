"""Metrics go by their own names and in their own units: only an accuracy is a percentage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from charts import bars, lines_of
from fedexperts.data.objective import Judged, total
from fedexperts.ledger import summary
from fedexperts.report.chart import Chart, looks
from fedexperts.report.compare_html import client_figure, curve_figure
from fedexperts.report.compare_table import comparison_table
from fedexperts.report.progress import cluster_figure, energy_figure, progress_figure
from fedexperts.report.table import accuracy_table, axis, metrics_rows, results_table, written
from fedexperts.runs.comparison import medians
from terminal import printed

TASKS = {"a": "spearman", "b": "accuracy"}


class _Task:
    def __init__(self, metric: str):
        self.metric = metric


def judged(**metrics: str) -> dict[str, Any]:
    objectives: dict[str, Any] = {name: _Task(metric) for name, metric in metrics.items()}
    scores = {name: Judged(10 * n, 1.0, n / 10, {}) for n, name in enumerate(metrics, start=1)}
    return total(objectives, scores)


def ledger(path: Path, **metrics: str) -> Path:
    """Of a run with two clusters, judged twice."""
    facts = {**judged(**metrics), "accuracy_by_cluster": {name: 0.1 + 0.4 * n for n, name in enumerate(metrics)}}
    costs = {"steps": 1, "uplink_B": 10, "downlink_B": 10}
    run = {"protocol": "sync", "seed": 1, "target": 0.2, "plateau": [5, 0.1], "clusters": {name: [1] for name in metrics}}
    lines: list[dict[str, Any]] = [
        {"event": "run", **run},
        {"event": "baselines", "clusters": {"a": {"majority": 0.0, "tfidf": 0.3}, "b": {"majority": 0.5, "tfidf": None}}},
        {"event": "evaluate", "cycle": 0, **costs, **facts},
        {"event": "end", "cycles": 1, "late": False, "unsent_rounds": 0, **costs, **facts},
    ]
    path.write_text("".join(json.dumps({"t_s": 0, **line}) + "\n" for line in lines))
    return path


# ---- names


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"a": "accuracy", "b": "accuracy"}, "accuracy"),
        ({"a": "spearman"}, "spearman"),
        ({"a": "spearman", "b": "spearman"}, "mean spearman"),
        ({"a": "accuracy", "b": "spearman", "c": "accuracy"}, "mean of accuracy and spearman"),
        ({"a": "f1", "b": "matthews", "c": "pearson"}, "mean of f1, matthews and pearson"),
    ],
)
def test_a_figure_over_clusters_has_a_name(metrics: dict[str, str], name: str) -> None:
    found = judged(**metrics)
    assert found["metric"] == name
    assert found.get("metric_by_cluster", dict.fromkeys(metrics, "accuracy")) == metrics
    assert ("metric_by_cluster" in found) == (name != "accuracy")


def test_only_an_accuracy_is_a_percentage() -> None:
    assert written(0.5, "accuracy") == "50.0%"
    assert written(-0.25, "spearman") == "-0.250"
    assert written(0.5, "mean of accuracy and spearman") == "0.500"
    assert written(None, "accuracy") == "–"


# ---- where they are read


def test_a_summary_says_what_was_measured(tmp_path: Path) -> None:
    found = summary(ledger(tmp_path / "l", **TASKS))
    assert found["metric"] == "mean of spearman and accuracy"
    assert found["metric_by_cluster"] == TASKS
    plain = summary(ledger(tmp_path / "l", a="accuracy", b="accuracy"))
    assert (plain["metric"], plain["metric_by_cluster"]) == ("accuracy", {"a": "accuracy", "b": "accuracy"})


def test_the_results_table_names_metrics(tmp_path: Path) -> None:
    text = printed(results_table({"sync": summary(ledger(tmp_path / "l", **TASKS))}), 200)
    assert "cost to mean of spearman and accuracy 0.200 on" in text
    assert "final score by cluster" in text
    assert re.search(r"\ba,\s+b,\s+run\s+spearman\s+accuracy", text)
    row = next(line for line in text.splitlines() if line.strip().startswith("sync") and "50.0%" in line)
    assert "0.100" in row
    assert "10.0%" not in text
    assert next(line for line in text.splitlines() if "TF-IDF" in line).split() == ["TF-IDF", "0.300", "–"]
    assert next(line for line in text.splitlines() if "majority" in line).split() == ["majority", "0.000", "50.0%"]


def test_one_metric_of_all_is_in_the_title(tmp_path: Path) -> None:
    text = printed(results_table({"sync": summary(ledger(tmp_path / "l", a="pearson", b="pearson"))}), 200)
    assert "cost to mean pearson 0.200" in text
    assert "final pearson by cluster" in text
    assert "%" not in text
    plain = printed(results_table({"sync": summary(ledger(tmp_path / "l", a="accuracy", b="accuracy"))}), 200)
    assert "cost to 20% accuracy on" in plain
    assert "final accuracy by cluster" in " ".join(plain.split())


def test_runs_with_different_metrics_stand_side_by_side(tmp_path: Path) -> None:
    one = summary(ledger(tmp_path / "1", a="accuracy", b="accuracy"))
    other = summary(ledger(tmp_path / "2", a="matthews", b="accuracy"))
    text = printed(accuracy_table({"one": one, "other": other}), 200)
    assert "10.0%" in next(line for line in text.splitlines() if line.strip().startswith("one"))
    assert "0.100 matthews" in next(line for line in text.splitlines() if line.strip().startswith("other"))


def test_a_comparison_names_its_metric(tmp_path: Path) -> None:
    rows = medians({"sync": [summary(ledger(tmp_path / "l", **TASKS))]})
    assert rows["sync"]["metric"] == "mean of spearman and accuracy"
    text = " ".join(printed(comparison_table(rows, 0.2), 200).split())
    assert "costs to mean of spearman and accuracy 0.200" in text
    assert "score" in text
    assert "0.150" in text
    assert "%" not in text.partition("final score by cluster")[0]
    plain = printed(
        comparison_table(medians({"sync": [summary(ledger(tmp_path / "l", a="accuracy", b="accuracy"))]}), 0.2), 200
    )
    assert "costs to 20% accuracy" in " ".join(plain.split())


def named(chart: Chart, name: str) -> dict[str, float]:
    return next(dict(bar.values) for bar in bars(chart.panels[0]) if bar.name == name)


def test_figures_name_metrics(tmp_path: Path) -> None:
    found = summary(ledger(tmp_path / "l", a="spearman"))
    found["energy_J_per_device"] = dict.fromkeys(found["energy_J_per_device"], 1.0)
    progress = progress_figure({"sync": found})
    assert progress.title == "Spearman and what it cost"
    assert [panel.y for panel in progress.panels] == ["global spearman on test data"] * 4
    assert list(lines_of(progress.panels[0])[0].y) == [0.1, 0.1]
    chart = cluster_figure({"sync": found})
    assert (chart.panels[0].x, named(chart, "sync")) == ("spearman", {"a": 0.1})
    assert "Spearman by cluster" in chart.title
    assert "spearman" in energy_figure({"sync": found}).panels[0].y
    curves = curve_figure({"sync": [found]}, "accuracy", "global accuracy on test data, %", looks(["sync"]))
    assert curves.panels[0].y == "global spearman on test data"
    assert client_figure({"sync": [found]}, looks(["sync"])).title == "Final spearman by cluster"
    plain = cluster_figure({"sync": summary(ledger(tmp_path / "l", a="accuracy", b="accuracy"))})
    assert (plain.panels[0].x, named(plain, "sync")) == ("accuracy, %", {"a": 10.0, "b": 50.0})


def test_axes_and_tables_say_where_lower_is_better() -> None:
    assert axis("perplexity") == (1.0, "perplexity (lower is better)")
    assert axis("spearman") == (1.0, "spearman")
    row = {"metrics_by_cluster": {"a": {"accuracy": 0.5, "perplexity": 7.25}, "b": {"perplexity": None}}}
    title, heads, rows = metrics_rows({"run": row})
    assert title == "all metrics by cluster, on test data"
    assert heads == ["run", "metric", "a", "b"]
    assert rows == [["run", "accuracy", "50.0%", "–"], ["run", "perplexity (lower is better)", "7.250", "–"]]
