"""Our own MoE layer: any modules as experts, one linear gate, routing by `Router`.

Shapes: T tokens, D features in, E experts, K experts picked per token, J devices of a cohort.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .routing import Mask, Router, Top1


@dataclass
class Cohort:
    """Devices whose samples lie one after the other in a batch, equally many of each, see `train.cohort`.

    Attributes:
        devices: J.
        own_T: tokens that a device would have alone; others only fill its sequences up to those of other devices. None: all.
        met_J: of the expert that runs, which devices' own tokens meet it; None outside of experts.
    """

    devices: int
    own_T: Tensor | None = None
    met_J: Tensor | None = None


COHORT: ContextVar[Cohort | None] = ContextVar("COHORT", default=None)
"""Set while a batch is that of a cohort: then each expert gets equally many rows of each device."""


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
    if (cohort := COHORT.get()) is not None:
        return _outputs_apart(cohort, x_TD, indices_TK, experts)
    top_k = indices_TK.shape[-1]
    order_P = indices_TK.flatten().argsort(stable=True)  # P = T·K picks, grouped by expert
    back_TK = order_P.argsort().view(-1, top_k)  # where each token's picks went
    sizes = torch.bincount(indices_TK.flatten(), minlength=len(experts)).tolist()
    chunks = torch.split(_sent(x_TD, order_P // top_k, back_TK), sizes)
    run = [f(chunk) for f, chunk, n in zip(experts, chunks, sizes, strict=True) if n]  # type: ignore[operator]  # callables
    return _sent(torch.cat(run), back_TK.flatten(), order_P[:, None]).view(*indices_TK.shape, -1)


def _sent(x_SD: Tensor, rows_P: Tensor, back_SK: Tensor) -> Tensor:
    """Rows of x in another order, where row s went to rows ``back_SK[s]``."""
    sent_PD: Tensor = _Sent.apply(x_SD, rows_P, back_SK)  # type: ignore[no-untyped-call]  # torch ships it untyped
    return sent_PD


class _Sent(torch.autograd.Function):
    """See `_sent`; torch's own backward pass adds row by row to zeros, which takes several times as long."""

    @staticmethod
    def forward(ctx: Any, x_SD: Tensor, rows_P: Tensor, back_SK: Tensor) -> Tensor:
        ctx.save_for_backward(back_SK)
        return x_SD[rows_P]

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        (back_SK,) = ctx.saved_tensors
        return grad_PD[back_SK[:, 0]] if back_SK.shape[1] == 1 else grad_PD[back_SK].sum(dim=1), None, None


def _outputs_apart(cohort: Cohort, x_TD: Tensor, indices_TK: Tensor, experts: Sequence[object]) -> Tensor:
    """The same, where each expert gets J times as many rows as that device has for it which has most; zeros fill them up."""
    J, top_k = cohort.devices, indices_TK.shape[-1]
    picks_P = indices_TK.flatten()  # P = T·K
    if top_k == 1 and bool((picks_P == picks_P[0]).all()):  # rows lie as they should, and each device meets the expert
        y_TF: Tensor = experts[int(picks_P[0])](x_TD)  # type: ignore[operator]  # callables
        return y_TF.reshape(len(picks_P), 1, -1)
    pair_P = picks_P * J + torch.arange(len(picks_P), device=picks_P.device) // (len(picks_P) // J)
    order_P = pair_P.argsort(stable=True)  # by expert, then device
    sizes_EJ = torch.bincount(pair_P, minlength=len(experts) * J).view(-1, J)
    rows_E = sizes_EJ.amax(dim=1) * J
    begins_EJ = (rows_E.cumsum(0) - rows_E)[:, None] + (rows_E // J)[:, None] * torch.arange(J, device=rows_E.device)
    before_EJ = (sizes_EJ.flatten().cumsum(0) - sizes_EJ.flatten()).view(-1, J)
    shift_P = (begins_EJ - before_EJ).flatten()[pair_P[order_P]]
    row_P = torch.arange(len(picks_P), device=picks_P.device) + shift_P
    sizes = rows_E.tolist()
    filled_RD = x_TD.new_zeros(sum(sizes), x_TD.shape[-1]).index_copy(0, row_P, x_TD[order_P // top_k])
    own_EJ = sizes_EJ
    if cohort.own_T is not None and len(cohort.own_T) == len(indices_TK):
        own_P = cohort.own_T.repeat_interleave(top_k)
        own_EJ = torch.bincount(pair_P[own_P], minlength=len(experts) * J).view(-1, J)
    run = []
    for f, chunk, n, met_J in zip(experts, torch.split(filled_RD, sizes), sizes, own_EJ > 0, strict=True):
        cohort.met_J = met_J
        run += [f(chunk)] if n else []  # type: ignore[operator]  # callables
    cohort.met_J = None
    return torch.cat(run)[row_P[order_P.argsort()]].view(*indices_TK.shape, -1)
