"""An upload as bytes of a node that nobody trusts: one message for each part, and what the server makes of it.

What must come is known before it does: `promised` says it from the part as it was sent and the codec. So a message is measured
against that, header and numbers apart, before a tensor is made of it. What it says of itself is the gate's business
(`protocol.admission`); here it has the right form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..moe.parts import NUMBER_B, Piece, Tensors, shapes_B
from . import message
from .codec import decoded, moved_by, wire
from .message import WireError, head_of, number, text
from .task import Update
from .wire import Codec, Typed, wired

MOST_HEAD_B = 2**12
"""Of what an upload says of itself."""
MOST = 2**53
"""Of a whole number in a head; what it may be is the gate's business."""
FACTS = ("loss", "pick_share", "held_loss")
"""What not every update has."""


@dataclass(frozen=True)
class Promise:
    """What the file of a part's upload is: types and shapes by name, as they travel, and the bytes of it without a head."""

    tensors: Typed
    codec: Codec

    @property
    def size_B(self) -> int:
        """As `Update.size_B` has it."""
        return shapes_B(self.tensors)

    @property
    def numbers_B(self) -> int:
        """Without any header."""
        return sum(prod(shape) * NUMBER_B[kind] for kind, shape in self.tensors.values())


def promised(trained: Tensors, codec: Codec) -> Promise:
    """What an upload is of a part whose trained tensors are like these: the piece as it was sent, or a part's adapters."""
    typed = {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in trained.items()}
    return Promise(wired(typed, codec), codec)


def pack(update: Update, change: Tensors, codec: Codec) -> bytes:
    """The message of an update, on its device; ``change`` is what `codec.encode` would be given."""
    head: dict[str, Any] = {
        "device": update.device,
        "part": update.piece.part,
        "version": update.piece.version,
        "rounds": update.rounds,
        "samples": update.samples,
        "size_B": update.size_B,
        "round_s": update.round_s,
    }
    head |= {name: value for name in FACTS if (value := getattr(update, name)) is not None}
    return message.encode(head, wire(change, codec))


def opened(data: bytes, promises: Mapping[str, Promise]) -> tuple[Update, dict[str, Tensor]]:
    """An update without numbers, as its message says it, and these, decoded: values with the exact codec, else changes.

    Args:
        data: the message.
        promises: what an upload must be, of each part that its device was asked for.

    Raises:
        WireError: it is too long, no safetensors file, of another part, or not what was promised; never anything else.
    """
    most_header_B = max((of.size_B - of.numbers_B for of in promises.values()), default=0) + MOST_HEAD_B
    part = text(head_of(data, most_header_B), "part")
    if part not in promises:
        raise WireError(f"part {part!r} was not asked for")
    promise = promises[part]
    wanted = {name: (getattr(torch, kind), shape) for name, (kind, shape) in promise.tensors.items()}
    found = message.decode(data, wanted, 0, 8 + most_header_B + promise.numbers_B, most_header_B)
    return _update(found.head), decoded(found.tensors)


def arrived(update: Update, coded: Tensors, start: Tensors, codec: Codec) -> Update:
    """The update as the server has it: what `Holding.snapshot` would hand over in this process.

    Args:
        update: as `opened` gives it.
        coded: its numbers.
        start: what the device trained from, `View.start` of the piece that was sent.
        codec: that of uploads.
    """
    tensors = coded if codec == "exact" else moved_by(start, coded, start)
    return replace(update, piece=replace(update.piece, tensors=tensors))


def _update(head: Mapping[str, Any]) -> Update:
    if strange := sorted(set(head) - {"device", "part", "version", "rounds", "samples", "size_B", "round_s", *FACTS}):
        raise WireError(f"{strange[0][:40]!r} in the head of an upload")
    whole = {name: _whole(head, name) for name in ("version", "rounds", "samples", "size_B")}
    piece = Piece(text(head, "part"), whole["version"], {})
    round_s = float(number(head, "round_s", 0, MOST))
    facts: dict[str, Any] = {name: float(number(head, name, -MOST, MOST)) for name in FACTS if name in head}
    return Update(text(head, "device"), piece, whole["rounds"], whole["samples"], whole["size_B"], round_s, **facts)


def _whole(head: Mapping[str, Any], name: str) -> int:
    value = number(head, name, -MOST, MOST)
    if not isinstance(value, int):
        raise WireError(f"{name} = {value}: must be a whole number")
    return value
