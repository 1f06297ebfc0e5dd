"""Warm-up: training the whole model on a small shared set before the federated run (the paper pre-trains its gate, V-B).

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.source import pool
from ..moe.view import View


def domain_groups(experts: int, domains: int) -> list[list[int]]:
    """Experts dealt evenly to domains, in order: 8 experts and 4 domains give [0, 1], [2, 3], [4, 5], [6, 7]."""
    return [[int(m) for m in group] for group in np.array_split(np.arange(experts), domains)]


def gate_fit_loss(logits: Sequence[Tensor], domain_T: Tensor, target_DE: Tensor) -> Tensor:
    """Cross-entropy of the gate's softmax against a uniform choice among the domain's experts, mean over layers."""
    losses = [F.cross_entropy(logits_TE.float(), target_DE[domain_T]) for logits_TE in logits]
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class WarmUp:
    """The recipe: AdamW whose learning rate falls linearly to 0.

    ``token_dropout`` is the share of tokens that are replaced by the padding token, against overfitting a small set;
    ``gate_fit`` weighs `gate_fit_loss` beside the task's cross-entropy.
    """

    steps: int
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.0
    token_dropout: float = 0.0
    gate_fit: float = 0.0


def warm_up(view: View, domains: Sequence[dict[str, Tensor]], recipe: WarmUp, seed: int) -> float:
    """Train every part on the pooled shared samples of the domains; return the last step's loss (nats).

    Domain d's tokens are drawn to the d-th of `domain_groups`.
    """
    pooled = pool(domains)
    domain_N = torch.cat([torch.full((len(s["labels"]),), d) for d, s in enumerate(domains)])
    target_DE = torch.zeros(len(domains), view.experts)
    for d, group in enumerate(domain_groups(view.experts, len(domains))):
        target_DE[d, group] = 1 / max(1, len(group))
    view.route(None)
    view.model.train()
    leaves = [leaf for _, _, leaf in view.freeze(but=view.parts)]
    optimizer = torch.optim.AdamW(leaves, lr=recipe.lr, weight_decay=recipe.weight_decay)
    rng = np.random.default_rng([seed, 4])
    loss = torch.zeros(())
    with torch.random.fork_rng(devices=[]), view.gate_logits() as gate_logits:
        torch.manual_seed(seed)
        for step in range(recipe.steps):
            chosen = torch.from_numpy(rng.integers(0, len(domain_N), recipe.batch_size))
            batch = {key: value[chosen] for key, value in pooled.items()}
            if recipe.token_dropout > 0:
                batch["input_ids"] = _drop_tokens(view, batch["input_ids"], recipe.token_dropout)
            loss = F.cross_entropy(view(batch), batch["labels"])
            if recipe.gate_fit > 0:
                mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
                domain_T = domain_N[chosen][:, None].expand(mask.shape)[mask]
                logits = [logits_TE[mask.flatten()] for logits_TE in gate_logits()]
                loss = loss + recipe.gate_fit * gate_fit_loss(logits, domain_T, target_DE)
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / recipe.steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            optimizer.step()
    view.freeze()
    return float(loss.detach())


def _drop_tokens(view: View, input_ids: Tensor, share: float) -> Tensor:
    config: Any = view.model.config
    return torch.where(torch.rand(input_ids.shape) < share, config.pad_token_id or 0, input_ids)
