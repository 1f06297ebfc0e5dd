"""Aggregation of updates into pieces of the global model: (26), (31), (32) and (38).

Sums run in the order of the updates, which links give in device order, so that a run repeats bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ..moe.parts import Piece, Tensors, in_order
from ..train.task import Update

Sent = dict[str, dict[str, Piece]]
"""For each cluster, the version of each shared part that was sent to it last."""


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


def averaged(model: Mapping[str, Piece], updates: Sequence[Update]) -> Piece:
    """(31): an exclusively owned part becomes the mean of its devices' values."""
    part = updates[0].piece.part
    return Piece(part, model[part].version + 1, mean([u.piece.tensors for u in updates]))


def changed(model: Mapping[str, Piece], sent: Piece, updates: Sequence[Update]) -> Piece:
    """(26), (32): a shared part moves by the mean change since the version that was sent.

    With one cluster in view nobody else has moved the part, and this is the plain mean; otherwise the changes add up
    instead of overwriting each other.
    """
    current = model[sent.part]
    trained = mean([u.piece.tensors for u in updates])
    if current.version != sent.version:
        trained = {name: current.tensors[name] + (trained[name] - sent.tensors[name]) for name in trained}
    return Piece(sent.part, current.version + 1, trained)


def picked(model: Mapping[str, Piece], parts: Collection[str]) -> list[Piece]:
    """Pieces of the global model in travelling order."""
    return [model[part] for part in in_order(parts)]
