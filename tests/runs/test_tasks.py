"""Several tasks in one model: what rows and labels are called stays with it, through exports and plain transformers."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import text
from fedexperts import InputError, Scenario, run
from fedexperts.cli.main import app
from fedexperts.errors import InputWarning
from fedexperts.ledger import read
from fedexperts.method.methods import prepare
from fedexperts.moe.tasks import read_tasks
from fedexperts.runs.judge import judge_model

pytestmark = pytest.mark.filterwarnings("ignore:.*trains on it as well")  # a small file serves as both

MOODS = [{"text": f"{a} {b}", "label": a} for a in ("good", "bad", "odd") for b in ("film", "day", "song", "food")]
WORDS = ("one", "two", "six", "ten")
PAIRS = [{"s1": a, "s2": b, "same": "yes" if a == b else "no", "score": 5.0 * (a == b)} for a in WORDS for b in WORDS]
PAIR = {"text": "s1", "text_pair": "s2", "label": "same"}
CLUSTERS = [
    {"name": "moods", "data": "moods.jsonl", "test": "moods.jsonl"},
    {"name": "pairs", "data": "pairs.jsonl", "test": "pairs.jsonl", "task": PAIR},
    {"name": "scores", "data": "pairs.jsonl", "test": "pairs.jsonl", "task": {**PAIR, "label": "score", "metric": "pearson"}},
]
ROWS = {"moods": (0, 1, 2), "pairs": (3, 4), "scores": (5,)}
LABELS = {"moods": ("bad", "good", "odd"), "pairs": ("no", "yes"), "scores": ()}


def document(**tables: Any) -> dict[str, Any]:
    return {
        "name": "tasks",
        "seed": 1,
        "model": {"path": "start", "lora": {"rank": 2, "alpha": 4.0}},
        "task": {"text": "text", "max_length": 24},
        "train": {
            "cycles": 3,
            "local_steps": 8,
            "batch_size": 8,
            "lr_expert": 2e-2,
            "lr_gate": 2e-2,
            "shared": ["gate", "head"],
        },
        "assignment": {"trial_samples": 4},
        "evaluation": {"validation": 0},
        "cluster": CLUSTERS,
        **tables,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three tasks, in ``run``; tests only read it."""
    at = tmp_path_factory.mktemp("tasks")
    text.saved(at / "start")
    for name, rows in (("moods", MOODS), ("pairs", PAIRS)):
        (at / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (at / "scenario.toml").write_text(tomli_w.dumps(document()))
    run(Scenario.load(at / "scenario.toml"), at / "run")
    return at


def command(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    app([*map(str, words), "--json"], standalone_mode=False)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def plain(folder: Path, asked: str, second: str | None, rows: tuple[int, ...]) -> torch.Tensor:
    """What plain transformers computes, of the rows of one task."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(asked, second, return_tensors="pt")).logits[0, list(rows)]


def test_an_exported_model_says_which_rows_are_whose_and_try_answers_by_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    command(capsys, "export", folder / "run", "--format", "merged", "--to", merged)
    found = json.loads((merged / "tasks.json").read_text())
    assert {name: tuple(task["rows"]) for name, task in found.items()} == ROWS
    assert {name: tuple(task.get("labels", ())) for name, task in found.items()} == LABELS
    assert found["pairs"] == {
        "kind": "classification",
        "metric": "accuracy",
        "rows": [3, 4],
        "labels": ["no", "yes"],
        "text": "s1",
        "text_pair": "s2",
        "label": "same",
        "max_length": 24,
    }
    asked = {"moods": ("good film", None), "pairs": ("one", "one"), "scores": ("one", "six")}
    for model in (folder / "run", merged):
        for cluster, (first, second) in asked.items():
            words = ["--second", second] if second else []
            said = command(capsys, "try", model, "--cluster", cluster, "--prompt", first, *words)
            (answer,) = said["models"][str(model)]["answers"]
            logits = plain(merged, first, second, ROWS[cluster])
            if cluster == "scores":
                assert answer == {"score": pytest.approx(float(logits), abs=1e-5)}
                continue
            assert answer["label"] == LABELS[cluster][int(logits.argmax())]
            shares = dict(zip(LABELS[cluster], logits.softmax(dim=-1).tolist(), strict=True))
            assert answer["probabilities"] == pytest.approx(shares, abs=1e-5)


def test_the_names_are_those_that_were_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers over the test data, counted by name, are the accuracies of the ledger's end."""
    end = list(read(folder / "run" / "ledger.jsonl"))[-1]["accuracy_by_cluster"]
    assert end["moods"] > 0.6  # by chance a third
    for cluster, rows, columns in (("moods", MOODS, ("text",)), ("pairs", PAIRS, ("s1", "s2"))):
        words = [w for row in rows for w in ("--prompt", row[columns[0]])]
        words += [w for row in rows if columns[1:] for w in ("--second", row["s2"])]
        said = command(capsys, "try", folder / "run", "--cluster", cluster, *words)
        answers = said["models"][str(folder / "run")]["answers"]
        label = "label" if cluster == "moods" else "same"
        right = [answer["label"] == row[label] for answer, row in zip(answers, rows, strict=True)]
        assert sum(right) / len(right) == pytest.approx(end[cluster])


def test_peft_keeps_them_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import PeftModel

    document = command(capsys, "export", folder / "run", "--format", "peft", "--to", tmp_path / "adapter")
    assert read_tasks(tmp_path / "adapter") == read_tasks(folder / "run" / "model")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        base = AutoModelForSequenceClassification.from_pretrained(document["base"], num_labels=6)
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained(tmp_path / "adapter")("odd day", return_tensors="pt")).logits[0]
    expected = plain(folder / "run" / "model", "odd day", None, tuple(range(6)))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no cluster": (
        ["--prompt", "x"],
        r"several tasks share its head; name the cluster to ask with --cluster: moods \(text → bad, good, odd\); "
        r"pairs \(s1 and s2 → no, yes\); scores \(s1 and s2 → pearson\)",
    ),
    "another cluster": (["--prompt", "x", "--cluster", "mood"], r"--cluster mood: .* has no such cluster; it has moods \(text"),
    "half a pair": (["--prompt", "x", "--cluster", "pairs"], r"--second: .* labels pairs \(s1 and s2\); give the second text"),
    "a pair too many": (
        ["--prompt", "x", "--cluster", "moods", "--second", "y"],
        r"--second: .* labels single texts \(text\); leave it out",
    ),
    "two for one": (
        ["--prompt", "x", "--cluster", "pairs", "--second", "y", "--second", "z"],
        "--second: is given 2 times for 1 prompts; give one for each prompt",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked(name: str, folder: Path) -> None:
    words, told = REFUSED[name]
    with pytest.raises(InputError, match=told):
        app(["try", str(folder / "run"), *words], standalone_mode=False)


def test_clusters_are_for_classifiers_that_know_theirs(folder: Path, tmp_path: Path) -> None:
    for option in ("--cluster", "--second"):
        with pytest.raises(InputError, match=rf"{option}: .*start continues texts, whatever cluster they are of"):
            app(["try", str(folder / "start"), "--prompt", "x", option, "moods"], standalone_mode=False)
    model = Path(shutil.copytree(folder / "run" / "model", tmp_path / "model"))
    (model / "tasks.json").unlink()
    with pytest.raises(InputError, match=r"--cluster moods: .* has no tasks\.json, which runs on text write beside a model"):
        app(["try", str(model), "--prompt", "x", "--cluster", "moods"], standalone_mode=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": [3]}, r"tasks\.json: pairs: 2 labels for rows \[3\]"),
        ({"rows": "all"}, r"tasks\.json: pairs\.rows = 'all': "),
        ({"rows": [3, 9]}, r"its head has 6 outputs, and its task's rows end at 9; tasks\.json belongs to another model"),
        ({"more": 1}, r"tasks\.json: pairs\.more = 1: extra inputs are not permitted"),
    ],
)
def test_a_file_that_was_changed(change: dict[str, Any], told: str, folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder / "run" / "model", tmp_path / "model"))
    found = json.loads((model / "tasks.json").read_text())
    (model / "tasks.json").write_text(json.dumps({**found, "pairs": {**found["pairs"], **change}}))
    with pytest.raises(InputError, match=told):
        app(["try", str(model), "--prompt", "x", "--second", "y", "--cluster", "pairs"], standalone_mode=False)


def test_one_task_names_the_outputs_in_the_models_own_config(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clusters = [CLUSTERS[0], {**CLUSTERS[0], "name": "more"}]
    directory = run(Scenario.parse(document(cluster=clusters), folder), tmp_path / "run").directory
    command(capsys, "export", directory, "--format", "merged", "--to", tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "odd"}
    assert config["label2id"] == {"bad": 0, "good": 1, "odd": 2}
    logits = plain(tmp_path / "merged", "odd day", None, (0, 1, 2))
    asked = pipeline("text-classification", model=str(tmp_path / "merged"), device="cpu")
    assert asked("odd day")[0]["label"] == LABELS["moods"][int(logits.argmax())]
    said = command(capsys, "try", tmp_path / "merged", "--prompt", "odd day")  # one task needs no cluster
    assert said["models"][str(tmp_path / "merged")]["answers"][0]["label"] == LABELS["moods"][int(logits.argmax())]


def test_a_head_with_the_same_names_in_another_order_is_warned_of(folder: Path, tmp_path: Path) -> None:
    names = {"labels": ["odd", "good", "bad"]}
    given = document(cluster=CLUSTERS[:1], task={"text": "text", **names}, train={"cycles": 1})
    start = run(Scenario.parse(given, folder), tmp_path / "run").directory / "model"
    given = document(cluster=CLUSTERS[:1], model={"path": str(start)})
    with pytest.warns(InputWarning, match=r"calls its outputs odd, good, bad, and .* \(bad, good, odd\); give task\.labels in"):
        prepare(Scenario.parse(given, folder))
    prepare(Scenario.parse({**given, "task": {"text": "text", **names}}, folder))  # warnings are errors here


def test_numbers_name_nothing_unless_they_are_listed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "n.jsonl").write_text("".join(json.dumps({"text": f"{n}", "label": n % 2 + 1}) + "\n" for n in range(8)))
    cluster = [{"name": "n", "data": str(tmp_path / "n.jsonl"), "test": str(tmp_path / "n.jsonl")}]
    for task, names in (({"labels": [1, 2]}, {"0": "1", "1": "2"}), ({}, {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})):
        given = document(cluster=cluster, task={"text": "text", **task}, train={"cycles": 1})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 0 never occurs
            out = run(Scenario.parse(given, folder), tmp_path / f"run-{len(names)}").directory
        config = json.loads((out / "model" / "config.json").read_text())
        assert config.get("id2label", names) == names


def test_eval_refuses_rows_that_are_another_tasks(folder: Path, tmp_path: Path) -> None:
    whole = judge_model(str(folder / "run"), folder / "scenario.toml", beside=False)
    end = list(read(folder / "run" / "ledger.jsonl"))[-1]
    assert {name: one[one["metric"]] for name, one in whole["clusters"].items()} == pytest.approx(
        end["accuracy_by_cluster"], abs=1e-6
    )
    path = folder / "turned.toml"
    path.write_text(tomli_w.dumps(document(cluster=[CLUSTERS[1], CLUSTERS[2], CLUSTERS[0]])))
    told = r"cluster 'pairs': by this scenario rows 0…1 of the head are no, yes, but tasks\.json .* rows 3…4 are no, yes;"
    with pytest.raises(InputError, match=told):
        judge_model(str(folder / "run"), path)


def test_questions_keep_their_template(folder: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 1?", "choices": [str(n + 1), "x"], "answer": 0} for n in range(8)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cluster = [{"name": "q", "data": str(tmp_path / "q.jsonl"), "test": str(tmp_path / "q.jsonl")}]
    given = document(cluster=cluster, task={"kind": "multiple-choice", "prompt": "Q: {question}"}, train={"cycles": 1})
    out = run(Scenario.parse(given, folder), tmp_path / "run").directory
    task = json.loads((out / "model" / "tasks.json").read_text())["q"]
    assert (task["prompt"], task["options"], task["label"]) == ("Q: {question}", "choices", "answer")
    assert not {"rows", "labels"} & set(task)
