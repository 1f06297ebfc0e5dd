"""Language modelling: losses against transformers' own, padding, and rows that cannot be used."""

from __future__ import annotations

import math

import pytest
import torch

import text
from fedexperts.data.language import CausalLM, encode
from fedexperts.errors import InputError
from fedexperts.moe.view import View

ROWS = [{"text": "the first of three"}, {"text": "ab"}, {"text": "and one that is longer than the others, by far"}]


def test_the_loss_is_that_of_transformers() -> None:
    model = text.language_model()
    samples = encode(ROWS, text.tokenizer(), "text", 128)
    labels = samples["input_ids"].masked_fill(samples["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = float(model(samples["input_ids"], attention_mask=samples["attention_mask"], labels=labels).loss)
        assert float(CausalLM().loss(View(model), samples)) == pytest.approx(expected, abs=1e-5)
    judged = CausalLM().judge(View(model), samples)
    assert judged.loss == pytest.approx(expected, abs=1e-5)
    assert judged.metrics["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert judged.count == sum(len(row["text"]) - 1 for row in ROWS)


def test_accuracy_by_hand() -> None:
    """A model that always foretells the letter after the one it sees is right on 'abc' and wrong on 'aa'."""
    model = text.language_model()
    view = View(model)
    ids = {letter: text.tokenizer()(letter)["input_ids"][0] for letter in "abcd"}
    after = {ids[a]: ids[b] for a, b in zip("abc", "bcd", strict=True)}

    class Next(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            hot = torch.nn.functional.one_hot(input_ids, text.VOCABULARY).float()
            return type("Output", (), {"last_hidden_state": hot})

    class Head(torch.nn.Module):
        def forward(self, hidden):
            return torch.nn.functional.one_hot(
                torch.tensor([after.get(int(i), 0) for i in hidden.argmax(-1)]), text.VOCABULARY
            ).float()

    view.model = type("Model", (), {"model": Next(), "lm_head": Head()})()
    judged = CausalLM().judge(view, encode([{"text": "abc"}, {"text": "aa"}], text.tokenizer(), "text", 16))
    assert (judged.count, judged.score) == (3, pytest.approx(2 / 3))


def test_rows_that_cannot_be_used() -> None:
    with pytest.raises(InputError, match=r"row 2: text has 1 token\(s\); at least 2 are needed"):
        encode([ROWS[0], {"text": "x"}], text.tokenizer(), "text", 16)
    with pytest.raises(InputError, match=r"data: there is no column 'body'; the columns are 'text'"):
        encode(ROWS, text.tokenizer(), "body", 16)
