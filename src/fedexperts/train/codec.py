"""What an upload is on the link: a safetensors file of the changes of one part, exact, in bf16, or in int8 with scales.

A change is quantised and not a value: its numbers are small, so their rounding is, and what is lost in one upload can be
added to the next (error feedback).
"""

from __future__ import annotations

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..moe.parts import Tensors
from .wire import SCALE, Codec, wire_B


def encode(tensors: Tensors, codec: Codec) -> bytes:
    """The file that travels.

    ``"int8"`` gives every slice along the shorter of a matrix's outer dimensions a scale of its own, the largest magnitude
    over 127: for LoRA's factors, one for each rank-one component.
    """
    return save({name: part.contiguous() for name, part in wire(tensors, codec).items()})


def decode(payload: bytes) -> dict[str, Tensor]:
    """Inverse of `encode`, up to rounding: quantised tensors come back in float32. Of a file of one's own."""
    return decoded(load(payload))


def decoded(tensors: Tensors) -> dict[str, Tensor]:
    """Inverse of `wire`, up to rounding."""
    return {
        name: _expand(tensor, tensors[name + SCALE]) if name + SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }


def moved_by(start: Tensors, coded: Tensors, like: Tensors) -> dict[str, Tensor]:
    """What the server has of a part sent as ``start`` once the file of its change is decoded; in the types of ``like``."""
    return {n: (start[n].float() + coded[n].float()).to(t.dtype) for n, t in like.items()}


def payload_B(tensors: Tensors, codec: Codec) -> int:
    """Size of the file that `encode` would make of tensors of these shapes and types; their values do not matter."""
    return wire_B({n: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in tensors.items()}, codec)


def wire(tensors: Tensors, codec: Codec) -> dict[str, Tensor]:
    """What travels of tensors: as they are, in bf16, or in int8 with their scales."""
    if codec == "exact":
        return dict(tensors)
    if codec == "bf16":
        return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    found = {}
    for name, tensor in tensors.items():
        scale = _scale(tensor.float())
        found[name] = torch.round(tensor.float() / scale).to(torch.int8)
        found[name + SCALE] = scale
    return found


def _scale(tensor: Tensor) -> Tensor:
    """Shaped so that it broadcasts over the tensor; 1 where all numbers are zero."""
    if tensor.dim() < 2:
        largest = tensor.abs().amax().reshape((1,) * tensor.dim())
    else:
        largest = tensor.abs().amax(dim=0 if tensor.shape[0] > tensor.shape[-1] else -1, keepdim=True)
    scale = largest / 127
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _expand(quantised: Tensor, scale: Tensor) -> Tensor:
    return quantised.float() * scale
