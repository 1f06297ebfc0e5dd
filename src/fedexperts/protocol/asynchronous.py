"""Asynchronous federated learning of the whole model: every cluster trains it in and out of contact, and uploads it when met.

FedAsync (Xie et al., 2019) mixes each arriving model in; FedBuff (Nguyen et al., 2022) adds K changes at once. A cluster is
what their clients are: its update is the mean over its devices. What arrives late counts less, by (1 + τ)^−a, where τ are the
updates of the model since the one that was trained from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace

from ..moe.parts import Piece, Tensors, is_expert
from ..train.task import Task, Update
from .aggregate import Averaging, Term, after, combination, grouped, picked
from .link import Link, Start
from .step import ADDED, Moments, Step, stepped


class Asynchronous(ABC):
    """What both share. They say what an arrival does to a part (`arrive`), and what they keep of what is sent (`note`)."""

    def __init__(self, start: Start, staleness_exponent: float):
        self.model = dict(start.model)
        self.trained = frozenset(filter(is_expert, start.model)) | start.shared
        self._how = Averaging(start.lora, start.weights)
        self._exponent = staleness_exponent
        self._from_start = start.first_cycle == "paper"

    @abstractmethod
    def arrive(self, link: Link, part: str, updates: Sequence[Update]) -> None:
        """A cluster's devices have delivered a part."""

    @abstractmethod
    def note(self, cluster: str, pieces: Collection[Piece]) -> None:
        """These are on their way to a cluster; a signal that is lost may leave some of them there."""

    def first_order(self, cluster: str) -> Task | None:
        """What a cluster does until it is met: nothing, or what it does later."""
        return Task(self.trained) if self._from_start else None

    async def contact(self, link: Link) -> None:
        """Upload of what was trained since the last contact, the newest model, and training until the next."""
        self.accept(link, await link.collect(self.trained))
        task, pieces = Task(self.trained), picked(self.model, self.trained)
        self.note(link.cluster, pieces)
        await link.send(pieces, task)
        await link.train(replace(task, rounds=link.rounds_left(task=task)))
        await link.leave(task)

    async def flush(self, link: Link) -> None:
        """After training: what was trained since the last contact."""
        self.accept(link, await link.collect(self.trained))
        await link.leave(None)

    def accept(self, link: Link, updates: Sequence[Update]) -> None:
        """Part by part."""
        for part, group in grouped(updates).items():
            self.arrive(link, part, group)

    def discount(self, behind: int) -> float:
        """s(τ) = (1 + τ)^−a."""
        return float((1 + behind) ** -self._exponent)

    def shares(self, updates: Sequence[Update]) -> list[Term]:
        """The devices' tensors, with weights whose sum is 1."""
        terms = self._how.terms(updates)
        total = sum(weight for weight, _ in terms)
        return [(weight / total, tensors) for weight, tensors in terms]


class FedAsync(Asynchronous):
    """x ← (1 − α_t)·x + α_t·x_new with α_t = α·(1 + τ)^−a.

    Args:
        start: what every protocol is given.
        mixing: α.
        staleness_exponent: a.
    """

    def __init__(self, start: Start, mixing: float = 0.6, staleness_exponent: float = 0.5):
        super().__init__(start, staleness_exponent)
        self._mixing = mixing

    def note(self, cluster: str, pieces: Collection[Piece]) -> None:
        """An arriving model says of which version it is, and that is enough."""

    def arrive(self, link: Link, part: str, updates: Sequence[Update]) -> None:
        """Each arrival is an update, and makes a version."""
        now, version = self.model[part], updates[0].piece.version
        behind = now.version - version
        alpha = self._mixing * self.discount(behind)
        terms = [(alpha * share, tensors) for share, tensors in self.shares(updates)]
        tensors, facts = combination([(1 - alpha, now.tensors), *terms], self._how.lora)
        self.model[part] = after(now, tensors)
        link.log("aggregate", part=part, version=version, behind=behind, digest=self.model[part].digest, **facts)


class FedBuff(Asynchronous):
    """x ← x + η·(1/K)·Σ_k (1 + τ_k)^−a·Δ_k, once K changes have arrived.

    An arrival is a version of its own, also while it waits: what is sent after it is sent afresh, and a cluster that has missed
    that goes on from what it had. Updates are counted apart.

    Args:
        start: what every protocol is given.
        buffer: K.
        staleness_exponent: a; 1/2 in the paper.
        step: η, or the server's own step on the mean.
    """

    def __init__(self, start: Start, buffer: int = 2, staleness_exponent: float = 0.5, step: Step = ADDED):
        super().__init__(start, staleness_exponent)
        self._buffer, self._step = buffer, step
        self.updates = dict.fromkeys(sorted(self.trained), 0)  # of each part, so far
        first = {part: {0: (0, start.model[part].tensors)} for part in sorted(self.trained)}
        self.seen: dict[str, dict[str, dict[int, tuple[int, Tensors]]]] = {name: dict(first) for name in start.clusters}
        """Of each cluster, part and version the updates before it, and what the server last saw of training from it."""
        self.waiting: dict[str, list[list[Term]]] = {part: [] for part in sorted(self.trained)}
        self.moments: Moments = {}

    def note(self, cluster: str, pieces: Collection[Piece]) -> None:
        """What changes will be changes of."""
        for piece in pieces:
            self.seen[cluster][piece.part] = {
                **self.seen[cluster][piece.part],
                piece.version: (self.updates[piece.part], piece.tensors),
            }

    def arrive(self, link: Link, part: str, updates: Sequence[Update]) -> None:
        """A change waits, with its weight, until there are K."""
        version, mine, arrived = updates[0].piece.version, self.seen[link.cluster][part], self.shares(updates)
        before, base = mine[version]
        behind = self.updates[part] - before
        whole, lossy = combination(arrived, self._how.lora)
        self.seen[link.cluster][part] = {v: one for v, one in mine.items() if v > version} | {version: (before, whole)}
        weight, waiting = self.discount(behind), self.waiting[part]
        terms = arrived if lossy else [(1.0, whole)]  # products of adapters are factored once, with all that waits
        waiting.append([*((weight * share, tensors) for share, tensors in terms), (-weight, base)])
        self.model[part] = replace(self.model[part], version=self.model[part].version + 1)
        if len(waiting) < self._buffer:
            link.log("wait", part=part, version=version, behind=behind, waiting=len(waiting))
            return
        self.model[part], facts = self.moved(self.model[part], [term for change in waiting for term in change])
        self.waiting[part] = []
        self.updates[part] += 1
        link.log("aggregate", part=part, version=version, behind=behind, digest=self.model[part].digest, **facts)

    def moved(self, now: Piece, terms: Sequence[Term]) -> tuple[Piece, dict[str, float]]:
        """A part after the mean of what has waited."""
        eta = self._step.lr if self._step.optimizer == "sgd" else 1.0
        share = eta / self._buffer
        tensors, facts = combination([(1.0, now.tensors), *((share * w, t) for w, t in terms)], self._how.lora)
        if self._step.optimizer != "sgd":
            tensors = stepped(self._step, now, tensors, self.moments)
        return replace(after(now, tensors), version=now.version), facts
