"""A model is a set of named parts: ``backbone``, ``gate``, ``expert:0`` … ``expert:M-1`` and ``head``.

Everything that is frozen, loaded, trained, sent, averaged or refused is a set of parts. With layer granularity, expert m
of MoE layer ℓ is the part ``expert:ℓ.m``. Tensors inside a piece are never written to: a changed part is a new piece.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:  # names and sizes of parts are asked for where torch is not loaded
    from torch import Tensor

BACKBONE = "backbone"
GATE = "gate"
HEAD = "head"
CORRELATION = "correlation"
"""Not of the model: the correlation matrices that travel beside it in FedSC."""
STATISTICS = "statistics"
"""Not of the model: mean and spread of latents, and loads of experts, which a gate of a Networked MoE is trained with."""
BESIDE = frozenset({CORRELATION, STATISTICS})
"""What travels beside the model: of each client its own, and averaged by whoever keeps it."""
EXPERT = "expert:"

Tensors = Mapping[str, "Tensor"]
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""What safetensors calls the types of torch."""
NUMBER_B = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}
"""Bytes of a number, by its type."""


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
        return sha256(self.tensors)[:16]

    @cached_property
    def addresses(self) -> dict[str, str]:
        """Of each tensor the `address`."""
        return {name: address(tensor) for name, tensor in self.tensors.items()}

    @cached_property
    def kinds(self) -> dict[str, tuple[Any, ...]]:
        """Of each tensor the `kind`."""
        return {name: kind(tensor) for name, tensor in self.tensors.items()}

    @cached_property
    def norm(self) -> float:
        """Euclidean norm of all its numbers."""
        return norm(self.tensors)

    @cached_property
    def root(self) -> float:
        """By which a Euclidean norm is divided for a root mean square."""
        return math.sqrt(sum(value.numel() for value in self.tensors.values()))

    def near(self, norm: float, most: float) -> bool:
        """Whether tensors of such a norm are plainly not `too_far`."""
        return not self.root or (norm + self.norm) / self.root <= most

    @cached_property
    def size_B(self) -> int:
        """Bytes on the link: a safetensors file."""
        return file_B(self.tensors)


kind = attrgetter("dtype", "shape", "layout", "device")
"""What of a tensor does not change in training."""
Fitted = Callable[[str, Piece], Piece]
"""What of a piece goes to the devices of a link, where these have adapters of a rank of their own."""


def unfitted(link: str, piece: Piece) -> Piece:
    """All of it."""
    return piece


def sha256(tensors: Mapping[str, Tensor], beside: str = "") -> str:
    """SHA-256 over a text and, by name, over names, types, shapes and bytes of tensors; in hex digits."""
    sha = hashlib.sha256(beside.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(_bytes(tensor))
    return sha.hexdigest()


def address(tensor: Tensor) -> str:
    """Of a tensor's content: 32 hex digits of SHA-256 over type, shape and bytes."""
    return sha256({"": tensor})[:32]


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


MAX_UPDATE_NORM = 100.0
"""How far an update may lie from what was sent where nothing else is said, see `protocol.admission`."""


def finite(tensors: Tensors) -> bool:
    """Whether all numbers are."""
    if math.isfinite(norm(tensors)):  # a tenth of the time
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point())


def norm(tensors: Tensors) -> float:
    """Euclidean norm of all numbers together; infinite above what float32 holds, and not a number where one is none."""
    if not tensors:  # as of the pieces of a plan, which does without torch
        return 0.0
    import torch

    half = torch.float16  # overflows at once, and whole numbers have no norm
    numbers = [t if t.is_floating_point() and t.dtype is not half else t.float() for t in tensors.values()]
    return math.hypot(*torch._foreach_norm(numbers))


def too_far(tensors: Tensors, start: Piece, most: float, own_norm: float | None = None) -> str | None:
    """Why tensors cannot be what training makes of a piece, by root mean squares; None if they can.

    What is near nothing, as weights are, is near what was sent, so that the change need not be computed; one pass is enough,
    and none where their norm is known.
    """
    if start.near(norm(tensors) if own_norm is None else own_norm, most):
        return None
    began, root = start.norm, start.root
    if not finite(tensors):
        return "is not finite"
    moved = {name: value - start.tensors[name] for name, value in tensors.items()}
    change, bound = norm(moved) / root, most * max(1.0, began / root)
    return None if change <= bound else f"changes the part by {change:.3g} (root mean square); at most {bound:.3g}"


def tensors_B(tensors: Tensors) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def file_B(tensors: Tensors) -> int:
    """Size of a safetensors file: 8 bytes, a JSON header padded to a multiple of 8, and the numbers."""
    return shapes_B({name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()})


def shapes_B(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """As `file_B`, of tensors given as types and shapes."""
    return _shapes_B(tuple(tensors.items()))


@lru_cache(maxsize=4096)  # every version of a part has the same, on every device
def _shapes_B(tensors: tuple[tuple[str, tuple[str, tuple[int, ...]]], ...]) -> int:
    header: dict[str, object] = {}
    offset = 0
    for name, (dtype, shape) in sorted(tensors, key=lambda entry: (-NUMBER_B[entry[1][0]], entry[0])):
        end = offset + math.prod(shape) * NUMBER_B[dtype]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text_B = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text_B // 8) * 8 + offset


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

    found = list(parts)
    return found if len(found) < 2 else sorted(found, key=_place)


def _place(part: str) -> tuple[int, int, int]:
    if is_expert(part):
        layer, m = expert_index(part)
        return 0, -1 if layer is None else layer, m
    return (GATE, HEAD, BACKBONE, CORRELATION, STATISTICS).index(part) + 1, 0, 0
