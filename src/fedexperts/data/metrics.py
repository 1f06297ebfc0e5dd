"""How well predictions meet labels: functions of two arrays [N], of classes counted from 0 or, for correlations, of scores.

All are fractions, with 1 for predictions that are right throughout. Where a metric divides by zero, because predictions or
labels are all the same, it is 0: such predictions tell nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import f1_score, matthews_corrcoef

Values = NDArray[Any]


def accuracy(labels: Values, predictions: Values) -> float:
    """Share of the predictions that are right."""
    _check(labels, predictions)
    return float(np.mean(labels == predictions))


def f1(labels: Values, predictions: Values, classes: int | None = None) -> float:
    """Harmonic mean of precision and recall: of class 1 where there are two classes, else macro, every class alike.

    ``classes`` is the number of classes of the task; without it the highest class in the arrays decides. Classes that
    neither array holds do not count.
    """
    _check(labels, predictions)
    if classes is None:
        classes = 1 + int(max(labels.max(), predictions.max()))
    return float(f1_score(labels, predictions, average="macro" if classes > 2 else "binary", zero_division=0.0))


def matthews(labels: Values, predictions: Values) -> float:
    """Matthews' correlation coefficient, -1 to 1, of any number of classes."""
    _check(labels, predictions)
    if _constant(labels) or _constant(predictions):
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def pearson(labels: Values, predictions: Values) -> float:
    """Correlation of scores, -1 to 1; 0 if a prediction is not finite."""
    _check(labels, predictions)
    if _constant(labels) or _constant(predictions) or not np.all(np.isfinite(predictions)):
        return 0.0
    return float(np.dot(_unit(labels), _unit(predictions)).clip(-1, 1))


def spearman(labels: Values, predictions: Values) -> float:
    """Correlation of the ranks of scores, -1 to 1, ties sharing their mean rank; 0 if a prediction is not finite."""
    _check(labels, predictions)
    if not np.all(np.isfinite(predictions)):
        return 0.0
    return pearson(rankdata(labels), rankdata(predictions))


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "spearman": spearman, "pearson": pearson}
OF_SCORES = ("spearman", "pearson")
"""The metrics of a regression."""


def _check(labels: Values, predictions: Values) -> None:
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must be of one length, at least 1")


def _constant(values: Values) -> bool:
    return bool(np.all(values == values[0]))


def _unit(values: Values) -> Values:
    """The deviations from the mean, scaled to length 1."""
    deviations = values - np.mean(values, dtype=np.float64)
    deviations /= np.abs(deviations).max()  # no square over- or underflows
    scaled: Values = deviations / np.linalg.norm(deviations)
    return scaled
