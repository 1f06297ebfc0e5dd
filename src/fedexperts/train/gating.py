"""Training and drawing of gates: RollGate's targets, RanGate's draws, FedGate's normalised gradients.

Shapes: T samples, E experts, which are the clients' ids, K picks.
Source: Networked MoE, Sec. III-C.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError


def roll_targets(rng: np.random.Generator, samples: int, own: int, experts: int, share: float = 0.7) -> Tensor:
    """Pseudo labels_T of a client's samples: its own id on a fraction p of them, rounded, a uniform other id on the rest.

    Raises:
        InputError: the id is none of 0…E−1, the share lies outside 0…1, or there are no others that the rest could have.
    """
    if not 0 <= own < experts:
        raise InputError(f"own = {own}: must be an id in 0…{experts - 1}")
    if not 0 <= share <= 1:
        raise InputError(f"share = {share:g}: must lie in 0…1; the paper takes 0.7")
    if experts == 1 and share < 1:
        raise InputError(f"share = {share:g}: a single client has no others to name; set it to 1")
    rest = rng.permutation(samples)[round(share * samples) :]
    targets_T = np.full(samples, own)
    targets_T[rest] = (own + rng.integers(1, max(2, experts), size=len(rest))) % experts
    return torch.from_numpy(targets_T)


def roll_loss(logits_TE: Tensor, targets_T: Tensor) -> Tensor:
    """Cross-entropy of the gate, a classifier of the ids."""
    return F.cross_entropy(logits_TE.float(), targets_T)


def answers_loss(logits_TE: Tensor, log_q_TE: Tensor, top_k: int, labels: int) -> Tensor:
    """FedGate: −log of what (1) gives the right label, whose log-probability each expert has told; mean over samples.

    Experts are frozen, so that what they say of a sample never changes. One pick is mixed with a guess over the labels, or its
    weight would teach the gate nothing: −log (p·q + (1−p)/L), see `moe.resnet.picked_alone`.
    """
    logits_TE = logits_TE.float()
    picked_TK, indices_TK = logits_TE.topk(top_k, dim=-1)
    q_TK = log_q_TE.gather(-1, indices_TK)
    if top_k > 1:
        return -torch.logsumexp(picked_TK.log_softmax(dim=-1) + q_TK, dim=-1).mean()
    log_p_TE = logits_TE.log_softmax(dim=-1)
    if log_p_TE.shape[-1] == 1:  # nothing is left to a guess
        return -(log_p_TE + q_TK).mean()
    rest_T1 = log_p_TE.scatter(-1, indices_TK, -torch.inf).logsumexp(dim=-1, keepdim=True)  # 1 - p may round to 0
    return -torch.logaddexp(log_p_TE.gather(-1, indices_TK) + q_TK, rest_T1 - math.log(labels)).mean()


def balance_loss(logits_TE: Tensor, load_E: Tensor) -> Tensor:
    """E·Σ f̄_e·P_e: f̄ the load of each expert over all clients, P the mean probabilities on one's own samples; 1 if uniform.

    With f of one's own samples a client would be punished for asking its own expert, which is right for most of them.
    """
    return logits_TE.shape[-1] * (load_E * logits_TE.float().softmax(dim=-1).mean(dim=0)).sum()


def spread_of(latents_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of latents, which clients share; `pooled` makes one of all."""
    return latents_TD.mean(dim=0), latents_TD.std(dim=0, correction=0)


def pooled(shares: Sequence[float], means: Sequence[Tensor], spreads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all clients' samples; no spread is below a hundredth of the largest, or nearly
    constant numbers would be blown up."""
    mean_D = torch.stack([q * mean for q, mean in zip(shares, means, strict=True)]).sum(dim=0)
    squares = [q * (spread**2 + (mean - mean_D) ** 2) for q, mean, spread in zip(shares, means, spreads, strict=True)]
    spread_D = torch.stack(squares).sum(dim=0).sqrt()
    return mean_D, spread_D.clamp_min(max(1e-6, float(spread_D.max()) / 100))


def random_picks(
    seed: int, samples: int, experts: int, top_k: int = 1, prior_E: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """RanGate: weights_TK, all 1/K, and indices_TK, K different experts a sample, drawn by the prior; uniform without one.

    The draw depends on the seed and on the arguments alone, so that an evaluation repeats; draw for all samples at once.

    Raises:
        InputError: the prior does not fit the experts or cannot be normalised, or fewer than K experts can be drawn.
    """
    p_E = np.ones(experts) if prior_E is None else np.asarray(prior_E, dtype=np.float64)
    if p_E.shape != (experts,) or not np.all(np.isfinite(p_E)) or p_E.min() < 0 or not p_E.sum() > 0:
        raise InputError(f"prior = {p_E.tolist()}: must be {experts} numbers of at least 0 that are not all 0, one for each id")
    if not 1 <= top_k <= np.count_nonzero(p_E):
        raise InputError(f"top_k = {top_k}: must lie in 1…{np.count_nonzero(p_E)}, the experts that the prior lets draw")
    with np.errstate(divide="ignore"):
        scores_TE = np.log(p_E) + np.random.default_rng(seed).gumbel(size=(samples, experts))  # its top K are such draws
    indices_TK = np.argsort(-scores_TE, axis=1, kind="stable")[:, :top_k]
    return torch.full((samples, top_k), 1 / top_k), torch.from_numpy(indices_TK.copy())


def normalise_gradients(parameters: Iterable[Tensor], clip: bool = False) -> float:
    """Scale all gradients together to the global norm 1; return the norm that they had.

    With ``clip`` only down to 1, never up. Gradients that are all 0, or not there, stay; so do ones that are not finite, which
    the returned norm shows.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.detach().double()) for g in gradients])))
    if 0 < norm < float("inf") and not (clip and norm <= 1):
        for gradient in gradients:
            gradient.div_(norm)
    return norm
