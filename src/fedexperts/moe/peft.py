"""Adapters of single experts as PEFT stores them for fused experts, so that it loads them; PEFT itself is not needed.

PEFT adapts a fused parameter [E, O, I] through one pair of matrices: A [E·R, I] with the experts one after another, and
B [O, R·E] with the expert's number running fastest; ΔW_e = scale · B[:, e::E] · A[e·R : (e+1)·R]. Of a block with two such
parameters it wraps ``gate_up_proj`` first, so that the keys of that one have ``base_layer`` in them. Our gate and up projection
have factors of their own; as one matrix they need twice the rank, block by block, and the factors of the down projection are
padded to that with zeros (``rank_pattern`` would do too, but PEFT 0.21 then warns that it ignores what it does not ignore).

Shapes: E experts, O features out, I features in, R rank of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .lora import A, B, projections
from .parts import BACKBONE, EXPERT, GATE, HEAD, Tensors, expert_index, is_expert

NAMED = re.compile(rf"{GATE}|{HEAD}|{BACKBONE}|{EXPERT}(\d{{1,4}}\.)?\d{{1,4}}")
"""Parts as runs write them."""
Factors = dict[int, tuple[Tensor, Tensor]]
"""Of one projection by expert: a_RI and b_OR."""


def peft_adapter(parts: Mapping[str, Tensors], rank: int, alpha: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``adapter_config.json`` says of the adapters, and the tensors of ``adapter_model.safetensors``.

    Args:
        parts: adapters of all experts, and the gate and head where they were trained, which travel whole (``modules_to_save``).
        rank, alpha: of the adapters.

    Raises:
        InputError: the backbone was trained, the experts are not those of a transformers MoE layer, or a factor is missing or
            has another shape than the rest.
    """
    if BACKBONE in parts:
        raise InputError("train.shared has 'backbone': an adapter cannot hold all that was trained; use --format merged")
    found = _by_projection(parts, rank)
    blocks = [name.removesuffix(".gate_proj") for name in found if name.endswith(".gate_proj")]
    ends = {".".join(name.split(".")[-2:]) for name in blocks}  # as mlp.experts
    named = {f"{name}.{matrix}_proj" for name in blocks for matrix in ("gate", "up", "down")}
    if set(found) != named or len(ends) != 1 or not all(name.endswith(".experts") for name in ends):
        raise InputError(f"{next(iter(found), 'experts')}: PEFT adapts fused experts of transformers only; use --format merged")
    experts = 1 + max(m for factors in found.values() for m in factors)
    tensors: dict[str, Tensor] = {}
    for name in blocks:
        gate_up = [found[f"{name}.gate_proj"], found[f"{name}.up_proj"]]
        for key, group in ((f"{name}.base_layer", gate_up), (name, [found[f"{name}.down_proj"]])):
            tensors[f"{key}{A}.weight"], tensors[f"{key}{B}.weight"] = _stacked(group, rank, experts)
    whole = {name: tensor for part in (GATE, HEAD) if part in parts for name, tensor in parts[part].items()}
    config = {
        "peft_type": "LORA",
        "r": 2 * rank,
        "lora_alpha": 2 * alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": [],
        "target_parameters": [f"{end}.{matrix}" for end in ends for matrix in ("gate_up_proj", "down_proj")],
        "modules_to_save": sorted({_module(name) for name in whole}),
    }
    return config, {f"base_model.model.{name}": tensor.contiguous() for name, tensor in (tensors | whole).items()}


def _by_projection(parts: Mapping[str, Tensors], rank: int) -> dict[str, Factors]:
    found: dict[str, Factors] = {}
    for part, tensors in parts.items():
        for name in projections(tensors) if is_expert(part) else ():
            a_RI, b_OR = tensors[name + A], tensors.get(name + B)
            if b_OR is None or a_RI.ndim != 2 or b_OR.ndim != 2 or not a_RI.shape[0] == b_OR.shape[1] == rank:
                raise InputError(f"{part}/{name}: must have two factors of rank {rank}; the file of adapters is damaged")
            others = found.setdefault(name, {})
            first_RI, first_OR = next(iter(others.values()), (a_RI, b_OR))
            if (first_RI.shape, first_OR.shape) != (a_RI.shape, b_OR.shape):
                raise InputError(f"{part}/{name}: has another shape than other experts; the file of adapters is damaged")
            others[expert_index(part)[1]] = a_RI, b_OR
    return found


def _stacked(group: Sequence[Factors], rank: int, experts: int) -> tuple[Tensor, Tensor]:
    """One or two projections with a common input, one below the other in the output, each with ranks of its own."""
    shapes = [(b_OR.shape[0], a_RI.shape[1]) for a_RI, b_OR in (next(iter(factors.values())) for factors in group)]
    a_ERI = torch.zeros(experts, 2 * rank, shapes[0][1])
    b_ORE = torch.zeros(sum(out for out, _ in shapes), 2 * rank, experts)
    row = 0
    for i, (factors, (out, _)) in enumerate(zip(group, shapes, strict=True)):
        ranks = slice(i * rank, (i + 1) * rank)
        for m, (a_RI, b_OR) in factors.items():
            a_ERI[m, ranks] = a_RI
            b_ORE[row : row + out, ranks, m] = b_OR
        row += out
    return a_ERI.flatten(0, 1), b_ORE.flatten(1)


def _module(name: str) -> str:
    """How PEFT is to find the module of a tensor that travels whole: the gates of all layers by their common ending."""
    words = name.split(".")
    return ".".join(words[-3:-1]) if words[-2] in ("gate", "router") else words[0]


def parts_of(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Parts from one file, where tensors are called ``<part>/<name>``.

    Raises:
        InputError: a tensor has another name.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if not NAMED.fullmatch(part) or not name:
            raise InputError(f"tensor {key!r}: is not called <part>/<name>; the file of adapters is damaged")
        parts.setdefault(part, {})[name] = tensor
    return parts
