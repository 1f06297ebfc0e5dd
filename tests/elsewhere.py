"""A second device for machines without one: tensors that are computed here and refuse to meet those that are not there.

Within `second_device` tensors that are sent to `THERE` behave like those of a GPU, as far as this program asks: an operation
with tensors of both devices raises, except copies from one to the other, numbers without dimensions, and indexing by what lies
here; random generators of this device draw nothing there; numpy does not see them. They are computed by the CPU, so results are
those of the CPU to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from transformers import PreTrainedModel

from fedexperts.setup import model

THERE = "lazy:0"
"""A name that torch knows, with gradients, and needs no driver for."""
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Elsewhere(Tensor):
    """A tensor of the other device, and the tensor of this one that it is made of."""

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=torch.device(THERE)
        )

    def __init__(self, here: Tensor):
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})

    def tolist(self) -> Any:
        """Which torch does for no class of tensors but its own."""
        return self.here.tolist()

    def __repr__(self) -> str:
        return f"elsewhere({self.here})"


class _Everywhere(TorchDispatchMode):
    """Makes tensors there, when they are asked for there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device) == torch.device(THERE)


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, Elsewhere)]
    wanted = kwargs.get("device")
    goes_there = bool(there) if wanted is None else _is_there(wanted)
    _check(function, args, tensors, there, wanted, goes_there)
    if kwargs.get("generator") is not None and goes_there:
        raise RuntimeError(f"{function}: expected a generator of {THERE!r}, found one of 'cpu'")
    if function is aten.copy_.default:
        goes_there = isinstance(args[0], Elsewhere)
    given = {id(value.here): value for value in there}
    inner = tree_map(lambda value: value.here if isinstance(value, Elsewhere) else value, (args, kwargs))
    if _is_there(wanted):
        inner[1]["device"] = torch.device("cpu")
    found = function(*inner[0], **inner[1])

    def outside(value: Any) -> Any:
        if not isinstance(value, Tensor) or not goes_there:
            return value
        return given.get(id(value)) if id(value) in given else Elsewhere(value)

    return tree_map(outside, found)


def _check(function: Any, args: Any, tensors: list[Tensor], there: list[Elsewhere], wanted: Any, goes_there: bool) -> None:
    here = [value for value in tensors if not isinstance(value, Elsewhere) and value.dim()]
    if not there or function in COPIES:
        return
    if function in INDEXING and isinstance(args[0], Elsewhere):
        here = [value for value in args[2:] if isinstance(value, Tensor) and not isinstance(value, Elsewhere) and value.dim()]
    if here or (function in INDEXING and not isinstance(args[0], Elsewhere)):
        raise RuntimeError(f"{function}: found tensors on two devices, {THERE!r} and 'cpu'")


@contextmanager
def second_device() -> Iterator[None]:
    """Within the block `THERE` is a device, and models of scenarios are computed on it."""
    load, save = model.load_model, PreTrainedModel.save_pretrained

    def load_there(*args: Any) -> nn.Module:
        return load(*args).to(THERE)

    def save_here(self: Any, folder: Any, **options: Any) -> None:  # safetensors looks at memory, which is none here
        save(self, folder, state_dict={name: tensor.cpu().clone() for name, tensor in self.state_dict().items()}, **options)

    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(…, device=THERE) is a copy from here
    try:
        with (
            patch.object(model, "load_model", load_there),
            patch.object(PreTrainedModel, "save_pretrained", save_here),
            _Everywhere(),
        ):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
