"""What travels between server and devices: a `Task` down, `Update`s up."""

from __future__ import annotations

from dataclasses import dataclass

from ..moe.parts import Piece


@dataclass(frozen=True)
class Task:
    """An order to train.

    Attributes:
        parts: the parts to train; all others stay frozen.
        rounds: local rounds; None means as many as fit before the cluster's next contact.
        route: expert parts that the gate may pick (39); None leaves the gate unmasked.
    """

    parts: frozenset[str]
    rounds: int | None = None
    route: frozenset[str] | None = None


@dataclass(frozen=True)
class Update:
    """A frozen snapshot of one trained part of one device.

    Attributes:
        piece: the part as the server has it once the upload is decoded; ``piece.version`` is the global version that
            training started from.
        rounds: local rounds since that part was last delivered.
        samples: size of the device's data set.
        size_B: of the file that travels, see `codec`.
    """

    device: str
    piece: Piece
    rounds: int
    samples: int
    size_B: int
