"""Whatever is computed with a tensor of which each device of a cohort has its own is computed for each with its own.

The model's code runs as it is; each call of torch that meets such a tensor is mapped over devices by `torch.func.vmap`.

Shapes: J devices, B samples of a batch of each, D features that go in, F that come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..errors import InputError
from ..moe.layer import Cohort

REMEDY = 'leave it out, or set it to "one-by-one"'


@dataclass
class Stack:
    """One tensor of the model in the state of each device.

    Attributes:
        part, name: whose, in the `View`.
        leaf: the model's tensor.
        value_J: the devices' states of it.
        met_J: which devices' tokens met it in this step; the others' entry is not trained then, as if they had not run it.
    """

    part: str
    name: str
    leaf: Tensor
    value_J: Tensor
    met_J: Tensor


class Apart(TorchFunctionMode):
    """While it is on, whatever is computed with a stacked tensor of the model is computed for each device with its own."""

    def __init__(self, stacks: Iterable[Stack], fixed: Iterable[Tensor], cohort: Cohort):
        super().__init__()
        self.cohort = cohort
        self.stacks = {id(one.leaf): (one.leaf, one.value_J, (one,)) for one in stacks}  # and what is made of them alone
        self.fixed = {id(tensor) for tensor in fixed}  # the model's other tensors, which have no rows of devices

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        kwargs = kwargs or {}
        if not self._among(args) and not self._among(kwargs.values()):
            return func(*args, **kwargs)
        given, spec = tree_flatten((args, kwargs))
        known = [self.stacks.get(id(one)) if isinstance(one, Tensor) else None for one in given]
        rowed = [
            k is None and isinstance(g, Tensor) and g.dim() > 0 and id(g) not in self.fixed
            for g, k in zip(given, known, strict=True)
        ]
        if not any(rowed):
            return self._alone(func, args, kwargs, known, given, spec)
        J = self.cohort.devices
        if wrong := [tuple(one.shape) for one, has in zip(given, rowed, strict=True) if has and len(one) % J]:
            raise InputError(f'train.cohort = "batched": {func.__name__} of {wrong[0]} has no rows of {J} devices; {REMEDY}')
        for one in known:
            for stack in () if one is None else one[2]:
                stack.met_J |= True if self.cohort.met_J is None else self.cohort.met_J
        values = [
            k[1] if k is not None else g.unflatten(0, (J, -1)) if has else g
            for g, k, has in zip(given, known, rowed, strict=True)
        ]
        if func is F.linear and not kwargs and values[0].dim() > 2 and _stacked(given[1:], known[1:]):
            return _linear(*(one for one in values if one is not None)).flatten(0, 1)
        return tree_map(
            lambda one: one.flatten(0, 1) if isinstance(one, Tensor) else one, self._mapped(func, values, spec, known, rowed)
        )

    def _among(self, given: Iterable[Any]) -> bool:
        """Whether a stacked tensor is; of most of what is called none is, and to take these apart would cost more than they."""
        return any(
            self._among(one.values() if isinstance(one, dict) else one)
            if isinstance(one, (list, tuple, dict))
            else id(one) in self.stacks
            for one in given
        )

    def _alone(self, func: Callable[..., Any], args: Any, kwargs: Any, known: Any, given: Any, spec: Any) -> Any:
        """Of stacked tensors alone: what is made of one is known as stacked from here on."""
        with torch.no_grad():
            plain = func(*args, **kwargs)
        made, _ = tree_flatten(plain)
        if not any(isinstance(one, Tensor) for one in made):
            return plain
        values = [k[1] if k is not None else g for g, k in zip(given, known, strict=True)]
        stacked, _ = tree_flatten(self._mapped(func, values, spec, known, [False] * len(given)))
        origins = tuple({id(stack): stack for one in known if one is not None for stack in one[2]}.values())
        for one, value_J in zip(made, stacked, strict=True):
            if isinstance(one, Tensor) and id(one) not in self.stacks:
                self.stacks[id(one)] = one, value_J, origins
        return plain

    def _mapped(self, func: Callable[..., Any], values: list[Any], spec: Any, known: Any, rowed: list[bool]) -> Any:
        over = [i for i, (k, has) in enumerate(zip(known, rowed, strict=True)) if k is not None or has]

        def one(*mine: Tensor) -> Any:
            filled = list(values)
            for i, value in zip(over, mine, strict=True):
                filled[i] = value
            args, kwargs = tree_unflatten(filled, spec)
            return func(*args, **kwargs)

        return vmap(one)(*(values[i] for i in over))


def _stacked(given: Sequence[Tensor | None], known: Sequence[Any]) -> bool:
    """Whether a weight, and the bias if there is one, are each device's own, and as `_linear` takes them."""
    return all(one is None or (k is not None and one.dim() == dims) for one, k, dims in zip(given, known, (2, 1), strict=False))


def _linear(x_JBD: Tensor, weight_JFD: Tensor, *bias: Tensor) -> Tensor:
    """`torch.nn.functional.linear` of each device with its own weights, for any dimensions between J and D.

    Mapped over devices, products come out in an order in which all that follows takes twice as long.
    """
    made: Tensor = _Linear.apply(x_JBD.flatten(1, -2), weight_JFD, *bias)  # type: ignore[no-untyped-call]  # torch ships it untyped
    return made.view(*x_JBD.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """See `_linear`; each gradient in the order of what it is of."""

    @staticmethod
    def forward(ctx: Any, x_JBD: Tensor, weight_JFD: Tensor, bias_JF: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x_JBD, weight_JFD)
        return x_JBD.bmm(weight_JFD.mT) if bias_JF is None else torch.baddbmm(bias_JF[:, None], x_JBD, weight_JFD.mT)

    @staticmethod
    def backward(ctx: Any, grad_JBF: Tensor) -> tuple[Tensor | None, ...]:
        (x_JBD, weight_JFD), (of_x, of_weight, *of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            grad_JBF.bmm(weight_JFD) if of_x else None,
            grad_JBF.mT.bmm(x_JBD) if of_weight else None,
            *(grad_JBF.sum(dim=1) if needed else None for needed in of_bias),
        )
