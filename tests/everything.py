"""A protocol of one's own that takes whatever comes, for tests of what stands around a protocol."""

from typing import Any

from fedexperts.moe.parts import is_expert
from fedexperts.protocol.aggregate import changed, grouped, picked
from fedexperts.protocol.link import Link, Start
from fedexperts.train.task import Task


class Everything:
    """Whoever is there trains all experts."""

    def __init__(self, start: Start):
        self.model = dict(start.model)
        self.links, self.samples, self.owned = start.clusters, dict(start.samples), dict(start.owned)
        self.parts = frozenset(filter(is_expert, start.model))
        self.sent: dict[str, Any] = {}

    async def contact(self, link: Link) -> None:
        await self.gather(link)
        pieces = picked(self.model, self.parts)
        self.sent[link.cluster] = {piece.part: piece for piece in pieces}
        await link.send(pieces)
        await link.train(Task(self.parts, rounds=1))
        await self.gather(link)
        await link.leave(None)

    async def gather(self, link: Link) -> None:
        for part, updates in grouped(await link.collect(self.parts)).items():
            self.model[part], _ = changed(self.model, self.sent[link.cluster][part], updates)
