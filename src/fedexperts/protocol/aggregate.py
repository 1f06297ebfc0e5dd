"""Aggregation of updates into pieces of the global model: (26), (31), (32) and (38).

Adapters are averaged as `LoRA.average` says. With ``"merge"`` an update already holds the local weights that the server
reconstructs (Remark 1), and nothing here differs from full parameters; so it is with factors averaged apart.

Sums run in the order of the updates, which links give in device order, so that a run repeats bit for bit. They run in place,
stretch by stretch: beside what is summed they take the memory of the result and of one stretch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Diverged
from ..moe.parts import Fitted, Piece, Tensors, finite, in_order, unfitted
from ..moe.stacked import runs
from ..train.task import Update
from .step import ADDED, Moments, Step, stepped

if TYPE_CHECKING:  # a plan plays protocols without numbers, and does not load torch
    from torch import Tensor

    from ..moe.lora import LoRA

Sent = dict[str, dict[str, Piece]]
"""For each cluster, the version of each shared part that was sent to it last."""
Term = tuple[float, Tensors]
"""Something to average, with its weight."""
Returned = dict[str, dict[int, list[Term]]]
"""For each shared part, what clusters have made of a version that others were sent too and have not returned yet."""
STRETCH = 2**16
"""Numbers of each tensor that are summed at a time, few enough for a processor's cache."""
Facts = dict[str, Any]
"""What the ledger says of an aggregation: ``truncation`` is the relative error of factoring adapters again."""


@dataclass(frozen=True)
class Averaging:
    """How the server averages.

    Attributes:
        lora: how experts are adapted; None for full parameters.
        weights: of devices in a mean: ``"devices"`` is 1/J as printed, ``"samples"`` n_j over their sum.
        overlap: what clusters make of one version that several were sent: ``"add"`` lets each move the part by its own mean
            change, ``"mean"`` all together by the mean of theirs, (6).
        step: what is made of a mean change of shared parts.
        fitted: what of a piece the devices of a cluster are sent.
    """

    lora: LoRA | None = None
    weights: Literal["devices", "samples"] = "devices"
    overlap: Literal["add", "mean"] = "add"
    step: Step = ADDED
    fitted: Fitted = field(default_factory=lambda: unfitted, repr=False)

    def terms(self, updates: Sequence[Update]) -> list[Term]:
        """Updates with their weights."""
        return [(float(u.samples) if self.weights == "samples" else 1.0, u.piece.tensors) for u in updates]

    def whole(self, cluster: str, base: Piece, updates: Sequence[Update]) -> Sequence[Update]:
        """Updates of what a cluster was sent of a piece, as updates of the piece: this, and on it what they have changed."""
        sent = self.fitted(cluster, base)
        if sent.tensors is base.tensors:
            return updates
        from ..moe.lora import carried

        as_whole = [carried(base.tensors, sent.tensors, update.piece.tensors) for update in updates]
        return [replace(u, piece=replace(u.piece, tensors=tensors)) for u, tensors in zip(updates, as_whole, strict=True)]


PLAIN = Averaging()


def mean(terms: Iterable[Term]) -> Tensors:
    """Σ w θ / Σ w; the plain mean (1/J) Σ_j where all weigh alike.

    The terms of a sequence are read once, side by side; those of a generator are held one at a time.
    """
    rest = iter(terms)
    weight, first = next(rest)
    total = {name: weight * value for name, value in first.items()}
    del first
    while some := list(islice(rest, None if isinstance(terms, Sequence) else 1)):
        _add(total, some)
        weight = sum((more for more, _ in some), weight)
        del some  # before the next is made
    for value in total.values():
        value.div_(weight)
    return total


def _add(total: Tensors, terms: Sequence[Term]) -> None:
    """total + Σ w θ, in place and in the order of the terms."""
    for begin, end, stack in runs([tensors for _, tensors in terms]):
        for name, value in total.items():
            if stack is None or not _addable(value, stack[name]):
                _add_apart(value, [(weight, tensors[name]) for weight, tensors in terms[begin:end]])
            else:
                _add_rows(value, [weight for weight, _ in terms[begin:end]], stack[name])


def _add_apart(total: Tensor, terms: Sequence[tuple[float, Tensor]]) -> None:
    for into, *others in _stretches(total, *(tensor for _, tensor in terms)):
        for (weight, _), other in zip(terms, others, strict=True):
            into.add_(other if weight == 1 else weight * other)


def _addable(total: Tensor, value_J: Tensor) -> bool:
    """Whether `_add_rows` pays, and rounds as `_add_apart` does: not where it keeps a sum of halves in more than halves."""
    alike = total.dtype == value_J.dtype and total.itemsize > 2 and total.is_contiguous()
    return alike and total.numel() <= STRETCH and total.device.type == "cpu"


def _add_rows(total: Tensor, weights: Sequence[float], value_J: Tensor) -> None:
    """The same sum in the same order, of short tensors that lie in one: in a twentieth of the time, the memory of as many."""
    import torch

    rows_JN = value_J.reshape(len(value_J), total.numel())
    if any(weight != 1 for weight in weights):
        rows_JN = rows_JN * torch.tensor(weights, dtype=rows_JN.dtype)[:, None]
    total.view(1, -1).index_add_(0, torch.zeros(len(rows_JN), dtype=torch.long), rows_JN)


def _stretches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of each, one after the other; all at once where they are short, or do not lie in one piece."""
    if tensors[0].numel() <= STRETCH or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    flat = [tensor.view(-1) for tensor in tensors]
    for at in range(0, flat[0].numel(), STRETCH):
        yield tuple(tensor[at : at + STRETCH] for tensor in flat)


def grouped(updates: Iterable[Update]) -> dict[str, list[Update]]:
    """Updates by part, parts in travelling order."""
    groups: dict[str, list[Update]] = {}
    for update in updates:
        groups.setdefault(update.piece.part, []).append(update)
    return {part: groups[part] for part in in_order(groups)}


def averaged(model: Mapping[str, Piece], updates: Sequence[Update], how: Averaging = PLAIN) -> tuple[Piece, Facts]:
    """(31): an exclusively owned part becomes the mean of its devices' values."""
    current = model[updates[0].piece.part]
    tensors, facts = _mean(how.terms(updates), how.lora, current.tensors)
    return after(current, tensors), facts


def after(piece: Piece, tensors: Tensors) -> Piece:
    """The next version of a part.

    Raises:
        Diverged: a number of it is not finite.
    """
    if not finite(tensors):
        raise Diverged(
            f"{piece.part} is not finite after aggregation (version {piece.version + 1}); lower the learning rates and --resume"
        )
    return replace(piece, version=piece.version + 1, tensors=tensors)


def changed(
    model: Mapping[str, Piece], sent: Piece, updates: Sequence[Update], how: Averaging = PLAIN, before: Sequence[Term] = ()
) -> tuple[Piece, Facts]:
    """(26), (32): a shared part moves by the mean change since the version that was sent.

    With one cluster in view nobody else has moved the part, and it becomes the mean to the bit. ``before`` is what other
    clusters have made of the same version: then the part moves by the new mean less the mean of those. Of adapters that is
    less what was left of that mean when it was factored, so that after the last the mean of all has been factored once.
    """
    current, arrived = model[sent.part], how.terms(updates)
    if current.version == sent.version:
        tensors, facts = _mean(arrived, how.lora, current.tensors)
        return after(current, tensors), facts
    old, new = (sum(weight for weight, _ in terms) for terms in (before, [*before, *arrived]))
    if _refactored(arrived[0][1], how.lora):
        was = _mean(before, how.lora, current.tensors)[0] if before else sent.tensors
        shares = [(weight / new, tensors) for weight, tensors in (*before, *arrived)]
        tensors, facts = _factored([(1.0, current.tensors), (-1.0, was), *shares])
        return after(current, tensors), facts
    terms = [(weight / new - weight / old, tensors) for weight, tensors in before]
    terms += [(weight / new, tensors) for weight, tensors in arrived]
    terms += [] if before else [(-1.0, sent.tensors)]
    moved = {name: 0 + terms[0][0] * value for name, value in terms[0][1].items()}
    _add(moved, terms[1:])
    return after(current, {name: current.tensors[name] + change for name, change in moved.items()}), {}


def settled(
    cluster: str,
    updates: Sequence[Update],
    model: Mapping[str, Piece],
    sent: Sent,
    returned: Returned,
    how: Averaging,
    moments: Moments,
) -> tuple[Piece, Facts]:
    """`changed`, for a protocol that remembers what it ``sent`` to whom, what was ``returned`` of it, and ``moments`` of steps.

    Takes the version out of ``sent``, so that it counts once. Until the last cluster that was sent the same version has
    returned it, or was sent another, ``returned`` keeps what the others are averaged with.
    """
    part = updates[0].piece.part
    base, versions = sent[cluster].pop(part), returned.get(part, {})
    updates = how.whole(cluster, base, updates)
    before = versions.get(base.version, [])
    piece, facts = changed(model, base, updates, how, before)
    if how.overlap == "mean":
        held = {pieces[part].version for pieces in sent.values() if part in pieces}
        now = {**versions, base.version: _together([*before, *how.terms(updates)], how.lora)}
        returned[part] = {version: terms for version, terms in now.items() if version in held}
    if not how.step.plain:
        more = base.version in returned.get(part, {})
        piece = after(model[part], stepped(how.step, model[part], piece.tensors, moments, base.version, more))
    return piece, facts


def _together(terms: Sequence[Term], lora: LoRA | None) -> list[Term]:
    """Terms that hold as much in one: their mean. Products of adapters do not fit into one."""
    return list(terms) if _refactored(terms[0][1], lora) else [(sum(weight for weight, _ in terms), mean(terms))]


def combination(terms: Sequence[Term], lora: LoRA | None) -> tuple[Tensors, Facts]:
    """Σ w θ, whose weights may be negative; of adapters the sum of products, factored again, where these are averaged."""
    if _refactored(terms[0][1], lora):
        return _factored(terms)
    (weight, first), *more = terms
    total = {name: weight * value for name, value in first.items()}
    _add(total, more)
    return total, {}


def _mean(terms: Sequence[Term], lora: LoRA | None, current: Tensors) -> tuple[Tensors, Facts]:
    """The mean; of products of another rank than the part's as well, in the part's."""
    trained = [tensors for _, tensors in terms]
    if not _refactored(trained[0], lora):
        return mean(terms), {}
    from ..moe.lora import alike, same

    total = sum(weight for weight, _ in terms)
    shares = [(weight / total, tensors) for weight, tensors in terms]
    if not alike([current, *trained]):
        return _factored([(0.0, current), *shares])
    return (trained[0], {"truncation": 0.0}) if same(trained) else _factored(shares)


def _refactored(tensors: Tensors, lora: LoRA | None) -> bool:
    if lora is None or lora.average != "refactor":
        return False
    from ..moe.lora import projections

    return bool(projections(tensors))


def _factored(terms: Sequence[tuple[float, Tensors]]) -> tuple[Tensors, Facts]:
    from ..moe.lora import combined

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
        return after(current, _rows_moved(current.tensors, changes, total)), {}
    if _refactored(changes[0].local, lora):
        terms = [(1.0, current.tensors)]
        terms += [(sign * c.weight / weight, t) for c in changes for sign, t in ((1.0, c.local), (-1.0, c.since))]
        tensors, facts = _factored(terms)
        return after(current, tensors), facts
    tensors = {name: value.clone() for name, value in current.tensors.items()}
    for change in changes:
        for name, local in change.local.items():
            for into, new, old in _stretches(tensors[name], local, change.since[name]):
                into.add_(change.weight / weight * (new - old))
    return after(current, tensors), {}


def _rows_moved(gate: Tensors, changes: Sequence[Change], total: float | None) -> Tensors:
    """The gate's tensors have a row for each expert; a row that nobody holds stays."""
    if not gate:
        return {}
    import torch

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
