"""Which of transformers' classes makes a model: by what it is for, or by what its config says; and new models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

from ..errors import InputError
from ..reading import short
from .config import check_keys, check_memory, parsed, refusing
from .families import check_family
from .kinds import Kind

AUTO: dict[Kind, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "image-classifier": AutoModelForImageClassification,
    "language-model": AutoModelForCausalLM,
}
PEFT: dict[Kind, str] = {"classifier": "SEQ_CLS", "image-classifier": "SEQ_CLS", "language-model": "CAUSAL_LM"}
"""What PEFT calls them."""


def new_model(
    config: dict[str, Any],
    seed: int,
    dtype: torch.dtype = torch.float32,
    kind: Kind = "classifier",
    outputs: int | None = None,
) -> nn.Module:
    """A classifier of sequences or images, or a causal language model, with random weights that depend on the seed alone.

    Raises:
        InputError: the config names no known model type, has a key that one of our own does not know, is inconsistent, or takes
            more memory than there is.
        NotMoEError: the model is of a family that the view does not know.
    """
    where = "model.config"
    named = config.get("id2label")
    for field, labels in (
        ("num_labels", config.get("num_labels")),
        ("id2label", len(named) if isinstance(named, dict) else None),
    ):
        if outputs is not None and labels not in (None, outputs):
            raise InputError(f"{where}: {field} = {short(config[field])}: the tasks have {outputs} labels; leave it out")
    parsed_config = parsed(config, where, **({} if outputs is None else {"num_labels": outputs}))
    check_keys(config, where)
    check_family(parsed_config, where)
    with refusing(f"{where}: no model can be built from it", "correct the config"), torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            blank = AUTO[kind].from_config(parsed_config, dtype=dtype, trust_remote_code=False)
            check_memory(blank, dtype, where, copies=2)  # the model that computes, and version 0 of its parts
        torch.manual_seed(seed)
        model: nn.Module = AUTO[kind].from_config(parsed_config, dtype=dtype, trust_remote_code=False)
    return model
