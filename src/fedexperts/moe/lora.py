"""Low-rank adapters of single experts (Remark 1), and their algebra: averages of adapters, factored again.

PEFT folds every adapter of a fused MoE layer into a full copy of all its experts; here an adapter belongs to one projection
of one expert, and an expert without one costs nothing. Gate, up and down projection are factored apart, as in the paper.

Classes of devices may have a rank of their own, below the model's: the server's adapters have the model's rank, and what is
sent down is cut to the device's (`Ranks`). All products have one scale, α over the model's rank, so that B·A means the same
everywhere.

Shapes: O features out, I features in, R rank. ΔW_OI = scale · B_OR · A_RI, stored as ``<projection>.lora_A`` and ``.lora_B``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from .outline import LORA_A, LORA_B
from .parts import Piece, Tensors

Average = Literal["refactor", "merge", "factors"]
A, B = LORA_A, LORA_B
ROW_NORM = 1 / math.sqrt(3)
"""Length that a row of A has on average when it is drawn from U(-1/√I, 1/√I), as LoRA's authors do."""


@dataclass(frozen=True)
class LoRA:
    """How experts are adapted.

    Attributes:
        rank: R, the same for every projection; classes of devices may have a lower one.
        alpha: the products are scaled by alpha / rank, whatever the rank of their factors.
        average: what the server makes of several adapters. ``"refactor"``: the mean of the products, factored to rank R
            again. ``"merge"``: Remark 1 to the letter; the products are added to the weights, which then travel down, and
            new adapters start at zero. ``"factors"``: A and B averaged apart.
    """

    rank: int
    alpha: float
    average: Average = "refactor"

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / self.rank


class Adapter:
    """The adapter of one projection: leaves in float32, whatever the precision of the weight they adapt.

    Args:
        name: of the projection; the leaves' names begin with it.
        weight: name of the tensor that holds the projection's weight, and the rows that it takes there.
        weight_OI: these rows.
        generator: A is drawn from it; B starts at zero.
    """

    def __init__(self, name: str, weight: tuple[str, slice], weight_OI: Tensor, lora: LoRA, generator: torch.Generator):
        out, into = weight_OI.shape
        self.name, self.weight, self.weight_OI, self.scale = name, weight, weight_OI, lora.scale
        a_RI = torch.empty(lora.rank, into).uniform_(-1, 1, generator=generator) / math.sqrt(into)
        self.a_RI = a_RI.to(weight_OI.device)
        self.b_OR = torch.zeros(out, lora.rank, device=weight_OI.device)

    @property
    def rank(self) -> int:
        """Of the factors that it has now."""
        return len(self.a_RI)

    def resize(self, rank: int) -> None:
        """Other factors, of this rank, which are to be filled."""
        self.a_RI = self.a_RI.new_zeros(rank, self.a_RI.shape[1])
        self.b_OR = self.b_OR.new_zeros(len(self.b_OR), rank)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return {self.name + A: self.a_RI, self.name + B: self.b_OR}

    def __call__(self, x_TI: Tensor) -> Tensor:
        """The change of the projection's output: scale · x Aᵀ Bᵀ, computed in the precision of x."""
        low_TR = F.linear(x_TI, self.a_RI.to(x_TI.dtype))
        return F.linear(low_TR * self.scale, self.b_OR.to(x_TI.dtype))

    def merge(self) -> None:
        """Add the product to the weight and start again at zero."""
        with torch.no_grad():
            self.weight_OI.copy_(self.weight_OI.float() + self.scale * (self.b_OR @ self.a_RI))
            self.b_OR.zero_()

    def add(self, weights: dict[str, Tensor], adapters: Tensors) -> None:
        """Add the product of other factors of this projection to its rows in other weights (which are replaced)."""
        name, rows = self.weight
        product_OI = self.scale * (adapters[self.name + B].float() @ adapters[self.name + A].float())
        whole = weights[name].float().clone()
        whole[rows] += product_OI
        weights[name] = whole.to(weights[name].dtype)


def projections(tensors: Tensors) -> list[str]:
    """Names of the projections that the tensors hold adapters of."""
    return [name.removesuffix(A) for name in tensors if name.endswith(A)]


def combined(terms: Sequence[tuple[float, Tensors]], rank: int | None = None) -> tuple[Tensors, float]:
    """Adapters whose products are Σ c·BA of the given ones, factored to a rank, and what that lost.

    The rank is that of the first term if none is given; all terms together must have as many, of whatever weight. Where the sum
    itself has fewer, the spare rows of A are orthogonal to the others, and B is zero there.

    The singular vectors of the sum go to A with the row length that A is drawn with, and the singular values to B, so that
    an optimiser finds both factors at the size it would find them at in an adapter that was trained here.

    Returns:
        the adapters, and ‖Σ c·BA − B'A'‖ / ‖Σ c·BA‖ over all projections (Frobenius).
    """
    first = terms[0][1]
    factored: dict[str, Tensor] = {}
    kept = lost = 0.0
    for name in projections(first):
        kept_R, dtype = rank or len(first[name + A]), first[name + A].dtype
        b_OS = torch.cat([c * t[name + B].double() for c, t in terms], dim=1)  # S = R of all terms
        a_SI = torch.cat([t[name + A].double() for _, t in terms])
        left_OS, r_SS = torch.linalg.qr(b_OS)
        right_IS, t_SS = torch.linalg.qr(a_SI.T)
        u_SS, sigma_S, v_SS = torch.linalg.svd(r_SS @ t_SS.T, full_matrices=False)
        b_OR = left_OS @ u_SS[:, :kept_R] * sigma_S[:kept_R]
        a_RI = v_SS[:kept_R] @ right_IS.T
        factored[name + A] = (a_RI * ROW_NORM).to(dtype)
        factored[name + B] = (b_OR / ROW_NORM).to(dtype)
        kept += float((sigma_S**2).sum())
        lost += float((sigma_S[kept_R:] ** 2).sum())
    return factored, math.sqrt(lost / kept) if kept else 0.0


def same(adapters: Sequence[Tensors]) -> bool:
    """Whether all are equal, number by number."""
    first = adapters[0]
    return all(torch.equal(value, other[name]) for other in adapters[1:] for name, value in first.items())


def alike(adapters: Sequence[Tensors]) -> bool:
    """Whether all have one rank."""
    return len({len(tensors[name + A]) for tensors in adapters for name in projections(tensors)}) == 1


def carried(onto: Tensors, since: Tensors, local: Tensors) -> Tensors:
    """Adapters whose products are those of ``onto`` and the change from ``since`` to ``local``, with no loss.

    The factors lie side by side, so that the rank is that of all three.
    """
    found: dict[str, Tensor] = {}
    for name in projections(onto):
        found[name + A] = torch.cat([onto[name + A], local[name + A], since[name + A]])
        found[name + B] = torch.cat([onto[name + B], local[name + B], -since[name + B]], dim=1)
    return found


class Ranks:
    """What of a piece goes to the devices of a link: adapters cut to these devices' rank, as singular values have it.

    The same for the same piece, so that whoever has the piece knows what was sent of it.

    Args:
        ranks: of the links whose devices have a rank of their own.
    """

    def __init__(self, ranks: Mapping[str, int]):
        self.ranks = ranks
        self._cut: WeakKeyDictionary[Piece, dict[int, Piece]] = WeakKeyDictionary()

    def __call__(self, link: str, piece: Piece) -> Piece:
        """The piece itself, where it has no higher rank."""
        rank = self.ranks.get(link)
        if rank is None or all(len(piece.tensors[name + A]) <= rank for name in projections(piece.tensors)):
            return piece
        known = self._cut.setdefault(piece, {})
        if rank not in known:
            known[rank] = replace(piece, tensors=combined([(1.0, piece.tensors)], rank)[0])
        return known[rank]
