"""Algorithm 1 (expert-driven model splitting) of the EMS-FL paper, with the repairs that make it end.

Where the published listing is silent or does not terminate (the reasons are in docs/decisions.md):
one literal pass leaves experts unassigned, so a draw is repeated until it is accepted, which equals one draw from (29)
restricted to the feasible clusters; an expert without mass goes to the least loaded cluster; a cluster that ends with
nothing gets the least relevant surplus expert of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .relevance import Array, assignment_probability, default_threshold

Order = Literal["shuffled", "literal"]


@dataclass(frozen=True)
class Split:
    """Result of Algorithm 1: disjoint expert groups, one per cluster."""

    owned: tuple[tuple[int, ...], ...]
    """Experts of each cluster, ascending."""
    moved: tuple[tuple[int, int, int], ...] = ()
    """Repairs made: (expert, from cluster, to cluster)."""

    @property
    def idle(self) -> tuple[int, ...]:
        """Clusters without any expert."""
        return tuple(c for c, group in enumerate(self.owned) if not group)


def split(
    p_MC: Array,
    top_k: int,
    rng: np.random.Generator,
    threshold: float | None = None,
    order: Order = "shuffled",
    repair: bool = True,
) -> Split:
    """Assign each of M experts to exactly one of C clusters (Algorithm 1).

    Args:
        p_MC: expert relevant probability (27).
        top_k: K; a cluster that holds K experts leaves the feasible set.
        rng: the only source of chance.
        threshold: p_th of (28); default 0.5·K/M.
        order: ``"shuffled"`` visits the experts in a random order, which removes the bias towards low indices;
            ``"literal"`` goes m = 1, 2, … as printed.
        repair: give a cluster that was left with nothing the least relevant surplus expert of another one.

    Raises:
        ValueError: ``top_k`` lies outside 1…M, ``threshold`` outside [0, 1], or ``p_MC`` holds a value outside [0, 1].
    """
    experts, clusters = p_MC.shape
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k = {top_k}: must lie between 1 and the number of experts, {experts}")
    if not np.all((p_MC >= 0) & (p_MC <= 1)):
        raise ValueError("p_MC: every relevant probability must lie in [0, 1]")
    threshold = default_threshold(top_k, experts) if threshold is None else threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}: must lie in [0, 1]")
    probability_MC = assignment_probability(p_MC, threshold)
    owned: list[list[int]] = [[] for _ in range(clusters)]
    feasible_C = np.ones(clusters, dtype=bool)
    for m in rng.permutation(experts) if order == "shuffled" else range(experts):
        c = _draw(probability_MC[m], feasible_C, owned, rng)
        owned[c].append(int(m))
        feasible_C[c] = len(owned[c]) < top_k
    moved = _repair(owned, p_MC) if repair else []
    return Split(tuple(tuple(sorted(group)) for group in owned), tuple(moved))


def _draw(probability_C: Array, feasible_C: np.ndarray, owned: list[list[int]], rng: np.random.Generator) -> int:
    weights_C = probability_C * feasible_C
    if weights_C.sum() == 0:
        weights_C = probability_C  # Algorithm 1: no mass left among the feasible clusters, so any cluster may have it
    if weights_C.sum() == 0:
        return min(range(len(owned)), key=lambda c: len(owned[c]))
    return int(rng.choice(len(owned), p=weights_C / weights_C.sum()))


def _repair(owned: list[list[int]], p_MC: Array) -> list[tuple[int, int, int]]:
    moved = []
    for c in range(len(owned)):
        surplus = [(p_MC[m, o], -p_MC[m, c], m, o) for o, group in enumerate(owned) if len(group) > 1 for m in group]
        if owned[c] or not surplus:
            continue
        _, _, m, o = min(surplus)
        owned[o].remove(m)
        owned[c].append(m)
        moved.append((m, o, c))
    return moved
