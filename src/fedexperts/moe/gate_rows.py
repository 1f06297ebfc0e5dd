"""A new gate's rows: drawn, or what a dense model's FFNs see while it reads an expert's prompts.

Shapes: D hidden, E experts of a layer, L layers, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from ..errors import InputError
from ..reading import parse_json, read_text
from .checkpoint import Checkpoint
from .config import refusing
from .tokenizer import load_tokenizer


def random_rows(root: Checkpoint, experts: int, std: float | None, seed: int) -> list[Tensor]:
    """Gate rows_ED of every layer, normal around 0; ``std`` is by default the config's ``initializer_range``."""
    generator = torch.Generator().manual_seed(seed)
    std = root.config.initializer_range if std is None else std
    shape = experts, root.config.hidden_size
    return [torch.randn(shape, generator=generator) * std for _ in range(root.config.num_hidden_layers)]


def hidden_rows(root: Checkpoint, prompts: Sequence[Sequence[str]]) -> list[Tensor]:
    """Gate rows_ED of every layer: what the base's FFN sees on an expert's prompts, on average, at length 1.

    Raises:
        InputError: the base's folder holds no tokenizer that can be loaded.
    """
    try:
        tokenizer = load_tokenizer(root.path)
    except InputError as error:
        raise InputError(f"{root.path}: --gate hidden needs the base's tokenizer, which cannot be loaded ({error})") from error
    with refusing(f"{root.path}: --gate hidden needs the base, which cannot be loaded", "copy the checkpoint again"):
        model = AutoModel.from_pretrained(
            root.path, local_files_only=True, use_safetensors=True, trust_remote_code=False
        ).eval()
    seen_LD: dict[int, Tensor] = {}
    hooks = [layer.mlp.register_forward_pre_hook(_mean_input(seen_LD, i)) for i, layer in enumerate(model.layers)]
    means = [[_read(model, tokenizer, prompt, seen_LD) for prompt in mine] for mine in prompts]
    for hook in hooks:
        hook.remove()
    means_ELD = torch.stack([torch.stack(mine).mean(dim=0) for mine in means])
    return list(torch.nn.functional.normalize(means_ELD, dim=-1).transpose(0, 1).contiguous())


def _mean_input(seen_LD: dict[int, Tensor], layer: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen_LD[layer] = inputs[0].float().flatten(0, -2).mean(dim=0)

    return keep


def _read(model: Any, tokenizer: Any, prompt: str, seen_LD: dict[int, Tensor]) -> Tensor:
    """Mean input of each layer's FFN over the tokens of one prompt, as a tensor of [L, D]."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    if not ids.numel():
        raise InputError(f"--prompts: the prompt {prompt!r} has no tokens; give a text")
    with torch.no_grad():
        model(input_ids=ids)
    return torch.stack([seen_LD[layer] for layer in sorted(seen_LD)])


def prompts_of(path: Path, experts: int) -> list[list[str]]:
    """The prompts of every expert, a line of a JSONL file each.

    Raises:
        InputError: the file cannot be read, or does not have a list of texts for each expert.
    """
    example = '["a prompt", "another"]'
    try:
        text = read_text(path, "--prompts")
        lines = [parse_json(line, f"--prompts = {str(path)!r}") for line in text.split("\n") if line.strip()]
    except InputError as error:
        raise InputError(f"{error}; give a JSONL file with one line for each expert, {example}") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(line, list) or not line or not all(isinstance(prompt, str) for prompt in line):
            raise InputError(f"{path}, line {number}: must be a list of texts, such as {example}")
    if len(lines) != experts:
        raise InputError(
            f"{path}: has {len(lines)} lines for {experts} experts; give one line for each, in the order of --experts"
        )
    return lines
