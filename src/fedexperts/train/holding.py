"""What a device has: its data, the parts of the model that it holds, and what it has trained and delivered of them."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..data.objective import Objective
from ..moe.lora import combined, projections
from ..moe.parts import BESIDE, GATE, MAX_UPDATE_NORM, Piece, Tensors, in_order, is_expert, too_far
from ..moe.view import Batch, View
from .codec import decoded, moved_by, payload_B, wire
from .task import Update
from .wire import Codec


class Holding:
    """Data and parts of one device. Training is the business of `device.Device`; all that travels goes through here.

    Args:
        name: unique over all clusters; with ``seed`` it fixes the order of the data.
        view: the process's resident model.
        data: the device's own samples as tensors with a common first dimension, ``labels`` among them.
        model: the parts it starts with (version 0, loaded from the checkpoint that everybody has).
        seed: of everything that is drawn.
        objective: what the device trains for.
        codec: what uploads look like on the link.
    """

    def __init__(
        self, name: str, view: View, data: Batch, model: dict[str, Piece], seed: int, objective: Objective, codec: Codec
    ):
        self.name, self.view, self.data, self.objective, self.codec = name, view, data, objective, codec
        self.samples = len(data["labels"])
        self.key = (seed, zlib.crc32(name.encode()))
        self.held = dict(model)
        self.trained: dict[str, Tensors] = {}  # parts that differ from what is held
        self.pending: dict[str, int] = {}  # part -> local rounds not delivered yet
        self.frozen: dict[str, tuple[Tensors, Tensors]] = {}  # snapshots under way, and what the codec loses of them
        self.snapshots: dict[str, Tensors] = {}  # delivered ones that training had gone past when they arrived
        self.lost: dict[str, Tensors] = {}  # what the codec lost of delivered ones
        self.residual: dict[str, Tensors] = {}  # what it lost before the held version; goes with the next upload
        self.optimizer_state: dict[str, dict[str, Mapping[str, Any]]] = {}
        self.max_update_norm = MAX_UPDATE_NORM
        self.steps = 0
        self.round_s = 0.0
        self.appraisals: dict[str, tuple[float, float]] = {}  # expert -> loss and share, see `Update`
        self.held_loss: float | None = None  # of a rolling gate, on what is held back
        self.sizes_B: dict[str, int] = {}  # see `upload_B`

    def receive(self, pieces: Collection[Piece]) -> None:
        """Take over parts of the global model.

        What was trained of a part is overwritten, except for rounds made after the snapshot that the server has: an upload
        that took several contacts must not cost the training between them. They are kept as a change of what arrives.

        Adapters that the server has factored again, or added to the weights, are other factors: the optimiser starts afresh.
        """
        lora = self.view.lora
        for piece in pieces:
            part = piece.part
            assert part not in self.held or self.held[part].tensors is not self.view.parts.get(part), f"{part} is lent"
            self.held[part] = piece
            local, snapshot = self.trained.pop(part, None), self.snapshots.pop(part, None)
            if local is not None and snapshot is not None:
                self.trained[part] = self._moved(piece, local, snapshot)
            else:
                self.pending.pop(part, None)
            if part in self.lost:
                self.residual[part] = self.lost.pop(part)
            if is_expert(part) and lora is not None and lora.average != "factors":
                self.optimizer_state.pop(part, None)

    def _moved(self, piece: Piece, local: Tensors, snapshot: Tensors) -> Tensors:
        """The piece with the change from ``snapshot`` to ``local`` on it; for adapters, the change of their products."""
        lora = self.view.lora
        if lora is None or lora.average == "factors" or not projections(local):
            return {name: value + (local[name] - snapshot[name]) for name, value in piece.tensors.items()}
        start = [] if lora.average == "merge" else [(1.0, piece.tensors)]
        return combined([*start, (1.0, local), (-1.0, snapshot)])[0]

    def latest(self, part: str) -> Tensors:
        """A part as the device has it now."""
        return self.trained.get(part, self.held[part].tensors)

    def holds(self, piece: Piece) -> bool:
        """Whether the device has exactly this version, untouched."""
        held = self.held.get(piece.part)
        return piece.part not in self.trained and held is not None and held.version == piece.version

    @property
    def lent(self) -> dict[str, Piece]:
        """Parts that are never trained or received, where their tensors are the model's own; no checkpoint has them."""
        return {part: piece for part, piece in self.held.items() if piece.tensors is self.view.parts.get(part)}

    def snapshot(self, parts: Collection[str]) -> list[Update]:
        """Frozen copies of those parts that were trained and not yet delivered, in travelling order."""
        return [self._upload(part) for part in in_order(part for part in self.pending if part in parts)]

    def _upload(self, part: str) -> Update:
        """Through the codec: the server gets the held piece and the change since, as far as the codec keeps it."""
        piece, trained = self.held[part], self.trained[part]
        if self.codec == "exact":
            arrives, lost = trained, {}
        else:
            change = self._change(part, trained)
            coded = decoded(wire(change, self.codec))
            arrives = moved_by(self.view.start(part, piece.tensors), coded, trained)
            lost = {n: change[n] - coded[n] for n in change} if self._feeds_back(part, trained) else {}
        self.frozen[part] = trained, lost
        arrives = merged(self.view, piece, arrives)
        loss, share = self.appraisals.get(part, (None, None))
        size_B, held_loss = self.upload_B(part), self.held_loss if part == GATE else None
        as_piece = Piece(part, piece.version, arrives)
        return Update(self.name, as_piece, self.pending[part], self.samples, size_B, self.round_s, loss, share, held_loss)

    def _change(self, part: str, trained: Tensors) -> Tensors:
        """What travels, before it is coded: the change since the part was received, and what the codec lost before."""
        start, carry = self.view.start(part, self.held[part].tensors), self.residual.get(part, {})
        change = {n: t.float() - start[n].float() for n, t in trained.items()}
        return {n: value + carry[n] if n in carry else value for n, value in change.items()} if carry else change

    def travelling(self, part: str) -> Tensors:
        """What the codec is given of a snapshot that was just taken."""
        trained, _ = self.frozen[part]
        return trained if self.codec == "exact" else self._change(part, trained)

    def _feeds_back(self, part: str, trained: Tensors) -> bool:
        """Error feedback: not for factors that the server factors again, where a residual of the old ones means nothing."""
        if part in BESIDE:
            return False  # a new matrix does not go on from the last one
        lora = self.view.lora
        return self.codec == "int8" and (lora is None or lora.average == "factors" or not projections(trained))

    def upload_B(self, part: str) -> int:
        """Bytes of an upload of the part."""
        if part not in self.sizes_B:
            held = self.held[part].tensors  # whose adapters have this device's rank, and the view's that of whom it served last
            tensors = held if projections(held) or part not in self.view.leaves else self.view.leaves[part]
            self.sizes_B[part] = payload_B(tensors, self.codec)
        return self.sizes_B[part]

    def delivered(self, update: Update) -> None:
        """The server has the snapshot; what was trained after it stays pending."""
        part = update.piece.part
        trained, lost = self.frozen.pop(part)
        self.appraisals.pop(part, None)
        if update.piece.version != self.held[part].version:
            return  # the part was replaced since; what has been trained of the new version is not delivered by this
        if lost:
            self.lost[part] = lost
        left = self.pending.get(part, 0) - update.rounds
        if left > 0:
            self.pending[part] = left
            self.snapshots[part] = trained
        else:
            self.pending.pop(part, None)

    def release(self, parts: Collection[str]) -> None:
        """Give up parts for good: their optimiser state goes too."""
        for part in parts:
            self.optimizer_state.pop(part, None)
            self.lost.pop(part, None)
            self.residual.pop(part, None)

    def _lost(self, part: str) -> bool:
        """The bound is that of the server's gate, on what it would see: weights, where adapters are merged into them."""
        piece = self.held[part]
        arrives = merged(self.view, piece, self.trained[part])  # where a factor is not finite, no product with it is
        return too_far(arrives, piece, self.max_update_norm) is not None

    def diverged(self, parts: Iterable[str]) -> list[str]:
        """Which of these parts training has led out of all bounds; they are given up, and what is held counts again."""
        broken = [part for part in in_order(parts) if part in self.trained and self._lost(part)]
        for part in broken:
            for state in (self.trained, self.pending, self.snapshots, self.optimizer_state):
                state.pop(part, None)
        return broken


def merged(view: View, held: Piece, tensors: Tensors) -> Tensors:
    """As weights, where these are what the server averages; else as they are."""
    if view.lora and view.lora.average == "merge" and projections(tensors):
        return view.merged(held.part, held.tensors, tensors)
    return tensors
