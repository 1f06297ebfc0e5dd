"""Language modelling: the next token, judged by its accuracy and by perplexity.

Shapes: N sequences, L tokens (padded on the right), S target tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import InputError
from ..moe.view import Batch, View
from .objective import Judged
from .rows import texts
from .source import Samples, size

JUDGED_AT_ONCE = 32
MOST_NATS = 700.0
"""A float holds e to that."""


@dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of the next token, over all tokens of the batch but each sequence's first."""

    metric: str = "accuracy"

    def loss(self, view: View, batch: Batch) -> Tensor:
        """Mean over the batch's target tokens, in nats."""
        logits_SV, targets_S = self._foretold(view, batch)
        return F.cross_entropy(logits_SV, targets_S)

    def losses(self, view: View, batch: Batch, devices: int) -> Tensor:
        """See `Objective`; each device's tokens count alike within it."""
        logits_SV, targets_S = self._foretold(view, batch)
        losses_S = F.cross_entropy(logits_SV, targets_S, reduction="none")
        counts_J = batch["attention_mask"][:, 1:].sum(dim=-1).view(devices, -1).sum(dim=1)
        return torch.stack([losses.mean() for losses in torch.split(losses_S, counts_J.tolist())])

    def inputs(self, samples: Batch) -> Batch:
        """The sequences themselves."""
        return {key: samples[key] for key in ("input_ids", "attention_mask")}

    def guess(self, view: View, samples: Samples) -> float:
        """Every token alike, ln V."""
        config: Any = view.model.config
        return math.log(config.vocab_size)

    def judge(self, view: View, samples: Samples) -> Judged:
        """Next-token accuracy, and perplexity: e to the mean loss, None beyond all numbers."""
        right, loss, count = 0, 0.0, 0
        with torch.no_grad():
            for at in range(0, size(samples), JUDGED_AT_ONCE):
                batch = {key: value[at : at + JUDGED_AT_ONCE].to(view.device) for key, value in samples.items()}
                logits_SV, targets_S = self._foretold(view, batch)
                right += int((logits_SV.argmax(dim=-1) == targets_S).sum())
                loss += float(F.cross_entropy(logits_SV, targets_S, reduction="sum"))
                count += len(targets_S)
        metrics = {"accuracy": right / count, "perplexity": _perplexity(loss / count)}
        return Judged(count, loss / count, right / count, metrics)

    def _foretold(self, view: View, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits_SV in float32, and the tokens that they foretell; the vocabulary is looked at only there."""
        L = max(2, int(batch["attention_mask"].sum(dim=-1).max()))
        ids_NL, mask_NL = batch["input_ids"][:, :L], batch["attention_mask"][:, :L]
        model: Any = view.model
        hidden_NLD = model.model(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        target_NL = mask_NL[:, 1:].bool()
        return model.lm_head(hidden_NLD[:, :-1][target_NL]).float(), ids_NL[:, 1:][target_NL]


def _perplexity(loss: float) -> float | None:
    return math.exp(loss) if loss < MOST_NATS else None


def encode(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    text: str,
    max_length: int,
    where: str = "data",
    chosen: Sequence[int] | None = None,
) -> Samples:
    """Tokens of the column ``text``, each row cut to ``max_length``; ``labels`` are placeholders, the tokens are the targets.

    ``chosen`` are the numbers of the rows that are taken, from 0; all if it is left out.

    Raises:
        InputError: the column is missing, has holes or is no text, or a row has fewer than two tokens, so that nothing can be
            foretold.
    """
    sequences = []
    (values,) = texts(list(map(dict, rows)), [text], where)
    for number in range(len(rows)) if chosen is None else chosen:
        tokens = tokenizer(values[number], truncation=True, max_length=max_length)["input_ids"]
        if len(tokens) < 2:
            raise InputError(
                f"{where}, row {number + 1}: {text} has {len(tokens)} token(s); at least 2 are needed, leave the row out"
            )
        sequences.append(torch.tensor(tokens))
    ids_NL = pad_sequence(sequences, batch_first=True)
    mask_NL = pad_sequence([torch.ones_like(tokens) for tokens in sequences], batch_first=True)
    return {"input_ids": ids_NL, "attention_mask": mask_NL, "labels": torch.zeros(len(sequences), dtype=torch.long)}
