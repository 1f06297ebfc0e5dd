"""The devices of a cluster on a node elsewhere, as a server's protocols, links and accounts ask them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import RunError
from ..moe.parts import BACKBONE, BESIDE, MAX_UPDATE_NORM, Piece, Tensors, in_order
from ..moe.view import View
from ..train.codec import decode
from ..train.host import Ahead, Host, Trained, Trial
from ..train.member import Extractor, NetworkClient
from ..train.task import Experts, Task, Update, bare
from ..train.upload import promised
from ..train.wire import Codec
from .answers import Answers, introduced, printable, read_upload
from .costs import Costs, kind
from .habits import Habits
from .orders import GENESIS, Call, Command, Done, MessageError, Reply, Status, commands_of, said_hello, versions, write_call
from .way import Way

log = logging.getLogger(__name__)


class _UnknownError(Exception):
    """Only the devices know, and they are not to be asked now."""


Answer = tuple[Done, list[bytes]]
"""What came of a command, with the files of its reply."""
Said = tuple[Answer | None, list[list[int]]]
"""What comes of a call: the last answer to what is decided, and FLOPs of what was asked."""
NOTHING: Said = (None, [])
CHECKPOINTS = 3
"""So many checkpoints later nobody goes back to one: two are kept, and one is being written."""


class RemoteHost:
    """`Host` at the other end of a link that goes down.

    What is decided is a log, see `node`. A verb that was foreseen has its answer already. One that was not, and whose answer
    is needed, is asked at once; the others go with the next call. If nobody answers, the devices are away, and what was decided
    is done when they are back.

    Args:
        link: the cluster's name.
        way: how a call reaches the node.
        run: which run this is.
        known: the devices as the server's records have them.
        view: the server's model, by which uploads are decoded.
        model: θ_0, which everybody has.
        codec: of uploads.
        hello: what the node has answered to `hello` already.
        max_update_norm: how far what it tells may lie from what was sent, as `Admission` has it of updates.
    """

    def __init__(
        self,
        link: str,
        way: Way,
        run: str,
        known: Host,
        view: View,
        model: dict[str, Piece],
        codec: Codec,
        hello: bytes | None = None,
        max_update_norm: float = MAX_UPDATE_NORM,
    ):
        self.link, self.way, self.run, self.view, self.codec = link, way, run, view, codec
        self.known, self.held, self.max_update_norm = known, dict(model), max_update_norm
        self.acked = self.tail = GENESIS  # what the node has done for certain, and what is decided
        self.queue: list[Command] = []  # what lies between the two
        self.foreseen: list[tuple[Command, Answer]] = []  # done there, and not decided
        self.costs = Costs()
        self.shown: dict[str, int] = {}  # experts of others that the log has, and which version
        self.unheard: set[str] = set()  # orders to train of which nobody has told what came of them
        self.unheard_B = 0  # see `late_B`
        self.habits = Habits(known.devices)
        self.tails = [GENESIS]  # of the last checkpoints
        self.uncollected: set[str] = set()  # as `LocalHost` has it
        self.meeting, self.away = True, ""
        self.refused = ""  # what the node has said last where it refuses for good
        self.others: Collection[RemoteHost] = (self,)  # all of the run
        self.calls = 0
        self.told: tuple[str, float] | None = None  # what the node begins with if it hears nothing for how long
        self.guessing = False
        self.stale = False  # whether something was decided whose answer ``status`` waits for
        facts = introduced(hello or self.way.ask(said_hello(run)), link, known, self.held)
        self.status, self.turn = facts.status, facts.turn

    @property
    def devices(self) -> tuple[str, ...]:
        """See `Host`."""
        return self.known.devices

    @property
    def samples(self) -> tuple[int, ...]:
        """See `Host`."""
        return self.known.samples

    @property
    def local_steps(self) -> int:
        """See `Host`."""
        return self.known.local_steps

    def begin(self, model: dict[str, Piece]) -> None:
        """See `Host`; a node has made θ_0 itself, and the records learn what its uploads will be of."""
        self.known.begin(model)
        self.held = dict(model)

    def join(self, client: NetworkClient) -> None:
        """See `Host`; a node knows what it is."""

    def meet(self, start_s: float, end_s: float) -> None:
        """See `Host`."""
        self.meeting, self.away = True, ""
        self.way.begin(start_s, end_s)
        if self.stale:
            self._call(self.habits.likely(self.queue[-1]))

    def foresee(self, verb: str, args: tuple[Any, ...], ahead: Ahead) -> None:
        """See `Host`."""
        wanted = commands_of(self.tail, verb, args, self.shown)
        if any(command.id == wanted[-1].id for command, _ in self.foreseen):
            return
        self.foreseen = []
        commands = (*wanted, *self.habits.likely(wanted[-1]))
        ends = self.habits.ends(commands[-1])
        meanwhile = self._meanwhile(commands[-1].id, ahead, self.shown | versions(wanted))
        if not ends and versions(meanwhile):
            meanwhile = ()  # others' experts would travel twice, for the case that the contact is lost
        self._call(commands, meanwhile, quiet_s=0.0 if ends else self.way.quiet_s)

    def _meanwhile(self, before: str, ahead: Ahead, shown: Mapping[str, int], asks: bool = False) -> tuple[Command, ...]:
        """What devices do after a command, if the contact ends with it; nothing if only they know how long it takes."""
        self.guessing = not asks
        try:
            goes_on = ahead()
        except _UnknownError:
            return ()
        finally:
            self.guessing = False
        if goes_on is None or not goes_on[1]:
            return ()
        commands = commands_of(before, "train", goes_on, shown)
        return *commands, *self.habits.likely(commands[-1])

    def part(self, ahead: Ahead) -> None:
        """See `Host`; a node that does not hear of it does what it was told before, and goes back later."""
        if self.meeting and not self.away:
            self.habits.over()
            meanwhile = self._meanwhile(self.tail, ahead, self.shown, asks=True)
            tasks = [command.args[0] for command in meanwhile if command.verb == "train"][:1]
            asked = [task for task in tasks if kind(task) not in self.costs.steps]
            if asked or (meanwhile and (meanwhile[0].id, 0.0) != self.told):
                self._call(meanwhile=meanwhile, asked=asked)
        self.meeting, self.told, self.habits.received = False, None, 0
        self.way.end()

    def lacks(self, pieces: Collection[Piece]) -> list[Piece]:
        """See `Host`."""
        missing = [piece for piece in pieces if self.status.untouched.get(piece.part) != piece.version]
        if lost := [piece.part for piece in missing if piece.part in self.uncollected]:
            raise ValueError(
                f"send: {', '.join(lost)} would take the place of what {', '.join(self.devices)} trained of it; collect first"
            )
        return missing

    def receive(self, pieces: Collection[Piece]) -> None:
        """See `Host`."""
        if pieces:
            self._decide("receive", (list(pieces),))
            self.held |= {piece.part: piece for piece in pieces}

    def train(self, task: Task, rounds: int, round_s: float, peers: Experts | None) -> Trained:
        """See `Host`; of devices that are away the steps are known."""
        self.uncollected |= task.parts - task.keeps
        extractor = self._extractor
        answer = self._decide("train", (task, rounds, round_s, peers))
        self.costs.trained(task, extractor)
        if answer is None:
            self.unheard.add(self.tail)
            self.status = self.status.after_training(task.parts, task.parts - task.keeps, rounds)
            return Trained(rounds * self.local_steps * len(self.devices), 0, {device: [] for device in self.devices})
        done, _ = answer
        assert done.steps is not None  # `Answers` has looked
        return Trained(done.steps, done.peer_B, done.broken, done.loss)

    def flops(self, task: Task) -> list[int]:
        """See `Host`; zeros as long as nobody could be asked."""
        if kind(task) not in self.costs.steps:
            if self.guessing:
                raise _UnknownError
            self._call(asked=(task,))
            if kind(task) not in self.costs.steps:
                log.warning("warning: %s: is away, and has not told how much work its task is; joules leave it out", self.link)
                return [0] * len(self.devices)
        return self.costs.steps[kind(task)]

    def flops_beside(self, task: Task) -> int:
        """See `Host`."""
        return self.costs.beside_of(task, self._extractor)

    @property
    def _extractor(self) -> Extractor:
        held = self.held.get(BACKBONE)
        return -1 if held is None else held.version, BACKBONE not in self.status.untouched

    def activations_B(self, task: Task) -> int:
        """See `Host`."""
        answer = self._decide("activations_B", (task,))
        return answer[0].number or 0 if answer else 0

    def upload_B(self, part: str) -> int:
        """See `Host`."""
        return self._upload_B(part, self.held)

    def _upload_B(self, part: str, held: Mapping[str, Piece]) -> int:
        return promised(held[part].tensors, self.codec).size_B if part in BESIDE else self.known.upload_B(part)

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        """See `Host`; nothing of devices that are away."""
        wanted = in_order(set(parts) & set(self.status.pending.get(device, {})) & set(self.held))
        answer = self._decide("snapshot", (device, wanted)) if wanted else None
        if answer is None:
            return []
        done, blobs = answer
        promises = {part: promised(self.view.start(part, self.held[part].tensors), self.codec) for part in wanted}
        return [read_upload(device, blobs[n], promises, self.held, self.view, self.codec) for n in done.uploads or ()]

    def delivered(self, updates: Sequence[Update], parts: Collection[str]) -> None:
        """See `Host`."""
        self._decide("delivered", (list(map(bare, updates)), in_order(parts)), needed=False)
        ours = [update for update in updates if update.piece.version == self.held[update.piece.part].version]
        self.status = self.status.after_delivery([(one.device, one.piece.part, one.rounds) for one in ours])
        self.uncollected -= set(parts)

    def unsent_rounds(self) -> int:
        """See `Host`; as far as it is known."""
        return sum(max(rounds.values(), default=0) for rounds in self.status.pending.values())

    def trial(self, samples: int) -> list[Trial]:
        """See `Host`; nothing of devices that are away.

        Raises:
            RunError: they are away before anything else is done, so that nobody knows who is good at what.
        """
        first = self.tail == GENESIS
        answer = self._decide("trial", (samples,))
        if answer is None and first:
            raise RunError(f"{self.link}: no trial pass ({self.away}); mend that on its node, and begin again")
        rows = (answer[0].trials if answer else None) or []
        return [Trial(np.array(row.counts_LM, dtype=np.int64), row.tokens, row.samples_B) for row in rows]

    def own(self, parts: Collection[str]) -> dict[str, Tensors]:
        """See `Host`; as they were sent, where the devices are away."""
        wanted = in_order(parts)
        if (answer := self._decide("own", (wanted,))) is None:
            return {part: self.held[part].tensors for part in wanted}
        done, blobs = answer
        files = {part: decode(blobs[number]) for part, number in zip(wanted, done.own or (), strict=True)}
        return {part: {name: file[name] for name in self.held[part].tensors} for part, file in files.items()}  # in its order

    def late_B(self) -> int:
        """See `Host`."""
        found, self.unheard_B = self.unheard_B, 0
        return found

    def release(self, parts: Collection[str]) -> None:
        """See `Host`."""
        if parts:
            self._decide("release", (in_order(parts),), needed=False)

    def state(self) -> dict[str, Any]:
        """See `Host`; called when a checkpoint is written, so that it is known what nobody goes back to."""
        self.tails = [*self.tails, self.acked][-CHECKPOINTS:]
        return {
            "acked": self.acked,
            "tail": self.tail,
            "queue": [(command.id, command.verb, command.args) for command in self.queue],
            "held": self.held,
            "status": self.status.model_dump(),
            "costs": self.costs.state(),
            "shown": self.shown,
            "unheard": self.unheard,
            "unheard_B": self.unheard_B,
            "stale": self.stale,
            "uncollected": self.uncollected,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Host`."""
        self.queue = [Command(*row) for row in state.pop("queue")]
        self.status = Status(**state.pop("status"))
        self.costs.restore(state.pop("costs"))
        vars(self).update(state)
        self.foreseen, self.habits.last, self.tails = [], None, [GENESIS]

    def _decide(self, verb: str, args: tuple[Any, ...], needed: bool = True) -> Answer | None:
        """Write a verb into the log; its answer, if it is there already or can be asked for."""
        *before, command = commands_of(self.tail, verb, args, self.shown)
        for one in before:
            self._write(one, needed=False)
        self.shown |= versions(before)
        self.habits.learn(command)
        return self._write(command, needed)

    def _write(self, command: Command, needed: bool) -> Answer | None:
        self.tail = command.id
        if self.foreseen and self.foreseen[0][0].id == command.id:
            _, known = self.foreseen.pop(0)
            self.acked, self.status = command.id, known[0].status
            return known
        self.foreseen = []
        self.queue.append(command)
        if not needed:
            return None
        answer, _ = self._call(tuple(self.habits.likely(command)))
        self.stale = answer is None
        return answer

    def _call(
        self,
        foreseen: Sequence[Command] = (),
        meanwhile: Sequence[Command] = (),
        asked: Sequence[Task] = (),
        quiet_s: float = 0.0,
    ) -> Said:
        """Say what is decided and foreseen; nothing comes of it if nobody answers as they should.

        Raises:
            RunError: all nodes refuse for good.
        """
        if not self.meeting or self.away:
            return NOTHING
        self.told = (meanwhile[0].id, quiet_s) if meanwhile else None
        call = Call(
            run=self.run,
            after=self.acked,
            decided=tuple(self.queue),
            foreseen=tuple(foreseen),
            meanwhile=tuple(meanwhile),
            asked=tuple(asked),
            durable=self.tails[0],
            quiet_s=quiet_s,
            turn=(self.turn, self.calls),
        )
        self.calls += 1
        if (message := self.way.ask(write_call(call))) is None:
            return self._lost("no answer")
        try:
            reply, blobs = self._reader(call).read(message, call)
        except MessageError as error:
            return self._lost(str(error))
        if reply.refused is not None:
            return self._lost(printable(reply.refused), reply.kind == "for good")
        self.refused = ""
        rows = [(done, blobs) for done in reply.done]
        self._learn(call, reply)
        answer = rows[len(self.queue) - 1] if self.queue else None
        if answer is not None:
            self.acked, self.status, self.stale = self.queue[-1].id, answer[0].status, False
        self.foreseen = list(zip(call.foreseen, rows[len(self.queue) :], strict=True))
        self.queue = []
        return answer, reply.asked

    def _reader(self, call: Call) -> Answers:
        """Of replies to a call, after which the devices hold also what it sends."""
        sent = [command.args[0] for command in (*call.decided, *call.foreseen) if command.verb == "receive"]
        held = self.held | {piece.part: piece for pieces in sent for piece in pieces}
        sizes = partial(self._upload_B, held=held)
        return Answers(self.devices, self.local_steps, held, self.view, sizes, self.max_update_norm)

    def _learn(self, call: Call, reply: Reply) -> None:
        """What tasks cost, and what came of those of which nobody had told it."""
        for task, (*steps, beside) in zip(call.asked, reply.asked, strict=True):
            self.costs.learn(task, steps, beside)
        for command, done in zip((*call.decided, *call.foreseen), reply.done, strict=True):
            if command.verb == "train":
                self.costs.learn(command.args[0], done.flops or (), done.beside)
            if command.id in self.unheard:
                self.unheard.remove(command.id)
                self.unheard_B += done.peer_B

    def _lost(self, why: str, for_good: bool = False) -> Said:
        self.refused = why if for_good else ""
        if all(host.refused for host in self.others):
            raise RunError("; ".join(f"{host.link}: {host.refused}" for host in self.others))
        log.warning("warning: %s: %s; its contact is lost", self.link, why)
        self.away = why
        return NOTHING
