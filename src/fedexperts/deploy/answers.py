"""What a server believes of a node's reply: what could be an answer to its call, and nothing else.

A node may be anybody's. Its reply is measured before it is read, and looked at command by command before anything is made of
it; what is wrong with one is a `MessageError`, which costs the node its contact. Uploads are the gate's business
(`protocol.admission`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from safetensors import SafetensorError

from ..errors import RunError
from ..moe.parts import BESIDE, MAX_UPDATE_NORM, Piece, Tensors
from ..moe.view import View
from ..protocol.admission import differs, quoted
from ..train.codec import decode, payload_B
from ..train.holding import merged
from ..train.host import Host
from ..train.message import WireError
from ..train.task import Update
from ..train.upload import MOST_HEAD_B, Promise, arrived, opened
from ..train.wire import Codec
from .orders import Call, Command, Done, Facts, MessageError, Reply, Status, read_reply

ROW_B = 256
"""Of JSON, around a name or a number."""
MOST_SAID = 400
"""Characters of what a node says that are repeated."""


@dataclass(frozen=True)
class Answers:
    """Reads replies of a node.

    Args:
        devices: their names.
        local_steps: of a round.
        held: what the devices hold, as it was sent.
        view: the server's model.
        upload_B: bytes of an upload of a part.
        max_update_norm: how far a part that stays there may lie from what was sent, see `Admission`.
    """

    devices: Sequence[str]
    local_steps: int
    held: Mapping[str, Piece]
    view: View
    upload_B: Callable[[str], int]
    max_update_norm: float = MAX_UPDATE_NORM

    def read(self, message: bytes, call: Call) -> tuple[Reply, list[bytes]]:
        """The reply to a call, with its files.

        Raises:
            MessageError: it cannot be that; never anything else.
        """
        wanted = (*call.decided, *call.foreseen)
        most_B = sum(map(self._most_B, wanted)) + ROW_B * (1 + len(call.asked) * (1 + len(self.devices))) + MOST_HEAD_B
        if len(message) > most_B:
            raise MessageError(f"a reply of {len(message):,} B, where at most {most_B:,} could come")
        reply, blobs = read_reply(message)
        if reply.refused is not None:
            return reply, []
        if [done.id for done in reply.done] != [command.id for command in wanted]:
            raise MessageError("the node's reply is to another call")
        if [len(row) for row in reply.asked] != [len(self.devices) + 1] * len(call.asked):
            raise MessageError("the node's reply does not say how much work a task is, for each of its devices")
        for done, command in zip(reply.done, wanted, strict=True):
            check_status(done.status, self.devices, self.held)
            self._check(done, command, blobs)
        return reply, blobs

    def _most_B(self, command: Command) -> int:
        """What an answer to a command weighs at most."""
        names_B = sum(map(len, self.held)) + sum(map(len, self.devices))
        status_B = (2 + 2 * len(self.devices)) * (names_B + ROW_B * (len(self.held) + len(self.devices)))
        match command.verb:
            case "snapshot":
                return status_B + sum(self.upload_B(part) + MOST_HEAD_B for part in command.args[1])
            case "own":
                pieces = [self.held[part] for part in command.args[0]]
                return status_B + sum(payload_B(piece.tensors, "exact") + MOST_HEAD_B for piece in pieces)
            case "trial":
                rows, columns = self._counts_LM
                return status_B + len(self.devices) * ROW_B * (1 + rows * columns)
        return status_B

    @property
    def _counts_LM(self) -> tuple[int, int]:
        return len(self.view.blocks), self.view.experts

    def _check(self, done: Done, command: Command, blobs: Sequence[bytes]) -> None:
        """Raises: MessageError, where it is no answer to this verb."""
        numbers = [*(done.uploads or ()), *(done.own or ())]
        if any(number >= len(blobs) for number in numbers) or len(set(numbers)) != len(numbers):
            raise MessageError("the node's reply names files that are not there, or one twice")
        match command.verb:
            case "train":
                task, rounds, *_ = command.args
                good = done.steps is not None and done.steps <= rounds * self.local_steps * len(self.devices)
                good &= done.flops is not None and len(done.flops) == len(self.devices)
                good &= task.peers or not done.peer_B
                good &= set(done.broken) == set(self.devices) and all(
                    set(parts) <= task.parts for parts in done.broken.values()
                )
            case "snapshot":
                good = done.uploads is not None
            case "trial":
                good = done.trials is not None and len(done.trials) == len(self.devices)
                rows, columns = self._counts_LM
                for trial in done.trials or ():
                    good &= [len(row) for row in trial.counts_LM] == [columns] * rows
                    good &= trial.tokens > 0 and all(count <= trial.tokens for row in trial.counts_LM for count in row)
            case "own":
                parts = command.args[0]
                good = done.own is not None and len(done.own) == len(parts)
                for part, number in zip(parts, done.own or (), strict=False):
                    check_tensors(blobs[number], self.held[part], self.max_update_norm)
            case "activations_B":
                good = done.number is not None
            case _:
                good = True
        if not good:
            raise MessageError(f"the node says that it has done {command.verb}, and what came of it cannot be")


def read_upload(
    device: str, message: bytes, promises: Mapping[str, Promise], held: Mapping[str, Piece], view: View, codec: Codec
) -> Update:
    """An upload as the server has it; what cannot be read is for the gate to refuse."""
    try:
        update, coded = opened(message, promises)
    except WireError as error:
        return Update(device, Piece("", -1, {}), 0, 0, len(message), fault=f"cannot be read: {error}")
    part, version = update.piece.part, update.piece.version
    if version != held[part].version:
        return update  # which the gate refuses, as it stands on what the device does not hold
    update = arrived(update, coded, view.start(part, held[part].tensors), codec)
    return replace(update, piece=Piece(part, version, merged(view, held[part], update.piece.tensors)))


def check_status(status: Status, devices: Collection[str], parts: Collection[str]) -> None:
    """Raises: MessageError, where it is that of other devices, or of parts that are not."""
    if set(status.pending) != set(devices):
        raise MessageError(f"the node speaks for devices {quoted(sorted(status.pending))}; its devices are {sorted(devices)}")
    if strange := {part for names in (status.untouched, *status.pending.values()) for part in names} - set(parts):
        raise MessageError(f"the node speaks of part {quoted(min(strange))}, which the model does not have")


def check_tensors(file: bytes, piece: Piece, max_update_norm: float) -> None:
    """Raises: MessageError, where a file does not hold what a part could be."""
    try:
        tensors: Tensors = decode(file)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise MessageError(f"the node's file of {piece.part} cannot be read ({quoted(error)})") from error
    if fault := differs(tensors, piece, max_update_norm):
        raise MessageError(f"the node's file of {piece.part} {fault}")


def introduced(message: bytes | None, link: str, known: Host, parts: Collection[str]) -> Facts:
    """What a node says of itself to `hello`, which is as the server's records say.

    Raises:
        RunError: nobody is there, or it is not so.
    """
    if message is None:
        raise RunError(f"{link}: its node does not answer; start it, and look into its log")
    try:
        reply, _ = read_reply(message)
        if reply.facts is None:
            raise MessageError(printable(reply.refused or "its node does not say what its devices are; look into its log"))
        for name in ("devices", "samples", "local_steps"):
            found, right = getattr(reply.facts, name), getattr(known, name)
            if found != (list(right) if isinstance(right, tuple) else right):
                raise MessageError(
                    f"its node has {name} = {quoted(found)}, and the scenario {right}; give it this scenario's data"
                )
        check_status(reply.facts.status, known.devices, {*parts, *BESIDE})
    except MessageError as error:
        raise RunError(f"{link}: {error}") from error
    return reply.facts


def printable(text: str) -> str:
    """What a node has said, for people and their terminals."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MOST_SAID])
