"""Devices that lie: what an upload must not be, one lie a name, and a Host of which one device tells them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from fedexperts.train.device import Device
from fedexperts.train.host import LocalHost
from fedexperts.train.task import Update

Forge = Callable[[list[Update]], list[Update]]
"""From what a device has to what it says that it has."""
NAN, INF = float("nan"), float("inf")


class Forger(LocalHost):
    """Devices of which one says something else than it has."""

    def __init__(self, group: Sequence[Device], device: str, forge: Forge):
        super().__init__(group)
        self.device, self.forge = device, forge

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        updates = super().snapshot(device, parts)
        return self.forge(updates) if device == self.device else updates


def silent(updates: list[Update]) -> list[Update]:
    """Nothing of it arrives."""
    return []


def honest(updates: list[Update]) -> list[Update]:
    return updates


def piece(update: Update, **changed: Any) -> Update:
    return replace(update, piece=replace(update.piece, **changed))


def numbers(change: Callable[[Tensor], Any]) -> Callable[[Update], Update]:
    """Every tensor of a part, made another."""
    return lambda update: piece(update, tensors={name: change(t) for name, t in update.piece.tensors.items()})


def named(change: Callable[[dict[str, Tensor]], dict[Any, Any]]) -> Callable[[Update], Update]:
    """The tensors of a part by name, made others."""
    return lambda update: piece(update, tensors=change(dict(update.piece.tensors)))


def one(value: float) -> Callable[[Tensor], Tensor]:
    """The last number is another."""

    def change(tensor: Tensor) -> Tensor:
        found = tensor.clone(memory_format=torch.contiguous_format)
        found.view(-1)[-1] = value
        return found

    return change


def without_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(tensors.items())[1:])


LIES: dict[str, Callable[[Update], Update]] = {
    "not a number": numbers(one(NAN)),
    "infinite": numbers(one(INF)),
    "minus infinity": numbers(one(-INF)),
    "1e30": numbers(lambda t: torch.full_like(t, 1e30)),
    "one number of 3e38": numbers(one(3e38)),
    "beyond the bound": numbers(lambda t: t + 2000 * max(1.0, float(t.abs().max()))),
    "a wrong shape": numbers(lambda t: torch.zeros(3, 5)),
    "a shape that broadcasts": numbers(lambda t: t.flatten()[:1].view(*[1] * (t.dim() + 1))),
    "a single number": numbers(lambda t: t.flatten()[0]),
    "one row more": numbers(lambda t: torch.cat([t, t])),
    "no numbers": numbers(lambda t: t[:0]),
    "complex": numbers(lambda t: t.to(torch.complex64)),
    "float64": numbers(lambda t: t.double()),
    "float16": numbers(lambda t: t.half()),
    "whole numbers": numbers(lambda t: t.long()),
    "true or false": numbers(lambda t: t > 0),
    "sparse": numbers(lambda t: t.to_sparse()),
    "nowhere": numbers(lambda t: t.to("meta")),
    "arrays": numbers(lambda t: t.numpy()),
    "lists": numbers(lambda t: t.tolist()),
    "a tensor missing": named(without_first),
    "a tensor more": named(lambda tensors: {**tensors, "backdoor": torch.zeros(1)}),
    "tensors renamed": named(lambda tensors: {f"{name}.": t for name, t in tensors.items()}),
    "no table of tensors": lambda update: piece(update, tensors=None),
    "a name that is none": named(lambda tensors: dict(enumerate(tensors.values()))),
    "an expert of others": lambda update: piece(update, part="expert:1"),
    "an expert that is not": lambda update: piece(update, part="expert:99"),
    "a part that is not": lambda update: piece(update, part="backdoor"),
    "a part that nobody trains": lambda update: piece(update, part="gate" if update.piece.part != "gate" else "head"),
    "a part that is no text": lambda update: piece(update, part=None),
    "a part of a megabyte": lambda update: piece(update, part="x" * 2**20),
    "a device of others": lambda update: replace(update, device="b/0" if update.device != "b/0" else "a/0"),
    "a neighbour": lambda update: replace(update, device=update.device[:-1] + ("0" if update.device[-1] != "0" else "1")),
    "nobody": lambda update: replace(update, device="nobody"),
    "version 99": lambda update: piece(update, version=99),
    "version -1": lambda update: piece(update, version=-1),
    "version next": lambda update: piece(update, version=update.piece.version + 1),
    "half a version": lambda update: piece(update, version=update.piece.version + 0.5),
    "no rounds": lambda update: replace(update, rounds=0),
    "negative rounds": lambda update: replace(update, rounds=-5),
    "rounds without end": lambda update: replace(update, rounds=10**9),
    "one round more": lambda update: replace(update, rounds=update.rounds + 1000),
    "no samples": lambda update: replace(update, samples=0),
    "negative samples": lambda update: replace(update, samples=-4),
    "a million samples": lambda update: replace(update, samples=10**6),
    "samples that are no number": lambda update: replace(update, samples=NAN),
    "a file of a terabyte": lambda update: replace(update, size_B=10**12),
    "a file of a byte": lambda update: replace(update, size_B=1),
    "a file of less than nothing": lambda update: replace(update, size_B=-100),
    "a loss that is no number": lambda update: replace(update, loss=NAN),
    "a loss below nothing": lambda update: replace(update, loss=-1e9),
    "a share of seven": lambda update: replace(update, pick_share=7.0),
    "a round that takes no time": lambda update: replace(update, round_s=-1.0),
    "a round that never ends": lambda update: replace(update, round_s=INF),
    "a held loss that is no number": lambda update: replace(update, held_loss=NAN),
}
"""Of every update that a device has; none of them may come in."""


def lying(lie: str) -> Forge:
    return lambda updates: [LIES[lie](update) for update in updates]


def all_lies() -> Forge:
    """One after the other."""
    names: Iterator[str] = cycle(LIES)
    return lambda updates: [LIES[next(names)](update) for update in updates]


def twice(updates: list[Update]) -> list[Update]:
    return [update for update in updates for _ in range(2)]


def remembered(choose: Callable[[list[list[Update]], list[Update]], list[Update]]) -> Forge:
    """From all uploads so far, as the device had them, and the one now."""
    before: list[list[Update]] = []

    def forge(updates: list[Update]) -> list[Update]:
        found = choose(before, updates)
        if updates:
            before.append(updates)
        return found

    return forge


def first_only() -> Forge:
    """It delivers once, and then no more."""
    return remembered(lambda before, updates: [] if before else updates)


def first_again() -> Forge:
    """What it delivered first is all that it ever sends."""
    return remembered(lambda before, updates: before[0] if before else updates)


def last_too() -> Forge:
    """Beside what it has, what it delivered before of other parts."""

    def choose(before: list[list[Update]], updates: list[Update]) -> list[Update]:
        now = {update.piece.part for update in updates}
        return updates + [update for update in (before[-1] if before else []) if update.piece.part not in now]

    return remembered(choose)


def first_as_new() -> Forge:
    """What it delivered first, with what is now said of it."""

    def choose(before: list[list[Update]], updates: list[Update]) -> list[Update]:
        if not before:
            return updates
        old = {update.piece.part: update for update in before[0]}
        return [replace(u, piece=old.get(u.piece.part, u).piece) for u in updates if u.piece.part in old]

    return remembered(choose)
