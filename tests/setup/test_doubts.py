"""Data that work and may not be what was meant: test rows of labels that nobody trains on, or that are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pictures
import text
from fedexperts import Scenario
from fedexperts.errors import overheard
from fedexperts.setup.samples import datasets

pytestmark = pytest.mark.filterwarnings("ignore::fedexperts.errors.InputWarning")


def rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": "a good film", "label": label} for label in labels]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text.saved(tmp_path / "model")
    for name, found in (("ab", rows("a", "b")), ("ac", rows("a", "c")), ("cd", rows("c", "d", "d")), ("aa", rows("a", "a"))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (tmp_path / "link.jsonl").symlink_to("ab.jsonl")
    return tmp_path


def warned(folder: Path, *clusters: tuple[str, str], task: dict[str, Any] | None = None, **tables: Any) -> list[str]:
    document = {
        "name": "doubts",
        "seed": 1,
        "protocol": "ems-fl",
        "model": {"path": "model"},
        "task": task or {"text": "text"},
        "train": {"cycles": 1},
        "evaluation": {"validation": 0},
        "cluster": [{"name": f"c{i}", "data": data, "test": test} for i, (data, test) in enumerate(clusters)],
        **tables,
    }
    with overheard() as heard:
        datasets(Scenario.parse(document, folder))
    return heard


def test_a_label_of_the_test_data_that_training_never_has(folder: Path) -> None:
    (said,) = warned(folder, ("ab.jsonl", "cd.jsonl"))
    assert said.startswith("cluster 'c0': test data have labels that no training data of this task have")
    assert "3 of 3 rows" in said
    assert "'c' (1 row), 'd' (2 rows)" in said


def test_a_label_that_another_cluster_of_the_task_trains_on_or_the_warm_up_is_none(folder: Path) -> None:
    (said,) = warned(folder, ("ab.jsonl", "cd.jsonl"), ("ac.jsonl", "aa.jsonl"))
    assert "2 of 3 rows" in said
    assert "'d' (2 rows);" in said
    assert warned(folder, ("ab.jsonl", "ac.jsonl"), warmup={"data": ["cd.jsonl"]}) == []


def test_labels_of_images(folder: Path) -> None:
    x, y = pictures.images(16)
    np.savez(folder / "train.npz", x=x[y < 3], y=y[y < 3])
    np.savez(folder / "test.npz", x=x, y=y)
    model = {"config": pictures.CONFIG}
    (said,) = warned(folder, ("train.npz", "test.npz"), task={"kind": "image"}, model=model)
    assert "4 of 16 rows" in said
    assert "3 (4 rows)" in said


@pytest.mark.parametrize("test", ["ab.jsonl", "link.jsonl", "./ab.jsonl", "a[b].jsonl"])
def test_a_cluster_that_is_judged_by_what_it_trains_on(test: str, folder: Path) -> None:
    (said,) = warned(folder, ("ab.jsonl", test))
    assert said.startswith(f"cluster[0].test = {test!r}: cluster 'c0' trains on it as well")


def test_a_cluster_that_is_judged_by_what_another_trains_on(folder: Path) -> None:
    (said,) = warned(folder, ("ab.jsonl", "ac.jsonl"), ("ac.jsonl", "aa.jsonl"))
    assert said.startswith("cluster[0].test = 'ac.jsonl': cluster 'c1' trains on it as well")


def test_validation_data_that_are_trained_on(folder: Path) -> None:
    (said,) = warned(folder, ("ab.jsonl", "aa.jsonl"), evaluation={"validation": "ab.jsonl"})
    assert said.startswith("cluster[0].validation = 'ab.jsonl'")
