"""Routing of one MoE layer: (7)-(9), the mask (39) and the load-balance loss.

Shapes: T tokens, E experts of the layer, K experts picked per token.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Top1 = Literal["straight-through", "switch", "paper"]
Mask = Literal["-inf", "zero"]


class Router:
    """Picks the experts of every token; the gate's logits come from outside.

    Args:
        experts: E.
        top_k: K.
        top1: what a single pick weighs. (9) gives 1, and then the gate gets no gradient from the task (``"paper"``).
            ``"straight-through"`` keeps 1 in the forward pass and takes the gradient of p, while the gate is trained (a frozen
            gate weighs 1, or the layers below would get a gradient that (34) does not have); ``"switch"`` weighs with p.
        mask: ``"-inf"`` takes masked experts out; ``"zero"`` is the literal reading of (39), where they can still win.
        renormalise: weights of the K picks sum to one (Mixtral; equal to (9) for K ≥ 2), or are the plain softmax values.
        noise_std: standard deviation of the Gaussian ℰ in (9); applied in training only, from ``generator``.
    """

    def __init__(
        self,
        experts: int,
        top_k: int,
        top1: Top1 = "straight-through",
        mask: Mask = "-inf",
        renormalise: bool = True,
        noise_std: float = 0.0,
    ):
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k = {top_k}: must lie between 1 and the number of experts, {experts}")
        self.experts, self.top_k, self.top1, self.mask = experts, top_k, top1, mask
        self.renormalise, self.noise_std = renormalise, noise_std
        self.allowed_E: Tensor | None = None
        self.gate_trained = True  # set by `View.freeze`
        self.generator: torch.Generator | None = None
        self.counts_E: Tensor | None = None  # set to zeros to count picks
        self.count_free = False  # count what the gate would pick without a mask
        self.tokens = 0  # how many made these picks
        self.valid_T: Tensor | None = None  # tokens that count (no padding)
        self.keep_logits = False
        self.logits_TE: Tensor | None = None

    def __call__(self, logits_TE: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Weights and indices of the picks: weights_TK, indices_TK."""
        if self.keep_logits:
            self.logits_TE = logits_TE
        scores_TE, k = logits_TE.float(), self.top_k
        if training and self.noise_std > 0:
            noise_TE = torch.randn(scores_TE.shape, generator=self.generator, dtype=scores_TE.dtype)
            scores_TE = scores_TE + self.noise_std * noise_TE.to(scores_TE.device)
        if self.allowed_E is not None:
            scores_TE = scores_TE.masked_fill(~self.allowed_E, float("-inf") if self.mask == "-inf" else 0.0)
            if self.mask == "-inf":
                k = min(k, int(self.allowed_E.sum()))
        indices_TK = scores_TE.topk(k, dim=-1).indices  # of the scores: probabilities may underflow to equal zeros
        p_TK = scores_TE.softmax(dim=-1).gather(-1, indices_TK)
        if self.counts_E is not None:
            counted_TK = logits_TE.float().topk(self.top_k, dim=-1).indices if self.count_free else indices_TK
            picks = counted_TK if self.valid_T is None else counted_TK[self.valid_T]
            self.counts_E += torch.bincount(picks.flatten(), minlength=self.experts)
            self.tokens += len(picks)
        return self._weights(logits_TE, p_TK, indices_TK), indices_TK

    def _weights(self, logits_TE: Tensor, p_TK: Tensor, indices_TK: Tensor) -> Tensor:
        if not self.renormalise:
            return p_TK
        if p_TK.shape[-1] > 1:
            return p_TK / p_TK.sum(dim=-1, keepdim=True)
        if self.top1 == "switch":
            return p_TK
        if self.top1 == "paper" or not self.gate_trained:
            return torch.ones_like(p_TK)
        p_TK = logits_TE.float().softmax(dim=-1).gather(-1, indices_TK)  # of the unmasked softmax
        return 1 + p_TK - p_TK.detach()


def load_balance_loss(logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
    """Switch Transformer's auxiliary loss E·Σ f_e·P_e, averaged over the K picks: 1 when routing is uniform."""
    experts = logits_TE.shape[-1]
    f_E = torch.bincount(indices_TK.flatten(), minlength=experts) / indices_TK.numel()
    return experts * (f_E * logits_TE.float().softmax(dim=-1).mean(dim=0)).sum()
