"""Tensors of our own model types by their configs: `encoder`, `conv` and `resnet`, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .document import Fields, UnclearError
from .kinds import OWN, Kind
from .outline import Body, Layer, Shapes

Tensors = tuple[int, tuple[Layer, ...], Shapes]
"""K, MoE layers, and all other tensors."""
Sizes = dict[str, tuple[int, ...]]
GATE_GRID = 4
"""The gate of a `conv` sees the stem's means over a grid of so many rows and columns."""
EXPERT_LAYERS = 4
"""Linear layers of an expert of `resnet`, Sec. IV-A."""


@dataclass(frozen=True)
class OwnType:
    """A model type of ours: what it is for, defaults of its fields, and its tensors."""

    kind: Kind
    defaults: Mapping[str, Any]
    tensors: Callable[[Fields], Tensors]


def _linear(name: str, out: int, into: int) -> Sizes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _conv(name: str, out: int, into: int) -> Sizes:
    return {f"{name}.weight": (out, into, 3, 3), f"{name}.bias": (out,)}


def _norm(name: str, numbers: int) -> Sizes:
    return {f"{name}.weight": (numbers,), f"{name}.bias": (numbers,)}


def _layer(at: str, gate: tuple[int, int], body: Callable[[str], Sizes], bias: bool = False) -> Layer:
    """Our `MoELayer`: experts are modules of their own, and LoRA adapts their linear layers."""
    experts = []
    for m in range(gate[0]):
        tensors = body(f"{at}.experts.{m}")
        matrices = {name.removesuffix(".weight"): size for name, size in tensors.items() if len(size) == 2}
        experts.append(Body(tensors, {name: (out, into) for name, (out, into) in matrices.items()}))
    return Layer({f"{at}.gate.weight": gate, **({f"{at}.gate.bias": gate[:1]} if bias else {})}, tuple(experts))


def _bert(c: Fields) -> Tensors:
    D, F, L, E = (c.count(name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_experts"))
    if D % c.count("num_attention_heads") or c.flag("add_cross_attention") or c.flag("is_decoder"):
        raise UnclearError
    chosen = range(L) if c.get("moe_layers") is None else sorted(c.numbers("moe_layers", L))
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    rest: Sizes = {f"bert.embeddings.{name}_embeddings.weight": (c.count(size), D) for name, size in tables.items()}
    rest |= _norm("bert.embeddings.LayerNorm", D)
    layers = []
    for i in range(L):
        at = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            rest |= _linear(f"{at}.attention.{name}", D, D)
        rest |= _norm(f"{at}.attention.output.LayerNorm", D) | _norm(f"{at}.output.LayerNorm", D)
        if i in chosen:
            layers.append(
                _layer(f"{at}.moe", (E, D), lambda e: _linear(f"{e}.intermediate", F, D) | _linear(f"{e}.output", D, F))
            )
        else:
            rest |= _linear(f"{at}.intermediate.dense", F, D) | _linear(f"{at}.output.dense", D, F)
    rest |= _linear("bert.pooler.dense", D, D) | _linear("classifier", c.labels(), D)
    return c.count("num_experts_per_tok"), tuple(layers), rest


def _conv_moe(c: Fields) -> Tensors:
    side, S, U, F = (c.count(name) for name in ("image_size", "channels", "expert_channels", "expert_dim"))
    if side < 8 or S % 4:
        raise UnclearError
    rest = _conv("stem.0", S, c.count("in_channels")) | _norm("stem.2", S) | _linear("head", c.labels(), F)

    def body(e: str) -> Sizes:
        return _conv(f"{e}.first", U, S) | _conv(f"{e}.second", U, U) | _linear(f"{e}.output", F, U * (side // 8) ** 2)

    return c.count("num_experts_per_tok"), (_layer("moe", (c.count("num_experts"), S * GATE_GRID**2), body),), rest


def _networked(c: Fields) -> Tensors:
    width, hidden, labels, size = c.count("width"), c.count("expert_hidden"), c.labels(), c.count("projection_size", least=0)
    if width % 8 or c.count("image_size") < 8 or c.count("stem_stride") not in (1, 2) or labels < 2:
        raise UnclearError
    rest: Sizes = {"extractor.0.weight": (width, c.count("in_channels"), 3, 3), **_norm("extractor.1", width)}
    inputs = width
    for block in range(8):
        out, at = width << block // 2, f"extractor.{block + 3}"
        rest |= {f"{at}.conv1.weight": (out, inputs, 3, 3), **_norm(f"{at}.norm1", out)}
        rest |= {f"{at}.conv2.weight": (out, out, 3, 3), **_norm(f"{at}.norm2", out)}
        if block and not block % 2:
            rest |= {f"{at}.shortcut.0.weight": (out, inputs, 1, 1), **_norm(f"{at}.shortcut.1", out)}
        inputs = out
    D = 8 * width
    if size:
        rest |= _linear("projection.0", 2 * D, D) | _linear("projection.2", size, 2 * D)
    sizes = [D, *[hidden] * (EXPERT_LAYERS - 1), labels]

    def body(e: str) -> Sizes:
        return {k: s for i in range(EXPERT_LAYERS) for k, s in _linear(f"{e}.{2 * i}", sizes[i + 1], sizes[i]).items()}

    return c.count("num_experts_per_tok"), (_layer("moe", (c.count("num_experts"), D), body, c.flag("gate_bias")),), rest


_BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "is_decoder": False,
    "add_cross_attention": False,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
_CONV = {
    "image_size": 32,
    "in_channels": 3,
    "channels": 16,
    "expert_channels": 32,
    "expert_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 1,
}
_NETWORKED = {
    "image_size": 32,
    "in_channels": 3,
    "width": 64,
    "stem_stride": 1,
    "projection_size": 0,
    "expert_hidden": 256,
    "num_experts": 10,
    "num_experts_per_tok": 1,
    "gate_bias": True,
}
OWN_TYPES = {
    "bert_moe": OwnType(OWN["bert_moe"], _BERT, _bert),
    "conv_moe": OwnType(OWN["conv_moe"], _CONV, _conv_moe),
    "networked_moe": OwnType(OWN["networked_moe"], _NETWORKED, _networked),
}
"""By model type."""
