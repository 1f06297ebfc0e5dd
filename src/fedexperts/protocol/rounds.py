"""Rounds of clients that train in step: who takes part is decided in a round's first contact, and what they did is averaged
when the last of them has been served.

A client is a link of its own, and a round is an orbital cycle; with an always-on plan, a slot. What a client trains out of
contact arrives later and moves the model at once, by the share that it would have had in its round. Every update is taken as a
change of what the server last saw of that client, so that nothing counts twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..moe.parts import BESIDE, GATE, Piece, Tensors, expert_index, in_order, is_expert
from ..train.task import Task, Update
from .aggregate import Change, moved
from .link import Link, SignalLost, Start

if TYPE_CHECKING:
    from ..moe.lora import LoRA


@dataclass(frozen=True)
class Ordered:
    """A part at a version that went to a client, and what an update of it will count for.

    Attributes:
        seen: what the server last saw of the client's training from this version.
        round_: the round of the order.
        task: the order.
        shares: the client's share of each part among those who were to train it.
        counted: whether an update has come.
    """

    seen: Tensors
    round_: int
    task: Task
    shares: dict[str, float]
    counted: bool = False


class Rounds(ABC):
    """The state that protocols in rounds share. They say what a round is to do (`begin`), and what follows it (`after`)."""

    def __init__(self, start: Start, samples: dict[str, int]):
        self.model = dict(start.model)
        self.clients = start.clusters
        self._samples = samples
        self._lora: LoRA | None = start.lora
        self._max_rounds = start.max_rounds
        self.round = -1
        self.open = False
        self.tasks: dict[str, Task] = {}  # of this round's clients
        self._trainers: dict[str, int] = {}  # part -> samples of all who train it in this round, a cache
        self.waiting: set[str] = set()  # those of them whose contact has not ended yet
        self.last: dict[str, int] = {}  # client -> the round in which it was served last
        self.has: dict[str, dict[str, int]] = {}  # client -> part -> the version that has reached it
        self.sent: dict[str, dict[str, dict[int, Ordered]]] = {}  # client -> part -> version
        self.arrived: list[tuple[str, Update, Ordered]] = []  # of this round

    @abstractmethod
    def begin(self, link: Link) -> dict[str, Task]:
        """What each client that takes part in round ``self.round`` is to train."""

    def task_of(self, client: str) -> Task | None:
        """What a client does in a contact of this round: its task, and when it is met again what follows that."""
        task = self.tasks.get(client)
        return self.afterwards(task) if task is not None and self.last.get(client) == self.round else task

    @abstractmethod
    def afterwards(self, task: Task) -> Task:
        """What a client goes on with out of contact."""

    @abstractmethod
    def pieces(self, client: str, task: Task) -> list[Piece]:
        """What a client must have before its task."""

    @abstractmethod
    def takes(self, update: Update) -> bool:
        """Whether an update still counts."""

    @abstractmethod
    def note(self, client: str, update: Update, task: Task, counted: bool) -> None:
        """Called with every update that arrives, and what it was for; ``counted``, if one of that order came before."""

    @abstractmethod
    def after(self, link: Link) -> None:
        """Called at the end of every round, when the model has moved."""

    @property
    @abstractmethod
    def uploads(self) -> frozenset[str]:
        """Parts that clients may deliver: all but those that stay with them."""

    async def contact(self, link: Link) -> None:
        """One client: in the round's first contact all tasks are given; then download, local training, upload."""
        if link.cycle > self.round:
            self.end_round(link)
            self.round, self.open = link.cycle, True
            self.tasks, self._trainers = self.begin(link), {}
            self.waiting = {client for client in link.expected if client in self.tasks}
        try:
            await self.serve(link)
        except SignalLost:
            self.served(link)
            raise
        self.served(link)

    async def serve(self, link: Link) -> None:
        """A client's part in the round; it goes on with its task when it leaves contact."""
        self.accept(link, await link.collect(self.uploads))  # what was trained out of contact
        client, task = link.cluster, self.task_of(link.cluster)
        if task is None:
            await link.leave(None)
            return
        pieces, order = self.pieces(client, task), self.afterwards(task)
        self.note_sent(client, task, pieces)  # before they travel: a signal that is lost may leave some of them there
        self.last[client] = self.round
        has = self.has.setdefault(client, {})
        await link.send([piece for piece in pieces if has.get(piece.part) != piece.version], order)
        has.update({piece.part: piece.version for piece in pieces})
        rounds = link.rounds_left(up=task.parts - task.keeps, task=task)
        await link.train(replace(task, rounds=rounds if self._max_rounds is None else min(rounds, self._max_rounds)))
        self.accept(link, await link.collect(self.uploads))
        await link.leave(order if link.gap_ahead else None)  # slots without a gap between them are rounds in step

    def note_sent(self, client: str, task: Task, pieces: Sequence[Piece]) -> None:
        """What an update of each part will be a change of, and what it will count for."""
        shares = {part: self.share(client, part) for part in in_order(task.parts)}
        for piece in pieces:
            if piece.part in task.parts:
                versions = self.sent.setdefault(client, {}).setdefault(piece.part, {})
                tensors = versions[piece.version].seen if piece.version in versions else piece.tensors
                versions[piece.version] = Ordered(tensors, self.round, task, shares)

    def served(self, link: Link) -> None:
        """The round ends with the last of its clients, whether they delivered or were lost."""
        if link.cycle != self.round:
            return  # a contact that reaches into the next round
        self.waiting.discard(link.cluster)
        if not self.waiting:
            self.end_round(link)

    async def flush(self, link: Link) -> None:
        """After training: what was trained since the last contact."""
        self.accept(link, await link.collect(self.uploads))
        self.end_round(link)
        await link.leave(None)

    def share(self, client: str, part: str) -> float:
        """n_i over the samples of all who train the part in this round."""
        if part not in self._trainers:
            self._trainers[part] = sum(self._samples[c] for c, task in self.tasks.items() if part in task.parts)
        return self._samples[client] / self._trainers[part]

    def accept(self, link: Link, updates: Sequence[Update]) -> None:
        """What arrives in the client's own contact waits for the others; what comes later moves the model at once."""
        client = link.cluster
        for update in updates:
            part, version = update.piece.part, update.piece.version
            versions = self.sent[client][part]
            sent = versions[version]
            kept = {v: s for v, s in versions.items() if v > version}
            self.sent[client][part] = kept | {version: replace(sent, seen=update.piece.tensors, counted=True)}
            self.note(client, update, sent.task, sent.counted)
            if part in BESIDE:
                continue  # of each client its own, and no part of the model
            if not self.takes(update):
                link.log("refuse", part=part, behind=self.round - sent.round_)
                continue
            if sent.round_ == self.round and client in self.waiting:
                self.arrived.append((client, update, sent))
                continue
            self.model[part], facts = moved(self.model, self.late(update, sent), self._lora, 1.0)
            link.log("aggregate", part=part, behind=self.round - sent.round_, digest=self.model[part].digest, **facts)

    def late(self, update: Update, sent: Ordered) -> list[Change]:
        """An update that missed its round, with the share that it would have had in it."""
        part, shares = update.piece.part, sent.shares
        if (held := rows(part, sent.task)) is None:
            return [Change(part, shares[part], update.piece.tensors, sent.seen)]
        return [Change(part, shares[m], update.piece.tensors, sent.seen, (expert_index(m)[1],)) for m in held]

    def change(self, update: Update, sent: Ordered) -> Change:
        """An update of this round."""
        held = rows(update.piece.part, sent.task)
        numbers = None if held is None else tuple(expert_index(m)[1] for m in held)
        return Change(update.piece.part, float(update.samples), update.piece.tensors, sent.seen, numbers)

    def end_round(self, link: Link) -> None:
        """Aggregation: Σ n·Δ / Σ n over those who trained a part; the rest stays."""
        if not self.open:
            return
        self.open = False
        place = {client: i for i, client in enumerate(self.clients)}
        arrived = sorted(self.arrived, key=lambda entry: place[entry[0]])  # sums in one order, whoever came first
        self.arrived = []
        for part in in_order({update.piece.part for _, update, _ in arrived}):
            changes = [self.change(update, sent) for _, update, sent in arrived if update.piece.part == part]
            self.model[part], facts = moved(self.model, changes, self._lora)
            link.log("aggregate", part=part, clients=len(changes), digest=self.model[part].digest, **facts)
        self.after(link)


def rows(part: str, task: Task) -> list[str] | None:
    """The experts whose rows of the gate a client has trained: those that its gate might pick; None for whole parts."""
    return None if part != GATE or task.route is None else in_order(task.route)


def experts_of(task: Task) -> list[str]:
    """The experts that a task trains."""
    return in_order(filter(is_expert, task.parts))
