"""The synchronous FL baseline (EMS-FL paper, Sec. III-A): only the connected cluster trains, and it trains everything.

In C times as many rounds in the same contacts it makes as many as EMS-FL does, on devices C times as fast (``speed``).
"""

from __future__ import annotations

from dataclasses import replace

from ..moe.parts import is_expert
from ..train.task import Task, Update
from .aggregate import Averaging, Returned, Sent, grouped, picked, settled
from .link import Link, Start
from .step import ADDED, Moments, Step


class Sync:
    """Broadcast, local update, upload and aggregation within each contact.

    Args:
        start: what every protocol is given.
        step: the server's own on a mean change.
        speed: local rounds in the time of one.
    """

    def __init__(self, start: Start, step: Step = ADDED, speed: int = 1):  # frozen
        self.model = dict(start.model)
        self.trained = frozenset(filter(is_expert, start.model)) | start.shared
        self.sent: Sent = {}
        self.returned: Returned = {}
        self.moments: Moments = {}
        self._how = Averaging(start.lora, start.weights, start.overlap, step, start.fitted)
        self._task = Task(self.trained, speed=speed)

    async def contact(self, link: Link) -> None:
        """One training round t (three steps of Sec. III-A)."""
        await self.gather(link)  # what an earlier contact could not carry
        pieces = picked(self.model, self.trained)
        self.sent[link.cluster] = {piece.part: piece for piece in pieces}
        await link.send(pieces)  # model broadcast
        await link.train(replace(self._task, rounds=link.rounds_left(up=self.trained, task=self._task)))  # (20)-(25)
        await self.gather(link)  # model upload and aggregation
        await link.leave(None)

    async def flush(self, link: Link) -> None:
        """Collect what a lost signal left on the devices."""
        await self.gather(link)
        await link.leave(None)

    async def gather(self, link: Link) -> None:
        """(26), as a change of the version that was sent."""
        self.accept(link, await link.collect(self.trained))

    def accept(self, link: Link, updates: list[Update]) -> None:
        """Every part at most once per version sent."""
        for part, group in grouped(updates).items():
            version = self.sent[link.cluster][part].version
            behind = self.model[part].version - version
            self.model[part], facts = settled(
                link.cluster, group, self.model, self.sent, self.returned, self._how, self.moments
            )
            link.log("aggregate", part=part, version=version, behind=behind, digest=self.model[part].digest, **facts)
