"""Topics by their keys."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

from ..drive.classes import DeviceClass
from ..errors import InputError, unknown_key
from ..events import EVENTS
from . import keys
from .ledger import ledger
from .topic import Topic

LEDGER = Topic("ledger", "What ledger.jsonl says: its events, field by field.", title="ledger.jsonl", type="table of events")


def overview() -> Topic:
    """The tables and the keys beside them, without what is in them."""
    parts = (*(keys.brief(name).short() for name in keys.names()), LEDGER)
    return Topic("", "A scenario: a TOML file with everything that a run depends on.", title="SCENARIO.toml", parts=parts)


def find(key: str) -> Topic:
    """The topic of a key such as ``train``, ``train.lr_expert`` or ``cluster[0].data``, as messages name it.

    Raises:
        InputError: there is none, with the nearest.
    """
    first, *rest = re.sub(r"\[\d+\]", "", key.strip()).split(".")
    if first == "cluster" and rest[:1] == ["task"] and rest[1:]:
        first, rest = "task", rest[1:]
    if first == "ledger":
        topic = ledger()
    elif first in keys.names():
        topic = keys.full(first)
        if first == "device" and len(rest) > 1 and rest[0] not in (choice.name for choice in topic.choices):
            rest = rest[1:]  # a class of one's own
    else:
        owners = [f"{name}.{first}" for name in keys.names() if first in (part.name for part in keys.full(name).parts)]
        owners += [f"ledger.{first}"] if first in EVENTS else []
        if owners:
            raise InputError(f"{first}: is no table; did you mean {' or '.join(owners)}?")
        raise InputError(unknown_key(first or "''", first, [*keys.names(), "ledger"]))
    try:
        return topic.inner(rest)
    except InputError as error:
        if first != "device" or len(rest) != 1:
            raise
        needed = [field.name for field in fields(DeviceClass) if field.default is MISSING and field.name != "name"]
        raise InputError(
            f"{error}; a class of your own is a table of a scenario, [device.{rest[0]}], with at least {', '.join(needed)}"
        ) from error
