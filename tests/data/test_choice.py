"""Multiple choice: equal to the plain way of scoring every option alone, and what is wrong with a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import text
from fedexperts.data.choice import Columns, MultipleChoice, encode
from fedexperts.errors import InputError
from fedexperts.moe.lora import LoRA
from fedexperts.moe.view import View

ROWS: list[dict[str, Any]] = [
    {"question": "What is 2 + 2?", "choices": ["four", "5", "a rather long answer"], "answer": 0},
    {"question": "?", "choices": ["no", "yes"], "answer": "B"},
    {"question": "Name a colour, please, of the four", "choices": ["red", "sea", "sky", "tree", "oak"], "answer": "a"},
]


def naive(model: Any, row: dict[str, Any], normalise: str = "tokens") -> list[float]:
    """Every option on its own: the whole sequence, all logits, no padding, no cache."""
    tokenizer = text.tokenizer()
    question = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
    scores = []
    for option in row["choices"]:
        answer = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_p = model(torch.tensor([question + answer])).logits[0].log_softmax(dim=-1)
        total = sum(float(log_p[len(question) + i - 1, token]) for i, token in enumerate(answer))
        scores.append(total / (len(answer) if normalise == "tokens" else len(option)))
    return scores


@pytest.mark.parametrize("normalise", ["tokens", "characters"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_scores_are_those_of_each_option_alone(family: str, normalise: Any) -> None:
    model = text.language_model(family)
    expected = [naive(model, row, normalise) for row in ROWS]
    view = View(model)
    samples = encode(ROWS, text.tokenizer(), Columns(), 128)
    with torch.no_grad():
        scores_NO = MultipleChoice(normalise).scores(view, samples)
    for row, scores, wanted in zip(ROWS, scores_NO.tolist(), expected, strict=True):
        assert scores[: len(wanted)] == pytest.approx(wanted, abs=1e-5)
        assert scores[len(wanted) :] == [-float("inf")] * (5 - len(row["choices"]))
    judged = MultipleChoice(normalise).judge(view, samples)
    best = [max(range(len(w)), key=w.__getitem__) for w in expected]
    assert judged.score == pytest.approx(sum(b == a for b, a in zip(best, [0, 1, 0], strict=True)) / 3)
    alone = [MultipleChoice(normalise).judge(view, {k: v[i : i + 1] for k, v in samples.items()}).loss for i in range(3)]
    assert judged.loss == pytest.approx(sum(alone) / 3, abs=1e-5)


def test_the_loss_is_cross_entropy_over_the_options() -> None:
    model = text.language_model()
    scores = torch.tensor(naive(model, ROWS[0]))
    samples = encode(ROWS[:1], text.tokenizer(), Columns(), 128)
    assert float(MultipleChoice().loss(View(model), samples)) == pytest.approx(float(-scores.log_softmax(0)[0]), abs=1e-5)


def test_gradients_are_those_of_the_naive_loss() -> None:
    """Through the cache of the question, to the experts and the gate."""
    tokenizer, gradients = text.tokenizer(), []
    for shared in (True, False):
        view = View(text.language_model())
        view.model.train()
        view.freeze(but=["expert:1", "gate"])
        if shared:
            loss = MultipleChoice().loss(view, encode(ROWS[:1], tokenizer, Columns(), 128))
        else:
            question = tokenizer(f"Question: {ROWS[0]['question']}\nAnswer:")["input_ids"]
            scores = []
            for option in ROWS[0]["choices"]:
                answer = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
                log_p = view({"input_ids": torch.tensor([question + answer])})[0].log_softmax(dim=-1)
                at = torch.arange(len(question) - 1, len(question) + len(answer) - 1)
                scores.append(log_p[at, torch.tensor(answer)].mean())
            loss = torch.nn.functional.cross_entropy(torch.stack(scores)[None], torch.tensor([0]))
        loss.backward()
        gradients.append({n: t.grad for part in ("expert:1", "gate") for n, t in view.leaves[part].items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6)


def test_training_learns_the_answers() -> None:
    view = View(text.language_model())
    view.adapt(LoRA(4, 8), seed=0)
    samples = encode(ROWS, text.tokenizer(), Columns(), 128)
    optimizer = torch.optim.AdamW([leaf for _, _, leaf in view.freeze(but=["expert:0", "expert:1", "expert:2"])], lr=3e-2)
    first = float(MultipleChoice().loss(view, samples).detach())
    for _ in range(30):
        optimizer.zero_grad()
        loss = MultipleChoice().loss(view, samples)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 * first
    assert MultipleChoice().judge(view, samples).score == 1.0


def test_a_long_question_loses_its_beginning_and_options_stay_whole() -> None:
    row = {"question": "x" * 500 + "the end", "choices": ["yes", "no"], "answer": 0}
    samples = encode([row], text.tokenizer(), Columns(), 40)
    assert samples["question"].shape[1] == 36
    assert text.tokenizer().decode(samples["question"][0]).endswith("the end\nAnswer:")
    assert text.tokenizer().decode(samples["option"][0, 0]) == " yes"


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({"answer": 3}, Columns(), r"row 1: answer 3 is outside its 3 options"),
        ({"answer": "D"}, Columns(), r"answer 'D' is outside its 3 options"),
        ({"answer": "AB"}, Columns(), r"answer 'AB' is neither a whole number nor a single letter; leave the row out"),
        ({"choices": ["one"]}, Columns(), r"1 option\(s\); a question needs at least 2"),
        ({"choices": ["a", "b" * 200]}, Columns(), r"an option has 201 tokens: must be between 1 and 127, .*max_length = 128"),
        ({}, Columns(options="options"), r"task.options names 'options', and the columns are question, choices, answer"),
        ({}, Columns(options=("A", "B")), r"task.options names 'A'"),
        ({}, Columns(answer="key"), r"task.label = 'key' is no column"),
        ({}, Columns(prompt="{text}"), r"task.prompt = '\{text\}' does not fit the columns question, choices, answer"),
        ({}, Columns(prompt="{questoin}"), r"answer: there is no column 'questoin'; did you mean question\?"),
    ],
)
def test_rows_that_cannot_be_used(changes: dict[str, Any], columns: Columns, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode([{**ROWS[0], **changes}], text.tokenizer(), columns, 128)


def test_options_in_columns_of_their_own() -> None:
    row = {"question": "q", "A": "one", "B": "two", "answer": "B"}
    samples = encode([row], text.tokenizer(), Columns(options=("A", "B")), 64)
    assert samples["labels"].tolist() == [1]
    assert text.tokenizer().decode(samples["option"][0, 1]) == " two"
