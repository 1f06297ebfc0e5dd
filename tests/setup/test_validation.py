"""Validation apart from test: what decides while a run goes on never sees the data that it is judged by in the end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pictures
import small
import text
from fedexperts import InputError, Scenario, run
from fedexperts.data.source import Splits, hold_out
from fedexperts.ledger import read, summary
from fedexperts.method.methods import prepare
from fedexperts.setup.baselines import baselines
from fedexperts.setup.samples import datasets

pytestmark = pytest.mark.filterwarnings("ignore:.*no training data of this task have")  # small data are drawn as they come

N = 20


def rows(n: int, first: int = 0, label: int | None = None) -> list[dict[str, Any]]:
    """Every row is another one: its first token is its number."""
    return [{"input_ids": [first + i, 7, 9], "label": i % 10 if label is None else label} for i in range(n)]


def jsonl(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, first in (("a", 0), ("b", 100)):
        jsonl(tmp_path / f"{name}.jsonl", rows(N, first))
    jsonl(tmp_path / "test.jsonl", rows(10, 500))
    jsonl(tmp_path / "valid.jsonl", rows(6, 300))
    return tmp_path


def scenario(folder: Path, validation: Any = None, **tables: Any) -> Scenario:
    tables.setdefault("cluster", [{"name": n, "devices": 2, "data": f"{n}.jsonl", "test": "test.jsonl"} for n in "ab"])
    tables.setdefault("train", {"cycles": 2, "batch_size": 4})
    tables["evaluation"] = {"target": 0.1} | ({} if validation is None else {"validation": validation})
    return Scenario.parse(small.document(**tables), folder)


def numbers(samples: dict[str, torch.Tensor]) -> set[int]:
    return set(samples["input_ids"][:, 0].tolist())


# ---- what is held out


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.floats(0.05, 0.9), st.integers(0, 3), st.booleans())
def test_a_share_is_held_out_once_and_the_rest_is_kept(n: int, share: float, seed: int, by_label: bool) -> None:
    samples = {"x": torch.arange(n), "labels": torch.arange(n) % 3}
    if not 0 < int(n * share + 1e-9) < n:
        return
    splits = hold_out(Splits(samples, None, samples), share, seed, by_label)
    assert splits.validation is not None
    assert splits.kept is not None
    held, kept = splits.validation["x"].tolist(), splits.train["x"].tolist()
    assert sorted(held + kept) == list(range(n))
    assert len(held) == int(n * share + 1e-9)
    assert kept == splits.kept.tolist() == sorted(kept)
    if by_label:
        for label in range(3):
            every = sum(i % 3 == label for i in range(n))
            assert abs(sum(i % 3 == label for i in held) - share * every) < 1.001


def test_a_fifth_by_default_drawn_from_the_seed(folder: Path) -> None:
    one, again, other = (datasets(scenario(folder, seed=seed)).splits["a"] for seed in (1, 1, 2))
    assert (len(one.train["labels"]), len(one.validation["labels"])) == (16, 4)
    assert numbers(one.train) | numbers(one.validation) == set(range(N))
    assert numbers(one.validation) == numbers(again.validation) != numbers(other.validation)


def test_clusters_with_the_same_data_hold_the_same_samples_out(folder: Path) -> None:
    """Or one would train on what the other is validated by."""
    same = [{"name": name, "devices": 1, "data": "a.jsonl", "test": "test.jsonl"} for name in "ab"]
    splits = datasets(scenario(folder, cluster=same)).splits
    assert numbers(splits["a"].validation) == numbers(splits["b"].validation)
    digits = [{"name": d, "devices": 1, "data": f"digits:{d}"} for d in ("plain", "inverted")]
    found = datasets(scenario(folder, cluster=digits)).splits  # the same images in another dress
    assert found["plain"].kept.tolist() == found["inverted"].kept.tolist()


def test_devices_train_on_what_is_kept_alone(folder: Path) -> None:
    prepared = prepare(scenario(folder, 0.25))
    for name, first in (("a", 0), ("b", 100)):
        trained = set().union(*(numbers(device.data) for device in small.devices(prepared)[name]))
        held = numbers(prepared.validation.own[name])
        assert (len(trained), len(held)) == (15, 5)
        assert trained | held == set(range(first, first + N))
        assert numbers(prepared.tests.own[name]) == set(range(500, 510))


def test_a_file_for_all_clusters_or_for_one(folder: Path) -> None:
    of_all = prepare(scenario(folder, "valid.jsonl"))
    assert all(numbers(held) == set(range(300, 306)) for held in of_all.validation.own.values())
    assert sum(device.samples for device in small.devices(of_all)["a"]) == N
    clusters = [{"name": n, "data": f"{n}.jsonl", "test": "test.jsonl"} for n in "ab"]
    clusters[1]["validation"] = "valid.jsonl"
    of_one = prepare(scenario(folder, cluster=clusters))
    assert len(of_one.validation.own["a"]["labels"]) == 4
    assert numbers(of_one.validation.own["b"]) == set(range(300, 306))
    assert small.devices(of_one)["b"][0].samples == N


def test_images_are_held_out_in_the_proportions_of_their_classes(tmp_path: Path) -> None:
    for name, n in (("train", 80), ("test", 16)):
        x, y = pictures.images(n)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    cluster = {"name": "lab", "devices": 4, "data": "train.npz", "test": "test.npz", "partition": "tau", "tau": 0.5}
    document = small.document(
        protocol="aligned",
        model={"config": pictures.CONFIG},
        task={"kind": "image"},
        train={"cycles": 1, "shared": ["gate"]},
        evaluation={"validation": 0.25},
        plan={"kind": "always-on"},
        cluster=[cluster],
    )
    prepared = prepare(Scenario.parse(document, tmp_path))
    held = prepared.data.splits["lab"].validation
    assert held is not None
    assert torch.bincount(held["labels"]).tolist() == [5, 5, 5, 5]
    own = prepared.validation.own
    assert len(own) == 4
    assert all(len(samples["labels"]) == 5 for samples in own.values())
    dominant = [int(torch.bincount(samples["labels"], minlength=4).argmax()) for samples in own.values()]
    assert dominant == [0, 1, 2, 3]  # dealt in the proportions of each client's training data


# ---- who reads what


def test_targets_plateaus_and_history_read_validation_data_and_the_end_reads_test_data(folder: Path) -> None:
    """Other test data change nothing but the verdict at the end."""
    given = scenario(folder)
    run(given, folder / "one")
    jsonl(folder / "test.jsonl", rows(10, 500, label=3))
    run(given, folder / "two")
    one, two = (list(read(folder / name / "ledger.jsonl")) for name in ("one", "two"))
    assert one[:-1] == two[:-1]
    assert one[-1]["validation"] == two[-1]["validation"]
    assert one[-1]["loss"] != two[-1]["loss"]
    found = summary(folder / "one" / "ledger.jsonl")
    assert found["judged_on"] == "validation"
    assert found["final_accuracy"] == one[-1]["accuracy"]
    assert found["accuracy_by_cluster"] == one[-1]["accuracy_by_cluster"]
    assert found["history"][-1]["accuracy"] == one[-1]["validation"]["accuracy"]
    curve = [line["accuracy"] for line in one if line["event"] == "evaluate"]
    assert [point["accuracy"] for point in found["history"][:-1]] == curve


def test_the_ledger_s_curve_is_that_of_the_validation_data(folder: Path) -> None:
    """A model that answers 0 always is right on validation data that are all 0, and wrong on the test data."""
    jsonl(folder / "valid.jsonl", rows(6, 300, label=0))
    jsonl(folder / "test.jsonl", rows(10, 500, label=4))
    clusters = []
    for name in "ab":
        jsonl(folder / f"{name}0.jsonl", rows(N, 0, label=0))
        clusters.append({"name": name, "data": f"{name}0.jsonl", "test": "test.jsonl"})
    table = {"cycles": 6, "batch_size": 4, "shared": ["gate", "backbone", "head"], "lr_gate": 1e-2, "local_steps": 8}
    result = run(scenario(folder, "valid.jsonl", cluster=clusters, train=table), folder / "run").summary
    assert result["history"][-1]["accuracy"] == 1.0
    assert result["cycles_to_target"] is not None
    assert result["final_accuracy"] == 0.0


def test_without_validation_data_everything_reads_the_test_data(folder: Path) -> None:
    result = run(scenario(folder, 0), folder / "run")
    lines = list(read(result.directory / "ledger.jsonl"))
    assert "validation" not in lines[-1]
    assert lines[0]["clusters"] == {"a": [10, 10], "b": [10, 10]}
    assert result.summary["judged_on"] == "test"
    assert result.summary["history"][-1]["accuracy"] == result.summary["final_accuracy"]


def test_baselines_learn_from_what_devices_may_learn_from(tmp_path: Path) -> None:
    """Texts of the rows that are kept, beside their labels: with any other rows they would not fit together."""
    text.saved(tmp_path / "model")
    found = [{"text": f"good {i}", "label": "good"} for i in range(8)] + [
        {"text": f"bad {i}", "label": "bad"} for i in range(8)
    ]
    jsonl(tmp_path / "train.jsonl", found)
    jsonl(tmp_path / "test.jsonl", found)
    document = {
        "name": "text",
        "protocol": "ems-fl",
        "model": {"path": "model"},
        "task": {"text": "text"},
        "train": {"cycles": 1, "batch_size": 4},
        "cluster": [{"name": "c", "data": "train.jsonl", "test": "test.jsonl"}],
    }
    given = Scenario.parse({**document, "evaluation": {"validation": 0.5}}, tmp_path)
    data = datasets(given)
    kept = data.splits["c"].train["labels"].tolist()
    assert len(kept) == 8
    share = max(kept.count(0), kept.count(1)) / 8
    assert baselines(given, data)["c"]["majority"] == 0.5  # of the test data, whatever is kept
    assert 0.5 <= share < 1
    assert baselines(given, data)["c"]["tfidf"] == 1.0


# ---- bad input


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1.0, r"evaluation.validation = 1.0: must be a share of each cluster's training data from 0 to below 1, or the name"),
        (-0.1, r"evaluation.validation = -0.1: must be a share"),
        (True, r"evaluation.validation = True: must be a share"),
        ("", r"evaluation.validation = '': must be a share"),
        (0.01, r"evaluation.validation = 0.01: of 20 training samples it holds out 0; give a file .* or set it to 0"),
        (0.999, r"devices = 2 but its data hold only 1 samples"),
        ("nowhere.jsonl", r"nowhere.jsonl"),
    ],
)
def test_bad_shares_are_told_before_anything_is_written(value: Any, says: str, folder: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(scenario(folder, value), folder / "run")
    assert not (folder / "run").exists()


def test_labels_of_validation_data_must_fit_the_model(folder: Path) -> None:
    jsonl(folder / "valid.jsonl", rows(2, 300, label=77))
    with pytest.raises(InputError, match=r"validation data of cluster 'a': label 77 is outside 0…9"):
        run(scenario(folder, "valid.jsonl"), folder / "run")
