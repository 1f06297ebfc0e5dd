"""Lines of a ledger, held to the table of `events`: by their keys when they are written, by what is read when they are read."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from typing import Any

from pydantic import ValidationError

from .errors import InputError
from .events import EVENTS, FORMAT, Line

NEEDED: dict[str, frozenset[str]] = {
    "run": frozenset({"protocol", "seed", "clusters", "target", "plateau"}),
    "assignment": frozenset({"experts", "clusters", "relevance", "assignment", "gamma", "advice"}),
    "baselines": frozenset({"clusters"}),
    "evaluate": frozenset({"cycle", "steps", "uplink_B", "downlink_B"}),
    "end": frozenset({"cycles", "late", "unsent_rounds", "steps", "uplink_B", "downlink_B"}),
    "energy": frozenset({"per_device"}),
    "align": frozenset({"assigned", "sat_out"}),
    "round": frozenset({"load"}),
    "warning": frozenset({"text"}),
    "train": frozenset(),
}
"""What readers cannot do without; each of these events has one form. All else may lack, as in earlier formats."""


def keys(form: type[Line]) -> tuple[frozenset[str], frozenset[str]]:
    """Facts that a line of the form must have, and all that it may have."""
    fields = {field.alias or name: field for name, field in form.model_fields.items() if name not in Line.model_fields}
    return frozenset(name for name, field in fields.items() if field.is_required()), frozenset(fields)


KEYS = {event: tuple(map(keys, forms)) for event, forms in EVENTS.items()}


def check(event: str, facts: AbstractSet[str]) -> None:
    """Hold a line that is to be written to the table, by its keys alone: it is done for every line of a run.

    Raises:
        ValueError: there is no such event, or none of its forms has these facts.
    """
    if event not in KEYS:
        raise ValueError(f"event {event!r}: is not in fedexperts.events; add it to the table there")
    for least, most in KEYS[event]:
        if least <= facts <= most:
            return
    least, most = min(KEYS[event], key=lambda form: len(form[0] - facts) + len(facts - form[1]))
    wrong = [f"{word} {', '.join(sorted(names))}" for word, names in (("lacks", least - facts), ("has", facts - most)) if names]
    raise ValueError(
        f"event {event!r}: {' and '.join(wrong)}; its fields are in docs/ledger.md (fedexperts.events); an event of your own "
        "needs another name"
    )


def check_format(found: Any, where: str) -> None:
    """Refuse what a later version has written.

    Raises:
        InputError: the format is newer than ours, or is none.
    """
    if type(found) is not int or found < 1:
        raise InputError(f"{where}: format = {found!r}: must be a whole number from 1 to {FORMAT}; the file is damaged")
    if found > FORMAT:
        raise InputError(
            f"{where}: written by a newer fedexperts (format {found}); this one reads up to {FORMAT}; update fedexperts"
        )


def parsed(text: bytes, where: str) -> dict[str, Any]:
    """A line of a ledger.

    Raises:
        InputError: it is none, with ``where``, the field and what is wrong with it; or it begins a ledger of a newer format.
    """
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, thousands of digits or brackets
        raise InputError(f"{where}: is not JSON ({error}); the file is damaged") from error
    event = str(line.get("event")) if isinstance(line, dict) else ""
    if event == "run":
        check_format(line.get("format", 1), where)
    needed = NEEDED.get(event)
    form = Line if needed is None else EVENTS[event][0]
    try:
        form.model_validate(line)
    except ValidationError as error:
        for one in error.errors(include_url=False, include_input=False):
            if needed is None or one["type"] != "missing" or one["loc"][0] in needed or len(one["loc"]) > 1:
                at = ".".join(map(str, one["loc"])) or "the line"
                raise InputError(f"{where}: {at}: {one['msg'].lower()}; no run has written this line") from error
    except RecursionError as error:
        raise InputError(f"{where}: is not JSON ({error}); the file is damaged") from error
    found: dict[str, Any] = line
    return found
