"""Scenarios on images, from tiny files to a finished run: what clusters hold, kill and resume, eval, and what is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from transformers import AutoModelForImageClassification

import pictures
import small
from fedexperts import InputError, Scenario, run
from fedexperts.cli.main import app
from fedexperts.ledger import read
from fedexperts.method.methods import prepare
from fedexperts.runs.export import export
from fedexperts.runs.judge import judge_model
from fedexperts.scenario import Network
from fedexperts.setup.samples import datasets
from plans import planned_B
from processes import exit_code, run_until, started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, n, seed in (("a", 64, 0), ("b", 64, 1), ("test", 32, 2)):
        pictures.npz(tmp_path / f"{name}.npz", n, seed)
    return tmp_path


def document(clusters: list[dict[str, Any]] | None = None, **tables: Any) -> dict[str, Any]:
    found = clusters or [{"data": "a.npz"}, {"data": "b.npz"}]
    base: dict[str, Any] = {
        "name": "images",
        "seed": 1,
        "protocol": "ems-fl",
        "model": {"config": pictures.CONFIG},
        "task": {"kind": "image"},
        "train": {"cycles": 3, "local_steps": 4, "batch_size": 8, "lr_expert": 2e-2, "lr_gate": 1e-2},
        "assignment": {"trial_samples": 16},
        "evaluation": {"validation": 0},  # all images are dealt
        "cluster": [{"name": f"c{i}", "devices": 2, "test": "test.npz", **cluster} for i, cluster in enumerate(found)],
    }
    return {**base, **tables}


def scenario(folder: Path, clusters: list[dict[str, Any]] | None = None, **tables: Any) -> Scenario:
    return Scenario.parse(document(clusters, **tables), folder)


def files(directory: Path) -> tuple[bytes, bytes]:
    return (directory / "ledger.jsonl").read_bytes(), (directory / "model" / "model.safetensors").read_bytes()


def test_ems_fl_learns_and_its_model_is_one_of_transformers(folder: Path) -> None:
    table = {"shared": ["gate", "backbone", "head"], "cycles": 6, "local_steps": 12, "batch_size": 8, "lr_expert": 2e-2}
    result = run(scenario(folder, train={**table, "lr_gate": 1e-2}), folder / "run")
    assert result.summary["final_accuracy"] > 0.6  # by chance 0.25
    model = AutoModelForImageClassification.from_pretrained(folder / "run" / "model").eval()
    x, y = pictures.images(32, 2)
    with torch.no_grad():
        right = model(torch.from_numpy(x).permute(0, 3, 1, 2)).logits.argmax(-1) == torch.from_numpy(y)
    assert float(right.float().mean()) == pytest.approx(result.summary["final_accuracy"], abs=1e-6)
    judged = judge_model(str(folder / "run"), write(folder, document()), beside=True)
    assert judged["accuracy"] == pytest.approx(result.summary["final_accuracy"], abs=1e-6)
    assert judged["clusters"]["c1"]["count"] == 32


def write(folder: Path, tables: dict[str, Any]) -> Path:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


@pytest.mark.parametrize("protocol", ["sync", "ems-fl-enhanced"])
def test_other_protocols_run_and_repeat(protocol: str, folder: Path) -> None:
    for name in ("first", "second"):
        run(scenario(folder, protocol=protocol), folder / name)
    assert files(folder / "first") == files(folder / "second")


def test_kill_9_in_a_contact_then_resume_is_identical(folder: Path) -> None:
    path = write(folder, document())
    run(path, folder / "whole")
    lines = list(read(folder / "whole" / "ledger.jsonl"))
    number = [i + 1 for i, line in enumerate(lines) if line["event"] == "aggregate"][-1]
    assert exit_code(started(run_until, path, folder / "killed", False, number)) == -signal.SIGKILL
    assert any((folder / "killed" / "checkpoints").iterdir())
    run(path, folder / "killed", resume=True)
    assert files(folder / "killed") == files(folder / "whole")


def test_adapters_and_a_warm_up_that_fits_the_gate(folder: Path) -> None:
    model = {"config": pictures.CONFIG, "lora": {"rank": 2, "alpha": 4.0}, "uplink": "int8"}
    warmup = {"data": ["a.npz", "b.npz"], "samples": 16, "steps": 6, "gate_fit": 1.0}
    result = run(scenario(folder, model=model, warmup=warmup), folder / "run")
    assert (folder / "run" / "adapters.safetensors").is_file()
    assert result.summary["final_accuracy"] > 0


def test_the_same_samples_are_shared_and_labels_make_the_outputs(folder: Path) -> None:
    data = datasets(scenario(folder))
    assert data.outputs == 4
    train, test = data.splits["c0"].train, data.splits["c0"].test
    assert test is not None
    assert train["pixel_values"].dtype == torch.uint8
    assert train["pixel_values"].shape == (64, 3, 8, 8)
    assert pictures.numbers(train["pixel_values"]) == list(range(64))
    assert test is data.splits["c1"].test
    assert data.objectives["c0"] == data.objectives["c1"]


def test_texts_as_labels_and_metrics_over_classes(folder: Path) -> None:
    x, _ = pictures.images(4)
    for name in ("x", "y"):
        pictures.parquet(folder / f"{name}.parquet", [pictures.encoded(one) for one in x], ["dog", "cat", "dog", "cow"])
    task = {"kind": "image", "metric": "f1", "labels": ["cat", "dog", "cow", "elk"]}
    data = datasets(scenario(folder, [{"data": "x.parquet", "test": "y.parquet"}], task=task))
    assert data.splits["c0"].train["labels"].tolist() == [1, 0, 1, 2]
    assert (data.outputs, data.objectives["c0"].metric) == (4, "f1")


def test_clusters_that_take_samples_of_the_same_files_take_different_ones(folder: Path) -> None:
    clusters = [{"data": "[ab].npz", "samples": 50}, {"data": "[ab].npz", "samples": 78, "test_samples": 10}]
    data = datasets(scenario(folder, clusters))
    taken = [[tuple(one.flatten().tolist()) for one in data.splits[name].train["pixel_values"]] for name in ("c0", "c1")]
    assert [len(one) for one in taken] == [50, 78]
    assert len({*taken[0], *taken[1]}) == 128
    test = data.splits["c1"].test
    assert test is not None
    assert len(test["labels"]) == 10
    with pytest.raises(InputError, match=r"cluster 'c1': samples = 79: '\[ab\].npz' holds 128 images, and clusters before it"):
        datasets(scenario(folder, [clusters[0], {**clusters[1], "samples": 79}]))


def test_devices_get_their_partition_and_test_shares(folder: Path) -> None:
    clusters = [
        {"data": "a.npz", "partition": "classes", "classes_per_device": 2, "test_partition": "same"},
        {"data": "b.npz", "partition": "tau", "tau": 0.5, "test_partition": "iid"},
        {"data": "b.npz", "partition": "dirichlet", "dirichlet_alpha": 10.0, "test_partition": "iid"},
    ]
    given = scenario(folder, clusters)
    prepared = prepare(given)
    held = {
        name: [np.bincount(d.data["labels"], minlength=4).tolist() for d in g] for name, g in small.devices(prepared).items()
    }
    assert held["c0"] == [[16, 16, 0, 0], [0, 0, 16, 16]]
    assert [counts.index(max(counts)) for counts in held["c1"]] == [0, 1]
    assert sum(map(sum, held["c2"])) == 64
    by_client = prepare(given.changed(protocol="aligned"))
    tests = {name: np.bincount(test["labels"], minlength=4).tolist() for name, test in by_client.tests.own.items()}
    assert (tests["c0/0"], tests["c0/1"]) == ([8, 8, 0, 0], [0, 0, 8, 8])
    assert (sum(tests["c1/0"]), sum(tests["c1/1"])) == (16, 16)


def test_the_environment_says_where_data_lie(folder: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDEXPERTS_HERE", str(folder))
    tables = document([{"data": "$FEDEXPERTS_HERE/a.npz", "test": "$FEDEXPERTS_HERE/test.npz"}])
    data = datasets(Scenario.parse(tables, tmp_path_factory.mktemp("elsewhere")))
    assert len(data.splits["c0"].train["labels"]) == 64


def test_a_plan_knows_the_upload_of_an_image_model(folder: Path) -> None:
    network = Network.parse(document(), folder)
    assert network.model is not None
    view = prepare(scenario(folder)).view
    numbers = {part: sum(t.numel() for t in tensors.values()) for part, tensors in view.parts.items()}
    least = 2 * (2 * numbers["expert:0"] + numbers["gate"])  # bf16, two experts a cluster
    assert least < planned_B(network) < least + 3 * 1000  # headers of three files
    from typer.testing import CliRunner

    from fedexperts.cli.main import app

    result = CliRunner().invoke(app, ["plan", str(write(folder, document())), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["upload_B"] == planned_B(network)


GREY = {**pictures.CONFIG, "in_channels": 1}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "other images than the model takes": (
        {"model": {"config": GREY}},
        r"cluster 'c0': images of 3 × 8 × 8 .*, but the model takes 1 × 8 × 8 .*; set in_channels and image_size",
    ),
    "a model of text": (
        {"model": {"config": {"model_type": "mixtral", "num_local_experts": 2}}},
        "model.config: .*Unrecognized configuration class",
    ),
    "images for a task of token numbers": ({"task": {"kind": "classification"}}, "is not UTF-8 text"),
    "no test data": (
        {"cluster": [{"name": "a", "data": "a.npz"}]},
        r"cluster\[0\].test: is missing",
    ),
    "a label that is not listed": (
        {"task": {"kind": "image", "labels": [0, 1, 2]}},
        r"a.npz, row 4: label 3 is not one of 0, 1, 2",
    ),
    "more samples than there are": (
        {"cluster": [{"name": "a", "data": "a.npz", "test": "test.npz", "test_samples": 33}]},
        r"cluster 'a': test_samples = 33: 'test.npz' holds 32 images; take fewer",
    ),
    "more devices than a partition allows": (
        {"cluster": [{"name": "a", "data": "a.npz", "test": "test.npz", "devices": 33, "partition": "tau", "tau": 0.5}]},
        r"cluster 'a': tau = 0.5: its data are too few for each of 33 devices",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_anything_is_written(case: str, folder: Path) -> None:
    tables, message = BAD[case]
    with pytest.raises(InputError, match=message):
        run(scenario(folder, **tables), folder / "run")
    assert not (folder / "run").exists()


A = {"data": "a.npz"}
BAD_TABLES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "tau without its number": ({**A, "partition": "tau"}, {}, r'cluster\[0\]: partition = "tau" needs tau'),
    "a number without its partition": ({**A, "tau": 0.5}, {}, r'tau needs partition = "tau"'),
    "tau of 0": ({**A, "partition": "tau", "tau": 0.0}, {}, r"cluster\[0\].tau = 0.0: input should be greater than 0"),
    "tau above 1": ({**A, "partition": "tau", "tau": 1.5}, {}, r"cluster\[0\].tau = 1.5: input should be less than or"),
    "an alpha of 0": ({**A, "partition": "dirichlet", "dirichlet_alpha": 0.0}, {}, r"dirichlet_alpha = 0.0: input should"),
    "a column of text": (A, {"task": {"kind": "image", "text": "t"}}, r"task: text = 't': kind = \"image\" reads no text"),
    "a correlation": (A, {"task": {"kind": "image", "metric": "pearson"}}, r"metric = 'pearson': kind = \"image\" has classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TABLES)
def test_tables_that_contradict_themselves_are_told(case: str, folder: Path) -> None:
    cluster, tables, message = BAD_TABLES[case]
    with pytest.raises(InputError, match=message):
        scenario(folder, [cluster], **tables)


def test_the_majority_stands_beside_results_on_images_by_cluster_and_by_client(folder: Path) -> None:
    x, y = pictures.images(64, 3)
    np.savez(folder / "b.npz", x=x[y != 1], y=y[y != 1])  # labels 0, 2, 3, alike often: the lowest answers
    x, y = pictures.images(32, 4)
    np.savez(folder / "test.npz", x=x[: 4 * 7 + 1], y=y[: 4 * 7 + 1])  # label 0 eight times, others seven
    usual = {"majority": pytest.approx(8 / 29, abs=1e-6), "tfidf": None}
    result = run(scenario(folder, train={"cycles": 1, "lr_expert": 1e-9, "lr_gate": 1e-9}), folder / "run")
    assert result.summary["baselines"] == {"c0": usual, "c1": usual}
    assert judge_model(str(folder / "run"), write(folder, document()), beside=True)["baselines"] == {"c0": usual, "c1": usual}
    assert judge_model(str(folder / "run"), write(folder, document()), beside=False)["baselines"] == {}
    parted = {"data": "a.npz", "partition": "classes", "classes_per_device": 2}
    found = run(
        scenario(folder, [parted], protocol="aligned", plan={"kind": "always-on"}, train={"cycles": 1, "max_rounds": 1}),
        folder / "clients",
    ).summary
    assert {link: row["majority"] for link, row in found["baselines"].items()} == {"c0/0": 0.5, "c0/1": 0.5}
    assert found["accuracy_by_cluster"].keys() == found["baselines"].keys()


@pytest.mark.filterwarnings("ignore:.*no gradient step in the whole run")
def test_check_run_and_ledger_say_what_a_partition_leaves_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"data": "a.npz", "devices": 3, "partition": "tau", "tau": 0.5}  # 16 of each class; the fourth is nobody's dominant
    small = {"cycles": 1, "max_rounds": 1}
    tables: dict[str, Any] = {"protocol": "aligned", "plan": {"kind": "always-on"}, "train": small}
    found = run(scenario(folder, [given], **tables), folder / "run")
    first = next(iter(read(found.directory / "ledger.jsonl")))
    held = sum(map(sum, first["clusters"].values()))
    assert held < 60
    assert first["used"] == {"c0": [held, 64]}
    sentence = f"cluster 'c0': its devices hold {held} of 64 training samples, {1 - held / 64:.0%} are left out"
    assert any(text.startswith(sentence) for text in found.summary["warnings"])
    app(["check", str(write(folder, document([given], **tables)))], standalone_mode=False)
    assert sentence in capsys.readouterr().out.replace("\n", " ")
    classes = {"data": "a.npz", "devices": 3, "partition": "classes", "classes_per_device": 2}
    whole = run(scenario(folder, [classes], **tables), folder / "whole")
    assert not any("left out" in text for text in whole.summary["warnings"])


@pytest.mark.slow
def test_what_export_prints_loads_a_model_of_our_own_in_a_new_process(folder: Path) -> None:
    run(scenario(folder, train={"cycles": 1}), folder / "run")
    load = export(folder / "run", "merged", folder / "merged")["load"]
    assert load.startswith("import fedexperts.moe.conv\n")
    code = load.rpartition("\n")[0] + "\nmodel = " + load.rpartition("\n")[2] + "\nprint(type(model).__name__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert shown.stdout.strip() == "ConvMoEForImageClassification", shown.stderr
