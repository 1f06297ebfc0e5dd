"""The devices of a cluster on a node elsewhere, as a server's protocols, links and accounts ask them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..errors import InputError, RunError
from ..moe.parts import Piece, Tensors, in_order, is_expert
from ..moe.view import View
from ..train.codec import decode
from ..train.holding import merged
from ..train.host import Ahead, Host, Trained, Trial
from ..train.member import NetworkClient
from ..train.message import WireError
from ..train.task import Experts, Task, Update
from ..train.upload import Promise, arrived, opened, promised
from ..train.wire import Codec
from .answers import Answers, introduced, printable
from .habits import Habits
from .orders import GENESIS, Call, Command, Done, MessageError, Status, following, said_hello, write_call

log = logging.getLogger(__name__)


class _UnknownError(Exception):
    """Only the devices know, and they are not to be asked now."""


class Way(Protocol):
    """How calls reach a node.

    Attributes:
        quiet_s: after how long without a call a node may take a contact for lost.
    """

    quiet_s: float

    def begin(self, start_s: float, end_s: float) -> None:
        """A contact begins by the plan, and ends at ``end_s``."""

    def ask(self, message: bytes) -> bytes | None:
        """Carry a call while there is contact; the reply, or None if none has come."""

    def end(self) -> None:
        """The contact is over."""


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
    ):
        self.link, self.way, self.run, self.view, self.codec = link, way, run, view, codec
        self.known, self.held = known, dict(model)
        self.acked = self.tail = GENESIS  # what the node has done for certain, and what is decided
        self.queue: list[Command] = []  # what lies between the two
        self.foreseen: list[tuple[Command, Answer]] = []  # done there, and not decided
        self.measured: dict[str, list[int]] = {}  # FLOPs of a step, by kind of task
        self.beside: dict[str, int] = {}  # and beside its steps
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
        """See `Host`; a node has made θ_0 itself."""
        self.held = dict(model)

    def join(self, client: NetworkClient) -> None:
        """See `Host`.

        Raises:
            InputError: always; `links_of` says so before anything is started.
        """
        raise InputError(
            'protocol = "networked": its clients ask each other while they train, and nodes cannot; run it in simulation, and '
            "serve what it trained with fedexperts peer"
        )

    def meet(self, start_s: float, end_s: float) -> None:
        """See `Host`."""
        self.meeting, self.away = True, ""
        self.way.begin(start_s, end_s)
        if self.stale:
            self._call(self.habits.likely(self.queue[-1]))

    def foresee(self, verb: str, args: tuple[Any, ...], ahead: Ahead) -> None:
        """See `Host`."""
        command = following(self.tail, verb, args)
        if self.foreseen and self.foreseen[0][0].id == command.id:
            return
        self.foreseen = []
        commands = (command, *self.habits.likely(command))
        ends = self.habits.ends(commands[-1])
        self._call(commands, self._meanwhile(commands[-1].id, ahead), quiet_s=0.0 if ends else self.way.quiet_s)

    def _meanwhile(self, before: str, ahead: Ahead, asks: bool = False) -> tuple[Command, ...]:
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
        command = following(before, "train", (*goes_on, {}))
        return command, *self.habits.likely(command)

    def part(self, ahead: Ahead) -> None:
        """See `Host`; a node that does not hear of it does what it was told before, and goes back later."""
        if self.meeting and not self.away:
            self.habits.over()
            meanwhile = self._meanwhile(self.tail, ahead, asks=True)
            asked = [command.args[0] for command in meanwhile[:1] if _kind(command.args[0]) not in self.measured]
            if asked or (meanwhile and (meanwhile[0].id, 0.0) != self.told):
                _, found = self._call(meanwhile=meanwhile, asked=asked)
                self.measured |= dict(zip(map(_kind, asked), found, strict=False))
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

    def train(self, task: Task, rounds: int, round_s: float, peers: Experts) -> Trained:
        """See `Host`; of devices that are away the steps are known."""
        self.uncollected |= task.parts - task.keeps
        answer = self._decide("train", (task, rounds, round_s, dict(peers)))
        if answer is None:
            return Trained(rounds * self.local_steps * len(self.devices), 0, {device: [] for device in self.devices})
        done, _ = answer
        assert done.steps is not None  # `Answers` has looked
        assert done.flops is not None
        self.measured.setdefault(_kind(task), done.flops)
        self.beside[_kind(task)] = done.beside
        return Trained(done.steps, done.peer_B, done.broken, done.loss)

    def flops(self, task: Task) -> list[int]:
        """See `Host`; zeros as long as nobody could be asked."""
        if _kind(task) not in self.measured:
            if self.guessing:
                raise _UnknownError
            _, found = self._call(asked=(task,))
            if not found:
                log.warning("warning: %s: is away, and has not told how much work its task is; joules leave it out", self.link)
                return [0] * len(self.devices)
            self.measured[_kind(task)] = found[0]
        return self.measured[_kind(task)]

    def flops_beside(self, task: Task) -> int:
        """See `Host`."""
        return self.beside.get(_kind(task), 0)

    def activations_B(self, task: Task) -> int:
        """See `Host`."""
        answer = self._decide("activations_B", (task,))
        return answer[0].number or 0 if answer else 0

    def upload_B(self, part: str) -> int:
        """See `Host`."""
        return self.known.upload_B(part)

    def snapshot(self, device: str, parts: Collection[str]) -> list[Update]:
        """See `Host`; nothing of devices that are away."""
        wanted = in_order(set(parts) & set(self.status.pending.get(device, {})))
        answer = self._decide("snapshot", (device, wanted)) if wanted else None
        if answer is None:
            return []
        done, blobs = answer
        promises = {part: promised(self._start(part), self.codec) for part in wanted}
        return [self._update(device, promises, blobs[number]) for number in done.uploads or ()]

    def _start(self, part: str) -> Tensors:
        return self.view.start(part, self.held[part].tensors)

    def _update(self, device: str, promises: Mapping[str, Promise], message: bytes) -> Update:
        """An upload as the server has it; what cannot be read is for the gate to refuse."""
        try:
            update, coded = opened(message, promises)
        except WireError as error:
            return Update(device, Piece("", -1, {}), 0, 0, len(message), fault=f"cannot be read: {error}")
        piece = update.piece
        if piece.version != self.held[piece.part].version:
            return update  # which the gate refuses, as it stands on what the device does not hold
        update = arrived(update, coded, self._start(piece.part), self.codec)
        tensors = merged(self.view, self.held[piece.part], update.piece.tensors)
        return replace(update, piece=Piece(piece.part, piece.version, tensors))

    def delivered(self, updates: Sequence[Update], parts: Collection[str]) -> None:
        """See `Host`."""
        bare = [replace(update, piece=Piece(update.piece.part, update.piece.version, {})) for update in updates]
        self._decide("delivered", (bare, in_order(parts)), needed=False)
        pending = {device: dict(rounds) for device, rounds in self.status.pending.items()}
        for update in updates:
            part, rounds = update.piece.part, pending[update.device]
            if update.piece.version == self.held[part].version and part in rounds:
                rounds[part] -= update.rounds
                if rounds[part] <= 0:
                    del rounds[part]
        self.uncollected -= set(parts)
        self.status = self.status.model_copy(update={"pending": pending})

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

    def own(self, part: str) -> tuple[Tensors, Tensors | None]:
        """See `Host`; as they were sent, where the devices are away."""
        answer = self._decide("own", (part,))
        if answer is None or not answer[0].own:
            return self.held[part].tensors, None
        held, *trained = [decode(answer[1][number]) for number in answer[0].own]
        return held, trained[0] if trained else None

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
            "measured": self.measured,
            "beside": self.beside,
            "stale": self.stale,
            "uncollected": self.uncollected,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Host`."""
        self.queue = [Command(*row) for row in state.pop("queue")]
        self.status = Status(**state.pop("status"))
        vars(self).update(state)
        self.foreseen, self.habits.last, self.tails = [], None, [GENESIS]

    def _decide(self, verb: str, args: tuple[Any, ...], needed: bool = True) -> Answer | None:
        """Write a command into the log; its answer, if it is there already or can be asked for."""
        command = following(self.tail, verb, args)
        self.habits.learn(command)
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
            answers = Answers(self.devices, self.local_steps, self.held, self.view, self.known.upload_B)
            reply, blobs = answers.read(message, call)
        except MessageError as error:
            return self._lost(str(error))
        if reply.refused is not None:
            return self._lost(printable(reply.refused), reply.kind == "for good")
        self.refused = ""
        rows = [(done, blobs) for done in reply.done]
        answer = rows[len(self.queue) - 1] if self.queue else None
        if answer is not None:
            self.acked, self.status, self.stale = self.queue[-1].id, answer[0].status, False
        self.foreseen = list(zip(call.foreseen, rows[len(self.queue) :], strict=True))
        self.queue = []
        return answer, reply.asked

    def _lost(self, why: str, for_good: bool = False) -> Said:
        self.refused = why if for_good else ""
        if all(host.refused for host in self.others):
            raise RunError("; ".join(f"{host.link}: {host.refused}" for host in self.others))
        log.warning("warning: %s: %s; its contact is lost", self.link, why)
        self.away = why
        return NOTHING


def _kind(task: Task) -> str:
    """Tasks whose steps cost the same, see `LocalHost.flops`."""
    shared = in_order(part for part in task.parts if not is_expert(part))
    return repr((len(task.parts) - len(shared), shared, task.route is not None, task.goal))
