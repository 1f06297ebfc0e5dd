"""Baselines on toys whose answer is known, and on real tasks."""

import os
from pathlib import Path

import pytest

from fedexperts.data.baselines import majority, tfidf_choice, tfidf_linear
from fedexperts.data.metrics import METRICS
from fedexperts.data.rows import columns, read_rows

DATA = Path(os.environ.get("FEDEXPERTS_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
GOOD, BAD = ["a good film", "really good", "good , good"], ["a bad film", "really bad", "bad , bad"]
PAIR = ["sentence1", "sentence2"]


def real(table, split, names):
    """The columns of a real table; skips where it is not there."""
    if not (DATA / table / f"{split}.parquet").exists():
        pytest.skip(f"no {table}/{split}.parquet in $FEDEXPERTS_DATA (or ../shared/data)")
    return columns(read_rows(f"{table}/{split}.parquet", DATA), names, table)


# ---- majority


def test_majority_answers_the_most_frequent_training_label():
    assert majority([1, 1, 0], [1, 0, 0, 0], "accuracy") == 0.25
    assert majority([1, 1, 0], [1, 0, 0, 0], "f1") == pytest.approx(2 * 1 / (2 * 1 + 3))
    assert majority([1, 1, 0], [1, 0, 0, 0], "matthews") == 0


def test_of_several_majorities_the_lowest_label_answers():
    assert majority([2, 1, 1, 2], [1, 1, 2], "accuracy") == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", ["spearman", "pearson"])
def test_the_mean_score_orders_nothing(metric):
    assert majority([0.5, 4.0], [1.0, 2.0, 3.0], metric) == 0


# ---- TF-IDF


@pytest.mark.parametrize("metric", METRICS)
def test_a_word_that_decides_is_found(metric):
    assert tfidf_linear(GOOD + BAD, [1, 1, 1, 0, 0, 0], ["so good", "so bad"], [1, 0], metric) == pytest.approx(1)


def test_three_classes():
    texts, labels = [*GOOD, *BAD, "so so", "so , so", "it is so so"], [0] * 3 + [1] * 3 + [2] * 3
    assert tfidf_linear(texts, labels, ["so", "good", "bad"], [2, 0, 1], "accuracy") == 1


def test_what_the_sides_of_a_pair_share_is_found():
    """No single word tells: every word is in pairs of both kinds."""
    words = ["red", "blue", "green", "white", "black", "brown"]
    same = [(f"the {word} car", f"a {word} car") for word in words]
    other = [(f"the {word} car", f"a {next_word} car") for word, next_word in zip(words, words[1:] + words[:1], strict=True)]
    test = [("the red car", "a red car"), ("the red car", "a green car"), ("the pink car", "a black car")]
    assert tfidf_linear(same + other, [1] * 6 + [0] * 6, test, [1, 0, 0], "accuracy") == 1


def test_scripts_without_spaces_are_cut():
    texts = ["这部电影很好看", "真好看", "这部电影很难看", "真难看"]
    assert tfidf_linear(texts, [1, 1, 0, 0], ["好看的书", "难看的书"], [1, 0], "accuracy") == 1


def test_training_data_of_one_class_leave_the_majority():
    assert tfidf_linear(GOOD, [1, 1, 1], [*GOOD, *BAD], [1, 1, 1, 0, 0, 0], "accuracy") == 0.5


def test_unknown_words_are_no_error():
    assert tfidf_linear(GOOD + BAD, [1, 1, 1, 0, 0, 0], ["entirely unknown"], [1], "accuracy") in (0, 1)


def test_choices_may_be_of_different_numbers():
    questions = ["which is an animal?", "which is an animal?", "what of these is an animal?"]
    choices = [["cat", "stone"], ["stone", "tree", "dog"], ["cat", "tree"]]
    test = [["stone", "tree", "dog"], ["cat", "stone"]]
    assert tfidf_choice(questions, choices, [0, 2, 0], ["which is an animal?"] * 2, test, [2, 0]) == 1
    assert tfidf_choice(questions, choices, [0, 2, 0], ["which is an animal?"] * 2, test, [2, 1]) == 0.5


# ---- real tasks: 4 digits as measured, so that a change of a baseline is seen


@pytest.mark.parametrize(
    ("table", "names", "metric", "usual", "linear"),
    [
        ("glue_sst2", ["sentence", "label"], "accuracy", 0.4977, 0.7661),
        ("glue_mrpc", [*PAIR, "label"], "accuracy", 0.7010, 0.7059),
        ("glue_rte", [*PAIR, "label"], "accuracy", 0.5252, 0.5468),
        ("glue_cola", ["sentence", "label"], "matthews", 0.0, 0.1356),
        ("glue_stsb", [*PAIR, "score"], "spearman", 0.0, 0.6614),
    ],
)
def test_glue(table, names, metric, usual, linear):
    *train, labels = real(table, "train", names)
    *test, truth = real(table, "dev", names)
    texts, others = (sides[0] if len(sides) == 1 else list(zip(*sides, strict=True)) for sides in (train, test))
    assert majority(labels, truth, metric) == pytest.approx(usual, abs=5e-5)
    first, again = (tfidf_linear(texts, labels, others, truth, metric) for _ in range(2))
    assert first == again
    assert first == pytest.approx(linear, abs=0.01)  # other versions of the solver stop elsewhere


def test_medmcqa():
    names = ["question", "choices", "answer"]
    train, test = real("medmcqa", "train", names), real("medmcqa", "test", names)
    assert majority(train[2], test[2], "accuracy") == 163 / 500
    assert tfidf_choice(*train, *test) == pytest.approx(0.298, abs=0.02)
