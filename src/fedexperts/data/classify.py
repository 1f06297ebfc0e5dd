"""Classification of sequences and pairs of sequences; several tasks can share a model, each with its own rows of the head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..moe.view import Batch, View
from .metrics import METRICS, OF_SCORES, macro_auc, macro_f1
from .objective import Judged
from .rows import texts
from .source import Samples, size, trimmed

JUDGED_AT_ONCE = 256
NARROW = 16
"""Labels, fewer than which torch sums up one by one, row by row, in up to five times the time that columns take."""


@dataclass(frozen=True)
class Classification:
    """A task whose labels 0…n−1 are outputs ``first`` … ``first + labels − 1`` of the model's head.

    With a metric of regression (correlations) there is one output, and the loss is the mean square error. ``macro`` adds macro
    F1, macro AUC and how many classes have no part in that to what is judged.
    """

    first: int
    labels: int
    metric: str = "accuracy"
    macro: bool = False

    def _own(self, logits: Tensor) -> Tensor:
        return logits[:, self.first : self.first + self.labels]

    def loss(self, view: View, batch: Batch) -> Tensor:
        """Cross-entropy, or mean square error."""
        return self._loss(view, self._own(view(batch)), batch["labels"], "mean")

    def losses(self, view: View, batch: Batch, devices: int) -> Tensor:
        """See `Objective`."""
        return self._loss(view, self._own(view(batch)), batch["labels"], "none").view(devices, -1).mean(dim=1)

    def _loss(self, view: View, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        if self.metric in OF_SCORES:
            return F.mse_loss(logits[:, 0].float(), labels.float(), reduction=reduction)
        if getattr(view.model, "log_probabilities", False):  # normalised: to do it again would add a gradient
            return F.nll_loss(logits, labels, reduction=reduction)
        if reduction == "none" and logits.shape[1] < NARROW:
            return F.cross_entropy(logits.t().contiguous()[None], labels[None], reduction=reduction)[0]
        return F.cross_entropy(logits, labels, reduction=reduction)

    def inputs(self, samples: Batch) -> Batch:
        """The samples themselves."""
        return samples

    def guess(self, view: View, samples: Samples) -> float:
        """That of equal probabilities, ln n; of a regression the variance of the samples' values."""
        if self.metric in OF_SCORES:
            return max(1e-6, float(samples["labels"].float().var(correction=0)))
        config: Any = view.model.config
        return math.log(max(2, min(self.labels, config.num_labels - self.first)))

    def judge(self, view: View, samples: Samples) -> Judged:
        """The metric over all samples; the accuracy beside it."""
        loss, predicted, shares = 0.0, [], []
        with torch.no_grad():
            for at in range(0, size(samples), JUDGED_AT_ONCE):
                batch = {key: value[at : at + JUDGED_AT_ONCE] for key, value in samples.items()}
                batch = {key: value.to(view.device) for key, value in trimmed(batch).items()}
                own = self._own(view(batch))
                loss += float(self._loss(view, own, batch["labels"], "sum"))
                if self.macro:
                    shares.append(own.double().softmax(dim=-1))
                predicted.append(own[:, 0].float() if self.metric in OF_SCORES else own.argmax(dim=-1))
        values, labels = torch.cat(predicted).cpu().numpy(), samples["labels"].cpu().numpy()
        score = METRICS[self.metric](labels, values)
        metrics: dict[str, float | None] = {self.metric: score}
        if self.metric not in OF_SCORES:
            metrics["accuracy"] = float(np.mean(values == labels))
        if self.macro:
            p_NC = torch.cat(shares).cpu().numpy()
            auc = macro_auc(labels, p_NC)
            metrics |= {"macro_f1": macro_f1(labels, values), "macro_auc": auc.value, "macro_auc_left_out": auc.left_out}
        return Judged(len(labels), loss / len(labels), score, metrics)


def encode(
    rows: Sequence[dict[str, Any]],
    tokenizer: Any,
    text: str,
    text_pair: str | None,
    max_length: int,
    where: str = "data",
    chosen: Sequence[int] | None = None,
) -> Samples:
    """Tokens of a column of text, or of pairs, cut to ``max_length`` and padded on the right; labels are left to the caller.

    ``chosen`` are the numbers of the rows that are taken, from 0; all if it is left out.

    Raises:
        InputError: a column is missing, has holes or is no text, or a row that is taken has no token.
    """
    numbers = range(len(rows)) if chosen is None else chosen
    sides = texts(rows, [text] if text_pair is None else [text, text_pair], where)
    coded = tokenizer(*([side[n] for n in numbers] for side in sides), truncation=True, max_length=max_length)
    if empty := [n + 1 for n, ids in zip(numbers, coded["input_ids"], strict=True) if not ids]:
        raise InputError(f"{where}, row {empty[0]}: column {text!r} has no token; fill it in, or leave the row out")
    length = max(map(len, coded["input_ids"]))
    samples = {}
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        if key in coded:
            samples[key] = torch.tensor([ids + [0] * (length - len(ids)) for ids in coded[key]])
    return samples
