"""Judging a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..moe.view import View
from .source import Samples, size


def evaluate(view: View, tests: Mapping[str, Samples], batch_size: int = 256) -> dict[str, Any]:
    """Accuracy and loss of the model now in ``view``, over all samples and per cluster (fractions, nats)."""
    view.route(None)
    view.model.eval()
    right: dict[str, int] = {}
    loss = 0.0
    with torch.no_grad():
        for cluster, samples in tests.items():
            right[cluster] = 0
            for at in range(0, size(samples), batch_size):
                batch = {key: value[at : at + batch_size] for key, value in samples.items()}
                logits = view(batch)
                right[cluster] += int((logits.argmax(dim=-1) == batch["labels"]).sum())
                loss += float(F.cross_entropy(logits, batch["labels"], reduction="sum"))
    total = sum(map(size, tests.values()))
    return {
        "accuracy": sum(right.values()) / total,
        "loss": loss / total,
        "accuracy_by_cluster": {cluster: n / size(tests[cluster]) for cluster, n in right.items()},
    }
