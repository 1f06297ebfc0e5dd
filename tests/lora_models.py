"""Tiny models of every family that the view knows, with four experts in one or two layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from fedexperts.moe.layer import MoELayer

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_labels": 3,
    "pad_token_id": 0,
}
FAMILIES = ["mixtral", "qwen3_moe", "olmoe", "own"]


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        bodies = [nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(4)]
        self.moe = MoELayer(16, bodies, top_k=2)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.moe(self.embed(input_ids)).mean(dim=1))


def build(family: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if family == "own":
        return Own()
    field = "num_local_experts" if family == "mixtral" else "num_experts"
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE, **{field: 4}))
