"""What is told of seeds: hours and joules to a target, intervals, differences by direction, and runs that did not get there."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fedexperts.ledger import summary
from fedexperts.report.compare_table import comparison_table
from fedexperts.runs.comparison import medians
from fedexperts.runs.measures import MEASURES, TO_TARGET, better, directions
from terminal import printed

HOUR_S = 3600.0


def ledger(path: Path, accuracies: list[float], seed: int = 1, **end: Any) -> dict[str, Any]:
    """The summary of a run of two clusters, one with three devices: a cycle an hour, 10 steps, 1 MB, 6 or 2 J a device each."""
    clusters = {"a": [5], "b": [5, 5, 5]}
    run = {"protocol": "sync", "seed": seed, "target": 0.5, "plateau": [1, 0.01], "clusters": clusters}
    lines: list[dict[str, Any]] = [{"t_s": 0, "event": "run", **run}]
    for cycle, accuracy in enumerate(accuracies):
        by_device = {name: {"radio_J": 1.0, "compute_J": 1.0, "idle_J": 4.0 * (name == "a")} for name in clusters}
        at = {"t_s": cycle * HOUR_S}
        lines += [{**at, "event": "energy", "cycle": cycle, "per_device": by_device}] if cycle else []
        spent = {"steps": 10 * cycle, "uplink_B": 10**6 * cycle, "downlink_B": 0}
        facts = {"accuracy": accuracy, "loss": 1 - accuracy, "accuracy_by_cluster": {"a": accuracy, "b": accuracy}}
        lines.append({**at, "event": "evaluate", "cycle": cycle, **spent, **facts})
    whole = {"cycles": len(accuracies) - 1, "late": False, "unsent_rounds": 0}
    lines.append({**lines[-1], "event": "end", **whole, **end})
    lines[-1].pop("cycle")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return summary(path)


def test_hours_and_joules_to_the_target_are_those_of_the_first_evaluation_that_reaches_it(tmp_path: Path) -> None:
    found = ledger(tmp_path / "l", [0.1, 0.4, 0.6, 0.9])
    assert found["cycles_to_target"] == 2
    assert found["hours_to_target"] == 2.0
    assert found["joules_to_target"] == 2 * (6 + 3 * 2) / 4  # the mean over devices, two cycles
    assert found["final_loss"] == pytest.approx(0.1)
    assert "perplexity" not in found
    never = ledger(tmp_path / "l", [0.1, 0.4])
    assert (never["hours_to_target"], never["joules_to_target"]) == (None, None)


def test_perplexity_is_that_of_all_tokens_and_lower_is_better(tmp_path: Path) -> None:
    by_cluster = {"a": {"accuracy": 0.5, "perplexity": 3.0}, "b": {"accuracy": 0.5, "perplexity": 4.0}}
    groups = {}
    for name, losses in {"one": [1.0, 1.5, 2.0], "other": [1.5, 1.4, 3.0]}.items():
        rows = [
            ledger(tmp_path / "l", [0.1, 0.6], seed, loss=loss, metrics_by_cluster=by_cluster)
            for seed, loss in enumerate(losses)
        ]
        assert [row["perplexity"] for row in rows] == [math.exp(loss) for loss in losses]
        groups[name] = rows
    found = medians(groups)
    assert found["one"]["perplexity"] == math.exp(1.5)
    assert found["one"]["interval"]["perplexity"] == [math.exp(1.0), math.exp(2.0)]
    paired = found["other"]["paired"]["perplexity"]
    assert paired["difference"] == math.exp(1.5) - math.exp(1.0)
    assert (paired["ahead"], paired["behind"], paired["of"]) == (1, 2, 3)  # higher on two seeds, which is worse
    assert directions("accuracy")["perplexity"] == "lower"
    assert "↓" in printed(comparison_table(found, 0.5, {"baseline": "one", "statistics": {"covers": 0.75, "level": 0.95}}))
    endless = ledger(tmp_path / "l", [0.1, 0.6], loss=800.0, metrics_by_cluster=by_cluster)
    assert endless["perplexity"] is None


def test_which_way_is_better_is_said_of_every_metric() -> None:
    higher, lower = ("accuracy", "f1", "mean spearman"), ("loss", "perplexity", "mean perplexity", "macro_auc_left_out")
    assert {better(name) for name in higher} == {"higher"}
    assert {better(name) for name in lower} == {"lower"}
    ways = directions("accuracy")
    assert {ways[key] for key in ("final_accuracy", "macro_f1", "mean_auc")} == {"higher"}
    assert all(ways[one.key] == "lower" for one in MEASURES if one.key.endswith("_to_target"))
    assert directions("perplexity")["final_accuracy"] == "lower"


FAST, SLOW, NEVER = [0.1, 0.6, 0.6, 0.6], [0.1, 0.2, 0.3, 0.6], [0.1, 0.2, 0.3, 0.4]


def compared(tmp_path: Path, **groups: list[list[float]]) -> dict[str, dict[str, Any]]:
    return medians(
        {name: [ledger(tmp_path / "l", one, seed) for seed, one in enumerate(group)] for name, group in groups.items()}
    )


def test_runs_that_did_not_get_there_count_and_are_later_than_all_others(tmp_path: Path) -> None:
    found = compared(tmp_path, base=[SLOW, SLOW, SLOW], ours=[FAST, NEVER, FAST], none=[NEVER, NEVER, FAST])
    ours, none = found["ours"], found["none"]
    assert (ours["rounds_to_target"], ours["interval"]["rounds_to_target"]) == (1, [1, None])
    assert (ours["hours_to_target"], ours["interval"]["hours_to_target"]) == (1.0, [1.0, None])
    assert (ours["joules_to_target"], ours["interval"]["joules_to_target"]) == (3.0, [3.0, None])
    assert (none["steps_to_target"], none["interval"]["steps_to_target"]) == (None, [10, None])
    assert [found[name]["not_reached"]["uplink_B_to_target"] for name in found] == [0, 1, 2]
    assert ours["by_seed"]["rounds_to_target"] == [1, None, 1]
    paired = ours["paired"]["rounds_to_target"]  # of one seed the difference is not known, so that none is told
    assert paired == {"difference": None, "interval": None, "ahead": 2, "behind": 1, "of": 3}
    assert found["base"]["paired"] == {}
    text = " ".join(
        printed(comparison_table(found, 0.5, {"baseline": "base", "statistics": {"covers": 0.75, "level": 0.95}})).split()
    )
    assert "1–∞" in text
    assert "2 of 3" in text
    assert "target not reached: ours 1 of 3, none 2 of 3" in text
    assert "holds the true median in 75.0% of cases" in text


def test_a_target_that_no_run_reached_is_a_marked_gap(tmp_path: Path) -> None:
    found = compared(tmp_path, base=[NEVER] * 3, ours=[NEVER] * 3)
    assert found["ours"]["rounds_to_target"] is None
    assert found["ours"]["interval"]["rounds_to_target"] == [None, None]
    assert found["ours"]["not_reached"]["hours_to_target"] == 3
    assert found["ours"]["paired"]["hours_to_target"] == {
        "difference": None,
        "interval": None,
        "ahead": 0,
        "behind": 0,
        "of": 3,
    }
    text = printed(comparison_table(found, 0.5, {"baseline": "base", "statistics": {"covers": 0.75, "level": 0.95}}))
    assert "target not reached: base 3 of 3, ours 3 of 3" in " ".join(text.split())
    assert "0 of 3" in text


def test_who_spent_little_in_vain_is_not_known_to_be_behind(tmp_path: Path) -> None:
    """A baseline of one cycle spent an hour, 10 steps and 3 J; whether it would have got there with 30 steps nobody knows."""
    found = compared(tmp_path, base=[NEVER[:2]] * 3, ours=[SLOW] * 3)["ours"]["paired"]
    assert {found[one.key]["ahead"] for one in TO_TARGET} == {0}
    longer = compared(tmp_path, base=[NEVER] * 3, ours=[SLOW] * 3)["ours"]["paired"]
    assert {longer[one.key]["ahead"] for one in TO_TARGET} == {3}


def test_of_one_or_two_seeds_there_is_no_interval_and_it_is_said(tmp_path: Path) -> None:
    found = compared(tmp_path, base=[FAST, SLOW], ours=[SLOW, SLOW])
    assert set(found["ours"]["interval"].values()) == {None}
    assert found["ours"]["paired"]["rounds_to_target"]["difference"] == 1.0
    text = " ".join(printed(comparison_table(found, 0.5, {"baseline": "base", "statistics": {"covers": None}})).split())
    assert "2 seeds are too few for an interval; it needs 3" in text
    assert "lowest–highest" in text
    assert "1–3" in text


def test_without_a_target_nothing_is_late(tmp_path: Path) -> None:
    rows = [{**ledger(tmp_path / "l", FAST, seed), "target": None, "cycles_to_target": None} for seed in range(3)]
    found = medians({"a": rows, "b": rows})
    assert "rounds_to_target" not in found["b"]["not_reached"]
    assert "rounds_to_target" not in found["b"]["paired"]
    assert found["b"]["interval"]["rounds_to_target"] is None


def test_what_some_seeds_cannot_tell_has_no_median(tmp_path: Path) -> None:
    rows = [{**ledger(tmp_path / "l", FAST, seed), "macro_auc": auc} for seed, auc in enumerate([0.9, None, 0.8])]
    assert medians({"a": rows})["a"]["macro_auc"] is None


def test_seeds_that_are_others_are_not_paired(tmp_path: Path) -> None:
    one, other = ([ledger(tmp_path / "l", FAST, seed + first) for seed in range(3)] for first in (0, 1))
    assert medians({"a": one, "b": other})["b"]["paired"] == {}
