"""The grid of a Networked MoE comparison, and its tables from ledgers' ends."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import pictures
from charts import lines_of, maps
from fedexperts import Scenario
from fedexperts.cli.main import app
from fedexperts.errors import InputError
from fedexperts.method.networked import _scores
from fedexperts.report.networked_html import _cell, networked_tables, picks_figure, routing_figure, write_tables
from fedexperts.runs import networked_tables as tables

MODEL = {"model_type": "networked_moe", "image_size": pictures.SIDE, "width": 8, "expert_hidden": 8, "num_experts": 2}
DOCUMENT: dict[str, Any] = {
    "name": "network",
    "seed": 4,
    "protocol": "networked",
    "plan": {"kind": "always-on", "slot_s": 600.0},
    "model": {"config": MODEL},
    "task": {"kind": "image"},
    "train": {"cycles": 3, "local_steps": 2, "batch_size": 8, "seconds_per_round": 60.0, "max_rounds": 1},
    "networked": {"extractor_cycles": 1, "expert_cycles": 1, "gate_cycles": 1},
    "evaluation": {"every_cycles": 3},
    "cluster": [{"name": "c", "devices": 2, "data": "train.npz", "test": "test.npz", "partition": "tau", "tau": 0.5}],
}


def test_what_is_trained_for_the_tables() -> None:
    scenario = Scenario.parse(DOCUMENT)
    jobs = tables.trained(scenario, ["iid", "0.3"], 2)
    methods = {(method, name) for method, name, _ in jobs}
    both = {(m, name) for m in ("none", "fedce", "fedsc", "local", "fedavg") for name in ("iid", "0.3")}
    assert methods == both | {("central", "iid")}
    assert {seed for _, _, seed in jobs} == {4, 5}
    floor = jobs["none", "0.3", 4]
    assert (floor.networked.extractor_cycles, floor.networked.expert_cycles, floor.train.cycles) == (0, 1, 1)
    steps = {key: _steps(job) for key, job in jobs.items() if key[2] == 4 and key[0] != "none"}
    assert set(steps.values()) == {2 * 2 * 1}  # clients, local steps, cycles: alike for the extractor of every method
    assert jobs["fedavg", "0.3", 4].cluster[0].tau == 0.3
    assert jobs["fedce", "iid", 4].cluster[0].partition == "iid"
    assert jobs["fedavg", "iid", 4].model.config is not None
    assert jobs["fedavg", "iid", 4].model.config["num_experts"] == 1
    gates = tables.gated(jobs["fedsc", "0.3", 5], Path("/somewhere"), 3)
    assert {gate: job.train.cycles for gate, job in gates.items()} == {"rolling": 3, "federated": 3}
    assert all(job.networked.extractor_cycles == job.networked.expert_cycles == 0 for job in gates.values())
    assert all(job.model.path == "/somewhere" and job.seed == 5 for job in gates.values())


def test_a_projection_is_that_of_fedsc_alone() -> None:
    scenario = Scenario.parse({**DOCUMENT, "model": {"config": {**MODEL, "projection_size": 6}}})
    jobs = tables.trained(scenario, ["iid"], 1)
    sizes = {method: (job.model.config or {})["projection_size"] for (method, _, _), job in jobs.items()}
    assert sizes == {"none": 0, "fedsc": 6, "fedce": 0, "local": 0, "fedavg": 0, "central": 0}


def _steps(job: Scenario) -> int:
    """Gradient steps on the extractor, of all devices."""
    cycles = job.networked.extractor_cycles if job.protocol == "networked" else job.train.cycles
    return sum(cluster.devices for cluster in job.cluster) * job.train.local_steps * cycles


def test_the_same_data_on_other_numbers_of_clients() -> None:
    scenario = Scenario.parse(DOCUMENT)
    jobs = tables.by_clients(scenario, [3, 5], "0.5", 1)
    assert {key[:2] for key in jobs} == {(m, f"0.5, {n} clients") for m in ("fedce", "fedsc") for n in (3, 5)}
    for (_, name, _), job in jobs.items():
        n = int(name.split()[1])
        assert job.cluster[0].devices == n
        assert job.model.config is not None
        assert job.model.config["num_experts"] == n
    two = scenario.changed(cluster=[{**DOCUMENT["cluster"][0], "name": name} for name in "ab"])
    with pytest.raises(InputError, match="--clients"):
        tables.by_clients(two, [3], "0.5", 1)


@pytest.mark.parametrize("text", ["iid,0", "1.5", "two", "", ","])
def test_partitions_that_cannot_be(text: str) -> None:
    with pytest.raises(InputError, match="--tau"):
        tables.partitions(text)


def _end(accuracy: float, **more: Any) -> dict[str, Any]:
    metrics = {"accuracy": accuracy, "macro_f1": accuracy / 2, "macro_auc": 0.9}
    routing = [[0.75, 0.25], [0.5, 0.5]]
    network = {"local_ratio": 0.625, "inference_B": 100.0, "personal_accuracy": 0.5, "routing": routing}
    return {**metrics, "even_test": metrics, **network, "accuracy_by_k": {"1": accuracy, "2": accuracy}, **more}


def test_tables_and_page_from_ledgers_ends(tmp_path: Path) -> None:
    rungs = {"random": {"accuracy": 0.2}, "central": {"accuracy": 0.71, "macro_f1": 0.7, "local_ratio": 0.5}}
    rungs |= {
        "all": {"accuracy": 0.72},
        "oracle": {"accuracy": 0.99},
        "probe": {"accuracy": 0.76},
        "majority": {"accuracy": 0.8},
    }
    ends = {("fedce", "0.5", seed): _end(0.2 * seed, ladder=rungs) for seed in (1, 2, 3)}
    ends["none", "0.5", 1] = _end(0.15, ladder=rungs)
    ends |= {("fedce, federated", "0.5", seed): _end(0.3 * seed) for seed in (1, 2, 3)}
    once = {"accuracy": 0.1, "macro_f1": 0.1, "macro_auc": 0.1}
    ends["local", "0.5", 1] = _end(0.7, one_shot={**once, "even_test": once})
    ends["central", "iid", 1] = {"metrics_by_cluster": {"c": {"accuracy": 0.9, "macro_f1": 0.8, "macro_auc": 1.0}}}
    document = {"partitions": ["iid", "0.5"], "seeds": 3, **tables._tables(ends)}
    same = document["tables"]["same"]
    assert same["fedce, random"]["0.5"]["accuracy"] == pytest.approx([0.2, 0.4, 0.6])
    assert same["central"]["iid"]["macro_f1"] == [0.8]
    assert same["fedavg, one-shot"]["0.5"]["accuracy"] == [0.1]
    assert "central" not in document["tables"]["even"]
    ladder = ("random", "central gate", "all experts", "oracle", "probe")
    found = {method: same[method]["0.5"]["accuracy"][0] for method in (*(f"none, {rung}" for rung in ladder), "majority")}
    assert list(found.values()) == [0.15, 0.71, 0.72, 0.99, 0.76, 0.8]
    assert same["majority"]["0.5"]["accuracy"] == [0.8] * 3  # once for a seed
    assert "local_ratio" not in same["none, central gate"]["0.5"]
    json.dumps(document)
    write_tables(document, tmp_path / "page.html", "title")
    page = (tmp_path / "page.html").read_text()
    assert "40.0<br><span class='spread'>20.0–60.0</span>" in page
    assert "62 %" in page
    assert all(f"fedce, {rung}" in page for rung in ladder)
    assert "<script src=" not in page
    figure = routing_figure(document["network"], "0.5")
    assert figure is not None
    assert maps(figure.panels[0])[0].values == [[0.75, 0.25], [0.5, 0.5]]
    assert networked_tables(document).renderables


def test_a_page_of_tables_can_be_read_on_a_phone(tmp_path: Path) -> None:
    """Wide tables scroll by themselves, and no two lines look alike; drawings are tried in a browser (`test_in_chromium`)."""
    ends = {(f"{e}{g}", "0.5", 1): _end(0.3) for e in ("none", "fedce", "fedsc") for g in ("", ", rolling", ", federated")}
    document = {"partitions": ["0.5"], "seeds": 1, **tables._tables(ends)}
    write_tables(document, tmp_path / "page.html", "title")
    page = (tmp_path / "page.html").read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count("<div class='wide'><table>") == page.count("<table>") == 3 + page.count("<figure>")
    assert len(page) < 10**6
    chart = picks_figure(document["network"], ["0.5"])
    assert chart is not None
    lines = lines_of(chart.panels[0])
    assert len({(line.look.colour, line.look.dash) for line in lines}) == len(lines) == 9
    assert len({(str(line.look.dash), line.look.marker, line.look.hollow) for line in lines}) == 9  # nor in grey


@pytest.mark.slow
def test_the_whole_comparison(tmp_path: Path) -> None:
    pictures.npz(tmp_path / "train.npz", 80)
    pictures.npz(tmp_path / "test.npz", 40, seed=1)
    import tomli_w

    (tmp_path / "s.toml").write_text(tomli_w.dumps(DOCUMENT))
    command = [
        "compare",
        str(tmp_path / "s.toml"),
        "--tau",
        "iid,0.5",
        "--clients",
        "3",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document["tables"]["same"]["fedsc, rolling"]) == {"iid", "0.5"}
    assert list(document["clients"]) == ["2", "3"]
    assert document["clients"]["2"]["fedsc, federated"] == document["tables"]["same"]["fedsc, federated"]["0.5"]["accuracy"]
    assert set(document["clients"]["3"]) == {"fedce, federated", "fedsc, federated"}
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_client_with_one_class_has_no_auc_and_what_was_left_out_is_counted() -> None:
    p = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2]], dtype=torch.float64)
    labels = {"a": torch.tensor([0, 1, 0]), "b": torch.tensor([0, 0, 0])}
    found = _scores(dict.fromkeys("ab", p.log()), {name: {"labels": of} for name, of in labels.items()})
    assert found["mean_auc"] == 1.0  # that of a alone
    assert (found["mean_auc_left_out"], found["macro_auc_left_out"]) == (1, 1)  # client b, and class 2
    alone = _scores({"b": p.log()}, {"b": {"labels": labels["b"]}})
    assert [alone[key] for key in ("macro_auc", "macro_auc_left_out", "mean_auc", "mean_auc_left_out")] == [None, 3, None, 1]
    json.dumps(alone, allow_nan=False)
    diverged = _scores({"a": torch.full_like(p, torch.nan)}, {"a": {"labels": labels["a"]}})
    assert diverged["macro_auc"] is None


def test_a_table_leaves_out_what_could_not_be_told() -> None:
    assert _cell([None, 0.5, 0.7]) == ("60.0", "50.0–70.0")
    assert _cell([None]) == ("–", "")
