"""Experts that are not resident: read when tokens meet them, used, and dropped.

A trial pass and the gate tail route to experts that a device does not own. One at a time is in memory, in the forward pass
and again in the backward pass, which reads it a second time instead of keeping it. Streamed experts are frozen.

Shapes: T tokens, D hidden, F intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .lora import LoRA
from .parts import Tensors, expert_index

Body = Callable[[Tensor], Tensor]
"""An expert: x_TD to y_TD."""


class Stream:
    """The experts of a checkpoint on demand; newer values can be put over them.

    Args:
        checkpoint: where they are read; its ``read_B`` tells how much was.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.experts = checkpoint, checkpoint.experts
        self.lora: LoRA | None = None  # how experts are adapted, where pieces hold adapters
        self._over: dict[int, dict[str, Tensor]] = {}  # by expert; replaced, never changed

    def install(self, part: str, tensors: Tensors) -> None:
        """Use these from now on, weights instead of the file's or adapters beside them; they are referred to, not copied."""
        _, m = expert_index(part)
        self._over[m] = {**self._over.get(m, {}), **tensors}

    def body(self, block: str, m: int, make: Callable[[Tensor, Tensor, Tensors], Body], like: Tensor) -> Body:
        """Expert m of one MoE block.

        Args:
            block: the block's name in the model.
            m: global number of the expert.
            make: from up_FD, down_DF and what was installed over them to the expert's function.
            like: any tensor of the type and on the device that the model computes with.
        """
        names = (f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj")

        def run(x_TD: Tensor) -> Tensor:
            over = self._over.get(m, {})  # those of now, in the backward pass too

            def once(x_TD: Tensor) -> Tensor:
                up_FD, down_DF = (self._weight(name, m, over.get(name), like) for name in names)
                return make(up_FD, down_DF, over)(x_TD)

            y_TD: Tensor = _Streamed.apply(x_TD, once)  # type: ignore[no-untyped-call]  # torch ships it untyped
            return y_TD

        return run

    def _weight(self, name: str, m: int, over: Tensor | None, like: Tensor) -> Tensor:
        tensor = self.checkpoint.read(name, (m,), like.dtype)[0] if over is None else over.detach()
        return tensor.to(like.device, like.dtype)


class _Streamed(torch.autograd.Function):
    """y = f(x) that keeps only x: the backward pass calls f again. Gradients go to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Body) -> Tensor:
        ctx.save_for_backward(x)
        ctx.f = f
        return f(x)

    @staticmethod
    def backward(ctx: Any, *grad_y: Tensor) -> tuple[Tensor, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.f(x)
        return torch.autograd.grad(y, x, grad_y)[0], None
