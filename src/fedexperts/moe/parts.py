"""A model is a set of named parts: ``backbone``, ``gate``, ``expert:0`` … ``expert:M-1`` and ``head``.

Everything that is frozen, loaded, trained, sent, averaged or refused is a set of parts. With layer granularity, expert m
of MoE layer ℓ is the part ``expert:ℓ.m``. Tensors inside a piece are never written to: a changed part is a new piece.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError

BACKBONE = "backbone"
GATE = "gate"
HEAD = "head"
CORRELATION = "correlation"
"""Not of the model: the correlation matrices that travel beside it in FedSC."""
EXPERT = "expert:"

Tensors = Mapping[str, Tensor]
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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

    @cached_property
    def size_B(self) -> int:
        """Bytes on the link: a safetensors file."""
        return file_B(self.tensors)


def finite(tensors: Tensors) -> bool:
    """Whether all numbers are."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())


def tensors_B(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def file_B(tensors: Tensors) -> int:
    """Size of a safetensors file: 8 bytes, a JSON header padded to a multiple of 8, and the numbers."""
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in sorted(tensors.items(), key=lambda entry: (-entry[1].element_size(), entry[0])):
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text_B = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text_B // 8) * 8 + tensors_B(tensors)


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
        return (GATE, HEAD, BACKBONE, CORRELATION).index(part) + 1, 0, 0

    return sorted(parts, key=key)
