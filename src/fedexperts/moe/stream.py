"""Experts that are not resident: read when tokens meet them, used, and dropped, or kept in a cache.

A trial pass and the gate tail route to experts that a device does not own. One at a time is in memory, in the forward pass
and again in the backward pass, which reads it a second time instead of keeping it. Streamed experts are frozen.

With a cache each layer keeps so many, and reads a new one into the place of the least recently used. While a layer computes, a
thread reads what the next one (in the backward pass the one before) meets first, if it meets what it met the last time. A pass
the other way meets that in the opposite order.

Shapes: T tokens, D hidden, F intermediate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .lora import LoRA
from .parts import Tensors, expert_index

Body = Callable[[Tensor], Tensor]
"""An expert: x_TD to y_TD."""
FUSED = ("gate_up_proj", "down_proj")


@dataclass
class Slot:
    """Memory for one expert of one layer: up_FD and down_DF, and the reading that fills it if that is under way."""

    weights: tuple[Tensor, Tensor]
    reading: Future[None] | None = None

    def ready(self) -> tuple[Tensor, Tensor]:
        """The weights, when they are read."""
        if self.reading is not None:
            self.reading.result()
            self.reading = None
        return self.weights


class Stream:
    """The experts of a checkpoint on demand; newer values can be put over them.

    Args:
        checkpoint: where they are read; its ``read_B`` tells how much was.
        cache: so many experts of each layer are kept.
    """

    def __init__(self, checkpoint: Checkpoint, cache: int = 0):
        self.checkpoint, self.experts, self.cache = checkpoint, checkpoint.experts, cache
        self.lora: LoRA | None = None  # how experts are adapted, where pieces hold adapters
        self._over: dict[int, dict[str, Tensor]] = {}  # by expert; replaced, never changed
        self._kept: dict[str, OrderedDict[int, Slot]] = {}  # by block, in the model's order; least recently used first
        self._met: dict[str, tuple[int, list[int]]] = {}  # by block, the direction of its last pass, and what that met in turn
        self._now = ("", 0)  # the block that runs, and the direction of the pass
        self._scratch: Slot | None = None
        self._reader: ThreadPoolExecutor | None = None

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
        self._kept.setdefault(block, OrderedDict())
        names = [f"{block}.experts.{kind}" for kind in FUSED]

        def run(x_TD: Tensor) -> Tensor:
            over = self._over.get(m, {})  # those of now, in the backward pass too

            def once(x_TD: Tensor) -> Tensor:
                if all(name in over for name in names):
                    up_FD, down_DF = (over[name].detach().to(like.device, like.dtype) for name in names)
                else:
                    up_FD, down_DF = self._weights(block, m, like)
                return make(up_FD, down_DF, over)(x_TD)

            y_TD: Tensor = _Streamed.apply(x_TD, once)  # type: ignore[no-untyped-call]  # torch ships it untyped
            return y_TD

        return run

    def _weights(self, block: str, m: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The file's weights of an expert; they may be written over as soon as another one of this layer is asked for."""
        if not self.cache:
            self._scratch = self._scratch or self._slot(block, like)
            self._read(block, m, self._scratch)
            return self._scratch.weights
        way = -1 if torch.is_grad_enabled() else 1  # see `_Streamed`
        if (block, way) != self._now or m in self._met[block][1]:
            self._now, self._met[block] = (block, way), (way, [])
            self._look_ahead(block, way, like)
        self._met[block][1].append(m)
        kept = self._kept[block]
        if m not in kept:
            slot = self._free(block, like)
            self._read(block, m, slot)
            kept[m] = slot
        kept.move_to_end(m)
        return kept[m].ready()

    def _look_ahead(self, block: str, way: int, like: Tensor) -> None:
        """What the next block is to meet first is read while this one computes, as far as there is room."""
        order = list(self._kept)
        at = order.index(block) + way
        if not 0 <= at < len(order):
            return
        following, kept = order[at], self._kept[order[at]]
        last_way, met = self._met.get(following, (way, []))
        wanted = (met if last_way == way else met[::-1])[: self.cache]
        for m in [m for m in wanted if m not in kept]:
            slot = self._free(following, like, spared=wanted)
            self._reader = self._reader or ThreadPoolExecutor(1, "experts")
            slot.reading = self._reader.submit(self._read, following, m, slot)
            kept[m] = slot

    def _free(self, block: str, like: Tensor, spared: list[int] | None = None) -> Slot:
        """Memory for one more expert of a block: new, or that of the one that was used least recently."""
        kept = self._kept[block]
        if len(kept) < self.cache:
            return self._slot(block, like)
        oldest = next(m for m in kept if m not in (spared or ()))
        slot = kept.pop(oldest)
        slot.ready()
        return slot

    def _slot(self, block: str, like: Tensor) -> Slot:
        shapes = [self.checkpoint.shape(f"{block}.experts.{kind}")[1:] for kind in FUSED]
        up_FD, down_DF = (torch.empty(shape, dtype=like.dtype, device=like.device) for shape in shapes)
        return Slot((up_FD, down_DF))

    def _read(self, block: str, m: int, slot: Slot) -> None:
        for kind, weight in zip(FUSED, slot.weights, strict=True):
            self.checkpoint.read_into(weight, f"{block}.experts.{kind}", m)


class _Streamed(torch.autograd.Function):
    """y = f(x) that keeps only x: the backward pass calls f again, with gradients on. Gradients go to x alone."""

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
