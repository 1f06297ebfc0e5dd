"""``fedexperts eval``: checkpoints and runs judged by a scenario's tasks, beside what needs no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

import small
import text
from fedexperts import InputError, Scenario, run
from fedexperts.cli.eval import eval_table
from fedexperts.cli.main import app
from fedexperts.ledger import read
from fedexperts.report.table import baseline_rows
from processes import program
from terminal import printed

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

LINES = {
    "train": [{"text": f"{a} {b}", "label": a} for a in ("good", "bad") for b in ("film", "day", "food", "song")],
    "test": [{"text": f"{b} {a}", "label": a} for a in ("good", "bad") for b in ("film", "day", "book")],
    "questions": [{"question": f"{n} + 1?", "choices": [str(n + 1), str(n), "x"], "answer": n % 3} for n in range(6)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text.saved(tmp_path / "model")
    for name, rows in LINES.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def scenario(folder: Path, **tables: Any) -> Path:
    """Without ``[train]``: judging needs none."""
    clusters = [{"name": name, "data": "train.jsonl", "test": "test.jsonl"} for name in ("a", "b")]
    document = {"name": "text", "model": {"path": "model"}, "task": {"text": "text"}, "cluster": clusters}
    document |= {"evaluation": {"validation": 0.0}, **tables}  # eight rows are too few to hold some out
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(document))
    return path


def questions(folder: Path) -> Path:
    clusters = [{"name": name, "data": "questions.jsonl", "test": "questions.jsonl"} for name in ("a", "b")]
    return scenario(folder, task={"kind": "multiple-choice"}, cluster=clusters)


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    app(["eval", *map(str, arguments), "--json"], standalone_mode=False)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_checkpoint_beside_the_baselines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = evaluated(capsys, folder / "model", "--task", scenario(folder))
    assert {"model", "dense", "new_head", "accuracy", "metric", "loss", "clusters", "baselines"} == set(document)
    assert document["baselines"]["a"] == {"majority": 0.5, "tfidf": 1.0}
    row = document["clusters"]["a"]
    assert (row["metric"], row["count"]) == ("accuracy", 6)
    assert document["accuracy"] == row["accuracy"] == document["clusters"]["b"]["accuracy"]
    app(["eval", str(folder / "model"), "--task", str(folder / "scenario.toml"), "--cluster", "b"], standalone_mode=False)
    shown = capsys.readouterr()
    assert "TF-IDF" in shown.out
    assert "cluster b: accuracy" in shown.err
    assert "is not above the baseline TF-IDF, 1.000" in shown.err


def test_metrics_go_by_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": row["text"], "score": n / 4} for n, row in enumerate(LINES["train"])]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = {"name": "b", "data": "scores.jsonl", "test": "scores.jsonl", "task": {"metric": "spearman", "label": "score"}}
    path = scenario(folder, cluster=[{"name": "a", "data": "train.jsonl", "test": "test.jsonl"}, scores])
    found = evaluated(capsys, folder / "model", "--task", path)
    assert found["metric"] == "mean of accuracy and spearman"
    assert found["metric_by_cluster"] == {"a": "accuracy", "b": "spearman"}
    app(["eval", str(folder / "model"), "--task", str(path)], standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"mean of accuracy and spearman {found['accuracy']:.3f}, loss" in shown
    assert "%" not in shown


def test_a_head_that_nobody_has_trained_is_marked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scenario(folder, train={"cycles": 1})
    run(Scenario.load(path), folder / "run")
    document = evaluated(capsys, folder / "model", "--task", path)
    assert document["new_head"] == ["score.weight"]
    app(["eval", str(folder / "model"), "--task", str(path)], standalone_mode=False)
    shown = capsys.readouterr()
    assert "RANDOM HEAD: chance" in shown.out
    assert "has no head for this task (score.weight is not in it): a RANDOM one was put on" in " ".join(shown.err.split())
    for model, task in (("run", scenario), ("model", questions)):  # these have heads of their own
        assert evaluated(capsys, folder / model, "--task", task(folder))["new_head"] == []
        app(["eval", str(folder / model), "--task", str(folder / "scenario.toml")], standalone_mode=False)
        assert "RANDOM" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("kind", ["causal-lm", "multiple-choice", "classification"])
def test_a_dense_model_beside_the_moe_that_computes_the_same(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Upcycled, every expert is the dense model's FFN: on the same rows both say the same."""
    text.saved(folder / "dense", "llama")
    command = [
        "build",
        "upcycle",
        "--model",
        str(folder / "dense"),
        "--experts",
        "3",
        "--top-k",
        "2",
        "--out",
        str(folder / "moe"),
    ]
    app(command, standalone_mode=False)
    path = scenario(folder, task={"kind": kind, "text": "text"}) if kind != "multiple-choice" else questions(folder)
    capsys.readouterr()
    found = evaluated(capsys, folder / "dense", folder / "moe", "--task", path)
    dense, moe = found["models"]
    assert (dense["dense"], moe["dense"]) == (True, False)
    assert [dense["model"], moe["model"]] == [str(folder / "dense"), str(folder / "moe")]
    for key in ("metric", "accuracy", "baselines", "new_head"):
        assert dense[key] == moe[key]
    for name, row in dense["clusters"].items():
        assert row.pop("metric") == moe["clusters"][name].pop("metric")
        assert row == pytest.approx(moe["clusters"][name], rel=1e-5)
    assert evaluated(capsys, folder / "dense", "--task", path)["accuracy"] == dense["accuracy"]
    app(["eval", str(folder / "dense"), str(folder / "moe"), "--task", str(path)], standalone_mode=False)
    assert "(dense" in capsys.readouterr().out


def test_metrics_of_images_go_by_names_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"metric": "accuracy", "accuracy": 0.5, "macro_f1": 0.25, "macro_auc": None, "loss": 1.0, "count": 4}
    document = {"model": "m", "dense": False, "new_head": [], "accuracy": 0.5, "metric": "accuracy", "loss": 1.0}
    text = printed(eval_table([document | {"clusters": {"a": row}, "baselines": {}}]), 120)
    assert "macro F1" in text
    assert "macro AUC" in text
    assert "macro_" not in text


def test_a_model_that_has_diverged_is_judged_in_plain_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    save_file(
        {name: torch.full_like(x, 3e38) if "lm_head" in name else x for name, x in tensors.items()}, file, {"format": "pt"}
    )
    app(["eval", str(folder / "model"), "--task", str(questions(folder)), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["loss"] is found["clusters"]["a"]["loss"] is None


def test_questions_and_language(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, folder / "model", "--task", questions(folder), "--cluster", "b")
    assert list(found["clusters"]) == ["b"] == list(found["baselines"])
    assert found["baselines"]["b"]["majority"] == pytest.approx(1 / 3, abs=1e-6)
    assert 0 <= found["baselines"]["b"]["tfidf"] <= 1
    path = scenario(folder, task={"kind": "causal-lm", "text": "text"})
    found = evaluated(capsys, folder / "model", "--task", path)
    letters = "".join(row["text"][1:] for row in LINES["test"])
    trained = "".join(row["text"][1:] for row in LINES["train"])
    usual = max(set(trained), key=trained.count)
    assert found["baselines"]["a"] == {"majority": pytest.approx(letters.count(usual) / len(letters), abs=1e-6), "tfidf": None}
    assert found["clusters"]["a"]["perplexity"] > 1
    assert evaluated(capsys, folder / "model", "--task", path, "--no-baselines")["baselines"] == {}


def test_a_run_is_judged_as_it_judged_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scenario(folder, train={"cycles": 2, "lr_expert": 1e-2}, evaluation={"target": 0.9, "validation": 0.0})
    result = run(Scenario.load(path), folder / "run")
    lines = list(read(folder / "run" / "ledger.jsonl"))
    document = evaluated(capsys, folder / "run", "--task", path)
    assert document["accuracy"] == pytest.approx(result.summary["final_accuracy"], abs=1e-6)
    assert [x["clusters"] for x in lines if x["event"] == "baselines"] == [document["baselines"]]
    assert result.summary["baselines"] == document["baselines"]
    assert baseline_rows({"x": result.summary, "y": result.summary}) == {
        "majority": {"a": 0.5, "b": 0.5},
        "TF-IDF": {"a": 1.0, "b": 1.0},
    }
    assert (folder / "run" / "model" / "tokenizer.json").is_file()
    app(["report", str(folder / "run"), "--out", str(folder / "page.html")], standalone_mode=False)
    assert "TF-IDF" in capsys.readouterr().out
    assert "TF-IDF" in (folder / "page.html").read_text()


def test_samples_that_are_token_numbers_have_no_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.toml"
    path.write_text(tomli_w.dumps(small.document(train={"cycles": 1})))
    result = run(Scenario.load(path), tmp_path / "run")
    document = evaluated(capsys, tmp_path / "run", "--task", path)
    assert document["baselines"] == result.summary["baselines"] == {}
    assert document["accuracy"] == pytest.approx(result.summary["final_accuracy"], abs=1e-6)


def without_tokenizer(folder: Path) -> list[str]:
    (folder / "model" / "tokenizer.json").unlink()
    return [str(folder / "model")]


def unfinished(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "scenario.toml").touch()
    return [str(folder / "run")]


def unknown(folder: Path) -> list[str]:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "phimoe", "vocab_size": text.VOCABULARY, **sizes}))
    return [str(folder / "model")]


def untested(folder: Path) -> list[str]:
    scenario(folder, cluster=[{"name": "a", "data": "train.jsonl"}])
    return [str(folder / "model")]


BAD = {
    "no such model": (lambda folder: [str(folder / "none")], r"none.*no config\.json"),
    "no such cluster": (lambda folder: [str(folder / "model"), "--cluster", "c"], r"--cluster c: .* it has a, b"),
    "no tokenizer": (without_tokenizer, r"model\.tokenizer = .*no tokenizer can be loaded"),
    "a run that goes on": (unfinished, r"has not ended .* fedexperts run … --resume"),
    "a family that the view does not know": (unknown, r"model_type 'phimoe' is not supported"),
    "no test data": (untested, r"cluster\[0\]\.test: is missing; a file as data \(train\.jsonl\) needs a test file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_judged(case: str, folder: Path) -> None:
    make, message = BAD[case]
    path = scenario(folder)
    with pytest.raises(InputError, match=message):
        app(["eval", *make(folder), "--task", str(path)], standalone_mode=False)


def test_wrong_input_exits_2(folder: Path) -> None:
    done = program("eval", "model", "--task", "none.toml", folder=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.toml: cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
