"""Aggregation of updates into pieces of the global model: (26), (31), (32) and (38).

Adapters are averaged as `LoRA.average` says. With ``"merge"`` an update already holds the local weights that the server
reconstructs (Remark 1), and nothing here differs from full parameters; so it is with factors averaged apart.

Sums run in the order of the updates, which links give in device order, so that a run repeats bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

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


def picked(model: Mapping[str, Piece], parts: Collection[str]) -> list[Piece]:
    """Pieces of the global model in travelling order."""
    return [model[part] for part in in_order(parts)]
