"""Tables of the terminal at 80 columns: names and metrics stay whole, and every number is there."""

import re
from typing import Any

from fedexperts.cli.eval import eval_table
from fedexperts.report.compare_table import comparison_table
from fedexperts.report.stacked import Stacked
from fedexperts.report.table import accuracy_table, results_table
from fedexperts.runs.comparison import medians
from terminal import printed

TASKS = {"acceptability": "matthews", "inference": "accuracy", "paraphrase": "f1", "similarity": "pearson", "zh": "spearman"}
JOULES = {"radio_J": 1.0, "compute_J": 1.0, "idle_J": 1.0}


def summary(metrics: dict[str, str], **facts: Any) -> dict[str, Any]:
    scores = {name: 0.1 * i for i, name in enumerate(metrics, start=1)}
    costs = dict.fromkeys(("cycles_to_target", "steps_to_target", "uplink_B_to_target"), 5)
    return {
        "protocol": "aligned",
        "seed": 1,
        "links": "clients",
        "target": 0.5,
        "judged_on": "test",
        "metric": "mean of matthews, accuracy, f1, pearson and spearman",
        "metric_by_cluster": metrics,
        "final_accuracy": 0.263,
        "accuracy_by_cluster": scores,
        "personal_by_client": scores,
        "baselines": {name: {"majority": 0.5, "tfidf": 0.7} for name in metrics},
        "gamma": {},
        "warnings": [],
        "cycles": 10**6,
        "steps": 10**9,
        "uplink_B": 10**12,
        **costs,
        **facts,
    }


def test_names_and_metrics_are_whole_and_every_number_is_there() -> None:
    text = printed(accuracy_table({"ems-fl-enhanced": summary(TASKS)}))
    for word in (*TASKS, *TASKS.values(), "ems-fl-enhanced, personalised", "majority", "TF-IDF"):
        assert re.search(rf"(^|\s){re.escape(word)}(,|\s|$)", text, re.MULTILINE), word
    for number in ("0.100", "20.0%", "0.300", "0.400", "0.500"):
        assert text.count(number) >= 2  # its own, and personalised
    assert text.count("TF-IDF") > 1  # in each piece
    assert printed(accuracy_table({"ems-fl-enhanced": summary(TASKS)}), 200).count("TF-IDF") == 1


def test_a_mean_of_several_metrics_says_that_it_is_one() -> None:
    text = " ".join(printed(results_table({"aligned": summary(TASKS)})).split())
    assert "final, mean" in text
    assert "of 5 metrics" in text
    text = printed(comparison_table(medians({"aligned": [summary(TASKS)]}), 0.5))
    assert "mean of 5" in text


def test_eval_keeps_cluster_and_model_in_every_piece() -> None:
    clusters = {name: {"metric": metric, "loss": 0.5, "count": 1000, metric: 0.25} for name, metric in TASKS.items()}
    beside = {name: {"majority": 0.5, "tfidf": 0.75} for name in TASKS}
    document = {"dense": False, "new_head": [], "metric": "mean of f1 and accuracy", "accuracy": 0.25, "loss": 0.5}
    models = [{**document, "model": f"runs/{name}", "clusters": clusters, "baselines": beside} for name in ("four", "six")]
    text = printed(eval_table(models))
    for word in (*TASKS, "matthews", "pearson", "spearman", "majority", "TF-IDF", "judged by", "runs/four", "runs/six"):
        assert re.search(rf"(^|\s){re.escape(word)}(\s|:|$)", text, re.MULTILINE), word


def test_a_row_beside_the_point_is_left_out_of_a_piece_in_which_it_is_empty() -> None:
    heads = ["run", *(f"{'column':>30}\n{i}" for i in range(3))]
    text = printed(Stacked("t", heads, [["sync", "1", "2", "3"], ["  interval", "0–2", "", ""]], dim=[1]))
    assert text.count("sync") == 2
    assert text.count("interval") == 1
