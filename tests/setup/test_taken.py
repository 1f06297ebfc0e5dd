"""``samples`` and ``test_samples`` of every kind of data: how many, which, and what is asked for in vain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import pictures
import text
from fedexperts import InputError, Scenario, run
from fedexperts.data.source import Samples, size, some
from fedexperts.ledger import read
from fedexperts.setup.baselines import baselines
from fedexperts.setup.samples import datasets

pytestmark = pytest.mark.filterwarnings("ignore:.*no training data of this task have")  # small data are drawn as they come

N, TESTED = 40, 24


def sentences(n: int) -> list[dict[str, Any]]:
    return [{"text": f"{'good' if i % 2 else 'bad'} {i:03}", "label": "yes" if i % 2 else "no"} for i in range(n)]


def questions(n: int) -> list[dict[str, Any]]:
    return [{"question": f"{i:03}", "choices": ["a", "bc", "d"], "answer": i % 3} for i in range(n)]


def numbered(n: int) -> list[dict[str, Any]]:
    return [{"input_ids": [i + 1, 7], "label": i % 2} for i in range(n)]


def jsonl(rows: Callable[[int], list[dict[str, Any]]]) -> Callable[[Path, int], str]:
    def write(path: Path, n: int) -> str:
        path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(n)))
        return path.with_suffix(".jsonl").name

    return write


def csv(path: Path, n: int) -> str:
    path.with_suffix(".csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in sentences(n)))
    return path.with_suffix(".csv").name


def in_parquet(path: Path, n: int) -> str:
    parquet.write_table(pa.Table.from_pylist(sentences(n)), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet").name


def npz(path: Path, n: int) -> str:
    pictures.npz(path.with_suffix(".npz"), n, 0)
    return path.with_suffix(".npz").name


def digits(path: Path, n: int) -> str:
    return "digits:plain"


CLASSES = {"text": "text"}
KINDS: dict[str, tuple[Callable[[Path, int], str], dict[str, Any]]] = {
    "text in JSONL": (jsonl(sentences), CLASSES),
    "text in CSV": (csv, CLASSES),
    "text in Parquet": (in_parquet, CLASSES),
    "questions": (jsonl(questions), {"kind": "multiple-choice"}),
    "language": (jsonl(sentences), {"kind": "causal-lm", "text": "text"}),
    "images": (npz, {"kind": "image"}),
    "token numbers": (jsonl(numbered), {}),
    "digits": (digits, {}),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text.saved(tmp_path_factory.mktemp("model") / "model")


def scenario(folder: Path, model: Path, kind: str, clusters: list[dict[str, Any]], **tables: Any) -> Scenario:
    make, task = KINDS[kind]
    data, test = make(folder / "train", N), make(folder / "test", TESTED)
    found = [{"name": f"c{i}", "data": data, "test": test, **cluster} for i, cluster in enumerate(clusters)]
    for cluster in found if kind == "digits" else ():
        del cluster["test"]
    document = {
        "name": "taken",
        "seed": 5,
        "model": {"config": pictures.CONFIG} if kind == "images" else {"path": str(model)},
        "task": task,
        "train": {"cycles": 1, "local_steps": 1, "batch_size": 4},
        "assignment": {"trial_samples": 4},
        "evaluation": {"validation": 0},
        "cluster": found,
        **tables,
    }
    return Scenario.parse(document, folder)


def same(one: Samples, other: Samples, chosen: list[int]) -> bool:
    """Whether one is the chosen samples of another, but for padding that these do not need."""
    key = next(k for k in other if k in ("pixel_values", "question", "input_ids"))
    width = one[key].shape[-1]
    wide = other[key][chosen]
    wide = wide[..., -width:] if key == "question" else wide[..., :width]
    return torch.equal(one[key], wide) and torch.equal(one["labels"], other["labels"][chosen])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_so_many_drawn_from_the_seed(kind: str, tmp_path: Path, model: Path) -> None:
    whole = datasets(scenario(tmp_path, model, kind, [{}]))
    part = datasets(scenario(tmp_path, model, kind, [{"samples": 9, "test_samples": 6}, {"samples": 11}]))
    train, test = whole.splits["c0"].train, whole.splits["c0"].test
    assert test is not None
    n = size(train)
    assert n == (997 if kind == "digits" else N)
    found = part.splits["c0"]
    assert found.test is not None
    assert (size(found.train), size(found.test), size(part.splits["c1"].train)) == (9, 6, 11)
    assert same(found.train, train, some(n, 0, 9, 5))
    assert same(part.splits["c1"].train, train, some(n, 9, 11, 5))  # others than the first cluster's
    assert same(found.test, test, some(size(test), 0, 6, 5))
    assert part.outputs == whole.outputs  # labels are those of all data, whatever is drawn


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_are_is_told_before_a_model_is_loaded(
    kind: str, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedexperts.setup.prepare.model_view", None)  # which would be called
    n, tested = (997, 300) if kind == "digits" else (N, TESTED)
    for cluster, told in (
        ({"samples": n + 1}, rf"cluster 'c0': samples = {n + 1}: '.*' holds {n} [a-z ]+; take fewer, or name more files"),
        ({"test_samples": tested + 1}, rf"cluster 'c0': test_samples = {tested + 1}: '.*' holds {tested} [a-z ]+; take fewer"),
    ):
        with pytest.raises(InputError, match=told):
            run(scenario(tmp_path, model, kind, [cluster]), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=rf"'c1': samples = {n - 4}: '.*' holds {n} [a-z ]+, and clusters before it take 5;"):
        datasets(scenario(tmp_path, model, kind, [{"samples": 5}, {"samples": n - 4}]))


def test_protocols_of_a_comparison_take_the_same(tmp_path: Path, model: Path) -> None:
    given = scenario(tmp_path, model, "text in CSV", [{"samples": 9, "test_samples": 6}, {"samples": 9}])
    taken = [
        datasets(given.changed(protocol=name, train={"cycles": 2})).splits["c0"].train["input_ids"]
        for name in ("sync", "ems-fl", "ems-fl-enhanced", "aligned")
    ]
    assert all(torch.equal(one, taken[0]) for one in taken)
    assert not torch.equal(datasets(given.changed(seed=6)).splits["c0"].train["input_ids"], taken[0])


def test_what_is_held_out_and_the_baselines_are_of_what_was_taken(tmp_path: Path, model: Path) -> None:
    given = scenario(tmp_path, model, "text in JSONL", [{"samples": 10, "test_samples": 5}], evaluation={"validation": 0.2})
    splits = datasets(given).splits["c0"]
    assert splits.validation is not None
    assert (size(splits.train), size(splits.validation)) == (8, 2)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences(N)))
    rows = baselines(given, datasets(given))["c0"]
    assert rows["tfidf"] == 1.0  # good or bad decides, and rows still belong to their labels
    run(given, tmp_path / "run")
    first = next(read(tmp_path / "run" / "ledger.jsonl"))
    assert first["clusters"] == {"c0": [8]}


def test_rows_that_are_taken_keep_their_numbers_in_errors(tmp_path: Path, model: Path) -> None:
    rows = [{"text": "", "label": "no"} if i == 20 else row for i, row in enumerate(sentences(N))]
    given = scenario(tmp_path, model, "text in JSONL", [{"samples": N}])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"data of cluster 'c0', row 21: column 'text' has no token"):
        datasets(given)


def test_test_samples_alone_are_not_told_of_as_samples(tmp_path: Path, model: Path) -> None:
    given = scenario(tmp_path, model, "text in CSV", [{"test_samples": 4}])
    test = datasets(given).splits["c0"].test
    assert test is not None
    assert size(test) == 4
    with pytest.raises(InputError, match=r"^cluster 'c0': test_samples = 400: 'test.csv' holds 24 rows; take fewer"):
        datasets(scenario(tmp_path, model, "text in CSV", [{"test_samples": 400}]))
