"""A node: the devices of one cluster, told what to do by calls, and on their own between them.

What a node does is a function of its log. What it has done beyond what was decided, it has done because it was foreseen; if
something else is decided, it goes back to a state before that and does what was decided. So nothing is done twice or left out,
whatever becomes of calls, replies, the node's process or the server's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .. import __version__
from ..errors import InputError
from ..moe.parts import Piece
from ..runs import checkpoint
from ..train.codec import encode
from ..train.host import LocalHost, Trained, Trial
from ..train.task import Task
from ..train.upload import pack
from ..writing import reason, write_whole
from .orders import (
    GENESIS,
    Call,
    Command,
    Done,
    Facts,
    MessageError,
    Reply,
    Status,
    TrialCounts,
    read_call,
    write_reply,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A command that was done, and what came of it, with its files."""

    command: Command
    done: Done
    blobs: tuple[bytes, ...]


@dataclass(frozen=True)
class Saved:
    """A state on disk: after how many steps, and which call was the first that it has not seen."""

    steps: int
    call: int
    folder: Path


class Node:
    """The devices of one cluster behind calls.

    Args:
        host: its devices, as they are before the first contact.
        run: which run they are of.
        spool: a folder of its own, in which it finds what a process before it has left.
    """

    def __init__(self, host: LocalHost, run: str, spool: Path):
        self.host, self.run, self.spool = host, run, spool
        self.base = GENESIS  # what was done before `path`
        self.path: list[Step] = []
        self.others: dict[str, Piece] = {}  # experts of other clients, as they were told
        self.meanwhile: tuple[Command, ...] = ()
        self.quiet_s = 0.0  # how long to wait for a call before that is begun with
        self.saved: list[Saved] = []
        self.calls = 0
        self.states = 0
        self.turn = (0, 0)  # of the last call that was done
        self.torn = False  # whether a command was left in the middle, so that devices are in no state at all
        (spool / "calls").mkdir(parents=True, exist_ok=True)
        self._recover()

    def handle(self, message: bytes) -> bytes:
        """Answer a call; what it cannot be answered for is said, and nothing is done then."""
        try:
            call = read_call(message)
            self._check(call)
        except MessageError as error:
            return write_reply(Reply(version=__version__, refused=str(error), kind="for good"))
        try:
            if call.hello:
                self._heal()
                return write_reply(Reply(version=__version__, facts=_facts(self.host, self._next_turn())))
            self._keep(message)
            self.turn = call.turn
            steps, asked = self._obey(call)
        except OSError as error:
            why = f"{self.spool}: {reason(error)}; make room there, or mend it"
            return write_reply(Reply(version=__version__, refused=why, kind="for now"))
        except Exception as error:  # whatever a user's data or code does, to whoever can mend it
            log.exception("a call has failed")
            return write_reply(Reply(version=__version__, refused=f"{type(error).__name__}: {error}", kind="for good"))
        return _reply(steps, asked)

    def go_on(self) -> None:
        """Do what was foreseen for the time until the next call; what cannot be done is told when it is decided."""
        commands, self.meanwhile = self.meanwhile, ()
        try:
            self._heal()
            if commands:
                self._save()
            for command in commands:
                self._do(command)
        except Exception:
            log.exception("what was foreseen cannot be done")

    def _keep(self, message: bytes) -> None:
        """Write a call down, so that it outlives a power cut, before it is obeyed."""
        path = self.spool / "calls" / f"{self.calls:08d}"
        write_whole(path, message)
        for one in (path, path.parent):
            synced = os.open(one, os.O_RDONLY)
            try:
                os.fsync(synced)
            finally:
                os.close(synced)
        self.calls += 1

    def _next_turn(self) -> int:
        """A number for a server process that says hello, larger than that of any before."""
        path = self.spool / "turn"
        last = int(path.read_text()) if path.exists() else 0
        write_whole(path, str(max(last, self.turn[0]) + 1))
        return int(path.read_text())

    def _check(self, call: Call) -> None:
        if call.run != self.run:
            raise MessageError(f"this node is set up for run {self.run}, and the call is of run {call.run}")
        if call.hello:
            return
        if call.turn < self.turn:
            raise MessageError(f"call {call.turn} came late: this node has done what call {self.turn} says")
        if self._find(call.after) is None:
            raise MessageError(
                f"this node has lost what it did up to {call.after[:8]}, or has never done it: its folder {self.spool} was "
                "changed or is another's; put it back as it was, or begin the run anew"
            )

    def _find(self, at: str) -> int | None:
        """After how many steps of the path the log was this."""
        ids = [self.base, *(step.command.id for step in self.path)]
        return ids.index(at) if at in ids else None

    def _obey(self, call: Call) -> tuple[list[Step], list[list[int]]]:
        self._heal()
        start = self._find(call.after)
        assert start is not None  # `_check` has looked
        wanted = (*call.decided, *call.foreseen)
        alike = self._alike(start, wanted)
        if alike < len(wanted) and start + alike < len(self.path):
            self._back_to(start + alike)
        for i in range(alike, len(wanted)):
            if i == len(call.decided):
                self._save()
            self._do(wanted[i])
        rest = len(wanted) + self._alike(start + len(wanted), call.meanwhile)
        if rest < len(wanted) + len(call.meanwhile) and start + rest < len(self.path):
            self._back_to(start + rest)
        self.meanwhile, self.quiet_s = call.meanwhile[rest - len(wanted) :], call.quiet_s
        end = start + len(wanted)
        steps, asked = self.path[start:end], [self._flops(task, end) for task in call.asked]
        self._forget(call.durable)
        return steps, asked

    def _flops(self, task: Task, steps: int) -> list[int]:
        """FLOPs as `Reply.asked` has them, after so many steps of the path."""
        for step in self.path[steps:]:
            if step.command.verb == "train" and step.command.args[0] == task and step.done.flops is not None:
                return [*step.done.flops, step.done.beside]
        return [*self.host.flops(task), self.host.flops_beside(task)]

    def _alike(self, start: int, wanted: Sequence[Command]) -> int:
        """How many of these were done from there on already."""
        done = [step.command.id for step in self.path[start : start + len(wanted)]]
        return next((i for i, (a, b) in enumerate(zip(done, wanted, strict=False)) if a != b.id), len(done))

    def _heal(self) -> None:
        """Out of the middle of a command, as which an error has left the devices."""
        if self.torn:
            self._back_to(len(self.path))

    def _back_to(self, steps: int) -> None:
        """To the state after so many steps: from the last that is on disk, by doing again what came after."""
        self.torn = True
        for one in self.saved:
            if one.steps > steps:
                _remove(one.folder)
        self.saved = [one for one in self.saved if one.steps <= steps]
        last = self.saved[-1]
        self._restore(last)
        for step in self.path[last.steps : steps]:
            _done(self, step.command)
        del self.path[steps:]
        self.torn = False

    def _restore(self, saved: Saved) -> None:
        found = checkpoint.load(saved.folder, remedy="begin the run anew")
        assert found is not None  # it was written here
        self._take(found[1])

    def _take(self, tree: dict[str, Any]) -> None:
        self.host.restore(tree["host"])
        self.others = tree.get("others", {})

    def _save(self) -> None:
        """A state to go back to. Where the disk has no room for it, one before it will do, with more to do again."""
        if self.saved and self.saved[-1].steps == len(self.path):
            return
        at = self.path[-1].command.id if self.path else self.base
        folder = self.spool / "states" / f"{self.states:08d}"
        try:
            checkpoint.save(folder, 1, {"host": self.host.state(), "others": self.others, "at": at, "call": self.calls})
        except (OSError, SafetensorError) as error:
            if not self.saved:
                raise InputError(f"{self.spool}: {reason(error)}; make room there, or mend it") from error
            log.warning("warning: %s: %s; make room there, or mend it", folder, reason(error))
            return
        self.states += 1
        self.saved.append(Saved(len(self.path), self.calls, folder))

    def _forget(self, durable: str) -> None:
        """Steps, states and calls before one that is never asked for again; of states the last before that is kept."""
        found = self._find(durable)
        if found is None:
            return
        kept = max((i for i, one in enumerate(self.saved) if one.steps <= found), default=0)
        if kept == 0:
            return
        for one in self.saved[:kept]:
            _remove(one.folder)
        first = self.saved[kept]
        self.base = self.path[first.steps - 1].command.id if first.steps else self.base
        self.path = self.path[first.steps :]
        self.saved = [Saved(one.steps - first.steps, one.call, one.folder) for one in self.saved[kept:]]
        for path in (self.spool / "calls").glob("[0-9]*"):
            if int(path.name) < first.call - 1:  # the call under way may have made it
                path.unlink()

    def _recover(self) -> None:
        """What a process before this one has done, it does again from the first state that is kept.

        A state or a call that a killed process left half-written is none; what is missing then, `_check` tells the server.
        """
        states = self.spool / "states"
        self.states = 1 + max((int(path.name) for path in states.glob("[0-9]*")), default=-1)
        found = next(filter(None, map(self._read, sorted(states.glob("[0-9]*")))), None)
        if found is not None:
            folder, tree = found
            self._take(tree)
            self.base, self.calls = tree["at"], tree["call"]
            self.saved = [Saved(0, tree["call"], folder)]
        for path in states.glob("*"):
            if found is None or path != folder:
                _remove(path)
        if found is None:
            self._save()
        for path in sorted((self.spool / "calls").glob("[0-9]*")):
            self.calls = max(self.calls, int(path.name) + 1)
            self._again(path)

    def _read(self, folder: Path) -> tuple[Path, Any] | None:
        try:
            found = checkpoint.load(folder, remedy="begin the run anew")
            return None if found is None else (folder, found[1])
        except InputError as error:
            log.warning("warning: %s", error)
            return None

    def _again(self, path: Path) -> None:
        """A call of a process before this one."""
        try:
            call = read_call(path.read_bytes())
        except MessageError as error:
            log.warning("warning: %s: %s", path, error)
            return
        self.turn = max(self.turn, call.turn)
        if (rest := self._rest(call)) is not None:
            try:
                self._obey(rest)
            except Exception:  # as it failed before; it is told when it is called for again
                log.exception("%s cannot be done again", path)
            self.go_on()

    def _rest(self, call: Call) -> Call | None:
        """What of a call comes after the state in which this process began; None if it is of before that."""
        if self._find(call.after) is not None:
            return call
        kinds = (call.decided, call.foreseen, call.meanwhile)
        ids = [command.id for commands in kinds for command in commands]
        if self.base not in ids:
            return None
        done = set(ids[: ids.index(self.base) + 1])
        left = [tuple(command for command in commands if command.id not in done) for commands in kinds]
        return replace(call, after=self.base, decided=left[0], foreseen=left[1], meanwhile=left[2])

    def _do(self, command: Command) -> None:
        self.torn = True
        done, blobs = _done(self, command)
        self.torn = False
        self.path.append(Step(command, done, tuple(blobs)))


def _remove(folder: Path) -> None:
    """Remove a state, at once under its name: a process that is killed leaves none that is half there."""
    with suppress(FileNotFoundError):
        checkpoint.remove(folder.rename(folder.with_name(f"gone-{folder.name}")))


def _reply(steps: Sequence[Step], asked: list[list[int]]) -> bytes:
    blobs: list[bytes] = []
    rows = []
    for step in steps:
        moved = {
            name: [len(blobs) + number for number in numbers]
            for name in ("uploads", "own")
            if (numbers := getattr(step.done, name)) is not None
        }
        rows.append(step.done.model_copy(update=moved))
        blobs += step.blobs
    return write_reply(Reply(version=__version__, done=rows, asked=asked), blobs)


def _done(node: Node, command: Command) -> tuple[Done, list[bytes]]:
    """Do what a command says, and tell what came of it."""
    host = node.host
    blobs: list[bytes] = []
    facts: dict[str, Any] = {}
    match command.verb:
        case "train":
            task, rounds, round_s, names = command.args
            peers = None if names is None else {part: node.others[part] for part in names}
            facts = {"flops": host.flops(task), "beside": host.flops_beside(task)}
            facts |= _trained(host.train(task, rounds, round_s, peers))
        case "snapshot":
            device, parts = command.args
            updates = host.snapshot(device, parts)
            whose = host.group[device]
            blobs = [pack(update, whose.travelling(update.piece.part), whose.codec) for update in updates]
            facts = {"uploads": list(range(len(blobs)))}
        case "delivered":
            rows, parts = command.args
            host.delivered(rows, parts)
        case "trial":
            facts = {"trials": [_trial(one) for one in host.trial(*command.args)]}
        case "own":
            (parts,) = command.args
            found = host.own(parts)
            blobs = [encode(found[part], "exact") for part in parts]
            facts = {"own": list(range(len(blobs)))}
        case "others":
            node.others = node.others | {piece.part: piece for piece in command.args[0]}
        case "activations_B":
            facts = {"number": host.activations_B(*command.args)}
        case "receive" | "release":
            getattr(host, command.verb)(*command.args)
        case other:
            raise MessageError(f"no verb of a node: {other!r}")
    return Done(id=command.id, status=_status(host), **facts), blobs


def _facts(host: LocalHost, turn: int) -> Facts:
    return Facts(
        turn=turn,
        devices=list(host.devices),
        samples=list(host.samples),
        local_steps=host.local_steps,
        status=_status(host),
    )


def _status(host: LocalHost) -> Status:
    group = list(host.group.values())
    untouched = {part: piece.version for part, piece in group[0].held.items() if all(device.holds(piece) for device in group)}
    return Status(untouched=untouched, pending={device.name: dict(device.pending) for device in group})


def _trained(trained: Trained) -> dict[str, Any]:
    return {"steps": trained.steps, "peer_B": trained.peer_B, "broken": trained.broken, "loss": trained.loss}


def _trial(trial: Trial) -> TrialCounts:
    return TrialCounts(counts_LM=trial.counts_LM.tolist(), tokens=trial.tokens, samples_B=trial.samples_B)
