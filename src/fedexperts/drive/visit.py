"""One contact in simulated time: what a protocol awaits, as effects that the simulator lets happen.

Each await is an effect with a duration. It is done when that has passed, or lost with the signal before. A transfer that has
sent a piece too often is done with a loss: the contact ends there.
"""

from __future__ import annotations

import math
import types
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contact.plan import Contact
from ..moe.parts import Piece, in_order
from ..moe.stacked import norms
from ..protocol.admission import Refusal
from ..protocol.link import ServerProtocol, SignalLost
from ..train.host import Training
from ..train.task import Task, Update
from .books import Books
from .cluster import Phase, whole_rounds
from .faults import MOST_SENDS


@dataclass(frozen=True)
class Effect:
    """What a coroutine waits for.

    Attributes:
        duration_s: how long.
        done: called when that has passed.
        lost: called, if the signal is lost, with the seconds that had passed then.
        asks: whether anything is asked of the devices; what asks nothing takes no time, and is not lost where they are away.
    """

    duration_s: float
    done: Callable[[], Any]
    lost: Callable[[float], None]
    asks: bool = True


@types.coroutine
def _wait(effect: Effect) -> Generator[Effect, Any, Any]:
    return (yield effect)


def _tried(pieces: Iterable[tuple[int, int]]) -> tuple[int, bool]:
    """How many bytes of pieces, given as bytes left and bytes of one sending, a contact tries to send, and whether in vain."""
    tried_B = 0
    for left_B, size_B in pieces:
        if left_B > MOST_SENDS * size_B:
            return tried_B + MOST_SENDS * size_B, True
        tried_B += left_B
    return tried_B, False


@dataclass(frozen=True)
class Visit:
    """A contact as it will be: its orbital cycle, when its signal ends, and what `Link` says of the plan around it."""

    contact: Contact
    cycle: int
    closes_s: float
    expected: tuple[str, ...]
    gap_ahead: bool


class SimulatedLink:
    """`Link` to the devices of one cluster, which stand behind a Host."""

    def __init__(
        self, books: Books, protocol: ServerProtocol, visit: Visit, standing: Task | None, until_s: Callable[[], float]
    ):
        self.books, self.protocol, self.visit, self.standing, self.until_s = books, protocol, visit, standing, until_s
        self.contact, self.cycle, self.cluster = visit.contact, visit.cycle, visit.contact.cluster
        self.state = books.clusters[self.cluster]
        self.host = self.state.host
        self.now_s, self.closes_s = self.contact.start_s, visit.closes_s

    @property
    def expected(self) -> tuple[str, ...]:
        """See `Link`."""
        return self.visit.expected

    @property
    def gap_ahead(self) -> bool:
        """See `Link`."""
        return self.visit.gap_ahead

    def rounds_left(self, up: Collection[str] = (), down: Collection[str] = (), task: Task | None = None) -> int:
        """See `Link`."""
        down_B = sum(self.books.fitted(self.cluster, self.protocol.model[part]).size_B for part in down)
        down_s = self.contact.begin_s("down", self.contact.end_s, down_B)
        up_B = sum(self.host.upload_B(part) for part in up)
        left_s = (self.contact.begin_s("up", down_s, up_B) if math.isfinite(down_s) else down_s) - self.now_s
        return whole_rounds(left_s, self.books.round_s(self.cluster, task or Task(frozenset(up))))

    async def send(self, pieces: Collection[Piece], order: Task | None = None) -> None:
        """See `Link`; a broadcast takes as long as one copy. Pieces that are complete when the signal is lost have arrived."""
        state = self.state
        missing = [self.books.fitted(self.cluster, piece) for piece in self.host.lacks(pieces)]
        faults = self.books.faults
        whole_B = {p.part: p.size_B * faults.sends(self.cluster, p.part, p.version) for p in missing}
        left_B = {p.part: whole_B[p.part] - state.heard_B.get((p.part, p.version), 0) for p in missing}
        tried_B, in_vain = _tried((left_B[p.part], p.size_B) for p in missing)
        began_s = self.now_s
        duration_s = self.contact.finish_s("down", began_s, tried_B) - began_s
        if missing:
            self.host.foresee("receive", (missing,), partial(self.goes_on, order, began_s + duration_s))
        self.books.gate.sent(self.cluster, missing)

        def arrive(room_B: float) -> None:
            state.meter.rx_s += len(self.host.devices) * (self.now_s - began_s)  # everybody listens to a broadcast
            complete, carried_B = [], 0
            for piece in missing:
                taken_B = int(min(left_B[piece.part], room_B - carried_B))
                carried_B += taken_B
                if taken_B < left_B[piece.part]:
                    state.heard_B[piece.part, piece.version] = whole_B[piece.part] - left_B[piece.part] + taken_B
                    break
                complete.append(piece)
                state.heard_B.pop((piece.part, piece.version), None)
            self.host.receive(complete)
            self.books.gate.arrived(self.cluster, complete)
            self._count("send", "downlink_B", [p.part for p in complete], carried_B, [p.version for p in complete])

        def done() -> SignalLost | None:
            arrive(tried_B)
            if in_vain:
                return self._give_up()
            self._stand(order)
            return None

        def lost(after_s: float) -> None:
            arrive(self.contact.carried_B("down", began_s, self.now_s))
            self._follow(self.now_s)

        await _wait(Effect(duration_s, done, lost, asks=bool(missing)))

    async def train(self, task: Task) -> None:
        """See `Link`; rounds that end before a loss are done, and then the standing order counts."""
        if task.rounds is None:
            raise ValueError("task.rounds = None: training in contact needs a number of rounds, for example link.rounds_left()")
        rounds = task.rounds
        pace_s = self.books.round_s(self.cluster, task) if rounds and task.parts else 0.0  # 0 rounds of ∞ s take no time
        began_s = self.now_s
        self.state.training = Phase(task, began_s, rounds)
        asks = bool(rounds > 0 and task.parts)
        if asks:
            ahead = partial(self.goes_on, self.standing, began_s + rounds * pace_s)
            self.host.foresee("train", (task, rounds, pace_s, self.books.peers(self.cluster, task)), ahead)

        def run(rounds: int) -> None:
            self.state.training = None
            self.books.train(self.cluster, task, rounds, self.now_s, "connected")

        def lost(after_s: float) -> None:
            whole = min(rounds, whole_rounds(after_s, pace_s)) if pace_s else rounds
            run(whole)
            self._follow(began_s + whole * pace_s)

        await _wait(Effect(rounds * pace_s, lambda: run(rounds), lost, asks))

    async def collect(self, parts: Collection[str]) -> list[Update]:
        """See `Link`; each device uploads on its own sub-channel, all at once."""
        state, gate = self.state, self.books.gate
        asks = any(gate.may_send(device, parts) or state.outbox.get(device) for device in self.host.devices)
        for device in self.host.devices:
            self._freeze(device, parts)
        tried = {device: _tried(self._left(device)) for device in self.host.devices}
        left_B = {name: size_B for name, (size_B, _) in tried.items()}

        def done() -> list[Update] | SignalLost:
            self._sent(began_s, left_B.values())
            if any(in_vain for _, in_vain in tried.values()):
                count(left_B)
                return self._give_up()
            updates = [update for device in self.host.devices for update, _ in state.outbox[device]]
            self.host.delivered(updates, parts)
            state.outbox, state.sent_B = {}, {}
            self._upload(parts, sum(left_B.values()), updates)
            return self._let_in(updates)

        began_s = self.now_s

        def count(carried: dict[str, int]) -> None:
            for name, size in carried.items():
                state.sent_B[name] += size
            self._upload(parts, sum(carried.values()), [])

        def lost(after_s: float) -> None:
            self._sent(began_s, left_B.values())
            room_B = self.contact.carried_B("up", began_s, self.now_s)
            count({name: int(min(size, room_B)) for name, size in left_B.items()})
            self._follow(self.now_s)

        duration_s = self.contact.finish_s("up", began_s, max(left_B.values(), default=0)) - began_s
        updates: list[Update] = await _wait(Effect(duration_s, done, lost, asks))
        return updates

    async def trial(self, samples: int) -> tuple[NDArray[np.int64], int]:
        """See `Link`; each device uploads its counts on its own sub-channel, as in `collect`."""
        results, began_s = self.host.trial(samples), self.now_s
        sizes_B = list(map(self.books.trial_B, results))

        def done() -> tuple[NDArray[np.int64], int]:
            self._sent(began_s, sizes_B)
            counts_LM, tokens = np.sum([one.counts_LM for one in results], axis=0), sum(one.tokens for one in results)
            self.books.totals["uplink_B"] += sum(sizes_B)
            self.log("trial", tokens=tokens, uplink_B=sum(sizes_B))
            return counts_LM, tokens

        def lost(after_s: float) -> None:
            self._sent(began_s, sizes_B)
            self._follow(self.now_s)

        duration_s = self.contact.finish_s("up", began_s, max(sizes_B, default=0)) - began_s
        counts: tuple[NDArray[np.int64], int] = await _wait(Effect(duration_s, done, lost))
        return counts

    async def leave(self, task: Task | None) -> None:
        """See `Link`."""
        self._stand(task)
        self._follow(self.now_s)

    def goes_on(self, order: Task | None, from_s: float) -> Training | None:
        """What the devices do until their next contact, or until training is over, if they follow an order from then on."""
        return self.books.ahead(self.cluster, order, from_s, self.until_s())

    def log(self, event: str, **facts: Any) -> None:
        """See `Link`."""
        self.books.ledger.write_any(event, self.now_s, cluster=self.cluster, **facts)

    def _sent(self, began_s: float, sizes_B: Iterable[int]) -> None:
        """What the radios of devices have done for uploads of so many bytes, each until its own is through, or now."""
        for size_B, devices in Counter(sizes_B).items():
            finish_s = self.contact.finish_s("up", began_s, size_B)
            self.state.meter.tx_s += devices * self.contact.sending_s(began_s, min(finish_s, self.now_s))

    def _stand(self, order: Task | None) -> None:
        if order is not None:  # None rests, it gives nothing up
            gone = self.state.last.parts - order.parts if self.state.last is not None else frozenset()
            self.host.release(gone)
            self.state.last = order
        self.standing = order

    def _give_up(self) -> SignalLost:
        """The rest of the contact is lost; what has arrived of a piece is not sent again in the next."""
        self.closes_s = self.now_s
        self._follow(self.now_s)
        return SignalLost(f"{MOST_SENDS} sends of a part were in vain")

    def _left(self, name: str) -> Iterator[tuple[int, int]]:
        """Of a device's snapshots under way: the bytes that have not arrived, and those of one sending."""
        gone_B = self.state.sent_B[name]
        for update, sends in self.state.outbox[name]:
            left_B = max(0, update.size_B * sends - gone_B)
            gone_B = max(0, gone_B - update.size_B * sends)
            yield left_B, update.size_B

    def _follow(self, from_s: float) -> None:
        """Out of contact from now on: the devices go on with the last order."""
        self.state.order, self.state.since_s = self.standing, from_s

    def _freeze(self, device: str, parts: Collection[str]) -> None:
        """Snapshots that are partly sent stay as they are; the rest is taken afresh."""
        state, kept, offset = self.state, [], 0
        for update, sends in state.outbox.get(device, ()):
            if offset < state.sent_B.get(device, 0):
                kept.append((update, sends))
            offset += update.size_B * sends
        begun = {update.piece.part for update, _ in kept}
        fresh = self._announced(device, set(parts) - begun if begun else parts, begun)
        state.outbox[device] = kept + [(u, self.books.faults.sends(device, u.piece.part, self.now_s)) for u in fresh]
        state.sent_B.setdefault(device, 0)

    def _announced(self, device: str, parts: Collection[str], under_way: Collection[str]) -> list[Update]:
        """What a device has of these parts, but for what the server does not let in: no byte of that travels."""
        gate = self.books.gate
        gate.asked(device, {part: self.host.upload_B(part) for part in gate.may_send(device, parts)}, under_way)
        updates = self.host.snapshot(device, parts)
        return [update for update in updates if not self._refused(gate.announced(device, update))]

    def _let_in(self, updates: list[Update]) -> list[Update]:
        """Those of the updates that have arrived which the protocol may see."""
        gate, found = self.books.gate, []
        for update, norm in zip(updates, norms([update.piece.tensors for update in updates]), strict=True):
            if not self._refused(gate.arrived_whole(update.device, update, norm)):
                found.append(update)
        gate.closed(self.cluster)
        return found

    def _refused(self, refusal: Refusal | None) -> bool:
        if refusal is not None:
            self.log("refuse", device=refusal.device, part=refusal.part, reason=refusal.reason)
        return refusal is not None

    def _upload(self, parts: Collection[str], size_B: int, updates: list[Update]) -> None:
        complete = in_order({update.piece.part for update in updates})
        if size_B or complete:
            rounds = max((update.rounds for update in updates), default=0)
            self._count("collect", "uplink_B", complete, size_B, rounds=rounds)

    def _count(self, event: str, direction: str, parts: list[str], size_B: int, versions: Any = None, **facts: Any) -> None:
        if versions is not None:
            facts["versions"] = versions
        if parts or size_B:
            self.log(event, parts=parts, **{direction: size_B}, **facts)
        self.books.totals[direction] += size_B
