"""How much each expert matters to each cluster: (27)-(29), Remark 2 and the ratios of Sec. III-B (EMS-FL paper).

Shapes: L MoE layers, M experts per layer, C clusters. p_MC is the expert relevant probability of expert m for
cluster c; every column of p_MC sums to K, the number of experts that the gate picks for a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Granularity = Literal["global", "layer"]

SHARED_SHARE = 0.75
"""Remark 2 calls an expert shared when "almost all kinds of data" use it: here at least this share of the clusters."""
GAMMA_EDGE = 2.0
"""γ from which EMS-FL is advised."""
GAMMA_LEVEL = 1.3
"""γ below which EMS-FL is advised against (Sec. IV: with γ = 1 both schemes converge at the same rate)."""


def relevance(counts_CLM: NDArray[np.int64], tokens_C: NDArray[np.int64], granularity: Granularity = "global") -> Array:
    """Expert relevant probability p (27) from routing counts.

    Args:
        counts_CLM: in how many trial tokens of cluster c the gate of layer ℓ picked expert m.
        tokens_C: how many trial tokens cluster c routed through each layer.
        granularity: ``"global"`` groups expert m across the layers, as the paper does; ``"layer"`` keeps them apart.

    Returns:
        p_MC for ``"global"``, p_LMC for ``"layer"``.

    Raises:
        ValueError: a cluster routed no token.
    """
    if np.any(tokens_C <= 0):
        raise ValueError(f"tokens_C = {tokens_C.tolist()}: every cluster needs at least one trial token")
    p_CLM: Array = counts_CLM / tokens_C[:, None, None]
    p_LMC: Array = np.moveaxis(p_CLM, 0, -1)
    p_MC: Array = p_LMC.mean(axis=0)
    return p_LMC if granularity == "layer" else p_MC


def default_threshold(top_k: int, experts: int) -> float:
    """p_th = 0.5·K/M: half of what an expert gets when the gate is indifferent (Σ_m p = K, so p scales with K/M)."""
    return 0.5 * top_k / experts


def truncate(p_MC: Array, threshold: float) -> Array:
    """Truncated relevance p̃ (28): entries below ``threshold`` become 0."""
    return np.where(p_MC >= threshold, p_MC, 0.0)


def assignment_probability(p_MC: Array, threshold: float) -> Array:
    """Expert assignment probability (29), one row per expert.

    Where no cluster passes the threshold, (29) is 0/0; the untruncated relevance is normalised instead. A row of zeros
    remains where no cluster uses the expert at all.
    """
    truncated_MC = truncate(p_MC, threshold)
    weights_MC = np.where(truncated_MC.sum(axis=1, keepdims=True) > 0, truncated_MC, p_MC)
    total_M1 = weights_MC.sum(axis=1, keepdims=True)
    probability_MC: Array = np.divide(weights_MC, total_M1, out=np.zeros_like(weights_MC), where=total_M1 > 0)
    return probability_MC


def relevant_ratios(p_MC: Array, owned: Sequence[Sequence[int]], top_k: int) -> tuple[Array, Array, Array]:
    """Local ratio α_c, global ratio β_c and γ_c = α_c / β_c of each cluster's expert group (Sec. III-B, (35)).

    α_c = Σ_{m∈M_c} p_{m,c} / K and β_c is the mean of the same sum over all clusters. A cluster without experts, or
    with experts that nobody uses, has γ_c = 0.
    """
    sums_GC = np.array([p_MC[list(group)].sum(axis=0) for group in owned]) / top_k  # row: the group, column: whose data
    alpha_C = np.diagonal(sums_GC).copy()
    beta_C = sums_GC.mean(axis=1)
    gamma_C = np.divide(alpha_C, beta_C, out=np.zeros_like(alpha_C), where=beta_C > 0)
    return alpha_C, beta_C, gamma_C


def expert_classes(p_MC: Array, threshold: float) -> list[Literal["shared", "domain", "rare"]]:
    """Remark 2's classes: used by almost all clusters, by some, or by none above the threshold."""
    users_M = (p_MC >= threshold).sum(axis=1)
    enough = max(2, int(np.ceil(SHARED_SHARE * p_MC.shape[1])))
    return ["shared" if n >= enough else "domain" if n else "rare" for n in users_M]


def advice(gamma_C: Array) -> str:
    """What the ratios suggest (Sec. IV), in one sentence."""
    gamma = float(np.mean(gamma_C))
    if gamma >= GAMMA_EDGE:
        return f"mean γ = {gamma:.2f}: experts are specialised; EMS-FL should need fewer orbital cycles than the baseline."
    if gamma >= GAMMA_LEVEL:
        return f"mean γ = {gamma:.2f}: some specialisation; EMS-FL may or may not win, compare both on a short run."
    return (
        f"mean γ = {gamma:.2f}: every cluster uses every expert alike; EMS-FL has no edge here (Sec. IV), "
        'prefer protocol = "sync" or fit the gate to the domains first ([warmup] gate_fit).'
    )
