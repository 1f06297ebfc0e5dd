"""Parts of many devices that lie in one piece of memory, as a batch of devices leaves them (`train.cohort`).

Whoever looks at one device's finds tensors by name, as ever. What is asked of all of them, their norms and their sum, is
computed for the whole stack, which takes a tenth of the time where parts are small.

Shapes: J devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .parts import Piece, Tensors

if TYPE_CHECKING:  # the server's gate asks for norms where torch is not loaded
    from torch import Tensor


class Stacked:
    """Tensors of a part, or an optimiser's of a tensor, as all devices have them, by name value_J; nobody writes to them."""

    def __init__(self, values: Mapping[str, Tensor], devices: int):
        self.values, self.devices = values, devices
        self._like: Piece | None = None  # that was found to be, last

    def entries(self) -> list[Entry]:
        """Of each device."""
        return [Entry(self, at) for at in range(self.devices)]

    def like(self, piece: Piece) -> bool:
        """Whether devices' tensors are those of a piece by name and `moe.parts.kind`."""
        if piece is not self._like:
            if {name: (v.dtype, v.shape[1:], v.layout, v.device) for name, v in self.values.items()} != piece.kinds:
                return False
            self._like = piece
        return True

    def norms(self) -> list[float]:
        """norm_J over all tensors, as `moe.parts.norm`."""
        import torch

        rows = (v.to(torch.promote_types(v.dtype, torch.float32))[:, None].flatten(1) for v in self.values.values())
        squares = (torch.linalg.vector_norm(row, dim=1).double().square() for row in rows)
        found: list[float] = sum(squares, torch.zeros(self.devices, dtype=torch.float64)).sqrt().tolist()
        return found


class Entry(Mapping[str, "Tensor"]):
    """One device's tensors of a stack; they are made when somebody asks for one, and are then the same ones each time."""

    __slots__ = ("_own", "at", "stack")

    def __init__(self, stack: Stacked, at: int):
        self.stack, self.at = stack, at
        self._own: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._own is None:
            self._own = {key: value[self.at] for key, value in self.stack.values.items()}
        return self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stack.values)

    def __len__(self) -> int:
        return len(self.stack.values)

    def __contains__(self, name: object) -> bool:
        return name in self.stack.values

    def __reduce__(self) -> tuple[Any, ...]:  # to another process goes this device's alone
        return dict, ({name: value.clone() for name, value in self.items()},)


def norms(many: Sequence[Tensors]) -> list[float | None]:
    """The `moe.parts.norm` of each that is an entry of a stack, in one pass over it; None of others."""
    stacks = {id(one.stack): one.stack for one in many if isinstance(one, Entry)}
    found = {at: stack.norms() for at, stack in stacks.items()}
    return [found[id(one.stack)][one.at] if isinstance(one, Entry) else None for one in many]


def runs(many: Sequence[Tensors]) -> Iterator[tuple[int, int, dict[str, Tensor] | None]]:
    """Begin and end of stretches of them: neighbours in one stack, with value_J of these, and all others, with None."""
    begin = 0
    while begin < len(many):
        end = begin + 1
        while end < len(many) and _follows(many[end - 1], many[end]):
            end += 1
        first = many[begin]
        if isinstance(first, Entry):
            yield begin, end, {name: value[first.at : first.at + end - begin] for name, value in first.stack.values.items()}
        else:
            yield begin, end, None
        begin = end


def _follows(one: Tensors, other: Tensors) -> bool:
    if isinstance(one, Entry) and isinstance(other, Entry):
        return one.stack is other.stack and one.at + 1 == other.at
    return isinstance(one, Entry) == isinstance(other, Entry)
