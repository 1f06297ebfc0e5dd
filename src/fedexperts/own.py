"""Classes and functions of the user's own, which scenarios and the command line name as ``module:name``."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import InputError

OWN = r"^[^:\s]+:[^:\s]+$"
"""How a name of the user's own looks."""


def is_own(name: str) -> bool:
    """Whether it names something of the user's own, and not something of ours."""
    return ":" in name


def label(name: str) -> str:
    """What it is called in ledgers, tables and folders: the name without its module."""
    return name.rpartition(":")[2]


def named(thing: Any) -> str:
    """How a scenario names a class or function that was given in Python."""
    name = getattr(thing, "__name__", "")
    return f"{getattr(thing, '__module__', '__main__')}:{name if name.isidentifier() else 'custom'}"


def imported_class(key: str, name: str, beside: Path) -> type:
    """`imported`, of a class.

    Raises:
        InputError: there is none of this name, or it is no class.
    """
    found = imported(key, name, beside)
    if not isinstance(found, type):
        raise InputError(f"{key} = {name!r}: is no class; name module:Class, as my_protocol:TurnTaking")
    return found


def imported(key: str, name: str, beside: Path) -> Any:
    """What ``module:name`` stands for: of the current folder, of ``beside``, or of what is installed.

    Args:
        key: of the scenario, for messages.
        name: ``module:name``.
        beside: the scenario's folder.

    Raises:
        InputError: there is none of this name, or its module does not run.
    """
    module, _, what = name.partition(":")
    folders = [os.getcwd(), str(beside.resolve())]
    sys.path[:0] = folders
    try:
        return getattr(import_module(module), what)
    except Exception as error:  # the module is the user's, and may raise anything
        raise InputError(
            f"{key} = {name!r}: cannot be imported ({error}); name module:name, of a file in this folder or beside the "
            "scenario, as my_protocol:TurnTaking"
        ) from error
    finally:
        del sys.path[: len(folders)]
