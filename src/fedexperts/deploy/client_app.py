"""The ClientApp: it hands calls to the worker of its node. It starts anew for each, so it loads nothing but Flower."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from .hand import hand

app = ClientApp()
BYTES = "bytes"
WORKER_S = 24 * 3600.0
"""A worker that trains answers late, and then for the next call."""


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Which link this node is, as whoever started it says, and what its devices are."""
    content = _answer(message, context)
    content["node"] = ConfigRecord({"link": str(context.node_config["link"])})
    return _reply(content, message)


@app.query("call")
def call(message: Message, context: Context) -> Message:
    """What the worker says; an empty reply if there is none."""
    return _reply(_answer(message, context), message)


def _reply(content: RecordDict, message: Message) -> Message:
    """With the times of the message: by a clock that is ahead of the server's it would be refused as too old or too late."""
    reply = Message(content, reply_to=message)
    reply.metadata.created_at, reply.metadata.ttl = message.metadata.created_at, message.metadata.ttl
    return reply


def _answer(message: Message, context: Context) -> RecordDict:
    folder = Path(str(context.node_config["folder"]))
    return packed(hand(folder, unpacked(message.content) or b"", WORKER_S) or b"")


def packed(data: bytes) -> RecordDict:
    """Bytes as Flower carries them: in chunks, each of which is tried again where a link fails."""
    return RecordDict({BYTES: ArrayRecord({BYTES: Array("uint8", (len(data),), BYTES, data)})})


def unpacked(content: RecordDict) -> bytes | None:
    """Inverse of `packed`; None where it is something else. Nothing is made of it here, as it may be anybody's."""
    record = content.get(BYTES)
    array = record.get(BYTES) if isinstance(record, ArrayRecord) else None
    return array.data if array is not None else None
