"""``fedexperts init``: a scenario for the user's own files, which runs as it is."""

from __future__ import annotations

import csv
import json
import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pictures
from fedexperts import Scenario
from fedexperts.cli.main import main
from fedexperts.scenario import Network

Command = Callable[[str], int]
SMALL = "--set train.cycles=1 --set train.local_steps=1 --set warmup.steps=2 --set warmup.samples=8"
WORDS = ["good", "bad", "film", "plot", "actor", "music", "long", "short", "dull", "bright", "scene", "story"]


@pytest.fixture
def fx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedexperts", *shlex.split(line)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return call


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=6))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def reviews(n: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"id": i, "review": sentence(rng), "sentiment": rng.choice(["neg", "pos"])} for i in range(n)]


def test_one_table_alone_is_split_and_runs(fx: Command, tmp_path: Path) -> None:
    write_csv(tmp_path / "mine" / "reviews.csv", reviews(100))
    assert fx("init mine") == 0
    scenario = Scenario.load(tmp_path / "mine" / "scenario.toml")
    assert (scenario.task.text, scenario.task.label) == ("review", "sentiment")
    kept = [(tmp_path / "mine" / f"reviews-{split}.jsonl").read_text().splitlines() for split in ("train", "test")]
    assert [len(rows) for rows in kept] == [80, 20]
    assert [json.loads(row)["id"] for row in kept[1]][:3] == ["4", "9", "14"]
    assert fx(f"run mine/scenario.toml --out run {SMALL}") == 0
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()


def test_folders_of_train_and_test_are_clusters_with_tasks_of_their_own(fx: Command, tmp_path: Path) -> None:
    rng = random.Random(1)
    pairs = [{"sentence1": sentence(rng), "sentence2": sentence(rng), "label": str(i % 2)} for i in range(60)]
    for split, seed in (("train", 0), ("dev", 1)):
        write_csv(tmp_path / "mine" / "reviews" / f"{split}.csv", reviews(60, seed))
        write_csv(tmp_path / "mine" / "same" / f"{split}.csv", pairs)
    assert fx("init mine") == 0
    scenario = Scenario.load(tmp_path / "mine" / "scenario.toml")
    assert [(c.name, c.data, c.test) for c in scenario.cluster] == [
        ("reviews", "reviews/train.csv", "reviews/dev.csv"),
        ("same", "same/train.csv", "same/dev.csv"),
    ]
    assert [scenario.task_of(i).text_pair for i in (0, 1)] == [None, "sentence2"]
    assert fx(f"run mine/scenario.toml --out run {SMALL}") == 0


def test_scores_are_a_regression(fx: Command, tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [{"sentence1": sentence(rng), "sentence2": sentence(rng), "score": f"{rng.random() * 5:.2f}"} for _ in range(50)]
    write_csv(tmp_path / "mine" / "sts.csv", rows)
    assert fx("init mine") == 0
    assert Scenario.load(tmp_path / "mine" / "scenario.toml").task.metric == "spearman"
    assert fx(f"run mine/scenario.toml --out run {SMALL}") == 0


def test_two_texts_are_a_pair_and_more_are_told(fx: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(4)
    rows = [{"premise_": sentence(rng), "claim": sentence(rng), "follows": rng.choice(["yes", "no"])} for _ in range(40)]
    write_csv(tmp_path / "two" / "rte.csv", rows)
    write_csv(tmp_path / "three" / "rte.csv", [{**row, "note": sentence(rng) + " and more of it"} for row in rows])
    assert fx("init two") == 0
    task = Scenario.load(tmp_path / "two" / "scenario.toml").task
    assert (task.text, task.text_pair, task.label) == ("premise_", "claim", "follows")
    assert fx("init three") == 0
    assert "text = note, label = follows; not used: premise_, claim" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["opt{}", "Option {}", "choice_{}", "answer{}"])
def test_options_in_numbered_columns(fx: Command, tmp_path: Path, name: str) -> None:
    rng = random.Random(5)
    rows = [{"stem": sentence(rng), **{name.format(i): sentence(rng) for i in (1, 2, 3)}, "target": i % 3} for i in range(30)]
    write_csv(tmp_path / "mine" / "exam.csv", rows)
    assert fx("init mine") == 0
    assert Scenario.load(tmp_path / "mine" / "scenario.toml").task.options == tuple(name.format(i) for i in (1, 2, 3))


def test_texts_have_room(fx: Command, tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = [{"review": " ".join(sentence(rng) for _ in range(20)), "label": i % 2} for i in range(30)]
    write_csv(tmp_path / "mine" / "long.csv", rows)
    assert fx("init mine") == 0
    assert Scenario.load(tmp_path / "mine" / "scenario.toml").task.max_length == 256


@pytest.mark.parametrize("listed", [True, False])
def test_questions(fx: Command, tmp_path: Path, listed: bool) -> None:
    rng = random.Random(3)

    def row() -> dict[str, Any]:
        options = [sentence(rng) for _ in range(4)]
        beside = {"choices": options} if listed else dict(zip("ABCD", options, strict=True))
        return {"stem": sentence(rng) + "?", **beside, "answer": rng.choice("ABCD")}

    for name in ("exam", "held"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row()) + "\n" for _ in range(40)))
    assert fx("init mine --data exam.jsonl --test held.jsonl") == 0
    scenario = Scenario.load(tmp_path / "mine" / "scenario.toml")
    assert scenario.task.kind == "multiple-choice"
    assert scenario.task.prompt == "Question: {stem}\nAnswer:"
    assert scenario.task.options == ("choices" if listed else tuple("ABCD"))
    assert scenario.cluster[0].data == "../exam.jsonl"
    assert fx(f"run mine/scenario.toml --out run {SMALL}") == 0


def test_images_of_arrays_and_of_parquet(fx: Command, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", x=rng.integers(0, 256, (40, 16, 16), dtype=np.uint8), y=np.arange(40) % 4)
        drawn = pictures.images(40)[0]
        rows = [{"img": {"bytes": pictures.encoded(one), "path": None}, "fine_label": i % 4} for i, one in enumerate(drawn)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"photos-{split}.parquet")
    assert fx("init arrays --data train.npz") == 0
    config = Scenario.load(tmp_path / "arrays" / "scenario.toml").model.config
    assert config is not None
    assert (config["in_channels"], config["image_size"]) == (1, 16)
    assert fx(f"run arrays/scenario.toml --out run {SMALL}") == 0
    assert fx("init photos --data photos-train.parquet") == 0
    task = Scenario.load(tmp_path / "photos" / "scenario.toml").task
    assert (task.kind, task.image, task.label) == ("image", "img", "fine_label")


def test_a_plan_needs_no_data(fx: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fx("init --kind plan towns") == 0
    assert len(Network.load(tmp_path / "towns" / "scenario.toml").cluster) == 5
    assert fx("plan towns/scenario.toml --json") == 0
    rows = json.loads(capsys.readouterr().out)["clusters"]
    assert all(row["passes_per_day"] > 1 for row in rows.values())


def test_a_model_of_ones_own(fx: Command, tmp_path: Path) -> None:
    import text

    text.saved(tmp_path / "models" / "tiny")
    write_csv(tmp_path / "mine" / "reviews.csv", reviews(50))
    assert fx("init mine --model models/tiny") == 0
    assert Scenario.load(tmp_path / "mine" / "scenario.toml").model.path == "../models/tiny"
    assert not (tmp_path / "mine" / "tokenizer").exists()
    assert fx("run mine/scenario.toml --out run --set train.cycles=1 --set train.local_steps=1") == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("init empty", "empty: holds no training data (.csv"),
        ("init mine --data nowhere.csv", "nowhere.csv: there is no such file"),
        ("init mine --data numbers.csv", "no column of a, b looks like text"),
        ("init mine --data reviews.csv --kind questions", "has the columns id, review, sentiment, none of which holds a list"),
        ("init mine --data reviews.csv --test reviews.csv --test reviews.csv", "--test: 2 for 1 files"),
        ("init mine --data reviews.csv --data train.npz", "these look like several (reviews: text, "),
        ("init mine --data train.npz", "there are no test images beside it"),
        ("init --kind plan mine --data reviews.csv", "--kind plan: takes neither --data"),
        ("init full --data reviews.csv", "full: already holds scenario.toml"),
    ],
)
def test_what_cannot_be_begun_writes_nothing(
    fx: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    write_csv(tmp_path / "reviews.csv", reviews(30))
    write_csv(tmp_path / "numbers.csv", [{"a": i, "b": 2 * i} for i in range(20)])
    np.savez(tmp_path / "train.npz", x=np.zeros((8, 16, 16), dtype=np.uint8), y=np.arange(8) % 4)
    write_csv(tmp_path / "full" / "scenario.toml", [{"mine": 1}])
    before = sorted(tmp_path.rglob("*"))
    assert fx(line) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_data_that_a_run_would_refuse_are_told_at_once(fx: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"which of them is {i}?", "choices": ["one", "two"], "answer": "A"} for i in range(20)]
    rows[7]["answer"] = "AB"
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert fx("init mine --data exam.jsonl --test exam.jsonl") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "a run would be refused so far: data of cluster 'exam', row 8: answer 'AB'" in said
    assert "mend that first, then: fedexperts run" in said
