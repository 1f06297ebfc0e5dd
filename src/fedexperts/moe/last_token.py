"""Classifiers of sequences that have no padding token: the mask says which token of a sequence is its last.

transformers finds that token by ``pad_token_id``, and refuses batches of a model that has none.

Shapes: B sequences, T tokens, L labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GenericForSequenceClassification

NO_TOKEN = -1


def lacks_padding(model: nn.Module) -> bool:
    """Whether a model is a classifier that finds the last token of a sequence by ``pad_token_id``, and has none."""
    return isinstance(model, GenericForSequenceClassification) and model.config.get_text_config().pad_token_id is None


@contextmanager
def last_by_mask(model: Any, mask_BT: Tensor | None) -> Iterator[None]:
    """Within it the model's logits are those of each sequence's last token that the mask leaves, or of the last column.

    With a padding number that no token has, transformers takes the last column; there stand the wanted token's scores.
    """

    def spread(head: nn.Module, args: tuple[Any, ...], scores_BTL: Tensor) -> Tensor:
        if mask_BT is None:
            return scores_BTL
        rows_B = torch.arange(len(scores_BTL), device=scores_BTL.device)
        last_B = (mask_BT.to(torch.int32) * torch.arange(mask_BT.shape[1], device=mask_BT.device)).argmax(dim=1)
        return scores_BTL[rows_B, last_B].unsqueeze(1).expand_as(scores_BTL)

    config, handle = model.config.get_text_config(), model.score.register_forward_hook(spread)
    config.pad_token_id = NO_TOKEN
    try:
        yield
    finally:
        config.pad_token_id = None
        handle.remove()
