"""How well predictions meet labels: functions of two arrays [N], of classes counted from 0 or, for correlations, of scores.

All are fractions, with 1 for predictions that are right throughout. Where a metric divides by zero, because predictions or
labels are all the same, it is 0: such predictions tell nothing. Only an area under a curve may be None: see `macro_auc`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score

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


def macro_f1(labels: Values, predictions: Values) -> float:
    """Mean of F1 over the classes that have positives among the labels; the others are left out, also where predicted.

    A wrong prediction of a class without positives still counts against the class that it should have been. Unlike `f1`, two
    classes are both in the mean.
    """
    _check(labels, predictions)
    return float(f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0.0))


@dataclass(frozen=True)
class Area:
    """A mean of areas under ROC curves, None where no class has a curve; ``left_out`` is how many classes have none."""

    value: float | None
    left_out: int


def macro_auc(labels: Values, scores_NC: Values) -> Area:
    """Mean over classes of the area under the ROC curve of one class against the rest, by its column of the scores.

    A class has a curve if it has positives and negatives among the labels, and all its scores are numbers.

    Raises:
        ValueError: the scores have no row for each label or no column for each class.
    """
    if scores_NC.ndim != 2 or len(scores_NC) != len(labels) or not len(labels) or labels.max() >= scores_NC.shape[1]:
        raise ValueError(
            f"labels {labels.shape} and scores {scores_NC.shape}: need a row for each label, a column for each class"
        )
    present = np.unique(labels)
    judged = [c for c in present if len(present) > 1 and not np.any(np.isnan(scores_NC[:, c]))]
    # the curve knows ranks alone, and infinite scores have them too
    areas = [roc_auc_score(labels == c, rankdata(scores_NC[:, c])) for c in judged]
    return Area(float(np.mean(areas)) if areas else None, scores_NC.shape[1] - len(judged))


@dataclass(frozen=True)
class OverClients:
    """A metric over all clients' samples in one set, and over each client's own; None where it cannot be told."""

    pooled: float | None
    by_client: dict[str, float | None]

    @property
    def mean(self) -> float | None:
        """Over clients, each counting alike, but for those that are left out."""
        told = [value for value in self.by_client.values() if value is not None]
        return float(np.mean(told)) if told else None

    @property
    def left_out(self) -> int:
        """Clients of whom nothing can be told."""
        return sum(value is None for value in self.by_client.values())


def over_clients(metric: Callable[[Values, Values], float | None], judged: Mapping[str, tuple[Values, Values]]) -> OverClients:
    """The metric of each client's (labels, predictions or scores), and of all of them together.

    Raises:
        ValueError: there is no client, or the arrays do not fit together.
    """
    if not judged:
        raise ValueError("judged = {}: needs at least one client")
    labels, predictions = (np.concatenate(arrays) for arrays in zip(*judged.values(), strict=True))
    return OverClients(metric(labels, predictions), {client: metric(*pair) for client, pair in judged.items()})


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "spearman": spearman, "pearson": pearson}
OF_SCORES = ("spearman", "pearson")
"""The metrics of a regression."""


def _check(labels: Values, predictions: Values) -> None:
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} must be of one length, at least 1")


def _constant(values: Values) -> bool:
    return bool(np.all(values == values[0]))


def _unit(values: Values) -> Values:
    """The deviations from the mean, scaled to length 1; values are not all the same."""
    scaled = values / np.abs(values).max()  # no sum or square over- or underflows
    deviations: Values = scaled - np.mean(scaled, dtype=np.float64)
    deviations /= np.abs(deviations).max()
    unit: Values = deviations / np.linalg.norm(deviations)
    return unit
