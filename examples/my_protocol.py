"""A protocol of your own in one class: the baseline, but each contact trains only two experts, in turn.

Run it with: python examples/my_protocol.py
"""

from pathlib import Path

from fedexperts import run
from fedexperts.moe.parts import is_expert
from fedexperts.protocol.aggregate import changed, grouped, picked
from fedexperts.protocol.link import Link, Start
from fedexperts.train.task import Task


class TurnTaking:
    needs_owners = False  # whoever is there trains whatever is due: nobody owns an expert

    def __init__(self, start: Start):
        self.model = dict(start.model)
        self.waiting = [part for part in self.model if is_expert(part)]
        self.sent = {cluster: dict(start.model) for cluster in start.clusters}

    async def contact(self, link: Link) -> None:
        await self.gather(link)  # what an earlier contact could not carry
        turn, self.waiting = self.waiting[:2], self.waiting[2:] + self.waiting[:2]
        task = Task(frozenset(turn) | {"gate"}, rounds=link.rounds_left(up=[*turn, "gate"]))
        pieces = picked(self.model, [*filter(is_expert, self.model), "gate"])
        self.sent[link.cluster] = {piece.part: piece for piece in pieces}
        await link.send(pieces)
        await link.train(task)
        await self.gather(link)
        await link.leave(None)

    async def gather(self, link: Link) -> None:
        for part, updates in grouped(await link.collect(self.model)).items():
            self.model[part], _ = changed(self.model, self.sent[link.cluster][part], updates)


if __name__ == "__main__":
    scenario = Path(__file__).with_name("digits-small.toml")
    summary = run(scenario, "runs/my-protocol", protocol=TurnTaking).summary
    print(f"accuracy {summary['final_accuracy']:.1%} with {summary['uplink_B'] / 1e6:.2f} MB sent up")
