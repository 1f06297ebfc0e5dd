"""Tiny models of every family with six experts, and their checkpoints in every layout that transformers 5 writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

VOCABULARY, PAD, M, K, L, D = 23, 22, 6, 2, 2, 12
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "intermediate_size": 16,
    "num_hidden_layers": L,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": K,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "eos_token_id": 1,
    "num_labels": 3,
    "initializer_range": 0.3,  # so that logits differ by more than rounding
}
QWEN3 = {"num_experts": M, "moe_intermediate_size": 8, "head_dim": 6}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": M},
    "qwen3_moe": QWEN3,
    "qwen3_moe normalised": {**QWEN3, "norm_topk_prob": True},
    "olmoe": {"num_experts": M},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "fused": {"save_original_format": False},
    "as published, sharded": {"max_shard_size": "4KB"},
    "fused, sharded": {"save_original_format": False, "max_shard_size": "4KB"},
}


def auto_class(family: str) -> Any:
    """A classifier; OLMoE has none in transformers 5.23, so its language model."""
    return AutoModelForCausalLM if family == "olmoe" else AutoModelForSequenceClassification


def plain(family: str, kind: Any = None, **options: Any) -> nn.Module:
    """A model with random weights, in evaluation mode."""
    config = AutoConfig.for_model(family.split()[0], **{**SIZES, **FAMILIES[family], **options})
    torch.manual_seed(0)
    model = (kind or auto_class(family)).from_config(config)
    with torch.no_grad():  # some families start their routers at zero
        for name, parameter in model.named_parameters():
            if name.endswith("gate.weight"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    return model.eval()


def saved(model: Any, folder: Path, layout: str = "as published") -> Path:
    """The folder, with the model in it."""
    model.save_pretrained(folder, **LAYOUTS[layout])
    return folder


def hub_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ``org/tiny`` lies in a Hugging Face cache at ``cache``, the only one from here on and without network."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    refs = cache / "models--org--tiny" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return cache / "models--org--tiny" / "snapshots" / revision


def batch(n: int = 5, length: int = 7) -> dict[str, Tensor]:
    """Random sequences with labels 0, 1, 2."""
    ids = torch.randint(0, PAD, (n, length), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "labels": torch.arange(n) % 3}


def objective(logits: Tensor, labels: Tensor) -> Tensor:
    """Any scalar that depends on every logit."""
    return (logits**2).mean() + logits.mean()
