"""A Host whose devices do not train: they count, and hand back what they have been given.

With it a protocol runs through a contact plan in moments, with its bytes, rounds and joules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..moe.parts import BACKBONE, BESIDE, Piece, Tensors, in_order
from .host import Host, Near, Trained, Trial
from .task import Experts, Task, Update

if TYPE_CHECKING:
    from .member import NetworkClient


@dataclass(frozen=True, eq=False)
class Blank(Piece):
    """A piece without numbers, of a size that is known; so are those that a server makes of it."""

    known_B: int = 0

    def __post_init__(self) -> None:
        vars(self)["size_B"] = self.known_B  # where a piece keeps what it has computed


@dataclass(frozen=True)
class Imaginary:
    """Devices that are nowhere: what a `DryHost` asks of those it stands for, from sizes alone.

    Attributes:
        sizes_B: bytes of an upload, by part.
        step_flops: FLOPs of a device's gradient step of a task.
    """

    devices: tuple[str, ...]
    samples: tuple[int, ...]
    local_steps: int
    sizes_B: Mapping[str, int]
    step_flops: Callable[[Task], int]

    def join(self, client: NetworkClient) -> None:
        """See `Host`."""

    def flops(self, task: Task) -> list[int]:
        """See `Host`."""
        return [self.step_flops(task)] * len(self.devices)

    def flops_beside(self, task: Task) -> int:
        """See `Host`; not known."""
        return 0

    def activations_B(self, task: Task) -> int:
        """See `Host`; not known."""
        return 0

    def upload_B(self, part: str) -> int:
        """See `Host`."""
        return self.sizes_B[part]

    def trial(self, samples: int) -> list[Trial]:
        """See `Host`; there is nothing to try."""
        return []


class DryHost(Near):
    """The devices of another Host, whose sizes and costs they have; of a device's training the number of rounds is known.

    An update is the part as it was sent, so that averages leave the model as it is.
    """

    def __init__(self, real: Host | Imaginary, model: dict[str, Piece]):
        self.real = real
        self.held: dict[str, Piece] = dict(model)
        self.touched: set[str] = set()  # parts trained since they arrived
        self.pending: dict[str, int] = {}  # part -> rounds that nobody has yet; alike for all devices
        self.ahead: set[str] = set()  # parts delivered by a snapshot that training had gone past
        self.extracted = False  # whether latents of the extractor were made

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Host`."""
        return self.real.devices

    @property
    def samples(self) -> tuple[int, ...]:
        """See `Host`."""
        return self.real.samples

    @cached_property
    def _declared(self) -> dict[str, int]:
        """The samples of each device."""
        return dict(zip(self.devices, self.samples, strict=True))

    @property
    def local_steps(self) -> int:
        """See `Host`."""
        return self.real.local_steps

    def begin(self, model: dict[str, Piece]) -> None:
        """See `Host`."""
        self.held = dict(model)

    def join(self, client: NetworkClient) -> None:
        """See `Host`."""
        self.real.join(client)

    def lacks(self, pieces: Collection[Piece]) -> list[Piece]:
        """See `Host`."""
        return [
            piece
            for piece in pieces
            if piece.part in self.touched or piece.part not in self.held or self.held[piece.part].version != piece.version
        ]

    def receive(self, pieces: Collection[Piece]) -> None:
        """See `Host`; rounds made after the snapshot that the server has are kept, see `Holding.receive`."""
        beside = [piece for piece in pieces if piece.part in BESIDE]
        if beside and not isinstance(self.real, Imaginary):  # devices know the size of what they were sent alone
            self.real.receive(beside)
        for piece in pieces:
            self.held[piece.part] = piece
            if piece.part not in self.ahead & self.touched:
                self.touched.discard(piece.part)
                self.pending.pop(piece.part, None)
            self.ahead.discard(piece.part)

    def train(self, task: Task, rounds: int, round_s: float, peers: Experts | None) -> Trained:
        """See `Host`."""
        self.touched |= task.parts
        self.extracted |= BACKBONE not in task.parts
        for part in task.parts - task.keeps:
            self.pending[part] = self.pending.get(part, 0) + rounds
        return Trained(rounds * self.local_steps * len(self.devices), 0, {device: [] for device in self.devices})

    def flops(self, task: Task) -> list[int]:
        """See `Host`."""
        return self.real.flops(task)

    def flops_beside(self, task: Task) -> int:
        """See `Host`."""
        return 0 if self.extracted and BACKBONE not in task.parts else self.real.flops_beside(task)

    def activations_B(self, task: Task) -> int:
        """See `Host`."""
        return self.real.activations_B(task)

    def upload_B(self, part: str) -> int:
        """See `Host`."""
        return self.real.upload_B(part)

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        """See `Host`."""
        return [
            Update(device, self.held[part], self.pending[part], self._declared[device], self.upload_B(part))
            for part in in_order(set(parts) & set(self.pending))
        ]

    def delivered(self, updates: Sequence[Update], parts: Collection[str]) -> None:
        """See `Host`; devices deliver in step, so the last of a part's updates says what is left of it."""
        last = self.devices[-1]
        sent = {update.piece.part: update for update in updates if update.device == last}
        for part, update in sent.items():
            if update.piece.version != self.held[part].version:
                continue  # replaced since: what was trained of the new version is not delivered by this
            left = self.pending.pop(part, 0) - update.rounds
            if left > 0:
                self.pending[part] = left
                self.ahead.add(part)

    def unsent_rounds(self) -> int:
        """See `Host`."""
        return max(self.pending.values(), default=0) * len(self.devices)

    def trial(self, samples: int) -> list[Trial]:
        """See `Host`."""
        return self.real.trial(samples)

    def own(self, parts: Collection[str]) -> dict[str, Tensors]:
        """See `Host`."""
        return {part: self.held[part].tensors for part in parts}

    def release(self, parts: Collection[str]) -> None:
        """See `Host`."""

    def state(self) -> dict[str, Any]:
        """See `Host`."""
        ahead, touched = in_order(self.ahead), in_order(self.touched)
        return {"held": self.held, "touched": touched, "pending": self.pending, "ahead": ahead, "extracted": self.extracted}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Host`."""
        self.held, self.touched, self.pending = state["held"], set(state["touched"]), state["pending"]
        self.ahead, self.extracted = set(state["ahead"]), state["extracted"]
