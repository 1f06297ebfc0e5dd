"""What a model is for, as its config or a scenario's task says it; needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["classifier", "image-classifier", "language-model"]
ENDINGS: dict[Kind, str] = {
    "classifier": "ForSequenceClassification",
    "image-classifier": "ForImageClassification",
    "language-model": "ForCausalLM",
}
"""How the names of transformers' classes for them end."""
FOR_TASK: dict[str, Kind] = {
    "classification": "classifier",
    "image": "image-classifier",
    "multiple-choice": "language-model",
    "causal-lm": "language-model",
}
"""What a scenario's ``[task] kind`` needs."""
OWN: dict[str, Kind] = {"conv_moe": "image-classifier", "networked_moe": "image-classifier", "bert_moe": "classifier"}
"""What our own model types are for."""
MODULES = {"conv_moe": "conv", "networked_moe": "resnet", "bert_moe": "encoder"}
"""The modules of this folder that tell transformers of them."""


def kind_of(document: Mapping[str, Any]) -> Kind:
    """What a config describes: what its architectures say, else a causal language model; our own types are classifiers."""
    if document.get("model_type") in OWN:
        return OWN[document["model_type"]]
    names = document.get("architectures") or ()
    return next((kind for kind, end in ENDINGS.items() if any(name.endswith(end) for name in names)), "language-model")
