"""Aggregation of updates into pieces of the global model: (26), (31), (32) and (38).

Adapters are averaged as `LoRA.average` says. With ``"merge"`` an update already holds the local weights that the server
reconstructs (Remark 1), and nothing here differs from full parameters; so it is with factors averaged apart.

Sums run in the order of the updates, which links give in device order, so that a run repeats bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..moe.lora import LoRA, combined, projections, same
from ..moe.parts import Piece, Tensors, in_order
from ..train.task import Update

Sent = dict[str, dict[str, Piece]]
"""For each cluster, the version of each shared part that was sent to it last."""
Facts = dict[str, Any]
"""What the ledger says of an aggregation: ``truncation`` is the relative error of factoring adapters again."""


def mean(tensors: Sequence[Tensors]) -> Tensors:
    """Plain mean over devices, (1/J) Σ_j."""
    total = dict(tensors[0])
    for other in tensors[1:]:
        total = {name: value + other[name] for name, value in total.items()}
    return {name: value / len(tensors) for name, value in total.items()}


def grouped(updates: Iterable[Update]) -> dict[str, list[Update]]:
    """Updates by part, parts in travelling order."""
    groups: dict[str, list[Update]] = {}
    for update in updates:
        groups.setdefault(update.piece.part, []).append(update)
    return {part: groups[part] for part in in_order(groups)}


def averaged(model: Mapping[str, Piece], updates: Sequence[Update], lora: LoRA | None = None) -> tuple[Piece, Facts]:
    """(31): an exclusively owned part becomes the mean of its devices' values."""
    part = updates[0].piece.part
    tensors, facts = _mean([u.piece.tensors for u in updates], lora)
    return Piece(part, model[part].version + 1, tensors), facts


def changed(
    model: Mapping[str, Piece], sent: Piece, updates: Sequence[Update], lora: LoRA | None = None
) -> tuple[Piece, Facts]:
    """(26), (32): a shared part moves by the mean change since the version that was sent.

    With one cluster in view nobody else has moved the part, and this is the plain mean; otherwise the changes add up
    instead of overwriting each other.
    """
    current, trained = model[sent.part], [u.piece.tensors for u in updates]
    if current.version == sent.version:
        tensors, facts = _mean(trained, lora)
    elif _refactored(trained[0], lora):
        shares = [(1 / len(trained), tensors) for tensors in trained]
        tensors, facts = _factored([(1.0, current.tensors), (-1.0, sent.tensors), *shares])
    else:
        moved = mean(trained)
        tensors = {name: current.tensors[name] + (moved[name] - sent.tensors[name]) for name in moved}
        facts = {}
    return Piece(sent.part, current.version + 1, tensors), facts


def _mean(trained: Sequence[Tensors], lora: LoRA | None) -> tuple[Tensors, Facts]:
    if not _refactored(trained[0], lora):
        return mean(trained), {}
    if same(trained):
        return trained[0], {"truncation": 0.0}
    return _factored([(1 / len(trained), tensors) for tensors in trained])


def _refactored(tensors: Tensors, lora: LoRA | None) -> bool:
    return lora is not None and lora.average == "refactor" and bool(projections(tensors))


def _factored(terms: Sequence[tuple[float, Tensors]]) -> tuple[Tensors, Facts]:
    tensors, error = combined(terms)
    return tensors, {"truncation": float(f"{error:.6g}")}


@dataclass(frozen=True)
class Change:
    """What one client's training did to a part: from ``since``, which the server knows, to ``local``.

    ``rows`` names the experts whose rows of the gate the client has trained; None means the whole part.
    """

    part: str
    weight: float
    local: Tensors
    since: Tensors
    rows: tuple[int, ...] | None = None


def moved(
    model: Mapping[str, Piece], changes: Sequence[Change], lora: LoRA | None = None, total: float | None = None
) -> tuple[Piece, Facts]:
    """A part after Σ w·Δ / Σ w over those who trained it; rows of a gate apart, each over those who hold that expert.

    ``total`` takes the place of Σ w where not all shares are here (shares then add up over several calls).
    """
    current = model[changes[0].part]
    weight = total or sum(change.weight for change in changes)
    if changes[0].rows is not None:
        return Piece(current.part, current.version + 1, _rows_moved(current.tensors, changes, total)), {}
    if _refactored(changes[0].local, lora):
        terms = [(1.0, current.tensors)]
        terms += [(sign * c.weight / weight, t) for c in changes for sign, t in ((1.0, c.local), (-1.0, c.since))]
        tensors, facts = _factored(terms)
        return Piece(current.part, current.version + 1, tensors), facts
    tensors = {name: value.clone() for name, value in current.tensors.items()}
    for change in changes:
        for name, local in change.local.items():
            tensors[name] += change.weight / weight * (local - change.since[name])
    return Piece(current.part, current.version + 1, tensors), {}


def _rows_moved(gate: Tensors, changes: Sequence[Change], total: float | None) -> Tensors:
    """The gate's tensors have a row for each expert; a row that nobody holds stays."""
    result = {}
    for name, value in gate.items():
        weight_E = torch.zeros(len(value), dtype=torch.float64)
        for change in changes:
            weight_E[list(change.rows or ())] += change.weight
        moved_ED = value.clone()
        for change in changes:
            rows = list(change.rows or ())
            share = (change.weight / (total or weight_E[rows])) * torch.ones(len(rows), dtype=torch.float64)
            step = change.local[name][rows] - change.since[name][rows]
            moved_ED[rows] += share.to(value.dtype).view(-1, *[1] * (value.dim() - 1)) * step
        result[name] = moved_ED
    return result


def picked(model: Mapping[str, Piece], parts: Collection[str]) -> list[Piece]:
    """Pieces of the global model in travelling order."""
    return [model[part] for part in in_order(parts)]
