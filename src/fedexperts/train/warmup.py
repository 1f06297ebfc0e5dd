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

from ..data.objective import Objective
from ..data.source import Samples, pool, size, trimmed
from ..moe.view import View
from ..seeds import Stream, stream


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
    ``gate_fit`` weighs `gate_fit_loss` beside the task's own loss; ``parts`` names what is trained, nothing means all.
    """

    steps: int
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.0
    token_dropout: float = 0.0
    gate_fit: float = 0.0
    parts: tuple[str, ...] = ()


def warm_up(view: View, shared: Sequence[tuple[Samples, Objective]], recipe: WarmUp, seed: int) -> float:
    """Train on the shared samples of the domains, one entry each; return the last step's loss (nats).

    Batches are drawn from all domains where these have one objective, else from one domain after another. Domain d's tokens
    are drawn to the d-th of `domain_groups`.
    """
    sets, domains_N, objectives = _batches_from(shared)
    target_DE = torch.zeros(len(shared), view.experts)
    for d, group in enumerate(domain_groups(view.experts, len(shared))):
        target_DE[d, group] = 1 / max(1, len(group))
    view.route(None)
    view.model.train()
    leaves = [leaf for _, _, leaf in view.freeze(but=recipe.parts or view.parts)]
    optimizer = torch.optim.AdamW(leaves, lr=recipe.lr, weight_decay=recipe.weight_decay)
    rng = stream(Stream.WARM_UP, seed)
    loss = torch.zeros(())
    with torch.random.fork_rng(devices=[]), view.gate_logits() as gate_logits:
        torch.manual_seed(seed)
        for step in range(recipe.steps):
            at = step % len(sets)
            chosen = torch.from_numpy(rng.integers(0, size(sets[at]), recipe.batch_size))
            batch = {key: value[chosen].to(view.device) for key, value in sets[at].items()}
            if recipe.token_dropout > 0 and "input_ids" in batch:
                batch["input_ids"] = _drop_tokens(view, batch["input_ids"], recipe.token_dropout)
            batch = trimmed(batch)
            loss = objectives[at].loss(view, batch)
            if recipe.gate_fit > 0:
                inputs = objectives[at].inputs(batch)
                if inputs is not batch:
                    view(inputs)  # the gate's logits of the tokens that a trial pass counts
                logits = gate_logits()
                each = len(logits[0]) // len(chosen)  # tokens of a sample; an image is one
                domain_T = domains_N[at][chosen].to(view.device).repeat_interleave(each)
                if "attention_mask" in inputs:
                    valid_T = inputs["attention_mask"].flatten().bool()
                    domain_T, logits = domain_T[valid_T], [logits_TE[valid_T] for logits_TE in logits]
                loss = loss + recipe.gate_fit * gate_fit_loss(logits, domain_T, target_DE.to(view.device))
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / recipe.steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            optimizer.step()
    view.freeze()
    return float(loss.detach())


def _batches_from(shared: Sequence[tuple[Samples, Objective]]) -> tuple[list[Samples], list[Tensor], list[Objective]]:
    """Sets to draw batches from in turn, each sample's domain, and the objectives."""
    sets, objectives = [samples for samples, _ in shared], [objective for _, objective in shared]
    domains_N = [torch.full((size(samples),), d) for d, samples in enumerate(sets)]
    if len(set(objectives)) == 1 and "question" not in sets[0]:
        return [pool(sets)], [torch.cat(domains_N)], objectives[:1]
    return sets, domains_N, objectives


def _drop_tokens(view: View, input_ids: Tensor, share: float) -> Tensor:
    config: Any = view.model.config
    dropped = (torch.rand(input_ids.shape) < share).to(input_ids.device)  # drawn here, so alike on every device
    return torch.where(dropped, config.pad_token_id or 0, input_ids)
