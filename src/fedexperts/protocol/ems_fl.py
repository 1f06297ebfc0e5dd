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

from ..moe.parts import Piece, in_order, is_expert
from ..train.task import Task, Update
from .aggregate import Averaging, Facts, Returned, Sent, averaged, grouped, picked, settled
from .link import Link, Start
from .step import ADDED, Moments, Step

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


@dataclass(frozen=True)
class Parts:
    """What of EMS-FL is there; by default all, as the paper has it.

    Attributes:
        away: clusters train on out of contact.
        disjoint: an expert has one owner; else all clusters train all experts, which are aggregated as shared parts are, (26).
        mask: enhanced EMS-FL masks the gate to the own experts.
        joint_rounds: local rounds in a contact, at most; None: as many as fit.
    """

    away: bool = True
    disjoint: bool = True
    mask: bool = True
    joint_rounds: int | None = None


WHOLE = Parts()


class ExpertOwners(ABC):
    """The state that both versions share: the global model, who owns which expert, and which gate was sent to whom.

    Args:
        start: what every protocol is given.
        resplit: when and how experts are split again.
        step: the server's own on a mean change of shared parts.
        there: what of EMS-FL is there.
    """

    def __init__(self, start: Start, resplit: Resplit = Resplit(), step: Step = ADDED, there: Parts = WHOLE):  # frozen
        self.model = dict(start.model)
        self.clusters = start.clusters
        self.everybodys = frozenset[str]() if there.disjoint else frozenset(filter(is_expert, start.model))
        self.shared = start.shared
        none: Mapping[str, frozenset[str]] = dict.fromkeys(start.clusters, frozenset())
        self.owned = {cluster: frozenset(parts) for cluster, parts in (start.owned if there.disjoint else none).items()}
        self.sent: Sent = {}
        self.seen: Sent = {}  # of experts that are everybody's: what a cluster has made of the version before, as it arrived
        self.returned: Returned = {}
        self._cycles, self._resplit = start.cycles, resplit
        self.moments: Moments = {}
        self._how = Averaging(start.lora, start.weights, start.overlap, step, start.fitted)
        self._there = there
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
            elif (sent and sent.version == version) or self.goes_on_from(link.cluster, part, version):
                self.model[part], facts = self.settle(link.cluster, group, version)
            else:
                link.log("refuse", part=part, version=version)
                continue
            link.log("aggregate", part=part, version=version, behind=behind, digest=self.model[part].digest, **facts)

    def goes_on_from(self, cluster: str, part: str, version: int) -> bool:
        """Whether a cluster has trained on from a version that it has delivered: where its download was cut."""
        seen = self.seen.get(cluster, {}).get(part)
        return seen is not None and seen.version == version

    def settle(self, cluster: str, group: list[Update], version: int) -> tuple[Piece, Facts]:
        """A shared part moves by what the server has not seen yet."""
        part, sent = group[0].piece.part, self.sent.setdefault(cluster, {})
        newer = None
        if part not in sent or sent[part].version != version:
            newer, sent[part] = sent.get(part), self.seen[cluster][part]
        result = settled(cluster, group, self.model, self.sent, self.returned, self._how, self.moments)
        if newer is not None:
            sent[part] = newer
        if part in self.everybodys:
            arrived = averaged({part: replace(group[0].piece, version=version - 1)}, group, self._how)[0]
            self.seen.setdefault(cluster, {})[part] = arrived
        return result

    @abstractmethod
    def order(self, mine: frozenset[str]) -> Task:
        """What a cluster trains of its experts, and goes on with out of contact."""

    def away(self, mine: frozenset[str]) -> Task | None:
        """What it does out of contact, unless it rests."""
        return self.order(mine) if self._there.away else None

    def first_order(self, cluster: str) -> Task | None:
        """What it does until it is met: nothing, or, as the else-branch says from t = 0 on, what it does later."""
        return self.away(self.owned[cluster]) if self._first_cycle == "paper" else None

    async def flush(self, link: Link) -> None:
        """After training: experts that were trained since the last contact."""
        await self.gather(link)
        await link.leave(None)

    async def gather(self, link: Link) -> None:
        """Upload; expert update (31)."""
        self.accept(link, await link.collect(self.owned[link.cluster] | self.shared | self.everybodys))

    def rounds(self, fit: int) -> int:
        """Of a contact, of those that fit."""
        most = self._there.joint_rounds
        return fit if most is None else min(fit, most)

    async def joint_contact(self, link: Link, experts_frozen: bool = False) -> None:
        """The connected phase of Algorithm 2, then the standing order for the disconnected phase."""
        await self.gather(link)  # upload; expert update (31)
        mine = self.next_owned(link.cluster)
        disconnected = None if experts_frozen else self.away(mine)
        await self.send_model(link, disconnected)  # model download and local initialisation
        self.hand_over(link, mine)
        if not experts_frozen:
            await self.trial(link)
        shared = self.shared if experts_frozen else self.shared | self.everybodys
        joint = Task(shared if experts_frozen else mine | shared)
        rounds = self.rounds(link.rounds_left(shared, shared, joint))
        await link.train(replace(joint, rounds=rounds))  # local update, (34) and (36)
        self.accept(link, await link.collect(shared))  # local gate upload; gate update (32)
        self.remember(link, shared)
        await link.send(picked(self.model, shared), disconnected)  # gate download
        await link.leave(disconnected)  # else-branch: local expert update

    async def send_model(self, link: Link, order: Task | None) -> None:
        """The entire updated global model; only pieces that the devices lack will travel."""
        self.remember(link, self.shared | self.everybodys)
        experts = set(filter(is_expert, self.model))
        await link.send(picked(self.model, experts | self.shared), order)

    def remember(self, link: Link, parts: frozenset[str]) -> None:
        """Changes of shared parts refer to the version that was sent."""
        self.sent[link.cluster] = self.sent.get(link.cluster, {}) | {part: self.model[part] for part in in_order(parts)}

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
        if not self.target:
            return self.owned[cluster]
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
        return Task(mine | self.everybodys)

    async def contact(self, link: Link) -> None:
        """Algorithm 2, the branch of the connected cluster."""
        await self.joint_contact(link)


class EnhancedEmsFl(ExpertOwners):
    """Enhanced EMS-FL: the gate is masked to the own experts and frozen; a gate tail of standard EMS-FL ends the run.

    Args:
        start: what every protocol is given.
        resplit: when and how experts are split again.
        gate_tail_cycles: how many cycles, at the end, tune the gate only.
        step, there: as `ExpertOwners` has them.
    """

    def __init__(
        self,
        start: Start,
        resplit: Resplit = Resplit(),  # frozen
        gate_tail_cycles: int = 1,
        step: Step = ADDED,
        there: Parts = WHOLE,
    ):
        super().__init__(start, resplit, step, there)
        self._tail_from = start.cycles - gate_tail_cycles

    def order(self, mine: frozenset[str]) -> Task:
        """Algorithm 3, the else-branch, with the mask (39)."""
        experts = mine | self.everybodys
        return Task(experts, route=experts if self._there.mask else None)

    async def contact(self, link: Link) -> None:
        """Algorithm 3, the branch of the connected cluster."""
        if link.cycle >= self._tail_from:
            await self.joint_contact(link, experts_frozen=True)  # train gate with standard EMS-FL
            return
        await self.gather(link)  # upload; expert update (31)
        mine = self.next_owned(link.cluster)
        order, away = self.order(mine), self.away(mine)
        self.remember(link, self.everybodys)
        await link.send(picked(self.model, order.parts), away)  # model download and local initialisation
        self.hand_over(link, mine)
        await self.trial(link)
        if order.parts:
            await link.train(replace(order, rounds=self.rounds(link.rounds_left(task=order))))  # local update
        await link.leave(away)  # else-branch: local expert update
