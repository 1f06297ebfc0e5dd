"""What travels between server and devices: a `Task` down, `Update`s up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..moe.parts import Piece

Experts = Mapping[str, Piece]
"""Experts of other clients, as these have told them; the version says how often that was."""


@dataclass(frozen=True)
class Task:
    """An order to train.

    Attributes:
        parts: the parts to train; all others stay frozen.
        rounds: local rounds; None means as many as fit before the cluster's next contact.
        route: expert parts that the gate may pick (39); None leaves the gate unmasked.
        keeps: those of ``parts`` that stay on the device: they are its own and never uploaded.
        goal: what is learnt: the device's task, FedSC's contrast of views, or by a gate alone whose samples these are: with
            FedGate from all experts' answers, with RollGate from the id of the client.
        peers: whether the gate may pick experts of other clients, which are asked for what they make of a sample.
        unit_gradient: whether gradients are scaled to the global norm 1.
        rate: what learning rates are multiplied by.
        appraisal: how many of its samples a device judges each expert on before it trains it; 0: none.
        speed: local rounds that take the time of one, as on devices so many times as fast.
    """

    parts: frozenset[str]
    rounds: int | None = None
    route: frozenset[str] | None = None
    keeps: frozenset[str] = frozenset()
    goal: Literal["task", "contrast", "gate", "own-id"] = "task"
    peers: bool = False
    unit_gradient: bool = False
    rate: float = 1.0
    appraisal: int = 0
    speed: int = 1


@dataclass(frozen=True, slots=True)
class Update:
    """A frozen snapshot of one trained part of one device.

    Attributes:
        piece: the part as the server has it once the upload is decoded; ``piece.version`` is the global version that
            training started from.
        rounds: local rounds since that part was last delivered.
        samples: size of the device's data set.
        size_B: of the file that travels, see `codec`.
        round_s: how long a local round took on the device.
        loss: of an expert that was appraised: that which it had alone on the device's data, over the loss of a blind guess.
        held_loss: of a rolling gate: its loss on what was held back.
        fault: why its message could not be read, of a device elsewhere; there are no tensors then.
        pick_share: of an expert that was appraised: how often the gate, unmasked, would pick it for the device's data, in 0…1.
    """

    device: str
    piece: Piece
    rounds: int
    samples: int
    size_B: int
    round_s: float = 0.0
    loss: float | None = None
    pick_share: float | None = None
    held_loss: float | None = None
    fault: str | None = None


def bare(update: Update) -> Update:
    """Without tensors, for whoever has made it and has them."""
    return replace(update, piece=replace(update.piece, tensors={}))
