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
    def __init__(self, start: Start):
        self.model = dict(start.model)
        self.waiting = [part for part in self.model if is_expert(part)]

    async def contact(self, link: Link) -> None:
        turn, self.waiting = self.waiting[:2], self.waiting[2:] + self.waiting[:2]
        parts = frozenset(turn) | {"gate"}
        sent = {piece.part: piece for piece in picked(self.model, parts)}
        await link.send(picked(self.model, [part for part in self.model if is_expert(part)] + ["gate"]))
        await link.train(Task(parts, rounds=link.rounds_left(parts)))
        for part, updates in grouped(await link.collect(parts)).items():
            self.model[part] = changed(self.model, sent[part], updates)
        await link.leave(None)


if __name__ == "__main__":
    scenario = Path(__file__).with_name("digits-small.toml")
    summary = run(scenario, "runs/my-protocol", protocol=TurnTaking).summary
    print(f"accuracy {summary['final_accuracy']:.1%} with {summary['uplink_B'] / 1e6:.2f} MB sent up")
