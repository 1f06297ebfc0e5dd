"""A model's tensors by name and shape, part by part: all that sizes need, whether a view was asked or a config alone.

Letters: D hidden, F intermediate of an expert, E experts of a layer, K picks per token, H and G heads of queries and of keys,
d numbers of a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from .parts import BACKBONE, GATE, HEAD, expert

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors by name."""
HEADS = ("score", "classifier", "lm_head", "head")
"""What the names of a head's tensors begin with."""
ACTIVATIONS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "mellum", "granitemoe")
"""Model types whose attention and feed-forward layers `size.activations_B` describes, by their `Shape`."""
LORA_A, LORA_B = ".lora_A", ".lora_B"
"""How the names of an adapter's factors end."""


def part_of(name: str) -> str:
    """The part of a tensor that is neither gate nor expert."""
    return HEAD if name.split(".")[0] in HEADS else BACKBONE


def count(tensors: Shapes) -> int:
    """Numbers of all tensors."""
    return sum(map(math.prod, tensors.values()))


@dataclass(frozen=True)
class Body:
    """One expert of one layer: its tensors, and the matrices that LoRA can adapt, as (out, in)."""

    tensors: Shapes
    projections: Shapes


@dataclass(frozen=True)
class Layer:
    """One MoE layer."""

    gate: Shapes
    experts: tuple[Body, ...]


@dataclass(frozen=True)
class Shape:
    """What activations depend on; see the module's letters.

    Of the ``layers``, ``moe_blocks`` have experts. Below the first trained tensor autograd saves nothing, so of the first MoE
    layer only the experts count, and ``blocks`` are the attention blocks after it. ``dense_F`` and ``shared_F`` sum the
    intermediate sizes of dense layers and of shared experts after it; ``normed`` says that queries and keys have norms.
    """

    D: int
    F: int
    E: int
    K: int
    H: int
    G: int
    d: int
    V: int
    layers: int
    blocks: int
    moe_blocks: int
    dense_F: int
    shared_F: int
    normed: bool
    renormalised: bool
    """Whether the weights of the picks sum to one: a single pick under a frozen gate then weighs 1, without a gradient."""


@dataclass(frozen=True)
class Outline:
    """A model: its MoE layers, all other tensors, and K. ``shape`` is None where the memory of its layers is not known."""

    model_type: str
    top_k: int
    layers: tuple[Layer, ...]
    rest: Shapes
    shape: Shape | None

    @property
    def experts(self) -> int:
        """M."""
        return len(self.layers[0].experts)

    @cached_property
    def parts(self) -> dict[str, Shapes]:
        """Tensors of every part, in full parameters."""
        return self.split("global")

    def split(self, granularity: str) -> dict[str, Shapes]:
        """Tensors of every part; with ``"layer"`` an expert of each layer is one."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for number, layer in enumerate(self.layers):
            found.setdefault(GATE, {}).update(layer.gate)
            for m, body in enumerate(layer.experts):
                found.setdefault(expert(m, number if granularity == "layer" else None), {}).update(body.tensors)
        for name, shape in self.rest.items():
            found.setdefault(part_of(name), {})[name] = shape
        return dict(found)

    def adapters(self, rank: int, granularity: str = "global") -> dict[str, Shapes]:
        """What is trained of every expert with adapters of a rank: two factors for each projection."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for number, layer in enumerate(self.layers):
            for m, body in enumerate(layer.experts):
                mine = found.setdefault(expert(m, number if granularity == "layer" else None), {})
                for name, (out, into) in body.projections.items():
                    mine |= {name + LORA_A: (rank, into), name + LORA_B: (out, rank)}
        return dict(found)

    @property
    def projections(self) -> Shapes:
        """What LoRA can adapt of the first expert, over all layers."""
        return {name: shape for layer in self.layers for name, shape in layer.experts[0].projections.items()}
