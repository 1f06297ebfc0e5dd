"""What is missing, of another kind or counted from 1: refused with its row or warned of, never read as the text "None"."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import text
from fedexperts.data import choice, classify, language
from fedexperts.data.baselines import tfidf_choice, tfidf_linear
from fedexperts.data.choice import Columns
from fedexperts.data.rows import label_index, numbers, warn_of_no_zero
from fedexperts.errors import InputError, InputWarning

QUESTION: dict[str, Any] = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 0}
HOLES = [None, math.nan, "", "  "]


# ---- questions


def encode(*rows: dict[str, Any], columns: Columns = Columns()) -> Any:  # noqa: B008
    return choice.encode(rows, text.tokenizer(), columns, 64)


@pytest.mark.parametrize("hole", HOLES)
def test_a_missing_option_is_refused_with_its_row(hole: Any) -> None:
    with pytest.raises(
        InputError, match=r"row 2: option 3 of 4 .* (has no value|is nan|is blank); fill it in, or leave the question out"
    ):
        encode(QUESTION, {**QUESTION, "choices": ["a", "b", hole, "d"]})
    row = {"question": "q", "A": "one", "B": hole, "answer": "A"}
    with pytest.raises(InputError, match=r"row 1: option 2 of 2 \(column 'B'\)"):
        encode(row, columns=Columns(options=("A", "B")))


@pytest.mark.parametrize("options", [5, "abcd", {"text": ["a", "b"], "label": ["A", "B"]}, True])
def test_options_that_are_no_list_are_refused(options: Any) -> None:
    """A text would give its letters, a group of columns its names."""
    with pytest.raises(InputError, match=r"row 1: column 'choices' holds .*: must be a list of options"):
        encode({**QUESTION, "choices": options})


@pytest.mark.parametrize("option", [["a"], {"text": "a"}, b"a"])
def test_an_option_that_is_no_text_is_refused(option: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: option 2 of 2 .* must be a text or a number"):
        encode({**QUESTION, "choices": ["a", option]})


def test_options_may_be_numbers() -> None:
    samples = encode({**QUESTION, "choices": [4, 2.5]})
    assert text.tokenizer().decode(samples["option"][0, 1]) == " 2.5"


@pytest.mark.parametrize("hole", HOLES[:2])
def test_a_missing_question_is_refused_with_its_row(hole: Any) -> None:
    with pytest.raises(InputError, match=r"row 2: column 'question' .*; fill it in, or leave the question out"):
        encode(QUESTION, {**QUESTION, "question": hole})
    assert encode({**QUESTION, "note": hole})["labels"].tolist() == [0]  # what the prompt does not name may be missing


@pytest.mark.parametrize(
    "prompt", ["{question.x}", "{question[x]}", "{question:>99999999999999999999}", "{question!z}", "{", "{0}"]
)
def test_a_prompt_that_cannot_be_filled_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match=r"row 1: task\.prompt = .* does not fit the columns"):
        encode(QUESTION, columns=Columns(prompt=prompt))


@pytest.mark.parametrize("answer", [math.inf, math.nan, 1.5, None, "ß", "1.5", [0], "é", 10**400, "9" * 400, ""])
def test_an_answer_that_names_no_option_is_refused(answer: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: answer .*"):
        encode({**QUESTION, "answer": answer})


def test_an_answer_may_be_spelled() -> None:
    assert encode(*({**QUESTION, "answer": answer} for answer in (2.0, "2", " C", "c", "2.0")))["labels"].tolist() == [2] * 5


# ---- text


@pytest.mark.parametrize("value", [None, math.nan])
def test_missing_text_is_refused_with_its_row(value: Any) -> None:
    for encoder in (
        lambda rows: language.encode(rows, text.tokenizer(), "text", 16),
        lambda rows: classify.encode(rows, text.tokenizer(), "text", None, 16),
        lambda rows: classify.encode(rows, text.tokenizer(), "other", "text", 16),
    ):
        with pytest.raises(InputError, match=r"row 2: column 'text' (has no value|holds nan)"):
            encoder([{"text": "good", "other": "x"}, {"text": value, "other": "x"}])


@pytest.mark.parametrize("value", [["good"], {"a": "good"}, b"good", True])
def test_what_is_no_text_is_refused_with_its_row(value: Any) -> None:
    for encoder in (
        lambda rows: language.encode(rows, text.tokenizer(), "text", 16),
        lambda rows: classify.encode(rows, text.tokenizer(), "text", None, 16),
    ):
        with pytest.raises(InputError, match=r"row 1: column 'text' holds .* must be text"):
            encoder([{"text": value}])


def test_a_text_without_tokens_is_refused_with_its_row() -> None:
    def nothing(*columns: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[7] if value else [] for value in columns[0]]}

    with pytest.raises(InputError, match="row 2: column 'text' has no token"):
        classify.encode([{"text": "a"}, {"text": ""}], nothing, "text", None, 16)


@pytest.mark.parametrize("value", [10**400, "1" * 400])
def test_a_number_beyond_all_bounds_is_no_score(value: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: score .*must be a finite number"):
        numbers([value], "here")


# ---- counted from 1


@pytest.mark.parametrize("values", [[1, 2, 1], ["1", "2", "1"], [1.0, 2.0, 1.0]])
def test_labels_that_count_from_1_are_warned_of(values: list[Any]) -> None:
    with pytest.warns(InputWarning, match=r"here: 0 never occurs .*\(1: 2, 2: 1\).*labels = \[1, 2\]"):
        assert label_index(values, None, "here")[1] == [0, 1, 2]


def test_labels_that_are_listed_or_begin_at_0_are_not(recwarn: pytest.WarningsRecorder) -> None:
    label_index([1, 2], [1, 2], "here")
    label_index([2, 0], None, "here")
    label_index(["b", "a"], None, "here")
    warn_of_no_zero([0, 3], "here")
    assert not recwarn.list


def test_many_classes_are_not_all_listed() -> None:
    with pytest.warns(InputWarning, match=r"\(1: 1, 2: 1, .*, 8: 1, …\)"):
        warn_of_no_zero(range(1, 100), "here")


# ---- baselines


def test_texts_without_words_teach_tfidf_nothing() -> None:
    assert tfidf_linear(["?", "!"], [0, 1], ["..", "good"], [0, 0], "accuracy") == 1.0
    assert tfidf_linear(["?", "!"], [0.0, 1.0], ["..", "good"], [0.0, 1.0], "pearson") == 0.0
    assert tfidf_choice(["?"], [["!", ".", "-"]], [1], ["what"], [["a", "b"]], [0]) == 1.0


def test_a_test_label_that_never_occurs_in_training_is_simply_wrong() -> None:
    assert tfidf_linear(["good", "bad"], [0, 1], ["good", "ugly"], [0, 2], "accuracy") == 0.5
    assert np.isfinite(tfidf_linear(["good", "bad"], [0, 1], ["good", "ugly"], [0, 2], "matthews"))
