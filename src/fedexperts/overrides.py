"""Changes of a scenario's plain data as the command line writes them: ``section.key=value``, or with several values to try."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from .errors import InputError


def override(document: dict[str, Any], change: str, option: str = "--set") -> None:
    """Make one change; ``option`` heads the messages.

    Raises:
        InputError: it has another form, or there is no such table.
    """
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{option} {change}: must look like section.key=value, for example train.cycles=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        raise InputError(f"{option} {key.strip()[:80]}: is no value ({why(error)}); correct it") from error
    *tables, last = key.strip().split(".")
    table: Any = document
    for name in tables:
        table = _within(table, name, f"{option} {change}")
    if isinstance(table, list):
        raise InputError(f"{option} {change}: there are several such tables; {_numbered(table)}")
    table[last] = value


def _within(table: dict[str, Any] | list[Any], name: str, where: str) -> Any:
    """The table of this name, new if need be; of several, as ``[[cluster]]``, the one of this number, from 0."""
    if isinstance(table, dict):
        found = table.setdefault(name, {})
        if isinstance(found, dict) or (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
            return found
        raise InputError(f"{where}: {name} is not a table; correct the key")
    if name.isdecimal() and int(name) < len(table):
        return table[int(name)]
    raise InputError(f"{where}: there is no {name} among several tables; {_numbered(table)}")


def _numbered(tables: Sequence[Any]) -> str:
    return f"name one by its number, 0 to {len(tables) - 1}, as cluster.0.devices=2"


def why(error: ValueError | RecursionError) -> str:
    """What is wrong with a text in TOML, also where Python rather than its parser gives up."""
    if isinstance(error, tomllib.TOMLDecodeError):
        return str(error)
    return "nested too deep" if isinstance(error, RecursionError) else "a whole number of thousands of digits"


def varied(option: str, texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Keys and the values to try of each, from texts like ``train.lr_expert=1e-3,3e-3``; a value given again counts once.

    Raises:
        InputError: a text has another form, a value is empty, or a key is given twice.
    """
    tried: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key, found = key.strip(), tuple(value.strip() for value in _split(values))
        if not equals or not key or not any(found):
            raise InputError(f"{option} {text}: must look like section.key=value,value, for example model.lora.rank=4,8")
        if not all(found):
            raise InputError(f"{option} {text}: value {found.index('') + 1} is empty; give one, or take a comma out")
        if key in tried:
            raise InputError(f"{option} {text}: {key} is given twice; give its values once, with commas between")
        tried[key] = tuple(dict.fromkeys(found))
    return tried


def _split(values: str) -> list[str]:
    """At commas outside brackets and quotes."""
    return re.findall(r"""((?:\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*'|[^,])*),""", values + ",")
