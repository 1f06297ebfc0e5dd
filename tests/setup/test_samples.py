"""Scenarios on text, from files to a finished run: label sets, questions, language; and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import text
from fedexperts import InputError, Scenario, run
from fedexperts.errors import InputWarning
from fedexperts.ledger import read
from fedexperts.method.methods import prepare
from fedexperts.setup.samples import datasets

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # small files serve as both

SENTENCES = [{"text": f"{a} {b}", "label": a} for a in ("good", "bad") for b in ("film", "day", "food", "song")]
TEST_ALONE = {"evaluation": {"validation": 0.0}}
WORDS = ("one", "two", "six")
PAIRS = [{"s1": a, "s2": b, "same": int(a == b), "score": 5.0 * (a == b)} for a in WORDS for b in WORDS]
QUESTIONS = [{"question": f"{n} + 1?", "choices": [str(n + 1), str(n), "x"], "answer": 0} for n in range(8)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text.saved(tmp_path / "model")
    for name, rows in (("sentences", SENTENCES), ("pairs", PAIRS), ("questions", QUESTIONS)):
        jsonl(tmp_path / f"{name}.jsonl", rows)
    return tmp_path


def scenario(folder: Path, task: dict[str, Any], clusters: list[dict[str, Any]], **tables: Any) -> Scenario:
    document = {
        "name": "text",
        "seed": 1,
        "protocol": "ems-fl",
        "model": {"path": "model", "lora": {"rank": 2, "alpha": 4.0}},
        "task": task,
        "train": {"cycles": 2, "local_steps": 2, "batch_size": 4, "lr_expert": 1e-2},
        "assignment": {"trial_samples": 4},
        "evaluation": {"validation": 0},
        "cluster": [{"name": f"c{i}", **cluster} for i, cluster in enumerate(clusters)],
        **tables,
    }
    return Scenario.parse(document, folder)


def both(name: str, **more: Any) -> dict[str, Any]:
    return {"data": f"{name}.jsonl", "test": f"{name}.jsonl", **more}


def test_tasks_with_label_sets_of_their_own_share_a_model(folder: Path) -> None:
    """Two sentence clusters share two outputs, pairs have two more, and scores one."""
    pairs = {"text": "s1", "text_pair": "s2", "label": "same", "metric": "matthews"}
    scores = {"text": "s1", "text_pair": "s2", "label": "score", "metric": "spearman"}
    clusters = [both("sentences"), both("sentences"), both("pairs", task=pairs), both("pairs", task=scores)]
    loaded = scenario(folder, {"text": "text"}, clusters)
    data = datasets(loaded)
    assert data.outputs == 5
    assert [(o.first, o.labels) for o in data.objectives.values()] == [(0, 2), (0, 2), (2, 2), (4, 1)]
    assert data.splits["c0"].train["labels"].tolist() == [1] * 4 + [0] * 4  # bad, good
    assert data.splits["c3"].train["labels"].dtype == torch.float32
    result = run(loaded, folder / "run")
    end = list(read(folder / "run" / "ledger.jsonl"))[-1]
    metrics = end["metrics_by_cluster"]
    assert [set(metrics[f"c{i}"]) for i in range(4)] == [{"accuracy"}, {"accuracy"}, {"matthews", "accuracy"}, {"spearman"}]
    assert result.summary["final_accuracy"] == pytest.approx(sum(end["accuracy_by_cluster"].values()) / 4)


@pytest.mark.parametrize("protocol", ["sync", "ems-fl", "ems-fl-enhanced"])
def test_questions_are_learnt_in_every_protocol(folder: Path, protocol: str) -> None:
    loaded = scenario(folder, {"kind": "multiple-choice"}, [both("questions"), both("questions")], protocol=protocol)
    loaded = loaded.changed(train={"cycles": 4, "lr_expert": 3e-2})
    run(loaded, folder / "run")
    lines = [x for x in read(folder / "run" / "ledger.jsonl") if "loss" in x]
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]


def test_language_is_learnt(folder: Path) -> None:
    loaded = scenario(folder, {"kind": "causal-lm", "text": "text"}, [both("sentences"), both("sentences")])
    run(loaded, folder / "run")
    lines = [x for x in read(folder / "run" / "ledger.jsonl") if "metrics_by_cluster" in x]
    assert lines[-1]["metrics_by_cluster"]["c0"]["perplexity"] < lines[0]["metrics_by_cluster"]["c0"]["perplexity"]
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder / "run" / "model").config.num_local_experts == 4


@pytest.mark.parametrize("kind", ["multiple-choice", "causal-lm"])
def test_warming_up_the_gate_alone(folder: Path, kind: str) -> None:
    name = "questions" if kind == "multiple-choice" else "sentences"
    warmup = {"data": [f"{name}.jsonl"] * 2, "samples": 4, "steps": 3, "batch_size": 2, "gate_fit": 0.5, "parts": ["gate"]}
    task = {"kind": kind} | ({"text": "text"} if kind == "causal-lm" else {})
    prepared = prepare(scenario(folder, task, [both(name), both(name)], warmup=warmup, model={"path": "model"}))
    before = {part: prepared.view.export(part) for part in prepared.view.parts}
    prepared.begin()
    moved = {part for part, old in before.items() for n, t in prepared.view.export(part).items() if not torch.equal(t, old[n])}
    assert moved == {"gate"}


@pytest.mark.parametrize(
    ("task", "cluster", "message"),
    [
        ({"text": "body"}, {}, r"column 'body'|no column 'body'|'body'"),
        ({"text": "text", "label": "stars"}, {}, r"'?stars'?"),
        ({"text": "text", "labels": ["good", "fine"]}, {}, r"bad"),
        ({"kind": "causal-lm"}, {}, r'kind = "causal-lm" needs text'),
        ({"kind": "multiple-choice", "metric": "f1"}, {}, r"metric = 'f1': kind = 'multiple-choice' is judged by accuracy"),
        ({"text_pair": "text"}, {}, r"text_pair = 'text': needs text"),
        ({"text": "text"}, {"task": {"kind": "causal-lm"}}, r"cluster\[0\]\.task\.kind = 'causal-lm': must be task\.kind"),
        ({"text": "text"}, {"task": {"txt": "text"}}, r"cluster\[0\]\.task\.txt: unknown key"),
        ({"text": "text"}, {"test": None}, r"cluster\[0\]\.test: is missing"),
        ({"text": "text"}, {"data": "empty.jsonl"}, r"empty\.jsonl"),
        ({}, {"task": {"text": "text"}}, r"task.text: is missing for cluster c1"),
    ],
)
def test_tasks_that_cannot_work(folder: Path, task: dict[str, Any], cluster: dict[str, Any], message: str) -> None:
    (folder / "empty.jsonl").write_text("")
    row = {k: v for k, v in {**both("sentences"), **cluster}.items() if v is not None}
    with pytest.raises(InputError, match=message):
        run(scenario(folder, task, [row, both("sentences")]), folder / "run")
    assert not (folder / "run").exists()


def test_samples_longer_than_the_context(folder: Path) -> None:
    text.saved(folder / "short", max_position_embeddings=8)
    loaded = scenario(folder, {"kind": "multiple-choice"}, [both("questions")], model={"path": "short"})
    with pytest.raises(InputError, match=r"up to \d+ tokens, but the model has seen at most 8 .* lower task.max_length to 8"):
        prepare(loaded)
    with pytest.raises(InputError, match=r"an option has 2 tokens: must be between 1 and 1, .*task.max_length = 2"):
        prepare(loaded.changed(task={"max_length": 2}))


def test_a_model_without_a_tokenizer(folder: Path) -> None:
    (folder / "model" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"model\.tokenizer = .*no tokenizer can be loaded"):
        datasets(scenario(folder, {"text": "text"}, [both("sentences")]))


def test_a_head_that_is_there_must_fit(folder: Path) -> None:
    run(scenario(folder, {"text": "text"}, [both("sentences")]), folder / "run")
    task, model = {"text": "text", "labels": ["bad", "good", "odd"]}, {"path": "run/model", "tokenizer": "model"}
    again = scenario(folder, task, [both("sentences")], model=model)
    with pytest.raises(InputError, match=r"its head has 2 outputs, the tasks need 3"):
        prepare(again)


def test_answers_and_labels_that_count_from_1_are_warned_of_over_all_clusters(folder: Path) -> None:
    jsonl(folder / "one.jsonl", [{**QUESTIONS[0], "answer": n} for n in (1, 2, 1)])
    asked = scenario(folder, {"kind": "multiple-choice"}, [both("one"), both("one")], **TEST_ALONE)
    with pytest.warns(InputWarning, match=r"answers of all clusters: 0 never occurs \(1: 8, 2: 4\)"):
        datasets(asked)
    datasets(scenario(folder, {"kind": "multiple-choice"}, [both("one"), both("questions")], **TEST_ALONE))
    jsonl(folder / "tokens.jsonl", [{"input_ids": [1, 2], "label": 1}, {"input_ids": [3], "label": 2}])
    with pytest.warns(InputWarning, match=r"labels of all clusters: 0 never occurs \(1: 4, 2: 4\)"):
        datasets(scenario(folder, {}, [both("tokens"), both("tokens")], **TEST_ALONE))
    jsonl(folder / "classes.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 2}])
    with pytest.warns(InputWarning, match=r"task\.label = 'label': 0 never occurs \(1: 2, 2: 2\).*labels = \[1, 2\]"):
        datasets(scenario(folder, {"text": "text"}, [both("classes")], **TEST_ALONE))
    datasets(scenario(folder, {"text": "text", "labels": [1, 2]}, [both("classes")], **TEST_ALONE))


CHOICE = {"kind": "multiple-choice"}
ONE = {"text": "one", "label": 0}
ASKED = {"question": "q", "choices": ["a", "b"], "answer": 0}
MISSING: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "a label": ({"text": "text"}, ONE, {"label": None}, "label has no value"),
    "a label that is no key": ({"text": "text"}, {"text": "one"}, {}, "label has no value"),
    "a blank label": ({"text": "text"}, {"text": "one", "label": "x"}, {"label": " "}, "label ' ': is blank"),
    "a score": ({"text": "text", "metric": "pearson"}, ONE, {"label": None}, "column 'label' has no value"),
    "a text": ({"text": "text"}, ONE, {"text": None}, "column 'text' has no value"),
    "a text to learn": ({"kind": "causal-lm", "text": "text"}, ONE, {"text": None}, "column 'text' has no value"),
    "an option": (CHOICE, ASKED, {"choices": ["a", None]}, "option 2 of 2 (column 'choices') has no value"),
    "options": (CHOICE, ASKED, {"choices": None}, "column 'choices' has no value"),
    "a question": (CHOICE, ASKED, {"question": None}, "column 'question' has no value"),
    "an answer": (CHOICE, ASKED, {"answer": None}, "answer (column 'answer') has no value"),
    "a blank answer": (CHOICE, ASKED, {"answer": ""}, "answer (column 'answer') is blank"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_what_is_missing_is_an_error_of_its_row_and_nothing_is_left_out(kind: str, folder: Path) -> None:
    """One rule for all kinds of data; the row is that of its own file, also where the labels of all are pooled."""
    task, good, change, told = MISSING[kind]
    rows = [{**good, **({} if "label" in good or "answer" in good else {"label": 0})}] * 4
    jsonl(folder / "good.jsonl", rows)
    jsonl(folder / "holes.jsonl", [*rows[:2], {**good, **change}, rows[3]])
    clusters = [both("good"), {"data": "good.jsonl", "test": "holes.jsonl"}]
    with pytest.raises(InputError) as refused:
        datasets(scenario(folder, task, clusters))
    assert str(refused.value).startswith(f"test of cluster 'c1', row 3: {told}; fill it in, or leave the ")


def test_a_label_that_is_no_class_is_named_by_its_own_row(folder: Path) -> None:
    jsonl(folder / "good.jsonl", [ONE] * 4)
    jsonl(folder / "secret.jsonl", [ONE, ONE, {**ONE, "label": -1}])
    with pytest.raises(InputError, match=r"^test of cluster 'c1', row 3: label -1: must be from 0"):
        datasets(scenario(folder, {"text": "text"}, [both("good"), {"data": "good.jsonl", "test": "secret.jsonl"}]))


def test_a_missing_token_or_label_of_numbered_samples(folder: Path) -> None:
    for row, name in (({"input_ids": [1], "label": None}, "label"), ({"input_ids": None, "label": 0}, "input_ids")):
        jsonl(folder / "numbers.jsonl", [{"input_ids": [1], "label": 0}, row])
        with pytest.raises(
            InputError, match=rf"numbers\.jsonl, line 2: '{name}' has no value; fill it in, or leave the row out"
        ):
            datasets(scenario(folder, {}, [both("numbers")]))
