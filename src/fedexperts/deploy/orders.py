"""What travels between a server and a node: calls down, replies up; JSON and safetensors, and nothing else.

A server decides what a node does, one command after another: its *log*. Each command has an id that stands for the whole log
up to it, so that two ends that name one id have done the same. Beside what is decided, a call holds what is foreseen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from .. import __version__
from ..errors import InputError
from ..moe.parts import Piece, in_order
from ..protocol.admission import quoted
from ..runs.checkpoint import Packer, aligned, unpack

SAME = "install the same on both"
GENESIS = "genesis"
"""The id of a log in which nothing stands yet."""
LENGTH_B = 8


class MessageError(InputError):
    """A message that is none of ours, or of another version."""


@dataclass(frozen=True)
class Command:
    """A verb of a Host, with what it is asked; ``id`` stands for the log up to it and with it."""

    id: str
    verb: str
    args: tuple[Any, ...]


def following(before: str, verb: str, args: tuple[Any, ...]) -> Command:
    """The command that comes after a log."""
    digests: list[str] = []
    document = json.dumps(Packer().pack(_named(args, digests)))
    text = "\n".join((before, verb, document, *digests))
    return Command(hashlib.sha256(text.encode()).hexdigest()[:32], verb, args)


def commands_of(before: str, verb: str, args: tuple[Any, ...], shown: Mapping[str, int]) -> list[Command]:
    """What a verb of a Host is in the log: experts of others go down once, before the first order that names them.

    Args:
        before: the log up to then.
        verb, args: as `Host` has them.
        shown: of which experts of others the log has which version.
    """
    if verb != "train":
        return [following(before, verb, args)]
    *order, peers = args
    fresh = [piece for part, piece in (peers or {}).items() if shown.get(part) != piece.version]
    first = [following(before, "others", (fresh,))] if fresh else []
    names = None if peers is None else in_order(peers)
    return [*first, following(first[0].id if first else before, "train", (*order, names))]


def versions(commands: Iterable[Command]) -> dict[str, int]:
    """Of experts of others that commands bring, which version."""
    return {piece.part: piece.version for one in commands if one.verb == "others" for piece in one.args[0]}


def _named(value: Any, digests: list[str]) -> Any:
    """The same with pieces by their digest, which they keep."""
    match value:
        case Piece():
            digests.append(value.digest)
            return Piece(value.part, value.version, {})
        case list() | tuple():
            return [_named(one, digests) for one in value]
        case dict():
            return {key: _named(one, digests) for key, one in value.items()}
    return value


@dataclass(frozen=True)
class Call:
    """What a server says to a node.

    Attributes:
        run: which run this is, so that a node of another refuses.
        after: what the node has done for certain.
        decided: what it is to do after that, whatever it has done instead.
        foreseen: what will probably come next; it is answered with the rest.
        meanwhile: what will probably come when the contact is over; done after the reply, answered when decided.
        quiet_s: after how long without a call the contact counts as over.
        asked: FLOPs of these tasks, as they are after ``foreseen``.
        hello: whether the node is to say what its devices are; nothing else is looked at then.
        durable: nothing before this will be asked for again.
        turn: which server process calls, by the number that the node has given it, and which of its calls this is; one that
            comes after a later one is not done any more.
    """

    run: str
    after: str
    decided: tuple[Command, ...]
    foreseen: tuple[Command, ...] = ()
    meanwhile: tuple[Command, ...] = ()
    asked: tuple[Any, ...] = ()
    durable: str = GENESIS
    quiet_s: float = 0.0
    hello: bool = False
    turn: tuple[int, int] = (0, 0)


def write_call(call: Call) -> bytes:
    """As bytes."""
    packer = Packer()
    fields = {
        "run": call.run,
        "after": call.after,
        "durable": call.durable,
        "quiet_s": call.quiet_s,
        "hello": call.hello,
        "turn": call.turn,
        "asked": packer.pack(list(call.asked)),
        **{
            kind: [{"id": c.id, "verb": c.verb, "args": packer.pack(list(c.args))} for c in getattr(call, kind)]
            for kind in ("decided", "foreseen", "meanwhile")
        },
    }
    return frame({"version": __version__, **fields}, [save(packer.tensors)])


def said_hello(run: str) -> bytes:
    """A call that asks a node what its devices are."""
    return write_call(Call(run, GENESIS, (), hello=True))


def read_call(message: bytes) -> Call:
    """Inverse of `write_call`.

    Raises:
        MessageError: it is none, or from another version of this package.
    """
    header, blobs = unframe(message)
    if (theirs := header.get("version")) != __version__:
        raise MessageError(f"the server has fedexperts {quoted(theirs)}, and this node {__version__}; {SAME}")
    try:
        tensors = aligned(load(blobs[0]))

        def commands(kind: str) -> tuple[Command, ...]:
            rows = [(row["id"], row["verb"], tuple(unpack(row["args"], tensors))) for row in header[kind]]
            return tuple(Command(*row) for row in rows)

        return Call(
            run=header["run"],
            after=header["after"],
            decided=commands("decided"),
            foreseen=commands("foreseen"),
            meanwhile=commands("meanwhile"),
            asked=tuple(unpack(header["asked"], tensors)),
            durable=header["durable"],
            quiet_s=header["quiet_s"],
            hello=header["hello"],
            turn=(int(header["turn"][0]), int(header["turn"][1])),
        )
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise MessageError(f"the server's message cannot be read ({error!r})") from error


class Strict(BaseModel):
    """Nothing but what is declared, of the types that are declared."""

    model_config = ConfigDict(strict=True, extra="forbid")


Count = Annotated[int, Field(ge=0, le=2**53)]
Loss = Annotated[float, Field(allow_inf_nan=False)]
"""Below 0 it may be with FedSC's contrast, and with a local loss of a user's own."""


class Status(Strict):
    """What a node's devices have after a command.

    Attributes:
        untouched: parts that all devices hold as they came, and their version.
        pending: by device the parts that it has trained and not delivered, and the local rounds of each.
    """

    untouched: dict[str, Count]
    pending: dict[str, dict[str, Count]]

    def after_training(self, parts: Collection[str], sent: Collection[str], rounds: int) -> Status:
        """After an order of which nobody has told what came of it; ``sent`` are those parts that do not stay there."""
        owed = self.pending.items()
        pending = {name: {**rows, **{part: rows.get(part, 0) + rounds for part in sent}} for name, rows in owed}
        return Status(untouched={part: n for part, n in self.untouched.items() if part not in parts}, pending=pending)

    def after_delivery(self, delivered: Iterable[tuple[str, str, int]]) -> Status:
        """After these rounds, of devices and parts, have arrived."""
        pending = {device: dict(rounds) for device, rounds in self.pending.items()}
        for device, part, rounds in delivered:
            if (left := pending[device].pop(part, 0) - rounds) > 0:
                pending[device][part] = left
        return Status(untouched=self.untouched, pending=pending)


class TrialCounts(Strict):
    """A `Trial`."""

    counts_LM: list[list[Count]]
    tokens: Count
    samples_B: Count


class Done(Strict):
    """What came of a command: that field is set which its verb gives.

    Attributes:
        steps, peer_B, broken, loss: as `Trained`.
        flops, beside: of a step of the task and beside its steps, before it was trained.
        uploads: of a snapshot, the blob of each update, see `train.upload`.
        trials: of a trial pass.
        own: blobs of parts as the device has them, in the order in which they were asked for.
        number: of a verb that says how many.
    """

    id: str
    status: Status
    steps: Count | None = None
    peer_B: Count = 0
    broken: dict[str, list[str]] = {}
    loss: Loss | None = None
    flops: list[Count] | None = None
    beside: Count = 0
    uploads: list[Count] | None = None
    trials: list[TrialCounts] | None = None
    own: list[Count] | None = None
    number: Count | None = None


class Facts(Strict):
    """What a server must know of a node's devices before the first contact; ``turn`` is its number there, see `Call`."""

    turn: Count
    devices: list[str]
    samples: list[Count]
    local_steps: Count
    status: Status


class Reply(Strict):
    """What a node says: what it has done, or why not.

    Attributes:
        done: of each command that was decided or foreseen, in order.
        asked: FLOPs of each task that was asked for: of a step, by device, and beside its steps.
        facts: where that was asked.
        refused: why nothing was done, in words for a person.
        kind: whether a refusal is for good, as that of another run, or until something there is mended, as a full disk.
    """

    version: str
    done: list[Done] = []
    asked: list[list[Count]] = []
    facts: Facts | None = None
    refused: str | None = None
    kind: Literal["for good", "for now"] | None = None


def write_reply(reply: Reply, blobs: Sequence[bytes] = ()) -> bytes:
    """As bytes."""
    return frame(reply.model_dump(exclude_defaults=True), blobs)


def read_reply(message: bytes) -> tuple[Reply, list[bytes]]:
    """Inverse of `write_reply`, from somebody who is not trusted.

    Raises:
        MessageError: it is none.
    """
    header, blobs = unframe(message)
    if (theirs := header.get("version")) != __version__ and header.get("kind") != "for good":
        raise MessageError(f"the node has fedexperts {quoted(theirs)}, and the server {__version__}; {SAME}")
    try:
        return Reply.model_validate(header), blobs
    except ValidationError as error:
        first = error.errors()[0]
        raise MessageError(f"the node's reply has {quoted('.'.join(map(str, first['loc'])))}: {first['msg']}") from error


def frame(header: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
    """A header of JSON, whose length comes first, and files after it, whose lengths stand in it."""
    text = json.dumps({**header, "blobs_B": [len(blob) for blob in blobs]}, separators=(",", ":")).encode()
    return b"".join((len(text).to_bytes(LENGTH_B, "little"), text, *blobs))


def unframe(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Inverse of `frame`.

    Raises:
        MessageError: lengths do not add up, or the header is no JSON object.
    """
    size = int.from_bytes(message[:LENGTH_B], "little")
    if len(message) < LENGTH_B or size > len(message) - LENGTH_B:
        raise MessageError(f"a message of {len(message)} B ends before its header of {size} B does")
    try:
        header = json.loads(message[LENGTH_B : LENGTH_B + size])
        sizes = header.pop("blobs_B")
    except (ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        raise MessageError(f"a message whose header is not ours ({error!r})") from error
    if not isinstance(header, dict) or not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
        raise MessageError("a message whose header does not say how long its files are")
    if sum(sizes) != len(message) - LENGTH_B - size:
        raise MessageError(f"a message with {len(message) - LENGTH_B - size} B of files, whose header says {sum(sizes)} B")
    blobs, at = [], LENGTH_B + size
    for one in sizes:
        blobs.append(message[at : at + one])
        at += one
    return header, blobs
