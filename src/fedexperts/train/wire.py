"""What an upload's tensors are on the link, by type and shape: how large the file is, without numbers and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..moe.parts import shapes_B

Codec = Literal["exact", "bf16", "int8"]
SCALE = ".scale"
Typed = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name."""


def wire_B(tensors: Typed, codec: Codec) -> int:
    """Size of the file that `codec.encode` would make of such tensors."""
    return shapes_B(wired(tensors, codec))


def wired(tensors: Typed, codec: Codec) -> Typed:
    """Types and shapes as they travel."""
    if codec == "exact":
        return tensors
    if codec == "bf16":
        return {name: ("bfloat16", shape) for name, (_, shape) in tensors.items()}
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (_, shape) in tensors.items():
        found |= {name: ("int8", shape), name + SCALE: ("float32", scales(shape))}
    return found


def scales(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor's scales: one for each slice along the shorter of a matrix's outer dimensions."""
    if len(shape) < 2:
        return (1,) * len(shape)
    return (1, *shape[1:]) if shape[0] > shape[-1] else (*shape[:-1], 1)
