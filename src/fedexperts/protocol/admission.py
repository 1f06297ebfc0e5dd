"""What the server lets in: one gate between what devices send and what protocols see, whoever wrote the protocol.

    gate = Admission({"lisbon": {"lisbon/0": 600}})  # the devices of each cluster, and the samples that they declared
    gate.begin(model)                                # θ_0, which everybody has
    gate.sent("lisbon", pieces)                      # before they travel; gate.arrived(…) when they are known to be there
    gate.ordered("lisbon", task, rounds)             # a phase of training
    gate.asked("lisbon/0", {"gate": 4096})           # to upload what it has of these parts, and what such a file weighs
    gate.announced("lisbon/0", update)               # → Refusal | None: all but its numbers, before these travel
    gate.arrived_whole("lisbon/0", update)           # → Refusal | None: its numbers
    gate.closed("lisbon")                            # what was asked for has come, or never will

An update may change a part only if its device was ordered to train that part and asked for it since. It stands on a version
that the device may hold. It carries no more rounds than were ordered and not delivered, so that the same work counts once. Its
numbers are those of the part, by name, shape and type, finite, and within a stated distance of that version. What is refused
counts as if it had never come; honest devices meet none of this.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..moe.parts import MAX_UPDATE_NORM, Fitted, Piece, Tensors, kind, too_far, unfitted
from ..moe.stacked import Entry
from ..train.task import Task, Update

_MOST = {"round_s": math.inf, "loss": 1.0, "pick_share": 1.0, "held_loss": math.inf}
"""What each fact that an update tells beside its numbers may be."""
MOST_QUOTED = 60
"""Characters of what a device says of itself that a reason repeats."""


@dataclass(frozen=True)
class Refusal:
    """An update that is not let in.

    Attributes:
        device: that was asked for it, whatever the update calls itself.
        part: as the device named it, shortened.
        reason: in words, the bound among them.
    """

    device: str
    part: str
    reason: str


@dataclass(slots=True)
class _Account:
    """What the server knows of one device.

    Attributes:
        ordered: part → local rounds ordered and not delivered.
        asked: part → the rounds among them that the snapshot under way may carry, and the bytes of its file.
        coming: parts whose snapshot has been announced.
        last: part → the version that its last update stood on.
    """

    cluster: str
    samples: int
    ordered: dict[str, int] = field(default_factory=dict)
    asked: dict[str, tuple[int, int]] = field(default_factory=dict)
    coming: set[str] = field(default_factory=set)
    last: dict[str, int] = field(default_factory=dict)


class Admission:
    """The gate, and what it remembers of every device.

    Args:
        devices: of each cluster, by name, with the samples that each has declared.
        max_update_norm: root mean square of an update's change of a part, in units of that of the part as it was sent, of
            at least 1; a larger change is refused.
    """

    def __init__(self, devices: Mapping[str, Mapping[str, int]], max_update_norm: float = MAX_UPDATE_NORM):
        self.max_update_norm = max_update_norm
        self.accounts = {name: _Account(c, samples) for c, those in devices.items() for name, samples in those.items()}
        self._of = {c: [self.accounts[name] for name in those] for c, those in devices.items()}
        self.held: dict[str, dict[str, list[Piece]]] = {c: {} for c in devices}
        """Of each cluster and part what its devices may stand on, as it was sent, the last at the end."""

    def begin(self, model: Mapping[str, Piece], fitted: Fitted = unfitted) -> None:
        """θ_0, which every device has, as far as it takes it."""
        self.held = {cluster: {part: [fitted(cluster, piece)] for part, piece in model.items()} for cluster in self.held}

    def ordered(self, cluster: str, task: Task, rounds: int) -> None:
        """The devices of a cluster train by a task for so many local rounds."""
        for account in self._of[cluster]:
            for part in task.parts - task.keeps:
                account.ordered[part] = account.ordered.get(part, 0) + rounds

    def sent(self, cluster: str, pieces: Iterable[Piece]) -> None:
        """These are on their way down: from now on devices may stand on them, and still on what they had."""
        for piece in pieces:
            before = [one for one in self.held[cluster].get(piece.part, ()) if one.version != piece.version]
            self.held[cluster][piece.part] = [*before, piece]

    def arrived(self, cluster: str, pieces: Iterable[Piece]) -> None:
        """These are there: nobody stands on an earlier version, but for uploads that are under way."""
        for piece in pieces:
            if not any(piece.part in account.asked for account in self._of[cluster]):
                self.held[cluster][piece.part] = [piece]

    def asked(self, device: str, sizes_B: Mapping[str, int], under_way: Collection[str] = ()) -> None:
        """A device is to upload what it has of some parts now; what it was asked for before is forgotten.

        Args:
            device: its name.
            sizes_B: of the file of each part, as the order has it.
            under_way: parts whose upload has begun and goes on: these are as they were when they were asked for.
        """
        account = self.accounts[device]
        account.coming.intersection_update(under_way)
        account.asked = {part: asked for part, asked in account.asked.items() if part in account.coming}
        for part in self.may_send(device, sizes_B):
            account.asked.setdefault(part, (account.ordered[part], sizes_B[part]))

    def may_send(self, device: str, parts: Collection[str]) -> list[str]:
        """Those of some parts that a device has been ordered to train and has not delivered."""
        ordered = self.accounts[device].ordered
        return [part for part in parts if ordered.get(part)]

    def announced(self, device: str, update: Update) -> Refusal | None:
        """All that an update says of itself, before its numbers are looked at, or travel."""
        return self._refusal(device, update, self._fault(device, update))

    def arrived_whole(self, device: str, update: Update, norm: float | None = None) -> Refusal | None:
        """The numbers of an update that was announced and let pass, and their norm if that is known."""
        account, piece = self.accounts[device], update.piece
        base = self._standing_on(account.cluster, piece)
        if base is None or piece.part not in account.coming:
            return self._refusal(device, update, "was not announced")
        reason = differs(piece.tensors, base, self.max_update_norm, norm)
        if reason is None:
            account.last[piece.part] = piece.version
        return self._refusal(device, update, reason)

    def closed(self, cluster: str) -> None:
        """The upload of a cluster is over: what was ordered before it was asked for is not owed any more."""
        for account in self._of[cluster]:
            for part, (rounds, _) in account.asked.items():
                account.ordered[part] = account.ordered.get(part, 0) - rounds
            account.asked, account.coming = {}, set()

    def _refusal(self, device: str, update: Update, reason: str | None) -> Refusal | None:
        return None if reason is None else Refusal(device, quoted(update.piece.part), reason)

    def _standing_on(self, cluster: str, piece: Piece) -> Piece | None:
        for one in self.held[cluster].get(piece.part, ()):
            if one.version == piece.version:
                return one
        return None

    def _fault(self, device: str, update: Update) -> str | None:
        account, piece = self.accounts[device], update.piece
        part, version = piece.part, piece.version
        if update.fault is not None:
            return update.fault
        if update.device != device:
            return f"calls itself device {quoted(update.device)}"
        if type(part) is not str or part not in account.asked:
            return "was not asked for: the device has no order to train this part, or has delivered what it trained"
        if part in account.coming:
            return "comes twice in one upload"
        if fault := self._wrong_version(account, part, version):
            return fault
        rounds, size_B = account.asked[part]
        if not _whole(update.rounds, 1, rounds):
            return f"rounds = {quoted(update.rounds)}: {rounds} were ordered and not delivered"
        if not _whole(update.samples, 1, account.samples):
            return f"samples = {quoted(update.samples)}: the device has declared {account.samples}"
        if not _whole(update.size_B, size_B, size_B):
            return f"weighs {quoted(update.size_B)} bytes: such an upload has {size_B}"
        if fault := _wrong_facts(update):
            return fault
        account.coming.add(part)
        return None

    def _wrong_version(self, account: _Account, part: str, version: Any) -> str | None:
        """A version that was never sent, or that the device has gone past."""
        known = [piece.version for piece in self.held[account.cluster].get(part, ())]
        if type(version) is not int or version not in known:
            return f"stands on version {quoted(version)}: the device holds {' or '.join(map(str, known)) or 'none'}"
        last = account.last.get(part)
        if last in known and known.index(version) < known.index(last):
            return f"stands on version {version}: the device has delivered on {last}"
        return None

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""
        names = ("ordered", "asked", "coming", "last")
        accounts = {device: {name: getattr(account, name) for name in names} for device, account in self.accounts.items()}
        return {"accounts": accounts, "held": self.held}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`."""
        for device, saved in state["accounts"].items():
            for name, value in saved.items():
                setattr(self.accounts[device], name, value)
        self.held = state["held"]


def differs(tensors: Tensors, sent: Piece, max_update_norm: float = MAX_UPDATE_NORM, norm: float | None = None) -> str | None:
    """Why tensors cannot be what training has made of a piece; None if they can. One pass over the numbers.

    Args:
        tensors: of an update.
        sent: what it stands on.
        max_update_norm: see `Admission`.
        norm: of the tensors, if it is known.
    """
    if isinstance(tensors, Entry) and tensors.stack.like(sent):
        return too_far(tensors, sent, max_update_norm, norm)
    if not isinstance(tensors, Mapping):
        return f"has no tensors: {quoted(type(tensors).__name__)}"
    if set(tensors) != set(sent.tensors):
        strange = sorted(set(tensors) ^ set(sent.tensors), key=str)
        return f"tensors are not those of the part: {quoted(strange[0])} of {len(strange)}"
    for name, wanted in sent.kinds.items():
        given = tensors[name]
        if _kind(given) != wanted:
            found = f"{getattr(given, 'dtype', type(given).__name__)} {list(getattr(given, 'shape', ()))}"
            return f"tensor {quoted(name)} is {quoted(found)}; must be {wanted[0]} {list(wanted[1])}"
    return too_far(tensors, sent, max_update_norm, norm)


def _kind(value: Any) -> tuple[Any, ...] | None:
    try:
        found: tuple[Any, ...] = kind(value)
    except AttributeError:
        return None
    return found


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _wrong_facts(update: Update) -> str | None:
    """Seconds, losses and shares, which scores are made of."""
    for name, most in _MOST.items():
        value = getattr(update, name)
        if value is None and name != "round_s":
            continue
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= most:
            return f"{name} = {quoted(value)}: must be a finite number from 0{f' to {most:g}' if math.isfinite(most) else ''}"
    return None


def quoted(value: Any) -> str:
    """What a device has said, short, for a reason that people read."""
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}…"
