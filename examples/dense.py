"""Dense models to build MoE models from: a tiny Llama and two that were tuned from it, with random weights.

Run it with: python examples/dense.py FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

folder = Path(sys.argv[1])
torch.manual_seed(1)
model = LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0))
for name in ("base", "medicine", "law"):
    model.save_pretrained(folder / name)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight += 0.02 * torch.randn_like(layer.mlp.down_proj.weight)
