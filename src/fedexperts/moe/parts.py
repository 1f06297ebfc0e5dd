"""A model is a set of named parts: ``backbone``, ``gate``, ``expert:0`` … ``expert:M-1`` and ``head``.

Everything that is frozen, loaded, trained, sent, averaged or refused is a set of parts. With layer granularity, expert m
of MoE layer ℓ is the part ``expert:ℓ.m``. Tensors inside a piece are never written to: a changed part is a new piece.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError

BACKBONE = "backbone"
GATE = "gate"
HEAD = "head"
EXPERT = "expert:"

Tensors = Mapping[str, Tensor]


class NotMoEError(InputError):
    """The model has no MoE layer that the view knows."""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value; a piece equals only itself
class Piece:
    """One part at one version of the global model."""

    part: str
    version: int
    tensors: Tensors

    @cached_property
    def digest(self) -> str:
        """Address of the content: the first 16 hex digits of SHA-256 over names, types, shapes and bytes."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()[:16]

    @property
    def size_B(self) -> int:
        """Bytes on the link: the tensors' own, without framing."""
        return tensors_B(self.tensors)


def tensors_B(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def expert(m: int, layer: int | None = None) -> str:
    """Name of the part that holds expert m (of one layer, with layer granularity)."""
    return f"{EXPERT}{m}" if layer is None else f"{EXPERT}{layer}.{m}"


def is_expert(part: str) -> bool:
    """Whether the part is an expert."""
    return part.startswith(EXPERT)


def expert_index(part: str) -> tuple[int | None, int]:
    """(layer or None, m) of an expert part."""
    layer, _, m = part.removeprefix(EXPERT).rpartition(".")
    return (int(layer) if layer else None), int(m)


def in_order(parts: Iterable[str]) -> list[str]:
    """Parts in the order in which they travel: experts by layer and index, then gate, head and backbone."""

    def key(part: str) -> tuple[int, int, int]:
        if is_expert(part):
            layer, m = expert_index(part)
            return 0, -1 if layer is None else layer, m
        return (GATE, HEAD, BACKBONE).index(part) + 1, 0, 0

    return sorted(parts, key=key)
