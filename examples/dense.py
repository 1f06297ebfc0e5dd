"""Dense models to build MoE models from: a tiny Llama and two that were tuned from it, with random weights and a tokenizer.

Run it with: python examples/dense.py FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedexperts.moe.tokenizer import train_tokenizer

folder = Path(sys.argv[1])
torch.manual_seed(1)
tokenizer = train_tokenizer([], 259)  # one token for each byte
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special))
for name in ("base", "medicine", "law"):
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight += 0.02 * torch.randn_like(layer.mlp.down_proj.weight)
