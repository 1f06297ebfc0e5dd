"""Our own MoE layer: any modules as experts, one linear gate, routing by `Router`.

Shapes: T tokens, D features in, E experts, K experts picked per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .routing import Mask, Router, Top1


class MoELayer(nn.Module):
    """Weighted sum of the K picked experts (8).

    Args:
        dim: the gate's input size: D, unless it is given an input of its own.
        experts: modules that map x_TD to y_TF, all with the same F.
        top_k, top1, mask, noise_std: see `Router`.
        bias: whether the gate has one.
    """

    def __init__(
        self,
        dim: int,
        experts: Sequence[nn.Module],
        top_k: int,
        top1: Top1 = "straight-through",
        mask: Mask = "-inf",
        noise_std: float = 0.0,
        bias: bool = False,
    ):
        super().__init__()
        self.gate = nn.Linear(dim, len(experts), bias=bias)
        self.experts = nn.ModuleList(experts)
        self.router = Router(len(experts), top_k, top1, mask, noise_std=noise_std)

    def forward(self, x: Tensor, gate_input: Tensor | None = None) -> Tensor:
        """x of any leading shape, last dimension D; the gate sees ``gate_input``, of the same leading shape, if it is given."""
        x_TD = x.reshape(-1, x.shape[-1])
        seen = x_TD if gate_input is None else gate_input.reshape(-1, gate_input.shape[-1])
        weights_TK, indices_TK = self.router(self.gate(seen), self.training)
        y_TF = combine(x_TD, weights_TK, indices_TK, list(self.experts))
        return y_TF.reshape(*x.shape[:-1], y_TF.shape[-1])


def combine(x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor, experts: Sequence[object]) -> Tensor:
    """Send every token to its picked experts and add the weighted results (8); experts without tokens do not run."""
    y_TKF = outputs(x_TD, indices_TK, experts)
    return (y_TKF * weights_TK.to(y_TKF.dtype).unsqueeze(-1)).sum(dim=1)


def outputs(x_TD: Tensor, indices_TK: Tensor, experts: Sequence[object]) -> Tensor:
    """What its picked experts put out for every token, y_TKF; experts without tokens do not run."""
    top_k = indices_TK.shape[-1]
    order_P = indices_TK.flatten().argsort(stable=True)  # P = T·K picks, grouped by expert
    sizes = torch.bincount(indices_TK.flatten(), minlength=len(experts)).tolist()
    chunks = torch.split(x_TD[order_P // top_k], sizes)
    run = [f(chunk) for f, chunk, n in zip(experts, chunks, sizes, strict=True) if n]  # type: ignore[operator]  # callables
    y_PF = torch.cat(run)
    return y_PF[order_P.argsort()].view(*indices_TK.shape, -1)  # back to token order
