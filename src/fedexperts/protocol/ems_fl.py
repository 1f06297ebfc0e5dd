"""EMS-FL (Algorithm 2) and enhanced EMS-FL (Algorithm 3): each cluster owns a disjoint set of experts and goes on
training them while it is out of contact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..moe.parts import in_order, is_expert
from ..train.task import Task, Update
from .aggregate import Averaging, Returned, Sent, averaged, grouped, picked, settled
from .link import Link, Start

Split = Callable[[Mapping[str, tuple[NDArray[np.int64], int]], int], dict[str, frozenset[str]]]
"""From (counts_LM, tokens) of each cluster, and a number that tells splits apart, to the owners."""


@dataclass(frozen=True)
class Resplit:
    """When and how Algorithm 1 is repeated.

    Attributes:
        split: the new owners; None: never.
        every_cycles: after that many cycles again; 0: never.
        trial_samples: samples per device in a trial pass.
    """

    split: Split | None = None
    every_cycles: int = 0
    trial_samples: int = 0

    def due(self, cycle: int, done: int, cycles: int) -> bool:
        """Whether the trial for the split after the ``done``-th belongs into this cycle (the last of R, but not of all)."""
        return self.split is not None and self.every_cycles > 0 and self.every_cycles * (done + 1) <= cycle + 1 < cycles


class ExpertOwners(ABC):
    """The state that both versions share: the global model, who owns which expert, and which gate was sent to whom."""

    def __init__(self, start: Start, resplit: Resplit = Resplit()):  # frozen
        self.model = dict(start.model)
        self.clusters = start.clusters
        self.shared = start.shared
        self.owned = {cluster: frozenset(parts) for cluster, parts in start.owned.items()}
        self.sent: Sent = {}
        self.returned: Returned = {}
        self._cycles, self._resplit = start.cycles, resplit
        self._how = Averaging(start.lora, start.weights, start.overlap)
        self._first_cycle = start.first_cycle
        self.target: dict[str, str] = {}  # expert part -> next owner, while a re-split is under way
        self.counts: dict[str, Any] = {}  # cluster -> (counts_LM, tokens) of the trial that is under way
        self.splits = 0

    def accept(self, link: Link, updates: list[Update]) -> None:
        """(31) and (38) for the cluster's own experts, (32) for shared parts; anything else is refused, and said so."""
        for part, group in grouped(updates).items():
            version, behind = group[0].piece.version, self.model[part].version - group[0].piece.version
            sent = self.sent.get(link.cluster, {}).get(part)
            if part in self.owned[link.cluster]:
                self.model[part], facts = averaged(self.model, group, self._how)
            elif sent and sent.version == version:
                self.model[part], facts = settled(link.cluster, group, self.model, self.sent, self.returned, self._how)
            else:
                link.log("refuse", part=part, version=version)
                continue
            link.log("aggregate", part=part, version=version, behind=behind, digest=self.model[part].digest, **facts)

    @abstractmethod
    def order(self, mine: frozenset[str]) -> Task:
        """What a cluster goes on with out of contact."""

    def first_order(self, cluster: str) -> Task | None:
        """What it does until it is met: nothing, or, as the else-branch says from t = 0 on, what it does later."""
        return self.order(self.owned[cluster]) if self._first_cycle == "paper" else None

    async def flush(self, link: Link) -> None:
        """After training: experts that were trained since the last contact."""
        self.accept(link, await link.collect(self.owned[link.cluster] | self.shared))
        await link.leave(None)

    async def joint_contact(self, link: Link, experts_frozen: bool = False) -> None:
        """The connected phase of Algorithm 2, then the standing order for the disconnected phase."""
        self.accept(link, await link.collect(self.owned[link.cluster] | self.shared))  # upload; expert update (31)
        mine = self.next_owned(link.cluster)
        disconnected = None if experts_frozen else self.order(mine)
        await self.send_model(link, disconnected)  # model download and local initialisation
        self.hand_over(link, mine)
        if not experts_frozen:
            await self.trial(link)
        joint = Task(self.shared if experts_frozen else mine | self.shared)
        rounds = link.rounds_left(self.shared, self.shared, joint)
        await link.train(replace(joint, rounds=rounds))  # local update, (34) and (36)
        self.accept(link, await link.collect(self.shared))  # local gate upload; gate update (32)
        self.remember_shared(link)
        await link.send(picked(self.model, self.shared), disconnected)  # gate download
        await link.leave(disconnected)  # else-branch: local expert update

    async def send_model(self, link: Link, order: Task | None) -> None:
        """The entire updated global model; only pieces that the devices lack will travel."""
        self.remember_shared(link)
        experts = set(filter(is_expert, self.model))
        await link.send(picked(self.model, experts | self.shared), order)

    def remember_shared(self, link: Link) -> None:
        """Changes of shared parts refer to the version that was sent."""
        self.sent[link.cluster] = {part: self.model[part] for part in in_order(self.shared)}

    async def trial(self, link: Link) -> None:
        """Every R cycles each cluster counts its routing once, on θ_t as it came down; when all have, Algorithm 1 is run."""
        wanted = self._resplit.due(link.cycle, self.splits, self._cycles)
        if not wanted or link.cluster in self.counts or self.target:
            return
        self.counts[link.cluster] = await link.trial(self._resplit.trial_samples)
        if len(self.counts) == len(self.clusters):
            self.splits += 1
            assert self._resplit.split is not None  # else no trial is due
            owned = self._resplit.split(self.counts, self.splits)
            self.target = {part: cluster for cluster, parts in owned.items() for part in parts}
            self.counts = {}
            link.log("split", owned={c: in_order(parts) for c, parts in owned.items()})

    def next_owned(self, cluster: str) -> frozenset[str]:
        """What the cluster owns from this contact on: less what it gives up, and what others have given up for it."""
        kept = {part for part in self.owned[cluster] if self.target.get(part, cluster) == cluster}
        held = frozenset().union(*self.owned.values())
        return frozenset(kept | {part for part, to in self.target.items() if to == cluster and part not in held})

    def hand_over(self, link: Link, mine: frozenset[str]) -> None:
        """Re-splitting: the old owner has its new order, so the next owner may start at its first contact."""
        before = self.owned[link.cluster]
        self.owned[link.cluster] = mine
        if before != mine:
            link.log("hand_over", released=in_order(before - mine), gained=in_order(mine - before))
        if all(part in self.owned[to] for part, to in self.target.items()):
            self.target = {}


class EmsFl(ExpertOwners):
    """Standard EMS-FL: experts and gate are trained in contact, the own experts alone out of contact."""

    def order(self, mine: frozenset[str]) -> Task:
        """Algorithm 2, the else-branch."""
        return Task(mine)

    async def contact(self, link: Link) -> None:
        """Algorithm 2, the branch of the connected cluster."""
        await self.joint_contact(link)


class EnhancedEmsFl(ExpertOwners):
    """Enhanced EMS-FL: the gate is masked to the own experts and frozen; a gate tail of standard EMS-FL ends the run.

    Args:
        start: what every protocol is given.
        resplit: when and how experts are split again.
        gate_tail_cycles: how many cycles, at the end, tune the gate only.
    """

    def __init__(self, start: Start, resplit: Resplit = Resplit(), gate_tail_cycles: int = 1):  # frozen
        super().__init__(start, resplit)
        self._tail_from = start.cycles - gate_tail_cycles

    def order(self, mine: frozenset[str]) -> Task:
        """Algorithm 3, the else-branch, with the mask (39)."""
        return Task(mine, route=mine)

    async def contact(self, link: Link) -> None:
        """Algorithm 3, the branch of the connected cluster."""
        if link.cycle >= self._tail_from:
            await self.joint_contact(link, experts_frozen=True)  # train gate with standard EMS-FL
            return
        self.accept(link, await link.collect(self.owned[link.cluster] | self.shared))  # upload; expert update (31)
        mine = self.next_owned(link.cluster)
        order = self.order(mine)
        await link.send(picked(self.model, mine), order)  # model download and local initialisation
        self.hand_over(link, mine)
        await self.trial(link)
        if mine:
            await link.train(replace(order, rounds=link.rounds_left(task=order)))  # local update
        await link.leave(order)  # else-branch: local expert update
