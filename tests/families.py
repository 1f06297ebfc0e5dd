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
SHARED = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
QWEN3 = {"num_experts": M, "moe_intermediate_size": 8, "head_dim": 6}
LINEAR = {  # every second layer's attention is linear
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
GRANITE = {"num_local_experts": M, "embedding_multiplier": 1.5, "residual_multiplier": 0.5, "logits_scaling": 2.0}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": M},
    "qwen3_moe": QWEN3,
    "qwen3_moe normalised": {**QWEN3, "norm_topk_prob": True},
    "olmoe": {"num_experts": M},
    "qwen2_moe": {**QWEN3, **SHARED},
    "qwen3_next": {**QWEN3, **SHARED, **LINEAR},
    "qwen3_5_moe_text": {**QWEN3, **SHARED, **LINEAR},
    "flex_olmo": {"num_experts": M},
    "granitemoe": GRANITE,
    "granitemoeshared": {**GRANITE, "shared_intermediate_size": 8},
    "mellum": {**QWEN3, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "minimax": {"num_local_experts": M, "head_dim": 6, "layer_types": LINEAR["layer_types"], "block_size": 4},
    "deepseek_v2": {
        "n_routed_experts": M,
        "moe_intermediate_size": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        **LATENT,
    },
}
"""``<model type> <variant>``, and what is beside `SIZES` in the config."""
CAUSAL = ("olmoe", "flex_olmo", "granitemoe", "granitemoeshared", "mellum", "qwen3_5_moe_text")
"""Families without a classifier in transformers 5.23."""
PER_EXPERT = ("experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight", "block_sparse_moe.router.weight")
"""Endings of the names of tensors whose first dimension counts experts."""
LAYOUTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "fused": {"save_original_format": False},
    "as published, sharded": {"max_shard_size": "4KB"},
    "fused, sharded": {"save_original_format": False, "max_shard_size": "4KB"},
}


def auto_class(family: str) -> Any:
    """A classifier, or the language model of a family that has none."""
    return AutoModelForCausalLM if family in CAUSAL else AutoModelForSequenceClassification


def sizes(family: str, experts: int = M, **options: Any) -> dict[str, Any]:
    """A small config's fields."""
    own = {key: experts if value == M and key.endswith("experts") else value for key, value in FAMILIES[family].items()}
    return {**SIZES, **own, **options}


def plain(family: str, kind: Any = None, experts: int = M, **options: Any) -> nn.Module:
    """A model with random weights, in evaluation mode."""
    config = AutoConfig.for_model(family.split()[0], **sizes(family, experts, **options))
    torch.manual_seed(0)
    model = (kind or auto_class(family)).from_config(config)
    with torch.no_grad():  # some families start their routers at zero
        for name, parameter in model.named_parameters():
            if name.endswith(PER_EXPERT[2:]):
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
