"""What a model is trained and judged for. Each kind of ``[task]`` is one class with the three functions of `Objective`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..moe.view import Batch, View
from .source import Samples


@dataclass(frozen=True)
class Judged:
    """How a model does on one set of samples.

    Attributes:
        count: what is judged: samples, or the tokens of a language model.
        loss: mean over these, in nats.
        score: the task's metric, a fraction where it is an accuracy.
        metrics: this and others by name; None where a metric cannot be told.
    """

    count: int
    loss: float
    score: float
    metrics: Mapping[str, float | None]


class Objective(Protocol):
    """Loss, routing and score of one kind of task; equal objectives can share a batch."""

    @property
    def metric(self) -> str:
        """The name of the score."""

    def loss(self, view: View, batch: Batch) -> Tensor:
        """Averaged over the batch (33); it may have no gradient where no token met a trained part."""

    def losses(self, view: View, batch: Batch, devices: int) -> Tensor:
        """The same of each device (J), whose samples lie one after the other in the batch, equally many of each."""

    def inputs(self, samples: Batch) -> Batch:
        """What the gate sees of samples in a trial pass: images, or ``input_ids`` and, if padded, ``attention_mask``."""

    def guess(self, view: View, samples: Samples) -> float:
        """Mean loss over the samples of a guess that knows nothing of them."""

    def judge(self, view: View, samples: Samples) -> Judged:
        """How the model now in the view does, in evaluation mode and unmasked."""


def evaluate(view: View, objectives: Mapping[str, Objective], tests: Mapping[str, Samples]) -> dict[str, Any]:
    """Score and loss of the model now in ``view``, over all clusters' tests (`total`) and by cluster."""
    return facts_of(objectives, judge(view, objectives, tests))


def facts_of(objectives: Mapping[str, Objective], judged: Mapping[str, Judged]) -> dict[str, Any]:
    """What an evaluation says, of each cluster's test judged by whatever model."""
    return {
        **total(objectives, judged),
        "accuracy_by_cluster": {cluster: one.score for cluster, one in judged.items()},
        **({} if all(len(one.metrics) < 2 for one in judged.values()) else {"metrics_by_cluster": _metrics(judged)}),
    }


def judge(view: View, objectives: Mapping[str, Objective], tests: Mapping[str, Samples]) -> dict[str, Judged]:
    """How the model now in ``view``, unmasked, does on each cluster's test."""
    view.route(None)
    view.model.eval()
    return {cluster: objectives[cluster].judge(view, samples) for cluster, samples in tests.items()}


def total(objectives: Mapping[str, Objective], judged: Mapping[str, Judged]) -> dict[str, Any]:
    """Accuracy and loss (nats) over all clusters, and what the accuracy is.

    The accuracy is that over all samples; where a cluster is judged by another metric, the mean of the scores over clusters,
    and ``metric`` its name. ``metric_by_cluster`` is there unless all are accuracies.
    """
    metrics = {cluster: objectives[cluster].metric for cluster in judged}
    pooled = set(metrics.values()) == {"accuracy"}
    weights = {cluster: one.count if pooled else 1 for cluster, one in judged.items()}
    return {
        "accuracy": sum(weights[c] * one.score for c, one in judged.items()) / sum(weights.values()),
        "metric": _name(list(metrics.values())),
        **({} if pooled else {"metric_by_cluster": metrics}),
        "loss": sum(one.count * one.loss for one in judged.values()) / sum(one.count for one in judged.values()),
    }


def _name(metrics: Sequence[str]) -> str:
    """What a mean over clusters is called."""
    names = list(dict.fromkeys(metrics))
    if names == ["accuracy"] or len(metrics) == 1:
        return names[0]
    return f"mean of {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"mean {names[0]}"


def _metrics(judged: Mapping[str, Judged]) -> dict[str, dict[str, float | None]]:
    return {
        cluster: {name: None if value is None else round(value, 6) for name, value in one.metrics.items()}
        for cluster, one in judged.items()
    }
