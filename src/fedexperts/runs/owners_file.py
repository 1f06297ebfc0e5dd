"""Reading who owns which expert: what ``fedexperts assign --json`` prints, or clusters with the numbers of their experts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..moe.parts import EXPERT
from ..reading import read_json, short

MOST_B = 2**24
NUMBER = re.compile(r"(expert:)?\d+(\.\d+)?")


def read_owners(path: Path) -> dict[str, frozenset[str]]:
    """Expert parts by cluster.

    Raises:
        InputError: the file cannot be read, or does not say who owns what.
    """
    document = read_json(path, "--owners", MOST_B)
    table: Any = document.get("assignment", document) if isinstance(document, dict) else document
    if not isinstance(table, dict) or not all(isinstance(row, list) for row in table.values()):
        raise InputError(
            f'{path}: must be clusters with their experts, as {{"lisbon": [0, 2], "oslo": [1]}}, or what assign --json prints'
        )
    found = {str(name): [_part(path, name, one) for one in row] for name, row in table.items()}
    for name, parts in found.items():
        if twice := next((part for part in parts if parts.count(part) > 1), None):
            raise InputError(f"{path}: {name}: {twice} twice; name it once")
    return {name: frozenset(parts) for name, parts in found.items()}


def _part(path: Path, name: str, one: Any) -> str:
    text = str(one)
    if isinstance(one, bool) or not isinstance(one, (int, str)) or not NUMBER.fullmatch(text):
        raise InputError(f"{path}: {name}: {short(one)} is no expert; give its number, as 2, or layer.number, as 0.2")
    return text if text.startswith(EXPERT) else EXPERT + text
