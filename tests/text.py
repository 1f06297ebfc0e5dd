"""A tokenizer and tiny language models for text, made here: no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

BYTES = 256
PAD, BOS, EOS = BYTES, BYTES + 1, BYTES + 2
VOCABULARY = BYTES + 3


def tokenizer() -> Any:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"<pad>": PAD, "<s>": BOS, "</s>": EOS}
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def language_model(family: str = "mixtral", **options: Any) -> nn.Module:
    """A tiny MoE language model with random weights that are far from uniform."""
    field = "num_local_experts" if family in ("mixtral", "granitemoe") else "num_experts"
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        field: 4,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**sizes, **options})).eval()


def saved(folder: Path, family: str = "mixtral", **options: Any) -> Path:
    """A folder with such a model and its tokenizer."""
    language_model(family, **options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
