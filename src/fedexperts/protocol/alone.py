"""Training that nobody helps: all data in one place, or each cluster with its own. What is collected is looked at, not sent.

Between the parts that are trained and those who judge them stands no link, so that uploads weigh nothing (`method.alone`).
"""

from __future__ import annotations

from dataclasses import replace

from ..moe.parts import Piece, is_expert
from ..train.task import Task, Update
from .aggregate import averaged, grouped
from .link import Link, Start


class Alone:
    """Every link goes on with what it has; nothing comes down.

    Args:
        start: what every protocol is given.
        away: whether links train out of contact too. Without, there is one link, and its model is the global one.
    """

    def __init__(self, start: Start, away: bool):
        self.model = dict(start.model)
        self.trained = frozenset(filter(is_expert, start.model)) | start.shared
        self.own: dict[str, dict[str, Piece]] = {}  # of each link what it has trained, where there are several
        self._away = away
        self._from_start = away and start.first_cycle == "paper"

    def first_order(self, cluster: str) -> Task | None:
        """As EMS-FL has it: a link rests until its first contact, or trains from the start."""
        return Task(self.trained) if self._from_start else None

    async def contact(self, link: Link) -> None:
        """A contact is time to train, and the moment at which a model is looked at."""
        await self.look(link)
        task = Task(self.trained)
        await link.train(replace(task, rounds=link.rounds_left(task=task)))
        await self.look(link)
        await link.leave(task if self._away else None)

    async def flush(self, link: Link) -> None:
        """After training: what was trained since the last contact."""
        await self.look(link)
        await link.leave(None)

    async def look(self, link: Link) -> None:
        """As it is there: one device has all data of a link."""
        self.accept(link, await link.collect(self.trained))

    def accept(self, link: Link, updates: list[Update]) -> None:
        """Part by part; the next version of what the link had."""
        mine = self.own.setdefault(link.cluster, {}) if self._away else self.model
        for part, group in grouped(updates).items():
            mine[part], _ = averaged({part: mine.get(part, self.model[part])}, group)
            link.log("aggregate", part=part, version=group[0].piece.version, behind=0, digest=mine[part].digest)
