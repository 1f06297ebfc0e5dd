"""What a text task gives without any language model: a model below these rows has learnt nothing worth sending.

Both baselines see all training data in one place. Nothing is drawn at random and nothing is tuned on the test data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from .metrics import METRICS, OF_SCORES

Text = str | tuple[str, str]
"""A text, or a pair of texts such as premise and hypothesis."""
TOKEN = r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"
"""Words; scripts that do not space their words, Chinese and Japanese, are cut into characters."""


def majority(train_labels: Sequence[float], test_labels: Sequence[float], metric: str) -> float:
    """The metric of always answering the most frequent training label (of several the lowest), or the mean score.

    For multiple choice the labels are the positions of the right answers.
    """
    return METRICS[metric](np.asarray(test_labels), np.full(len(test_labels), _usual(train_labels, metric)))


def tfidf_linear(
    train_texts: Sequence[Text],
    train_labels: Sequence[float],
    test_texts: Sequence[Text],
    test_labels: Sequence[float],
    metric: str,
) -> float:
    """The metric of a linear model over TF-IDF of words and pairs of words: logistic regression, or ridge for scores.

    Where training texts have no words, or labels are all the same, it is the majority's.
    """
    if len(set(train_labels)) == 1 or not _words(train_texts):
        return majority(train_labels, test_labels, metric)
    features = _Features(train_texts)
    model = Ridge() if metric in OF_SCORES else LogisticRegression(max_iter=1000)
    model.fit(features(train_texts), np.asarray(train_labels))
    return METRICS[metric](np.asarray(test_labels), model.predict(features(test_texts)))


def tfidf_choice(
    train_questions: Sequence[str],
    train_choices: Sequence[Sequence[str]],
    train_answers: Sequence[int],
    test_questions: Sequence[str],
    test_choices: Sequence[Sequence[str]],
    test_answers: Sequence[int],
) -> float:
    """Accuracy on multiple choice of the same linear model, asked of each pair of question and choice whether it is right.

    Answers are positions from 0; questions may have different numbers of choices. The most probable choice is the answer,
    the first of several.
    """
    train, test = _pairs(train_questions, train_choices), _pairs(test_questions, test_choices)
    if not _words(train):  # all choices look alike
        return METRICS["accuracy"](np.asarray(test_answers), np.zeros(len(test_answers)))
    right = [n == answer for choices, answer in zip(train_choices, train_answers, strict=True) for n in range(len(choices))]
    features = _Features(train)
    model = LogisticRegression(max_iter=1000).fit(features(train), right)
    scores = model.decision_function(features(test))
    ends = accumulate(map(len, test_choices), initial=0)
    answers = [int(np.argmax(scores[start:end])) for start, end in pairwise(ends)]
    return METRICS["accuracy"](np.asarray(test_answers), np.asarray(answers))


class _Features:
    """TF-IDF of texts, one row each, in the words of the training texts.

    A pair has the features of either side, those that both share (their product) and the cosine of the two.
    """

    def __init__(self, texts: Sequence[Text]):
        self.tfidf = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True)
        self.tfidf.fit(dict.fromkeys(side for text in texts for side in _sides(text)))

    def __call__(self, texts: Sequence[Text]) -> csr_matrix:
        first, *second = (self.tfidf.transform(sides) for sides in zip(*map(_sides, texts), strict=True))
        if not second:
            return first
        shared = first.multiply(second[0])
        return hstack([first, second[0], shared, shared.sum(axis=1)], format="csr")


def _words(texts: Sequence[Text]) -> bool:
    """Whether there is anything to learn from."""
    return any(re.search(TOKEN, side) for text in texts for side in _sides(text))


def _sides(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _pairs(questions: Sequence[str], choices: Sequence[Sequence[str]]) -> list[Text]:
    return [(question, choice) for question, several in zip(questions, choices, strict=True) for choice in several]


def _usual(labels: Sequence[float], metric: str) -> float:
    if metric in OF_SCORES:
        return float(np.mean(labels))
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    usual: NDArray[np.int64] = values[np.argmax(counts)]
    return int(usual)
