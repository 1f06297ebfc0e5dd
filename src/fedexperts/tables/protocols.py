"""The protocols by name, and what of a kind they are."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from ..own import OWN
from .fields import OwnName

ProtocolName = Literal[
    "sync",
    "sync-c-rounds",
    "fedasync",
    "fedbuff",
    "ems-fl",
    "ems-fl-enhanced",
    "aligned",
    "networked",
    "central",
    "local",
]
PROTOCOLS: tuple[str, ...] = get_args(ProtocolName)
BY_CLIENT = frozenset({"aligned", "networked"})
"""Protocols that treat clients one by one."""
AT_HOME = frozenset({"central", "local"})
"""Protocols in which no model travels: ceiling and floor of the others."""


def _protocol(value: Any) -> Any:
    if isinstance(value, str) and value not in PROTOCOLS and not re.fullmatch(OWN, value):
        near = [name for name in PROTOCOLS if value and value in name] or get_close_matches(value, PROTOCOLS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown; {hint}choose from {', '.join(PROTOCOLS)}, or name module:Class of your own")
    return value


Protocol = Annotated[ProtocolName | OwnName, BeforeValidator(_protocol)]
